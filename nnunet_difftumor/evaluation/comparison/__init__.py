"""Scores to a verdict."""
