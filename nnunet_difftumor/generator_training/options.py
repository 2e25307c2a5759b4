"""Words of the training commands that others need too."""

from __future__ import annotations

import argparse
from pathlib import Path

PRESETS = ("nano", "tiny", "base", "large")


CACHE_FOLDER = "crop_cache"


def cache_folder(options: argparse.Namespace) -> Path:
    """Return the cache folder of a run: --cache, or `crop_cache` beside --output."""
    return options.cache if options.cache is not None else options.output.resolve().parent / CACHE_FOLDER
