"""Blending of a generated tumour into its host, at the level that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from nnunet_difftumor.ct.boxes import Box
from nnunet_difftumor.errors import DiffTumorError

FloatArray = NDArray[np.float32]

_ROBUST_SIGMA = 1.4826
_RESIDUAL_LIMIT_SD = 3.0
_SMALLEST_WEIGHT = 1e-2
_FEWEST_IN_SHELL = 30
_LOCAL_MM = 4.0
_ABOVE_QUARTILE = 1.1
_LEAST_HU2 = 1e-6


def robust_sd(values: NDArray[np.floating]) -> float:
    """Standard deviation of at least one value, estimated from the median absolute deviation (1.4826 MAD)."""
    return float(_ROBUST_SIGMA * np.median(np.abs(values - np.median(values))))


@dataclass(frozen=True, eq=False)
class HostNoise:
    """A host's own noise, which a tumour keeps: the host minus its smooth reconstruction. Arrays have one shape.

    Attributes:
        residual_hu: Host minus reconstruction in HU. Shape (D, H, W).
        share: How much of it is noise: 1, or less where it varies more than noise, by fat, vessels or edges.
        sd_hu: Robust standard deviation of the noise in HU.
    """

    residual_hu: FloatArray
    share: FloatArray
    sd_hu: float

    @classmethod
    def of(cls, residual_hu: FloatArray, tissue: NDArray[np.bool_], spacing_mm: Sequence[float]) -> HostNoise:
        """Take the lower quartile of the local standard deviations of a tissue, and a tenth more, for the noise's.

        Args:
            tissue: True in the tissue that the noise is measured in, at least one voxel. Same shape.
        """
        sigma = np.maximum(_LOCAL_MM / np.asarray(spacing_mm), 1.0)
        local_hu = np.sqrt(np.maximum(gaussian_filter(residual_hu * residual_hu, sigma, truncate=2.0), _LEAST_HU2))
        noise_hu = np.float32(_ABOVE_QUARTILE * np.quantile(local_hu[tissue], 0.25))
        share = np.minimum(np.float32(1.0), noise_hu / local_hu).astype(np.float32)
        return cls(residual_hu, share, robust_sd((residual_hu * share)[tissue]))

    def within(self, box: Box) -> HostNoise:
        """Return the same in a box of it."""
        return HostNoise(self.residual_hu[box], self.share[box], self.sd_hu)

    def in_tumor(self, weight: FloatArray) -> FloatArray:
        """What a tumour keeps of it, by the tumour's weight in the voxel: less structure, and 3 sd / w^2 at most."""
        limit_hu = np.float32(_RESIDUAL_LIMIT_SD * self.sd_hu) / np.maximum(weight, _SMALLEST_WEIGHT) ** 2
        kept_hu = self.residual_hu * (1.0 - weight * (1.0 - self.share))
        return np.clip(kept_hu, -limit_hu, limit_hu).astype(np.float32)


def composite(image_hu: FloatArray, tumor_hu: FloatArray, noise: HostNoise, weight: FloatArray) -> FloatArray:
    """Blend decoded tumour tissue and the host's own noise into the host; all in HU, of shape (D, H, W).

    (1 - w) x + w (y + clip(g (x - r), -3 sd / w^2, 3 sd / w^2)), where w in [0, 1] is the weight, x the host, y the
    decoded tumour, r the reconstruction of the host, both smooth, and g = 1 - w (1 - share) (see `HostNoise`). So a
    tumour has its host's noise, but neither its edges nor its fat; towards the edge of the soft rim, where y is the
    host itself, the limits loosen, so that the host's edges stay sharp there. Voxels of weight 0 keep their value to
    the bit.

    Raises:
        DiffTumorError: If the shapes differ.
    """
    if not image_hu.shape == tumor_hu.shape == noise.residual_hu.shape == weight.shape:
        raise DiffTumorError(
            f"image {image_hu.shape}, tumour {tumor_hu.shape}, noise {noise.residual_hu.shape} and weight "
            f"{weight.shape} must share one shape. Crop all four with the same bounding box."
        )
    blended = (1.0 - weight) * image_hu + weight * (tumor_hu + noise.in_tumor(weight))
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
