"""Tokenizers with one anatomy for all contrasts: NeuroQuant, Anatome, and what they share."""
