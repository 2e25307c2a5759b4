"""The outline of a tumour at the surface of its organ: it turns along the capsule instead of ending in a flat cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, maximum_filter, minimum_filter

_SHOULDER_SHARE, _SHOULDER_MM = 0.4, (1.0, 5.0)
_BULGE_SHARE, _BULGE_MM = 0.3, 1.5
_GAP_MM = 2.0


def turned_along_capsule(
    distance_mm: NDArray[np.floating],
    allowed_mask: NDArray[np.bool_],
    bulge_mask: NDArray[np.bool_] | None,
    spacing_mm: Sequence[float],
    radius_mm: float,
) -> NDArray[np.float32]:
    """Signed distance to the outline of a tumour that stays within its organ's capsule, or bulges it a little.

    The distances to the drawn tumour and to the organ are joined by a maximum that is rounded over 0.4 of the radius
    (1 to 5 mm), so that the outline has a shoulder where it meets the capsule. Where the tumour would leave the organ
    by p mm, it moves the capsule outwards by 0.3 p, by 1.5 mm at most. Farther from the capsule than from the outline
    by that shoulder, the distance stays the same to the bit.

    Args:
        distance_mm: Signed distance to the drawn tumour's surface on the voxels of a box, negative inside.
            Shape (D, H, W).
        allowed_mask: True where a voxel may become tumour; what lies beyond the box counts as the same. Gaps of up to
            4 mm, such as small vessels that a label leaves out, do not turn the outline. Same shape.
        bulge_mask: True in fat and soft tissue beside the organ that a bulge may take, or None. Same shape.
        radius_mm: Radius of the drawn tumour.

    Returns:
        Distance in mm, at no voxel smaller than the given one; positive where no tumour may be. Tissue that reaches
        beyond the outline is still to be kept from such voxels. Shape (D, H, W).
    """
    may_be = allowed_mask if bulge_mask is None else allowed_mask | bulge_mask
    drawn_mm = distance_mm.astype(np.float32)
    capsule_mm = _distance_to_surface_mm(_without_gaps(allowed_mask, spacing_mm), spacing_mm)
    if bulge_mask is not None:
        pushed_mm = np.clip(-_BULGE_SHARE * drawn_mm, 0.0, _BULGE_MM)
        capsule_mm = np.maximum(
            capsule_mm - pushed_mm, _distance_to_surface_mm(_without_gaps(may_be, spacing_mm), spacing_mm)
        )
    shoulder_mm = np.float32(np.clip(_SHOULDER_SHARE * radius_mm, *_SHOULDER_MM))
    near_mm = np.maximum(shoulder_mm - np.abs(drawn_mm - capsule_mm), 0.0)
    turned_mm = np.maximum(drawn_mm, capsule_mm) + near_mm * near_mm / (4.0 * shoulder_mm)
    outside_mm = 0.5 * np.float32(min(spacing_mm))
    return np.where(may_be, turned_mm, np.maximum(turned_mm, outside_mm)).astype(np.float32)


def _without_gaps(mask: NDArray[np.bool_], spacing_mm: Sequence[float]) -> NDArray[np.bool_]:
    size = [2 * int(_GAP_MM / mm) + 1 for mm in spacing_mm]
    return np.asarray(minimum_filter(maximum_filter(mask, size), size), dtype=bool) | mask


def _distance_to_surface_mm(mask: NDArray[np.bool_], spacing_mm: Sequence[float]) -> NDArray[np.float32]:
    """Signed distance to the surface half-way between voxels of a mask and others; without any others, far inside."""
    if mask.all():
        return np.full(mask.shape, -np.inf, dtype=np.float32)
    spacing = np.asarray(spacing_mm, dtype=np.float32)[:, None, None, None]
    total = np.zeros(mask.shape, dtype=np.float32)
    for part, sign in ((mask, -1.0), (~mask, 1.0)):
        found: Any = distance_transform_edt(part, sampling=spacing_mm, return_indices=True)
        distance_mm, nearest = found
        step_mm = (nearest - np.indices(mask.shape, dtype=np.int32)) * spacing  # (3, D, H, W)
        half_mm = 0.5 * np.sqrt(np.sum((step_mm * spacing) ** 2, axis=0)) / np.maximum(distance_mm, 1e-6)
        total += np.float32(sign) * np.where(part, distance_mm - half_mm, 0.0).astype(np.float32)
    return total
