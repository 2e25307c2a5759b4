"""What the outline of a tumour and the ring around it show: flat caps at the organ's surface, and vessels cut off.

The inside of the label is not looked at, so that a measure is the same for a real tumour, a synthetic one, and a sham:
any outline in an unchanged scan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

from nnunet_difftumor.ct.components import equivalent_radius_mm, label_components
from nnunet_difftumor.tumor.rim import signed_distance_mm

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float32]

RING_MM = 4.0
_LEVEL_MM = 12.0
_SMOOTHING_MM = 1.0
_BRIGHT = (20.0, 4.0)  # HU, and standard deviations, above the organ around the tumour
_QUARTILE_SD = 0.6745
_LEAST_CONTACT_MM2 = 12.0  # of a vessel of 4 mm
_LEAST_WIDTH = 0.4  # of a cut vessel's area at one edge of the ring, at the other
_CURVATURE_MM, _STEP_SHARE = 1.5, 0.6  # the outline is smoothed by so much, and by so much of a thick slice
_SHARP_PERCENT = 80.0
_RIM_MM = 2.5
_LEAST_CAP_SHARE = 0.02
_LEAST_RIM_VOXELS = 10
_ENOUGH_VOXELS = 100


@dataclass(frozen=True, kw_only=True)
class RingLook:
    """Outline and ring of one tumour.

    Attributes:
        cap_share: Share of the outline beyond which there is no organ.
        cap_curvature: Mean curvature of the middle of that part times the radius of the ball of the label's volume: 1
            as a ball has, 0 for a flat cap; NaN with less than 2% of the outline.
        rim_curvature: The same within 2.5 mm of the line where cap and flank meet, the 80th percentile: about 1 as a
            ball has, 2 and more for the edge of a flat cut through a tumour of 20 mm; NaN as above.
        surface_cm2: Area of the outline that faces the organ.
        contact_cm2: Area of it that bright vessels touch.
        cut_vessels: Bright vessels that run from the outline across the ring, and not along it: where they would go on
            is the tumour.
    """

    cap_share: float
    cap_curvature: float
    rim_curvature: float
    surface_cm2: float
    contact_cm2: float
    cut_vessels: int

    @property
    def cut_vessels_per_cm2(self) -> float:
        """Cut vessels by the area that faces the organ; NaN without any."""
        return self.cut_vessels / self.surface_cm2 if self.surface_cm2 else math.nan


def look_at_ring(
    label: BoolArray, image_hu: NDArray[np.floating], organ: BoolArray, spacing_mm: Sequence[float]
) -> RingLook:
    """Measure the outline of a label and the ring of organ 4 mm around it.

    Thick slices are repeated to about the finest voxel side, so that what lies above and below counts as well.

    Args:
        label: True inside one tumour, with some 12 mm around it and with voxels of both kinds. Shape (D, H, W).
        image_hu: The scan with the tumour. Same shape.
        organ: True in the organ; whether in the tumour too does not matter. Same shape.
    """
    repeats = [max(1, round(mm / min(spacing_mm))) for mm in spacing_mm]
    fine_mm = [mm / count for mm, count in zip(spacing_mm, repeats, strict=True)]
    label, hu, organ = (_repeated(each, repeats) for each in (label, image_hu.astype(np.float32), organ))
    distance_mm, around = signed_distance_mm(label, fine_mm), organ & ~label
    shell_mm = max(1.0, 0.75 * max(fine_mm))
    shell = (distance_mm > 0.0) & (distance_mm <= shell_mm)
    least_voxels = _LEAST_CONTACT_MM2 * shell_mm / float(np.prod(fine_mm))
    area_cm2 = _area_mm2(label, fine_mm) / 100.0
    caps = _curvatures(label, around, distance_mm, fine_mm, repeats)
    bright = _bright(hu, around, distance_mm, fine_mm) & (distance_mm <= RING_MM)
    return RingLook(
        cap_share=1.0 - float(around[shell].mean()),
        cap_curvature=caps[0],
        rim_curvature=caps[1],
        surface_cm2=area_cm2 * float(around[shell].mean()),
        contact_cm2=area_cm2 * float(bright[shell].mean()),
        cut_vessels=_count_cut(bright, shell, distance_mm > RING_MM - shell_mm, least_voxels),
    )


def _repeated(array: NDArray, repeats: Sequence[int]) -> NDArray:
    for axis, count in enumerate(repeats):
        array = np.repeat(array, count, axis=axis)
    return array


def _area_mm2(label: BoolArray, spacing_mm: Sequence[float]) -> float:
    """Area of a label's surface: the integral of its smoothed gradient, which no direction of the grid favours."""
    gradient = _gradient(gaussian_filter(label.astype(np.float32), 1.0), spacing_mm)
    return float(np.linalg.norm(gradient, axis=0).sum() * np.prod(spacing_mm))


