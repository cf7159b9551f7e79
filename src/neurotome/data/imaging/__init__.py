"""Reading and writing one scan: its voxels, its header, and where it lies in the head."""
