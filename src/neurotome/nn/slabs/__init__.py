"""Large volumes through a network piece by piece."""
