"""Words of the training commands that others need too."""

PRESETS = ("nano", "tiny", "base", "large")
CACHE_FOLDER = "crop_cache"
