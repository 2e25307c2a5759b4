"""A tumour before it has tissue."""
