"""What is wrong with scans, datasets and stores."""
