"""Trained networks put to use on files: scans and stores in, scans, latents and numbers out."""
