"""Files whole or not at all, locks, bounded readers, process pools: the plumbing, once."""
