"""Crops to a generator folder; here what the commands need before anything heavy is imported."""

PRESETS = ("nano", "tiny", "base", "large")
CACHE_FOLDER = "crop_cache"

SPACING_RANGE_MM = (1.5, 6.0)
EARLY_RADIUS_MM = 10.0
"""Early tumours are at most 2 cm across (diameter of the sphere of equal volume)."""
