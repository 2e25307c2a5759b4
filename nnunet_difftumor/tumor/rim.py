"""Distance from a tumour's surface, and the level of the organ in a ring around it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

FloatArray = NDArray[np.floating]
BoolArray = NDArray[np.bool_]

RING_MM = (1.5, 6.0)
"""Host tissue against which contrast is measured: this far outside the label, in mm."""
_ENOUGH_VOXELS = 20


def signed_distance_mm(label: BoolArray, spacing_mm: Sequence[float]) -> NDArray[np.float32]:
    """Distance of voxel centres to the surface of a label, negative inside.

    The surface lies half a voxel (of the finest axis) beyond the outermost voxel centres. Voxels of both kinds are
    needed. Shape (D, H, W).
    """
    edge_mm = 0.5 * float(min(spacing_mm))
    inside = np.asarray(distance_transform_edt(label, sampling=spacing_mm))
    outside = np.asarray(distance_transform_edt(~label, sampling=spacing_mm))
    return np.where(label, edge_mm - inside, outside - edge_mm).astype(np.float32)


def ring_level_hu(host_hu: FloatArray, organ: BoolArray, distance_mm: FloatArray) -> float:
    """Mean of the organ's tissue 1.5 to 6 mm outside a label, in HU; NaN with fewer than 20 such voxels.

    Args:
        organ: True in the organ, tumours left out. Shape (D, H, W).
        distance_mm: Signed distance to the label's surface in mm. Same shape.
    """
    ring = organ & (distance_mm > RING_MM[0]) & (distance_mm <= RING_MM[1])
    return float(host_hu[ring].mean()) if int(ring.sum()) >= _ENOUGH_VOXELS else float("nan")
