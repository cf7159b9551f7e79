"""Any trained network on disk."""
