"""Real tumours made small and put elsewhere: training pairs for the small masks that annotated cases lack."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from diffusion.texture import solid_part
from nnunet_difftumor.ct.components import TumorComponent
from nnunet_difftumor.generator_training.crop_cache import CachedCase
from nnunet_difftumor.generator_training.crops import Crop, rim_of
from nnunet_difftumor.synthesis.blending import robust_sd

FloatArray = NDArray[np.float32]

_RADIUS_VOXELS = (2.5, 14.0)
_COARSEST_LESION_MM = 13.0
_COARSEST_HOST_MM = 3.2
_SOFT_TISSUE_HU = (-30.0, 200.0)
_SOFT_TISSUE_SHARE = 0.93
_LESION_RANGE_HU = (-70.0, 90.0)
_DRAWN_CONTRAST_SHARE = 0.6
_DRAWN_CONTRAST_HU = (-60.0, 45.0)
_TEXTURE_SCALE = (0.6, 1.6)
_NOISE_SIGMA_VOXELS = 1.0
_NOISE_LIMIT_SD = 3.0
_SMALLEST_MASK_VOXELS = 8
_TRIES = 6
_CENTRE_TRIES = 20


def draw_pasted_lesion(
    case: CachedCase,
    tumor: TumorComponent,
    host: CachedCase,
    side: int,
    spacing_range_mm: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[FloatArray, NDArray[np.bool_]] | None:
    """Sample a tumour so coarsely that it has 2.5 to 14 voxels in radius, and blend it into soft tissue.

    Fat or air that its label reaches over stays behind. The lesion keeps the pattern of its heterogeneity, 0.6 to 1.6
    times as strong; its contrast against the host is its own in 40 % of the draws and -60 to +45 HU in the others. The
    noise is the host's. The side is in voxels; of the range of spacings in mm, the host's is at most 3.2 mm where it
    can be.

    Returns:
        Image in HU and tumour mask of shape (side, side, side), or None if after some tries no place with
        93 % tumour-free soft tissue was found, or the tumour is too large to be made that small.
    """
    radius_voxels = min(float(np.exp(rng.uniform(*np.log(_RADIUS_VOXELS)))), side / 3.4)
    lesion_spacing_mm = tumor.radius_mm / radius_voxels
    half_extent_voxels = float(tumor.half_extent_mm(case.spacing_mm).max()) / lesion_spacing_mm
    if lesion_spacing_mm > _COARSEST_LESION_MM or half_extent_voxels > side / 2 - 4:
        return None
    lesion = Crop(case, side, lesion_spacing_mm, tumor.centre_mm(case.spacing_mm))
    lesion_hu, share = lesion.image_hu(), lesion.tumor_share()
    label = share >= 0.5
    mask = solid_part(lesion_hu, label)
    if mask.sum() < _SMALLEST_MASK_VOXELS:
        return None
    share = np.where(label & ~mask, np.float32(0.0), share)
    for _ in range(_TRIES):
        place = _draw_place(host, side, spacing_range_mm, rng)
        if place is None:
            return None
        host_hu = place.image_hu()
        if _tumor_free_soft_tissue(place, host_hu)[mask].mean() >= _SOFT_TISSUE_SHARE:
            texture_hu = float(rng.uniform(*_TEXTURE_SCALE)) * _texture_hu(lesion_hu, mask)
            return _blend(host_hu, texture_hu, share, mask, _contrast_hu(lesion_hu, mask, rng)), mask
    return None


def _draw_place(
    host: CachedCase, side: int, spacing_range_mm: tuple[float, float], rng: np.random.Generator
) -> Crop | None:
    """Draw a cube centred on a voxel of tumour-free soft tissue; None if none was found."""
    low_hu, high_hu = _SOFT_TISSUE_HU
    finest_mm, coarsest_mm = spacing_range_mm
    host_range_mm = finest_mm, min(coarsest_mm, max(finest_mm, _COARSEST_HOST_MM))
    for _ in range(_CENTRE_TRIES):
        voxel = host.draw_body_voxel(rng)
        value_hu, label = host.read_box(voxel, voxel + 1).item(), host.read_label_box(voxel, voxel + 1).item()
        if low_hu < value_hu < high_hu and label not in host.tumor_values:
            spacing_mm = float(np.exp(rng.uniform(*np.log(host_range_mm))))
            return Crop(host, side, spacing_mm, np.multiply(voxel, host.spacing_mm))
    return None


def _tumor_free_soft_tissue(place: Crop, host_hu: FloatArray) -> NDArray[np.bool_]:
    low_hu, high_hu = _SOFT_TISSUE_HU
    soft = (host_hu > low_hu) & (host_hu < high_hu)
    return soft & (place.tumor_share() == 0.0) if place.case.tumors else soft


def _contrast_hu(lesion_hu: FloatArray, mask: NDArray[np.bool_], rng: np.random.Generator) -> float:
    if rng.random() < _DRAWN_CONTRAST_SHARE:
        return float(rng.uniform(*_DRAWN_CONTRAST_HU))
    rim = rim_of(mask) & (lesion_hu > _SOFT_TISSUE_HU[0])
    return float(lesion_hu[mask].mean() - np.median(lesion_hu[rim])) if rim.any() else 0.0


def _texture_hu(lesion_hu: FloatArray, mask: NDArray[np.bool_]) -> FloatArray:
    """Variation inside a lesion without its noise and with zero mean."""
    low, high = _LESION_RANGE_HU
    texture_hu = np.clip(lesion_hu - np.median(lesion_hu[mask]), low, high)
    weight = ndimage.gaussian_filter(mask.astype(np.float32), _NOISE_SIGMA_VOXELS)
    texture_hu = ndimage.gaussian_filter(texture_hu * mask, _NOISE_SIGMA_VOXELS) / np.maximum(weight, 0.05)
    return (texture_hu - texture_hu[mask].mean()).astype(np.float32)


def _noise_hu(host_hu: FloatArray, mask: NDArray[np.bool_]) -> FloatArray:
    """The host's noise, its edges limited."""
    noise_hu = host_hu - ndimage.gaussian_filter(host_hu, _NOISE_SIGMA_VOXELS)
    limit = np.float32(_NOISE_LIMIT_SD * robust_sd(noise_hu[mask]))
    return np.clip(noise_hu, -limit, limit).astype(np.float32)


def _blend(
    host_hu: FloatArray, texture_hu: FloatArray, share: FloatArray, mask: NDArray[np.bool_], contrast_hu: float
) -> FloatArray:
    surroundings = host_hu[rim_of(mask)]
    soft = surroundings[surroundings > _SOFT_TISSUE_HU[0]]
    level_hu = float(np.median(soft if soft.size else surroundings)) + contrast_hu
    lesion_hu = level_hu + texture_hu + _noise_hu(host_hu, mask)
    return (host_hu + share * (lesion_hu - host_hu)).astype(np.float32)
