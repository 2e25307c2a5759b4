"""Copy-paste: the texture of a real tumour, put into the mask of a tumour to be made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from nnunet_difftumor.ct.boxes import Box, as_box, widened
from nnunet_difftumor.ct.components import equivalent_diameter_mm
from nnunet_difftumor.ct.resample import resample
from nnunet_difftumor.synthesis.tissue.interface import FloatArray
from nnunet_difftumor.tumor.rim import ring_level_hu, signed_distance_mm

_MARGIN_MM = 8.0


@dataclass(frozen=True, eq=False)
class Donor:
    """A real tumour whose texture is pasted.

    Attributes:
        texture_hu: Tumour in HU minus its mean; outside the mask, the value of the nearest voxel inside.
        radius_mm: Radius of the sphere of equal volume, in mm.
        contrast_hu: Mean minus the organ's around it, in HU; None without such tissue.
    """

    identifier: str
    spacing_mm: tuple[float, float, float]
    texture_hu: FloatArray
    mask: NDArray[np.bool_]
    radius_mm: float
    contrast_hu: float | None


def make_donor(
    identifier: str,
    image_hu: FloatArray,
    tumor: NDArray[np.bool_],
    organ: NDArray[np.bool_],
    spacing_mm: tuple[float, float, float],
) -> Donor:
    """Take a tumour of a scan as a donor of texture.

    Args:
        image_hu: Scan in HU, limited to the window. Shape (D, H, W).
        tumor: True in this tumour, not empty. Shape (D, H, W).
        organ: True in the organ, all tumours left out. Shape (D, H, W).
    """
    voxels = np.argwhere(tumor)
    tumor_box = as_box(voxels.min(axis=0), voxels.max(axis=0) + 1)
    near = donor_box(tumor_box, spacing_mm, tumor.shape)
    level_hu = ring_level_hu(image_hu[near], organ[near], signed_distance_mm(tumor[near], spacing_mm))
    box = widened(tumor_box, 1, tumor.shape)
    mask, inside_hu = tumor[box].copy(), image_hu[box]  # a donor outlives its scan
    nearest = distance_transform_edt(~mask, return_distances=False, return_indices=True)
    mean_hu = float(inside_hu[mask].mean())
    volume_mm3 = len(voxels) * float(np.prod(spacing_mm))
    return Donor(
        identifier=identifier,
        spacing_mm=spacing_mm,
        texture_hu=(inside_hu[tuple(np.asarray(nearest))] - mean_hu).astype(np.float32),
        mask=mask,
        radius_mm=0.5 * equivalent_diameter_mm(volume_mm3),
        contrast_hu=mean_hu - level_hu if np.isfinite(level_hu) else None,
    )


def donor_box(tumor_box: Sequence[slice], spacing_mm: tuple[float, float, float], shape: Sequence[int]) -> Box:
    """Widen a tumour's bounding box to all that `make_donor` looks at, inside a scan of this shape."""
    return widened(tumor_box, np.ceil(_MARGIN_MM / np.asarray(spacing_mm)).astype(int), shape)


def paste_texture(
    donors: Sequence[Donor],
    label: NDArray[np.bool_],
    radius_mm: float,
    contrast_hu: float | None,
    level_hu: float,
    rng: np.random.Generator,
) -> FloatArray:
    """Fill a mask with the texture of one of the donors at a contrast, in HU, to be blended without a residual.

    The texture keeps its own noise and, unless the donor is smaller than the mask, its own scale: whole
    voxels are copied, flipped at random, from a random spot deep enough in the donor.

    Args:
        donors: Real tumours on the same grid, at least one.
        label: Where to paste, not empty. Shape (D, H, W).
        radius_mm: Radius of the sphere of the mask's volume, in mm.
        contrast_hu: Contrast against `level_hu`; None takes the donor's own.
        level_hu: Level of the tissue around, in HU.
    """
    donor = donors[int(rng.integers(len(donors)))]
    flipped = tuple(np.flatnonzero(rng.random(3) < 0.5).tolist())
    texture_hu, mask = (np.flip(each, flipped) for each in _enlarged(donor, radius_mm))
    depth_mm = np.asarray(distance_transform_edt(np.pad(mask, 1), sampling=donor.spacing_mm))[1:-1, 1:-1, 1:-1]
    deep = np.argwhere(depth_mm >= min(0.9 * float(depth_mm.max()), radius_mm))
    source = deep[int(rng.integers(len(deep)))]
    centre = np.round(np.argwhere(label).mean(axis=0)).astype(int)
    index = np.indices(label.shape).reshape(3, -1).T - centre + source
    index = np.clip(index, 0, np.asarray(texture_hu.shape) - 1)
    pasted_hu = texture_hu[tuple(index.T)].reshape(label.shape)
    mean_hu = level_hu + ((donor.contrast_hu if contrast_hu is None else contrast_hu) or 0.0)
    return (pasted_hu - pasted_hu[label].mean() + mean_hu).astype(np.float32)


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
