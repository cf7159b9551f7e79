"""Finding what is wrong with scans, datasets and stores."""
