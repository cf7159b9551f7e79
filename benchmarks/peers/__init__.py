"""Plain restatements of published designs, written here; never copied code."""
