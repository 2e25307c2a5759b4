"""A scan and its labels."""
