"""Synthetic brains whose anatomy, lesions and style are known."""
