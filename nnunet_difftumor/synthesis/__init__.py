"""A tumour onto a CT."""
