"""What is done to scans before a network sees them, recorded and invertible."""
