"""Blending of a generated tumour into its host, at the level that was asked for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.errors import DiffTumorError

FloatArray = NDArray[np.float32]

_ROBUST_SIGMA = 1.4826
_RESIDUAL_LIMIT_SD = 3.0
_SMALLEST_WEIGHT = 1e-2
_FEWEST_IN_SHELL = 30


def robust_sd(values: NDArray[np.floating]) -> float:
    """Standard deviation of at least one value, estimated from the median absolute deviation (1.4826 MAD)."""
    return float(_ROBUST_SIGMA * np.median(np.abs(values - np.median(values))))


def composite(
    image_hu: FloatArray,
    tumor_hu: FloatArray,
    reconstruction_hu: FloatArray,
    weight: FloatArray,
    residual_sd_hu: float,
    window_hu: tuple[float, float],
) -> FloatArray:
    """Blend decoded tumour tissue and the host's own noise into the host; all in HU, of shape (D, H, W).

    (1 - w) x + w (y + clip(x - r, -3 sd / w^2, 3 sd / w^2)), where w in [0, 1] is the weight, x the host, y the decoded
    tumour and r the reconstruction of the host, both smooth. The clipped residual carries the host's noise, but neither
    its edges nor its organ; towards the edge of the soft rim, where y is the host itself, the limit loosens, so that
    the host's edges stay sharp there. Voxels of weight 0 keep their value to the bit.

    Args:
        residual_sd_hu: Robust standard deviation of the host's residual in HU.
        window_hu: Window of the autoencoder; the residual is measured inside it.

    Raises:
        DiffTumorError: If the shapes differ.
    """
    if not image_hu.shape == tumor_hu.shape == reconstruction_hu.shape == weight.shape:
        raise DiffTumorError(
            f"image {image_hu.shape}, tumour {tumor_hu.shape}, reconstruction {reconstruction_hu.shape} and weight "
            f"{weight.shape} must share one shape. Crop all four with the same bounding box."
        )
    limit = np.float32(_RESIDUAL_LIMIT_SD * residual_sd_hu) / np.maximum(weight, _SMALLEST_WEIGHT) ** 2
    residual = np.clip(np.clip(image_hu, *window_hu) - reconstruction_hu, -limit, limit).astype(np.float32)
    blended = (1.0 - weight) * image_hu + weight * (tumor_hu + residual)
    return np.where(weight > 0, blended, image_hu).astype(np.float32)


def at_level(
    tissue_hu: FloatArray, distance_mm: FloatArray, share: FloatArray, shell_mm: float, level_hu: float | None
) -> FloatArray:
    """Shift tissue so that its mean is the level at every distance from the outline; its texture stays.

    Where none of it is used it goes on at that level: a voxel of the host that reaches out of the tumour averages
    tissue, and the weight alone says how much of it there is.

    The profile of a tumour from its middle to its edge is that of its edge (see `Edge`) and not drawn a second time by
    what makes the tissue.

    Args:
        tissue_hu: Tissue in HU. Shape (D, H, W), as the distance and the share of the tumour's tissue.
        distance_mm: Signed distance to the outline in mm.
        shell_mm: Thickness of the shells in which the mean is taken, in mm; those of few voxels are joined.
        level_hu: None keeps the tissue's own mean.
    """
    used = share > 0
    if not used.any():
        return tissue_hu if level_hu is None else np.full_like(tissue_hu, level_hu)
    depth_mm, values_hu, weights = -distance_mm[used], tissue_hu[used].astype(np.float64), share[used]
    if level_hu is None:
        level_hu = float(np.average(values_hu, weights=weights))
    shell = np.floor((depth_mm - depth_mm.min()) / shell_mm).astype(np.int64)
    shell = _joined(np.bincount(shell))[shell]
    counts = np.bincount(shell)
    means_hu, middles_mm = (np.bincount(shell, weights=each) / counts for each in (values_hu, depth_mm))
    flat_hu = values_hu - np.interp(depth_mm, middles_mm, means_hu)
    flat_hu += level_hu - float(np.average(flat_hu, weights=weights))
    result = np.full_like(tissue_hu, level_hu)
    result[used] = flat_hu
    return result


def _joined(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """Number shells of these counts of voxels anew, so that each has enough; the last joins the one before."""
    numbers, number, voxels = np.zeros(len(counts), dtype=np.int64), 0, 0
    for index, count in enumerate(counts.tolist()):
        numbers[index], voxels = number, voxels + count
        if voxels >= _FEWEST_IN_SHELL:
            number, voxels = number + 1, 0
    return np.minimum(numbers, max(number - 1, 0))
