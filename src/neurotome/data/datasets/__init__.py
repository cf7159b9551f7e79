"""Finding the scans of a dataset: BIDS, nnU-Net, tables, manifests, splits, fingerprints."""
