"""Random changes of cubic CT crops: what a generator must not depend on, drawn from a given random generator.

Crops are in HU. An image, the mask of its tumour and the share of each voxel that is tumour have the shape (S, S, S),
which stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_difftumor.ct.resample import AIR_HU

FloatArray = NDArray[np.float32]

_WINDOW_LOW_HU = (-200.0, 0.0)
_WINDOW_HIGH_HU = (100.0, 300.0)
_SHIFT_HU = (-30.0, 100.0)
_RAMP_HU = (-40.0, 0.0)
_BLOB_RADIUS_VOXELS = (2.0, 8.0)
_BLOB_CONTRAST_HU = 60.0
_MOST_BLOBS = 4
_TUMOR_SHIFT_HU = (-45.0, 35.0)
_LOOSEST_SHARE = (0.3, 0.7)
_LARGEST_CUT_SHARE = 0.25


def turn(cubes: Sequence[NDArray[Any]], rng: np.random.Generator) -> list[NDArray[Any]]:
    """Turn and mirror cubes alike, in one of the 48 ways that there are, drawn uniformly."""
    axes = rng.permutation(3)
    flipped = np.flatnonzero(rng.random(3) < 0.5).tolist()
    return [np.ascontiguousarray(np.flip(cube.transpose(axes), axis=tuple(flipped))) for cube in cubes]


def shift_soft_tissue(image_hu: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Shift what is above 0 HU by -30 to +100 HU, as in organs and contrast phases that are not in the data.

    Fat and air keep their values, with a ramp from -40 to 0 HU.
    """
    low, high = _RAMP_HU
    share = np.clip((image_hu - np.float32(low)) / np.float32(high - low), 0.0, 1.0)
    return np.asarray(image_hu + np.float32(rng.uniform(*_SHIFT_HU)) * share, dtype=np.float32)


def narrow_window(image_hu: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Limit values to a window narrower than the autoencoder's, as nnU-Net's percentile clipping does.

    Its lower end lies in -200..0 and its upper end in 100..300 HU.
    """
    return np.clip(image_hu, rng.uniform(*_WINDOW_LOW_HU), rng.uniform(*_WINDOW_HIGH_HU)).astype(np.float32)


def add_faint_blobs(image_hu: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Add one to four faint ellipsoids with soft edges, so that an autoencoder keeps small lesions.

    The radii are 2 to 8 voxels, the contrasts -60 to +60 HU.
    """
    result = image_hu.copy()
    axes = [np.arange(size, dtype=np.float32) for size in image_hu.shape]
    for _ in range(int(rng.integers(1, _MOST_BLOBS + 1))):
        centre = rng.uniform(0, image_hu.shape)
        radii = rng.uniform(*_BLOB_RADIUS_VOXELS, size=3)
        contrast_hu = rng.uniform(-_BLOB_CONTRAST_HU, _BLOB_CONTRAST_HU)
        d, h, w = (((axis - c) / r).astype(np.float32) ** 2 for axis, c, r in zip(axes, centre, radii, strict=True))
        distance = np.sqrt(d[:, None, None] + h[None, :, None] + w[None, None, :])  # 1 on the surface
        edge_voxels = (1.0 - distance) * np.float32(radii.min())
        result += np.float32(contrast_hu) * np.clip(edge_voxels + 0.5, 0.0, 1.0).astype(np.float32)
    return result


def shift_tumor(image_hu: FloatArray, tumor_share: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Shift a whole tumour by -45 to +35 HU, so that large masks too are seen with many contrasts."""
    return np.asarray(image_hu + np.float32(rng.uniform(*_TUMOR_SHIFT_HU)) * tumor_share, dtype=np.float32)


def jitter_mask(tumor_share: FloatArray, mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw an outline as another reader might: a little larger or smaller, in different places differently.

    The mask, the outline at a share of one half, stays where the new one would lose more than half of its voxels.
    """
    field = ndimage.gaussian_filter(rng.normal(size=tumor_share.shape).astype(np.float32), 3.0)
    field /= max(float(np.abs(field).max()), 1e-6)
    low, high = _LOOSEST_SHARE
    blurred = ndimage.gaussian_filter(tumor_share, 0.7)
    jittered = blurred >= 0.5 * (low + high) + 0.5 * (high - low) * field
    return jittered if jittered.sum() > 0.5 * mask.sum() else mask


def cut_at_border(image_hu: FloatArray, mask: NDArray[np.bool_], rng: np.random.Generator) -> FloatArray:
    """Replace a slab beside the tumour by air, as where a scan ends; no voxel of the mask, never empty, is cut."""
    axis = int(rng.integers(3))
    occupied = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
    side = image_hu.shape[axis]
    is_at_end = rng.random() < 0.5
    room = side - 1 - occupied[-1] if is_at_end else occupied[0]
    cut = int(rng.integers(int(min(room, _LARGEST_CUT_SHARE * side)) + 1))
    result = image_hu.copy()
    np.moveaxis(result, axis, 0)[slice(side - cut, side) if is_at_end else slice(cut)] = AIR_HU
    return result
