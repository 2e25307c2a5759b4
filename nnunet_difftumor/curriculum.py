"""Optional curriculum: what the network misses on a fixed set of synthetic tumours is drawn more often.

The workers that draw tumours are other processes, so that they learn of it through a small file in the output folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_difftumor.atomic_files import write_json
from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.sizes import SizeClass

CURRICULUM_FILE_NAME = "difftumor_curriculum.json"
HIT_SHARE = 0.1
"""A tumour is found if this share of its voxels is predicted as tumour."""

LARGEST_FACTOR = 3.0
_STRENGTH = 2.0
_LARGEST_FAINT_SHARE = 0.5


@dataclass(frozen=True)
class Trial:
    """One synthetic tumour of the fixed set and whether the network found it.

    Attributes:
        target: Number of its target.
        size_class: Name of its size class.
        contrast_hu: Contrast that it has, in HU.
        is_found: The network found it.
    """

    target: int
    size_class: str
    contrast_hu: float
    is_found: bool


@dataclass(frozen=True)
class Emphasis:
    """What is drawn more often for one target.

    Attributes:
        factors: Factor of each size class's frequency, from 1/3 to 3; classes that were not tried keep 1.
        faint_share: Share of the tumours whose look is the fainter one of two, from 0 to 0.5.
    """

    factors: Mapping[str, float] = field(default_factory=dict)
    faint_share: float = 0.0

    def apply_to(self, size_classes: Sequence[SizeClass]) -> tuple[SizeClass, ...]:
        """Return size classes with changed frequencies."""
        return tuple(
            replace(size, probability=size.probability * self.factors.get(size.name, 1.0)) for size in size_classes
        )


NO_EMPHASIS = Emphasis()


def emphasise(trials: Sequence[Trial]) -> dict[int, Emphasis]:
    """Derive from a round of trials what shall be drawn more often.

    A class whose share of misses is above the target's mean gets a factor 1 + 2 (difference), limited to 1/3 and 3.
    Fainter looks are preferred by as much as the fainter half is missed more often than the other, up to 0.5.

    Args:
        trials: The trials.

    Returns:
        Emphasis by target.
    """
    result = {}
    for target in sorted({trial.target for trial in trials}):
        own = [trial for trial in trials if trial.target == target]
        mean = _miss_share(own)
        factors = {}
        for name in sorted({trial.size_class for trial in own}):
            difference = _miss_share([trial for trial in own if trial.size_class == name]) - mean
            factors[name] = float(np.clip(1.0 + _STRENGTH * difference, 1.0 / LARGEST_FACTOR, LARGEST_FACTOR))
        middle_hu = float(np.median([abs(trial.contrast_hu) for trial in own]))
        faint = [trial for trial in own if abs(trial.contrast_hu) < middle_hu]
        strong = [trial for trial in own if abs(trial.contrast_hu) >= middle_hu]
        difference = _miss_share(faint) - _miss_share(strong) if faint else 0.0
        result[target] = Emphasis(factors, float(np.clip(difference, 0.0, _LARGEST_FAINT_SHARE)))
    return result


def _miss_share(trials: Sequence[Trial]) -> float:
    return float(np.mean([not trial.is_found for trial in trials])) if trials else 0.0


def describe_emphasis(trials: Sequence[Trial], emphasis: Mapping[int, Emphasis]) -> str:
    """Return a round of trials as one line for the training log."""
    found = sum(trial.is_found for trial in trials)
    parts = []
    for target, each in emphasis.items():
        factors = ", ".join(f"{name} x {factor:.2f}" for name, factor in each.factors.items())
        parts.append(f"target {target}: {factors}, faint looks {each.faint_share:.2f}")
    return (
        f"Curriculum: {found} of {len(trials)} synthetic tumours of the fixed set found; drawn now: {'; '.join(parts)}"
    )


def write_emphasis(folder: Path, epoch: int, trials: Sequence[Trial], emphasis: Mapping[int, Emphasis]) -> None:
    """Write the current emphasis for the workers, with all rounds so far.

    Args:
        folder: The training's output folder.
        epoch: Number of the epoch.
        trials: Trials of this round.
        emphasis: What follows from them.
    """
    path = folder / CURRICULUM_FILE_NAME
    rounds = [entry for entry in _read(path).get("rounds", []) if entry["epoch"] < epoch]
    values = {str(target): asdict(each) for target, each in emphasis.items()}
    rounds.append({"epoch": epoch, "trials": [asdict(trial) for trial in trials], "emphasis": values})
    write_json(path, {"emphasis": values, "rounds": rounds}, overwrite=True)


def forget_emphasis(folder: Path) -> None:
    """Remove what an earlier training left in an output folder, when a new one starts there."""
    (folder / CURRICULUM_FILE_NAME).unlink(missing_ok=True)


class EmphasisReader:
    """Reads the current emphasis where it has changed."""

    def __init__(self, folder: Path) -> None:
        """Watch an output folder."""
        self._path = folder / CURRICULUM_FILE_NAME
        self._stamp: int | None = None
        self._emphasis: dict[int, Emphasis] = {}

    def current(self, target: int) -> Emphasis:
        """Return what is drawn more often for a target; nothing before the first round."""
        try:
            stamp = self._path.stat().st_mtime_ns
        except FileNotFoundError:
            return NO_EMPHASIS
        if stamp != self._stamp:
            values = _read(self._path)["emphasis"]
            self._emphasis = {
                int(number): Emphasis(dict(each["factors"]), float(each["faint_share"]))
                for number, each in values.items()
            }
            self._stamp = stamp
        return self._emphasis.get(target, NO_EMPHASIS)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DiffTumorError(f"{path} is no valid JSON ({error}). Remove it: the next round writes it anew.") from error
