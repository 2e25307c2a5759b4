"""What tells that a file has changed: its size and its time of change."""

from __future__ import annotations

from pathlib import Path


def stamp_of(path: Path) -> list[int]:
    """Size in bytes and time of change in nanoseconds of a file, as JSON holds them."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
