"""Exact drawing of a tumour's label and blending weight on any grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.ct.boxes import as_box
from nnunet_difftumor.ct.components import equivalent_diameter_mm
from nnunet_difftumor.ct.grid import require_bounded
from nnunet_difftumor.ct.resample import Vector, average_onto, resample
from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.tumor.appearance import Appearance
from nnunet_difftumor.tumor.rim import signed_distance_mm
from nnunet_difftumor.tumor.spec import TumorSpec
from nnunet_difftumor.tumor.surface import TumorSurface

_EXACT_DRAWING_VOXELS = 120_000
_SMALLEST_WEIGHT = np.float32(1e-3)


@dataclass(frozen=True)
class DrawnTumor:
    """A tumour drawn on a grid, before anything is clipped.

    Attributes:
        start: Voxel index of the box's corner in the grid, may be negative. (D, H, W).
        label: True where the voxel belongs to the tumour. Shape of the box.
        weight: Share of synthetic tissue in the voxel, 0 outside the soft rim. Shape of the box.
    """

    start: tuple[int, int, int]
    label: NDArray[np.bool_]
    weight: NDArray[np.float32]

    @classmethod
    def of(cls, start: NDArray[np.int64], label: NDArray[np.bool_], weight: NDArray[np.float32]) -> DrawnTumor:
        """Give every voxel of the label at least the smallest weight; what lies below it elsewhere is 0."""
        weight = np.where(label, np.maximum(weight, _SMALLEST_WEIGHT), weight).astype(np.float32)
        weight[weight < _SMALLEST_WEIGHT] = 0.0
        depth, height, width = start.tolist()
        return cls((depth, height, width), label, weight)


def rim_width_mm(radius_mm: float) -> float:
    """Width of the soft rim outside the surface in mm: 0.3 of the radius, between 1 and 3 mm."""
    return float(np.clip(0.3 * radius_mm, 1.0, 3.0))


def draw_on_grid(surface: TumorSurface, spacing_mm: Vector) -> DrawnTumor:
    """Draw label and blending weight of a tumour on a grid that starts at 0 mm and has no end.

    The label is the set of voxels with the largest share of tumour whose joint volume is nearest to the
    tumour's own, so that the volume is right at any spacing. The weight falls from 1 inside the surface
    to 0 at the outer edge of the rim and is averaged over the voxel.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    rim_mm = rim_width_mm(surface.spec.radius_mm)
    centre = np.asarray(surface.spec.centre_mm)
    reach_mm = surface.half_extent_mm + rim_mm + 0.5 * spacing
    start = np.floor((centre - reach_mm) / spacing).astype(int)
    stop = np.ceil((centre + reach_mm) / spacing).astype(int) + 1
    shape = stop - start
    require_bounded(shape, f"A tumour of {surface.spec.radius_mm:g} mm radius on voxels of {spacing.tolist()} mm")
    fine_shape, fine_spacing, fine_start = _fine_grid(surface, shape, spacing, start * spacing)
    distance_mm = surface.signed_distance_on_grid(fine_shape, fine_spacing, fine_start)

    offset_mm = start * spacing - fine_start
    edge_mm = float(fine_spacing.min())
    ramp = np.clip(0.5 - distance_mm / edge_mm, 0.0, 1.0).astype(np.float32)
    share = average_onto(ramp, fine_spacing, shape, spacing, offset_mm)
    mean_distance_mm = average_onto(distance_mm, fine_spacing, shape, spacing, offset_mm)
    weight = average_onto(_soft_rim(distance_mm, rim_mm), fine_spacing, shape, spacing, offset_mm)
    count = max(1, round(surface.volume_mm3 / float(np.prod(spacing))))
    return DrawnTumor.of(start, _largest(share, mean_distance_mm, count), weight)


