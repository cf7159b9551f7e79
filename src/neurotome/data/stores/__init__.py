"""What training reads: prepared sessions, latents, batches."""
