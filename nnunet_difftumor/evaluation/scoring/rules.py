"""The numbers that decide what counts as a tumour, as found, and as small."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nnunet_difftumor.errors import ConfigurationError

TOLERANCES_MM = (1.0, 2.0)
"""Tolerances of the normalised surface distance."""

CONFIDENCES = ("max", "mean")
"""How the probabilities of a predicted tumour become its score."""

SIZE_BINS_MM: tuple[tuple[str, float, float], ...] = (
    ("<10 mm", 0.0, 10.0),
    ("10-20 mm", 10.0, 20.0),
    ("20-50 mm", 20.0, 50.0),
    (">=50 mm", 50.0, math.inf),
)
"""Name, smallest diameter and the diameter below which a tumour belongs to the bin."""


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


def size_bin(diameter_mm: float) -> str:
    """Return the name of the size bin of a diameter in mm."""
    return next(name for name, low, high in SIZE_BINS_MM if low <= diameter_mm < high)