def _fine_grid(
    surface: TumorSurface, shape: NDArray[np.int64], spacing: NDArray[np.float64], start_mm: NDArray[np.float64]
) -> tuple[tuple[int, int, int], NDArray[np.float64], NDArray[np.float64]]:
    """Grid on which the distance is evaluated: fine against the tumour, bounded in number."""
    extent_mm, radius_mm = shape * spacing, surface.spec.radius_mm
    bounded = (np.prod(extent_mm) / _EXACT_DRAWING_VOXELS) ** (1.0 / 3.0)
    fine = np.maximum(np.minimum(spacing, radius_mm / 6.0), min(bounded, radius_mm / 4.0))
    counts = np.ceil(extent_mm / fine).astype(int) + 1
    return (int(counts[0]), int(counts[1]), int(counts[2])), fine, start_mm - 0.5 * spacing


def _soft_rim(distance_mm: NDArray[np.float32], rim_mm: float) -> NDArray[np.float32]:
    """Smoothstep from 1 at a quarter of a rim inside the surface to 0 at the rim's outer edge."""
    position = np.clip((rim_mm - distance_mm) / (1.25 * rim_mm), 0.0, 1.0)
    return (position * position * (3.0 - 2.0 * position)).astype(np.float32)


def _largest(share: NDArray[np.float32], distance_mm: NDArray[np.float32], count: int) -> NDArray[np.bool_]:
    """Mask of the `count` voxels with the largest share; the mean distance breaks ties."""
    mask = (share >= 0.999).ravel()
    missing = count - int(mask.sum())
    if missing < 0:
        mask[:] = False
        missing = count
    candidates = np.flatnonzero((share.ravel() > 0.0) & ~mask)
    order = np.lexsort((distance_mm.ravel()[candidates], -share.ravel()[candidates]))
    mask[candidates[order[:missing]]] = True
    return mask.reshape(share.shape)


class MaskSurface:
    """Surface of a tumour that a person drew as a mask; the mask is used as it is."""

    def __init__(self, mask: NDArray[np.bool_], spacing_mm: Vector, seed: int, appearance: Appearance | None = None):
        """Measure a mask, True inside the tumour, of shape (D, H, W).

        The seed is that of the generator's noise; without a look, the generator chooses it.

        Raises:
            DiffTumorError: If the mask is empty.
        """
        appearance = appearance or Appearance()
        voxels = np.argwhere(mask)
        if len(voxels) == 0:
            raise DiffTumorError("The tumour mask has no voxel. Draw at least one voxel in the organ.")
        spacing = np.asarray(spacing_mm, dtype=np.float64)
        low, high = voxels.min(axis=0) * spacing, voxels.max(axis=0) * spacing
        self.half_extent_mm = 0.5 * (high - low + spacing)
        volume_mm3 = len(voxels) * float(np.prod(spacing))
        self.spec = TumorSpec(
            centre_mm=(0.0, 0.0, 0.0),
            radius_mm=0.5 * equivalent_diameter_mm(volume_mm3),
            seed=seed,
            contrast_hu=appearance.contrast_hu,
            heterogeneity_hu=appearance.heterogeneity_hu,
            size_class="mask",
        ).moved_to(0.5 * (low + high))
        margin = np.ceil(2.0 * rim_width_mm(self.spec.radius_mm) / spacing).astype(int) + 2
        self._start = voxels.min(axis=0) - margin
        self._spacing_mm = spacing
        tumor = mask[as_box(voxels.min(axis=0), voxels.max(axis=0) + 1)]
        self._label = np.pad(tumor, [(reach, reach) for reach in margin.tolist()])
        self._distance_mm = signed_distance_mm(self._label, spacing.tolist())

    def signed_distance_on_grid(
        self, shape: Sequence[int], spacing_mm: Vector, start_mm: Vector
    ) -> NDArray[np.float32]:
        """Signed distance at the voxel centres of a grid (see `TumorSurface.signed_distance_on_grid`)."""
        offset_mm = np.asarray(start_mm) - self._start * self._spacing_mm
        far_mm = float(self._distance_mm.max())
        return resample(self._distance_mm, self._spacing_mm, shape, spacing_mm, offset_mm, fill_value=far_mm)

    def draw(self) -> DrawnTumor:
        """Return the mask with its blending weight, on the grid of the mask."""
        weight = _soft_rim(self._distance_mm, rim_width_mm(self.spec.radius_mm))
        return DrawnTumor.of(self._start, self._label, weight)
