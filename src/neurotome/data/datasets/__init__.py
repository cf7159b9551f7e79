"""Many scans: BIDS, nnU-Net, tables, manifests, splits, fingerprints."""
