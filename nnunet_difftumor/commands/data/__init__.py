"""Commands that make data ready."""
