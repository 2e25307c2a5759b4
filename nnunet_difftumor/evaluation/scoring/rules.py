"""The numbers that decide what counts as a tumour, as found, and as small."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from nnunet_difftumor.errors import ConfigurationError

TOLERANCES_MM = (1.0, 2.0)
"""Tolerances of the normalised surface distance."""

CONFIDENCES = ("max", "mean")
"""How the probabilities of a predicted tumour become its score."""

Bin = tuple[str, float, float]
"""Name, lower end (within) and upper end (beyond)."""


def bins_of(edges: Sequence[float], unit: str) -> tuple[Bin, ...]:
    """Bins between edges and beyond them: "<10 mm", "10-20 mm", ">=20 mm"; "any mm" without an edge."""
    names = [f"{low:g}-{high:g} {unit}" for low, high in itertools.pairwise(edges)]
    names = [f"<{edges[0]:g} {unit}", *names, f">={edges[-1]:g} {unit}"] if edges else [f"any {unit}"]
    limits = itertools.pairwise((0.0, *edges, math.inf))
    return tuple((name, low, high) for name, (low, high) in zip(names, limits, strict=True))


def bin_of(value: float, bins: Sequence[Bin]) -> str:
    """Name of the bin that holds a value; empty if none does."""
    return next((name for name, low, high in bins if low <= value < high), "")


SIZE_BINS_MM = bins_of((10.0, 20.0, 50.0), "mm")
"""Bins of the diameter of tumours."""


@dataclass(frozen=True, kw_only=True)
class ScoringRules:
    """What counts.

    Attributes:
        match_iou: Smallest intersection over union at which a predicted tumour finds a reference tumour.
        smallest_voxels: Components of fewer voxels are specks and count for nothing.
        smallest_mm3: So are components of a smaller volume; 14 mm3 is a sphere of 3 mm.
        confidence: The score of a predicted tumour is the "max" or the "mean" of its probabilities.
    """

    match_iou: float = 0.1
    smallest_voxels: int = 8
    smallest_mm3: float = 14.0
    confidence: str = "max"

    def __post_init__(self) -> None:
        if not 0.0 < self.match_iou <= 1.0:
            raise ConfigurationError(f"match_iou must be above 0 and at most 1, got {self.match_iou}. Try 0.1.")
        if self.confidence not in CONFIDENCES:
            raise ConfigurationError(f"confidence must be one of {', '.join(CONFIDENCES)}, got {self.confidence!r}.")
