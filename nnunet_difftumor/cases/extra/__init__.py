"""Healthy cases of other data sets."""
