"""Trained networks that take scans."""
