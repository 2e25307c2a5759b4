"""Crops to a generator folder."""
