"""Where the visible edge of a tumour lies against the outline of its label, which is what a reader draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.errors import DiffTumorError

if TYPE_CHECKING:
    from diffusion.generator.info import EdgeStatistics

_SPAN_OF_WIDTH = 2.8794
"""A smoothstep rises from a quarter to three quarters over 1 / 2.8794 of its span."""
_LARGEST_DEVIATION_SD = 2.0
_WIDTH_OF_VOXEL = 0.2010
"""A voxel's side squared is a variance of 1 / 12, a smoothstep's width squared one of 0.4145; the variances add."""
_LEAST_SHARPENED = 0.3
_NARROWEST_MM = 0.5
_MOST_OFFSET_SHARE = 0.6


@dataclass(frozen=True, kw_only=True)
class Edge:
    """The edge of one tumour: how its tissue gives way to the host's with the signed distance to the outline.

    Attributes:
        offset_mm: Distance at which half of the tumour's depth in HU is reached; negative inside the label.
        width_mm: Distance over which the share of tumour tissue falls from three quarters to a quarter.
    """

    offset_mm: float = 0.0
    width_mm: float = 1.0

    def __post_init__(self) -> None:
        if not self.width_mm > 0:
            raise DiffTumorError(f"An edge needs width_mm > 0, got {self.width_mm:g}.")

    @property
    def outer_mm(self) -> float:
        """Distance from the outline beyond which no tissue of the tumour lies, in mm; negative inside the label."""
        return self.offset_mm + 0.5 * _SPAN_OF_WIDTH * self.width_mm

    def share(self, distance_mm: NDArray[np.floating]) -> NDArray[np.float32]:
        """Share of tumour tissue, a smoothstep from 1 inside to 0, by the signed distance to the outline in mm."""
        position = np.clip((self.outer_mm - distance_mm) / (_SPAN_OF_WIDTH * self.width_mm), 0.0, 1.0)
        return (position * position * (3.0 - 2.0 * position)).astype(np.float32)

    def within_voxels(self, side_mm: float, grid_mm: float = 0.0) -> Edge:
        """Return the edge of the tissue itself, which voxels of this side blur to this edge when they average it.

        Args:
            grid_mm: Distance of the points at which the tissue is sampled, if voxels average what lies on straight
                lines between them; that blurs too, by a triangle whose variance is a sixth of the squared distance.
        """
        sharpest_mm = _LEAST_SHARPENED * self.width_mm
        square_mm2 = self.width_mm**2 - _WIDTH_OF_VOXEL * (side_mm**2 + 2.0 * grid_mm**2)
        return Edge(offset_mm=self.offset_mm, width_mm=max(sharpest_mm, math.sqrt(max(square_mm2, 0.0))))

    def limited_to(self, radius_mm: float) -> Edge:
        """Return the edge that fits a tumour's radius: 0.4 to 1.6 of it visible, with its full depth in the middle."""
        most_mm = _MOST_OFFSET_SHARE * radius_mm
        offset_mm = min(max(self.offset_mm, -most_mm), most_mm)
        return Edge(offset_mm=offset_mm, width_mm=min(self.width_mm, 2.0 * (radius_mm + offset_mm) / _SPAN_OF_WIDTH))


def draw_edge(law: Sequence[EdgeStatistics], radius_mm: float, rng: np.random.Generator) -> Edge:
    """Draw the edge of a tumour from what was measured on annotated ones of about its size (see `EdgeStatistics`).

    Without a law, the visible edge lies on the outline, as wide as 0.13 of the radius, between 0.4 and 1.3 mm.
    """
    deviations = np.clip(rng.normal(size=2), -_LARGEST_DEVIATION_SD, _LARGEST_DEVIATION_SD)  # with and without a law
    own = of_size(law, radius_mm)
    if own is None:
        return Edge(offset_mm=0.0, width_mm=float(np.clip(0.13 * radius_mm, 0.43, 1.3)))
    offset_mm = own.offset_mm + own.offset_sd_mm * float(deviations[0])
    width_mm = max(_NARROWEST_MM, own.width_mm + own.width_sd_mm * float(deviations[1]))
    return Edge(offset_mm=offset_mm, width_mm=width_mm).limited_to(radius_mm)


def of_size(law: Sequence[EdgeStatistics], radius_mm: float) -> EdgeStatistics | None:
    """What a law says of tumours of a radius in mm; None if nothing."""
    fitting = [each for each in law if each.from_diameter_mm <= 2.0 * radius_mm]
    return max(fitting, key=lambda each: each.from_diameter_mm, default=None)


def describe_law(law: Sequence[EdgeStatistics]) -> str:
    """Say in words what a law of edges draws."""
    if not law:
        return "half of a tumour's depth lies on its outline (no annotated tumour was measured)"
    parts = [
        f"{each.offset_mm:+.1f} mm from the outline and {each.width_mm:.1f} mm wide from {each.from_diameter_mm:g} mm"
        for each in law
    ]
    return "half of a tumour's depth lies " + "; ".join(parts)
