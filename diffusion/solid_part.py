"""The part of a tumour's mask that shows the tumour, where outlines reach over what lies beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from diffusion.conditioning import SOFT_TISSUE_LOW_HU

_FATTY_SHARE = 0.1
_SMALLEST_PART = 0.25


def solid_part(image_hu: NDArray[np.floating], mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A tumour without the fat or air that its outline reaches over.

    What is below -30 HU after a Gaussian of one voxel, normalised by the mask, is left out with the voxels beside it,
    which show a share of it. A tumour whose inner half is fat or air by more than a tenth is such itself, and stays
    whole; so does one of which less than a quarter would be left.

    Args:
        image_hu: CT in HU. Shape (D, H, W), as the mask's and the result's.
    """
    if not mask.any():
        return mask
    depth: Any = ndimage.distance_transform_edt(mask)
    weight = ndimage.gaussian_filter(mask.astype(np.float32), 1.0)
    smoothed = ndimage.gaussian_filter(np.where(mask, image_hu, 0.0).astype(np.float32), 1.0)
    low = mask & (smoothed < SOFT_TISSUE_LOW_HU * weight)
    inner = mask & (depth >= np.median(depth[mask]))
    grown: Any = ndimage.binary_dilation(low, structure=np.ones((3, 3, 3)))
    solid = mask & ~grown
    if low[inner].mean() > _FATTY_SHARE or solid.sum() < _SMALLEST_PART * mask.sum():
        return mask
    return solid
