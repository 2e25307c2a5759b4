"""The region of interest in which one tumour is generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.ct.boxes import as_box, box_of, ends_of
from nnunet_difftumor.ct.resample import AIR_HU, resample
from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.tumor.drawing import MaskSurface
from nnunet_difftumor.tumor.edge import Edge
from nnunet_difftumor.tumor.surface import TumorSurface


@dataclass(frozen=True, kw_only=True)
class RoiRule:
    """Which grid a generator sees for a tumour.

    Attributes:
        sides: Sides in voxels that the generator was trained on.
        margin_voxels: Voxels between the tumour's tissue and the edge of the region.
        spacing_range_mm: Finest and coarsest isotropic spacing that the generator was trained on, in mm.
    """

    sides: tuple[int, ...]
    margin_voxels: int
    spacing_range_mm: tuple[float, float]

    def __post_init__(self) -> None:
        if not self.sides or max(self.sides) // 2 <= self.margin_voxels:
            raise DiffTumorError(
                f"A region of interest of {max(self.sides, default=0)} voxels leaves no room for a tumour with a "
                f"margin of {self.margin_voxels} voxels; use a generator trained on larger sides."
            )


@dataclass(frozen=True)
class RegionOfInterest:
    """An isotropic cube around a tumour.

    Attributes:
        start_mm: Position of voxel (0, 0, 0) in the frame of the host's grid, in mm. (D, H, W).
    """

    side: int
    spacing_mm: float
    start_mm: tuple[float, float, float]

    def sample(
        self, image_hu: NDArray[np.floating], spacing_mm: Sequence[float], valid_mask: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """Sample a host image on the region, in HU. Tissue at the edge of the scan, or of its padding, goes on outside.

        Air there would be an edge that the scan does not have: beside it the autoencoder's reconstruction is too
        dark, and a tumour that touches it too bright.

        Args:
            image_hu: Host image in HU. Shape (D, H, W).
            valid_mask: True in real CT, False in padding around it. Shape (D, H, W).
        """
        spacing, start_mm = np.asarray(spacing_mm), np.asarray(self.start_mm)
        reach_mm = np.maximum(spacing, self.spacing_mm)  # half-width of the resampling kernel
        end_mm = start_mm + (self.side - 1) * self.spacing_mm
        lowest, highest = _bounds(valid_mask, image_hu.shape)
        first = np.clip(np.floor((start_mm - reach_mm) / spacing).astype(int), lowest, highest - 1)
        last = np.clip(np.ceil((end_mm + reach_mm) / spacing).astype(int) + 1, first + 1, highest)
        near = as_box(first, last)
        part = image_hu[near]
        if valid_mask is not None:
            part = np.where(valid_mask[near], part, np.float32(AIR_HU))
        shape, isotropic_mm = (self.side,) * 3, (self.spacing_mm,) * 3
        return resample(part, spacing, shape, isotropic_mm, start_mm - first * spacing, fill_value=None)

    def distance_mm(self, surface: TumorSurface | MaskSurface) -> NDArray[np.float32]:
        """Signed distance to a tumour's outline in mm, infinite where nothing of it is. Shape (side, side, side)."""
        reach_mm = np.asarray(surface.half_extent_mm) + max(0.0, surface.spec.edge.outer_mm)
        reach = reach_mm / self.spacing_mm + 1.0
        centre = (np.asarray(surface.spec.centre_mm) - np.asarray(self.start_mm)) / self.spacing_mm
        first = np.clip(np.floor(centre - reach).astype(int), 0, self.side - 1)
        stop = np.clip(np.ceil(centre + reach).astype(int) + 1, first + 1, self.side)
        start_mm = np.asarray(self.start_mm) + first * self.spacing_mm
        part_mm = surface.signed_distance_on_grid((stop - first).tolist(), (self.spacing_mm,) * 3, start_mm)
        distance_mm = np.full((self.side,) * 3, np.inf, dtype=np.float32)
        distance_mm[as_box(first, stop)] = part_mm
        return distance_mm

    def tissue_mask(self, distance_mm: NDArray[np.float32], edge: Edge) -> NDArray[np.bool_]:
        """Where a generator shall make tissue, by the distance to the outline; at least one voxel. Same shape.

        The fill reaches a voxel beyond this mask (see `fill_tumor_region`), and so as far as any of the tissue is
        used; half of the depth and more is always inside.
        """
        mask = distance_mm <= max(edge.offset_mm, edge.outer_mm - self.spacing_mm)
        mask.flat[int(np.argmin(distance_mm))] = True
        return mask


def choose_roi(
    surface: TumorSurface | MaskSurface, host_spacing_mm: Sequence[float], rule: RoiRule
) -> RegionOfInterest:
    """Choose the smallest region that holds a tumour, at the finest spacing that is worth its cost.

    The spacing is the finest of the generator's range, but not finer than the host's own finest axis
    unless the tumour would then be under three voxels in radius, and not coarser than the range; it gets coarser where
    the largest side could not hold the tumour otherwise, so that the cost of any tumour is bounded. It is centred on
    the tumour.
    """
    radius_mm = surface.spec.radius_mm
    (finest_mm, coarsest_mm), edge = rule.spacing_range_mm, surface.spec.edge
    extent_mm = float(surface.half_extent_mm.max()) + max(edge.offset_mm, edge.outer_mm - finest_mm)
    spacing_mm = min(max(finest_mm, min(min(host_spacing_mm), radius_mm / 3.0)), coarsest_mm)
    largest = max(rule.sides)
    spacing_mm = max(spacing_mm, extent_mm / (largest / 2 - rule.margin_voxels))
    needed = 2.0 * (extent_mm / spacing_mm + rule.margin_voxels)
    side = min((side for side in rule.sides if side >= needed - 1e-6), default=largest)
    half_mm = 0.5 * (side - 1) * spacing_mm
    depth, height, width = (centre - half_mm for centre in surface.spec.centre_mm)
    return RegionOfInterest(side, spacing_mm, (depth, height, width))


def support_radius_mm(surface: TumorSurface | MaskSurface) -> float:
    """Largest distance from the centre at which a tumour changes image or labels, in mm."""
    return float(surface.half_extent_mm.max()) + max(0.0, surface.spec.edge.outer_mm)


def _bounds(valid_mask: NDArray[np.bool_] | None, shape: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First voxel of real CT along each axis and one past the last; the whole grid where all of it or none is."""
    is_whole = valid_mask is None or not valid_mask.any()
    return (np.zeros(3, np.int64), np.asarray(shape, np.int64)) if is_whole else ends_of(box_of(valid_mask))
