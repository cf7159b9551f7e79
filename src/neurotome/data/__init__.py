"""From scans on disk to the batches a method sees."""
