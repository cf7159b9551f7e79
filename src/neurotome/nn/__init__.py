"""Building blocks: pure modules and functions on tensors."""
