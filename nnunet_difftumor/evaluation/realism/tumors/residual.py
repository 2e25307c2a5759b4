"""Noise for replaced tumours: the residual of tumour-free tissue of the same scan, quilted from blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_cdt

from nnunet_difftumor.ct.resample import average_onto
from nnunet_difftumor.evaluation.realism.settings import DISTANCE_TO_TUMOR_MM
from nnunet_difftumor.evaluation.realism.tumors.fills import Reconstruct
from nnunet_difftumor.evaluation.realism.tumors.scans import EvaluationScan
from nnunet_difftumor.synthesis.blending import robust_sd
from nnunet_difftumor.tumor.region import RegionOfInterest

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

_REGIONS = 4
_EDGE_VOXELS = 4
_BORDER_MM = 8.0
_LARGEST_HALF_BLOCK = 6
_RESIDUAL_LIMIT_SD = 3.0


@dataclass(frozen=True, eq=False)
class FreeResidual:
    """Residual of the tumour-free organ of a scan.

    Attributes:
        residual_hu: Scan minus its reconstruction in HU, its median taken away, limited to 3 robust standard
            deviations. Shape (D, H, W).
        centres: Voxels around which a whole block is tumour-free organ. Shape (N, 3).
        half: Half the side of a block in voxels.
    """

    residual_hu: FloatArray
    centres: NDArray[np.int64]
    half: int

    def quilt(self, shape: Sequence[int], rng: np.random.Generator) -> FloatArray:
        """Fill a box with noise: blocks from random places that overlap by half.

        They are not flipped: streaks keep their direction. The squares of the blocks' windows add up to 1, so
        that independent noise keeps its variance.

        Args:
            shape: Shape of the box.

        Returns:
            Residual in HU. Shape `shape`.
        """
        side, half = 2 * self.half, self.half
        ramp = np.sin(np.pi * (np.arange(side) + 0.5) / side).astype(np.float32)  # squares: sin^2 + cos^2
        window = ramp[:, None, None] * ramp[:, None] * ramp
        counts = [-(-size // half) + 1 for size in shape]
        result = np.zeros([half * (count + 1) for count in counts], dtype=np.float32)
        for corner in np.ndindex(*counts):
            centre = self.centres[int(rng.integers(len(self.centres)))]
            block = self.residual_hu[tuple(slice(c - half, c + half) for c in centre)]
            block = block - block.mean()  # what is left of edges nearby would shift the tumour's mean
            result[tuple(slice(half * c, half * c + side) for c in corner)] += window * block
        return result[tuple(slice(half, half + size) for size in shape)]


def free_residual(
    scan: EvaluationScan,
    side: int,
    region_spacing_mm: float,
    reconstruct: Reconstruct,
    window_hu: tuple[float, float],
    rng: np.random.Generator,
) -> FreeResidual:
    """Encode and decode tumour-free parts of a scan and keep what is lost.

    Args:
        side: Side in voxels of the region in which its tumour is replaced.
        region_spacing_mm: Spacing of that region in mm; what is lost depends on it.
        reconstruct: The generator's autoencoder.
        window_hu: Window of the generator in HU.

    Returns:
        The residual, from organ at least 5 mm from every tumour where there is any.
    """
    far = scan.organ & (scan.distance_to_tumors_mm() > DISTANCE_TO_TUMOR_MM)
    inner = far & _away_from_border(scan)
    tissue = next(mask for mask in (inner, far, scan.organ) if mask.any())
    depth = _depth(tissue)
    deep = np.argwhere(depth >= max(1, min(_LARGEST_HALF_BLOCK, int(depth.max()))))
    residual = np.zeros(scan.image_hu.shape, dtype=np.float32)
    known = np.zeros(scan.image_hu.shape, dtype=bool)
    for centre in deep[rng.integers(len(deep), size=_REGIONS)]:
        box, part_hu = _residual_around(scan, centre, side, region_spacing_mm, reconstruct, window_hu)
        residual[box], known[box] = part_hu, True
    values = residual[tissue & known]
    limit_hu = _RESIDUAL_LIMIT_SD * max(robust_sd(values), 1e-3)
    residual = np.clip(residual - np.median(values), -limit_hu, limit_hu).astype(np.float32)
    depth = _depth(tissue & known)
    half = max(1, min(_LARGEST_HALF_BLOCK, int(depth.max()) - 1))
    centres = np.argwhere(depth > half) if int(depth.max()) > half else np.argwhere(depth == depth.max())
    return FreeResidual(residual, np.clip(centres, half, np.asarray(residual.shape) - half), half)


def _residual_around(
    scan: EvaluationScan,
    centre: NDArray[np.int64],
    side: int,
    step_mm: float,
    reconstruct: Reconstruct,
    window_hu: tuple[float, float],
) -> tuple[tuple[slice, ...], FloatArray]:
    """Residual of a cube around a voxel, without the region's edge. Box in the scan and values of its shape."""
    spacing = np.asarray(scan.spacing_mm)
    start_mm = centre * spacing - 0.5 * (side - 1) * step_mm
    region = RegionOfInterest(side, step_mm, (float(start_mm[0]), float(start_mm[1]), float(start_mm[2])))
    smooth_hu = reconstruct(region.sample(scan.image_hu, scan.spacing_mm)[None])[0]
    reach = np.maximum((0.5 * (side - 1) - _EDGE_VOXELS) * step_mm / spacing, 1.0).astype(int)
    low, high = np.maximum(centre - reach, 0), np.minimum(centre + reach + 1, scan.image_hu.shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    smooth_hu = average_onto(smooth_hu, (step_mm,) * 3, high - low, scan.spacing_mm, low * spacing - start_mm)
    return box, np.clip(scan.image_hu[box], *window_hu) - smooth_hu


def _away_from_border(scan: EvaluationScan) -> BoolArray:
    """True farther than 8 mm from the scan's border, beyond which the autoencoder sees air. Shape (D, H, W)."""
    mask = np.zeros(scan.image_hu.shape, dtype=bool)
    margins = [
        min(int(np.ceil(_BORDER_MM / step)), (size - 1) // 2)
        for step, size in zip(scan.spacing_mm, mask.shape, strict=True)
    ]
    mask[tuple(slice(margin, size - margin) for margin, size in zip(margins, mask.shape, strict=True))] = True
    return mask


def _depth(mask: BoolArray) -> NDArray[np.int64]:
    """Chessboard distance to the nearest voxel outside a mask; the scan's border counts as outside."""
    return np.asarray(distance_transform_cdt(np.pad(mask, 1), metric="chessboard"))[1:-1, 1:-1, 1:-1]
