"""Blending of a generated tumour into its host, and the test that it can be seen."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.errors import DiffTumorError

FloatArray = NDArray[np.float32]

_ROBUST_SIGMA = 1.4826
_RESIDUAL_LIMIT_SD = 3.0
_SMALLEST_WEIGHT = 1e-2
MINIMUM_CONTRAST_HU = 5.0


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


def visible_contrast_hu(
    inside_hu: NDArray[np.floating], rim_hu: NDArray[np.floating], requested_hu: float | None = None
) -> float | None:
    """Contrast of a tumour in HU, its mean minus that of its rim; None if it cannot be seen as it was requested.

    Visible means at least 5 HU and two standard errors, of either sign. Bright where dark was requested is not as
    requested, nor the other way round; a requested contrast that is too faint to be seen has no side.

    Args:
        inside_hu: Voxels of the label in HU. Shape (N,).
        rim_hu: Voxels of the rim, unchanged host tissue, in HU. Shape (M,); without any, the tumour is invisible.
    """
    if inside_hu.size == 0 or rim_hu.size == 0:
        return None
    contrast_hu = float(inside_hu.mean()) - float(rim_hu.mean())
    variance = float(np.var(inside_hu)) / inside_hu.size + float(np.var(rim_hu)) / rim_hu.size
    is_visible = abs(contrast_hu) >= max(MINIMUM_CONTRAST_HU, 2.0 * math.sqrt(variance))
    has_side = requested_hu is not None and abs(requested_hu) >= MINIMUM_CONTRAST_HU
    is_wrong_side = has_side and contrast_hu * (requested_hu or 0.0) < 0
    return contrast_hu if is_visible and not is_wrong_side else None
