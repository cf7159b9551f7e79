"""Latents made discrete."""