def _curvatures(
    label: BoolArray, around: BoolArray, distance_mm: FloatArray, spacing_mm: Sequence[float], repeats: Sequence[int]
) -> tuple[float, float]:
    """Curvature of the cap and of its rim, times the radius of the label's ball."""
    surface = label & (distance_mm >= -max(spacing_mm))
    cap = surface & (_distance_mm(~(label | around), spacing_mm) <= 1.5 * max(spacing_mm))
    flank = surface & ~cap
    if cap.sum() < max(_LEAST_CAP_SHARE * surface.sum(), _LEAST_RIM_VOXELS):
        return math.nan, math.nan
    sigma = [max(_CURVATURE_MM, _STEP_SHARE * mm * count) / mm for mm, count in zip(spacing_mm, repeats, strict=True)]
    normal = _gradient(gaussian_filter(distance_mm, sigma), spacing_mm)
    normal /= np.maximum(np.linalg.norm(normal, axis=0), 1e-3)
    divergence = sum((_gradient(part, spacing_mm)[axis] for axis, part in enumerate(normal)), np.zeros(label.shape))
    curvature = 0.5 * divergence * equivalent_radius_mm(float(label.sum() * np.prod(spacing_mm)))
    rim = surface & (_distance_mm(cap, spacing_mm) <= _RIM_MM) & (_distance_mm(flank, spacing_mm) <= _RIM_MM)
    middle = cap & ~rim
    return (
        float(np.mean(curvature[middle])) if middle.sum() >= _LEAST_RIM_VOXELS else math.nan,
        float(np.percentile(curvature[rim], _SHARP_PERCENT)) if rim.sum() >= _LEAST_RIM_VOXELS else math.nan,
    )


def _gradient(array: NDArray[np.floating], spacing_mm: Sequence[float]) -> NDArray[np.floating]:
    return np.stack(list(np.gradient(array, *spacing_mm)))


def _distance_mm(mask: BoolArray, spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    """Distance of every voxel to the nearest one of a mask; infinite without any."""
    if not mask.any():
        return np.full(mask.shape, np.inf)
    return np.asarray(distance_transform_edt(~mask, sampling=spacing_mm))


def _bright(image_hu: FloatArray, around: BoolArray, distance_mm: FloatArray, spacing_mm: Sequence[float]) -> BoolArray:
    """True where the organ outside the label, smoothed by itself, is clearly brighter than it is around the tumour."""
    near = around & (distance_mm <= _LEVEL_MM)
    if near.sum() < _ENOUGH_VOXELS:
        return np.zeros_like(around)
    sigma = _SMOOTHING_MM / np.asarray(spacing_mm)
    weight = gaussian_filter(around.astype(np.float32), sigma)
    smooth_hu = gaussian_filter(np.where(around, image_hu, 0.0), sigma) / np.maximum(weight, 1e-3)
    low, middle, high = np.percentile(smooth_hu[near], (25.0, 50.0, 75.0))
    sd_hu = min(middle - low, high - middle) / _QUARTILE_SD
    return around & (smooth_hu > middle + max(_BRIGHT[0], _BRIGHT[1] * sd_hu))


def _count_cut(bright: BoolArray, near: BoolArray, far: BoolArray, least_voxels: float) -> int:
    """Bright parts of the ring that reach from the shell at the outline to that at the ring's outer edge.

    What runs along the outline has little of its width in the first, and what only touches it nothing in the second.
    """
    numbers, count = label_components(bright)
    contact, outer = (np.bincount(numbers[shell], minlength=count + 1)[1:] for shell in (near, far))
    is_cut = (contact >= least_voxels) & (contact >= _LEAST_WIDTH * outer) & (outer >= _LEAST_WIDTH * contact)
    return int(is_cut.sum())
