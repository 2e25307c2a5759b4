"""What nnU-Net's logs and checkpoints in the folder of a fold say about its epochs."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

_CHECKPOINTS_TO_CONTINUE = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
"""From which nnU-Net goes on with `--c`: the first one that is there."""
_LINE_OF_EPOCH = re.compile(
    r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.\d+)?: Epoch (?:(\d+)|time: ([\d.]+) s) *$", re.MULTILINE
)


def seconds_per_epoch(folder: Path) -> float | None:
    """Median time of an epoch, in s; None if none was finished."""
    times = [float(seconds) for _, _, seconds in _lines_of_epochs(folder) if seconds]
    return statistics.median(times) if times else None


def epochs_begun(folder: Path) -> int:
    """Number of epochs that were trained at least in part."""
    return 1 + max((int(number) for _, number, _ in _lines_of_epochs(folder) if number), default=-1)


def epochs_saved(folder: Path) -> int:
    """Number of epochs in the checkpoint that nnU-Net would continue from.

    A checkpoint that is younger than the middle of an epoch holds it, also where a file server's clock is a little off.
    """
    checkpoints = [folder / name for name in _CHECKPOINTS_TO_CONTINUE]
    saved_at = next((path.stat().st_mtime for path in checkpoints if path.is_file()), float("-inf"))
    epoch, saved = 0, -1
    for ended_at, number, seconds in _lines_of_epochs(folder):
        if number:
            epoch = int(number)
        elif datetime.fromisoformat(ended_at).timestamp() - float(seconds) / 2 <= saved_at:
            saved = max(saved, epoch)
    return saved + 1


def _lines_of_epochs(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Time of each line that begins or ends an epoch; the number of the epoch that begins, or the seconds it took."""
    for path in folder.glob("training_log_*.txt"):
        yield from _LINE_OF_EPOCH.findall(path.read_text(encoding="utf-8", errors="replace"))
