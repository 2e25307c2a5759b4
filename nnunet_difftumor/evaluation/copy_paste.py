"""Copy-paste: the texture of another patient's real tumour in the mask of the tumour to be made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from nnunet_difftumor.evaluation.measures import ring_level_hu, signed_distance_mm
from nnunet_difftumor.evaluation.places import Place
from nnunet_difftumor.evaluation.scans import EvaluationScan
from nnunet_difftumor.resample import resample

FloatArray = NDArray[np.float32]

_MARGIN_VOXELS = 1


@dataclass(frozen=True, eq=False)
class Donor:
    """A real tumour whose texture is pasted.

    Attributes:
        identifier: Patient.
        spacing_mm: Spacing in mm.
        texture_hu: Tumour in HU minus its mean; outside the mask, the value of the nearest voxel inside.
        mask: True inside the tumour. Same shape.
        radius_mm: Radius of the sphere of equal volume, in mm.
        contrast_hu: Mean minus the organ's around it, in HU; None without such tissue.
    """

    identifier: str
    spacing_mm: tuple[float, float, float]
    texture_hu: FloatArray
    mask: NDArray[np.bool_]
    radius_mm: float
    contrast_hu: float | None


def make_donor(scan: EvaluationScan, window_hu: tuple[float, float]) -> Donor:
    """Take the largest tumour of a scan as a donor of texture.

    Args:
        scan: A scan with a target.
        window_hu: Window to which values are limited, in HU.

    Returns:
        The donor.
    """
    voxels = np.argwhere(scan.target)
    low = np.maximum(voxels.min(axis=0) - _MARGIN_VOXELS, 0)
    box = tuple(slice(a, b) for a, b in zip(low, voxels.max(axis=0) + 1 + _MARGIN_VOXELS, strict=True))
    mask = scan.target[box]
    image_hu = np.clip(scan.image_hu[box], *window_hu)
    nearest = distance_transform_edt(~mask, return_distances=False, return_indices=True)
    mean_hu = float(image_hu[mask].mean())
    whole_hu = np.clip(scan.image_hu, *window_hu)
    level_hu = ring_level_hu(whole_hu, scan.organ, signed_distance_mm(scan.target, scan.spacing_mm))
    volume_mm3 = len(voxels) * float(np.prod(scan.spacing_mm))
    return Donor(
        identifier=scan.identifier,
        spacing_mm=scan.spacing_mm,
        texture_hu=(image_hu[tuple(np.asarray(nearest))] - mean_hu).astype(np.float32),
        mask=mask,
        radius_mm=(3.0 * volume_mm3 / (4.0 * np.pi)) ** (1.0 / 3.0),
        contrast_hu=mean_hu - level_hu if np.isfinite(level_hu) else None,
    )


def paste(
    place: Place, donors: Sequence[Donor], window_hu: tuple[float, float], rng: np.random.Generator
) -> FloatArray | None:
    """Fill a place with the texture of another patient's tumour at the requested contrast.

    The texture keeps its own noise and, unless the donor is smaller than the place, its own scale: whole
    voxels are copied, flipped at random, from a random spot deep enough in the donor.

    Args:
        place: Where to paste; donors are on the same grid.
        donors: Real tumours.
        window_hu: Window to which values are limited, in HU.
        rng: Random generator.

    Returns:
        Tissue in HU, to be blended without a residual, or None if no other patient gives texture. Shape of
        the place's box.
    """
    others = [donor for donor in donors if donor.identifier != place.scan.identifier]
    host_hu = np.clip(place.host_hu, *window_hu)
    level_hu = ring_level_hu(host_hu, place.organ, place.distance_mm)
    if not others:
        return None
    donor = others[int(rng.integers(len(others)))]
    texture_hu, mask = _flipped(*_enlarged(donor, place.spec.radius_mm), rng)
    depth_mm = np.asarray(distance_transform_edt(np.pad(mask, 1), sampling=donor.spacing_mm))[1:-1, 1:-1, 1:-1]
    deep = np.argwhere(depth_mm >= min(0.9 * float(depth_mm.max()), place.spec.radius_mm))
    source = deep[int(rng.integers(len(deep)))]
    centre = np.round(np.argwhere(place.label).mean(axis=0)).astype(int)
    index = np.indices(place.label.shape).reshape(3, -1).T - centre + source
    index = np.clip(index, 0, np.asarray(texture_hu.shape) - 1)
    pasted_hu = texture_hu[tuple(index.T)].reshape(place.label.shape)
    contrast_hu = place.spec.contrast_hu if place.spec.contrast_hu is not None else donor.contrast_hu
    level_hu = level_hu if np.isfinite(level_hu) else float(np.median(host_hu[place.weight > 0]))
    mean_hu = level_hu + (contrast_hu or 0.0)
    return (pasted_hu - pasted_hu[place.label].mean() + mean_hu).astype(np.float32)


def _enlarged(donor: Donor, radius_mm: float) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Texture and mask of a donor, enlarged to at least a radius."""
    zoom = max(1.0, radius_mm / donor.radius_mm)
    if zoom == 1.0:
        return donor.texture_hu, donor.mask
    shape = [max(1, round(size * zoom)) for size in donor.mask.shape]
    coarse = tuple(step * zoom for step in donor.spacing_mm)
    texture_hu = resample(donor.texture_hu, coarse, shape, donor.spacing_mm, (0.0,) * 3, fill_value=0.0)
    mask = resample(donor.mask, coarse, shape, donor.spacing_mm, (0.0,) * 3, fill_value=0.0) >= 0.5
    return texture_hu, mask if mask.any() else np.ones_like(mask)


def _flipped(
    texture_hu: FloatArray, mask: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[FloatArray, NDArray[np.bool_]]:
    axes = tuple(int(axis) for axis in np.flatnonzero(rng.random(3) < 0.5))
    return np.flip(texture_hu, axes), np.flip(mask, axes)
