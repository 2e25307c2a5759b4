"""Crops to a generator folder; here what the commands need before anything heavy is imported."""

PRESETS = ("nano", "tiny", "base", "large")
CACHE_FOLDER = "crop_cache"
