"""What a trained network is worth: metrics.json."""
