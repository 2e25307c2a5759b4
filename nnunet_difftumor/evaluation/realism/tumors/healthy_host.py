"""A scan without its tumour: where it was lies noise of tumour-free tissue of the same scan, quilted from blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_cdt, find_objects, gaussian_filter, uniform_filter

from nnunet_difftumor.evaluation.realism.measures.textures import split_texture
from nnunet_difftumor.evaluation.realism.settings import DISTANCE_TO_TUMOR_MM
from nnunet_difftumor.evaluation.realism.tumors.scans import EvaluationScan, FloatArray
from nnunet_difftumor.synthesis.anatomy.border import find_border
from nnunet_difftumor.synthesis.blending import robust_sd
from nnunet_difftumor.tumor.edge import Edge
from nnunet_difftumor.tumor.edge_profile import measure_edge
from nnunet_difftumor.tumor.rim import signed_distance_mm

_LARGEST_HALF_BLOCK = 6
_LIMIT_SD = 3.0
_EVEN_SHARE = 0.25
_ENOUGH_VOXELS = 1000
_EDGE_SIGMA_MM = 3.0  # over which the level of the surroundings gives way to the organ's
_ORGAN_WEIGHT = 0.02  # of the organ's level everywhere, so that it is reached inside


@dataclass(frozen=True, eq=False)
class FreeTissue:
    """Tumour-free organ of a scan.

    Attributes:
        level_hu: Its median in HU.
        noise_hu: Scan minus the median, limited to 3 robust standard deviations, in HU. Shape (D, H, W).
        centres: Voxels around which a whole block is tumour-free organ. Shape (N, 3).
        half: Half the side of a block in voxels.
        highpass_sd_hu: What a Gaussian of 3 mm takes away of the tissue, as its standard deviation in HU.
    """

    level_hu: float
    noise_hu: FloatArray
    centres: NDArray[np.int64]
    half: int
    highpass_sd_hu: float = math.nan

    def quilt(self, shape: Sequence[int], rng: np.random.Generator) -> FloatArray:
        """Fill a box with noise: blocks from random places that overlap by half.

        They are not flipped: streaks keep their direction. The squares of the blocks' windows add up to 1, so
        that independent noise keeps its variance. In HU, shape `shape`.
        """
        side, half = 2 * self.half, self.half
        ramp = np.sin(np.pi * (np.arange(side) + 0.5) / side).astype(np.float32)  # squares: sin^2 + cos^2
        window = ramp[:, None, None] * ramp[:, None] * ramp
        counts = [-(-size // half) + 1 for size in shape]
        result = np.zeros([half * (count + 1) for count in counts], dtype=np.float32)
        for corner in np.ndindex(*counts):
            centre = self.centres[int(rng.integers(len(self.centres)))]
            block = self.noise_hu[tuple(slice(c - half, c + half) for c in centre)]
            block = block - block.mean()  # what is left of edges nearby would shift the tumour's mean
            result[tuple(slice(half * c, half * c + side) for c in corner)] += window * block
        return result[tuple(slice(half, half + size) for size in shape)]


def free_tissue(scan: EvaluationScan) -> FreeTissue:
    """Take the organ at least 5 mm from every tumour, or the whole organ where there is none."""
    far = scan.organ & (scan.distance_to_tumors_mm() > DISTANCE_TO_TUMOR_MM)
    tissue = far if far.any() else scan.organ
    level_hu = float(np.median(scan.image_hu[tissue]))
    limit_hu = _LIMIT_SD * max(robust_sd(scan.image_hu[tissue]), 1e-3)
    noise_hu = np.clip(scan.image_hu - level_hu, -limit_hu, limit_hu).astype(np.float32)
    depth = np.asarray(distance_transform_cdt(np.pad(tissue, 1), metric="chessboard"))[1:-1, 1:-1, 1:-1]
    deepest = int(depth.max()) - 1
    half = max(1, min(_LARGEST_HALF_BLOCK, deepest))
    centres = _most_even(np.argwhere(depth > min(half, deepest)), noise_hu, half)
    inner = np.asarray(binary_erosion(far), dtype=bool)  # voxels at the edge hold fat or air
    measured = inner if int(inner.sum()) >= _ENOUGH_VOXELS else far
    _, highpass_sd_hu = split_texture(scan.limited_hu, measured, scan.spacing_mm)
    return FreeTissue(level_hu, noise_hu, np.clip(centres, half, np.asarray(tissue.shape) - half), half, highpass_sd_hu)


def _most_even(centres: NDArray[np.int64], noise_hu: FloatArray, half: int) -> NDArray[np.int64]:
    """The quarter of the blocks whose values are least skewed.

    They show the scanner's noise; others show fat between fibres or vessels, which a tumour takes the place of.
    """
    first, second, third = (uniform_filter(noise_hu**power, 2 * half)[tuple(centres.T)] for power in (1, 2, 3))
    variance = np.maximum(second - first**2, 1e-6)
    skewness = np.abs(third - 3.0 * first * variance - first**3) / variance**1.5
    return centres[skewness <= np.quantile(skewness, _EVEN_SHARE)]


def without_target(scan: EvaluationScan, tissue: FreeTissue, rng: np.random.Generator) -> FloatArray:
    """Put tumour-free tissue of a scan in the place of its target, and take away what is seen of it outside its label.

    A tumour that is made there gets the noise of that tissue, and nothing of the real one is left. The level goes from
    that of the organ around at the edge to that of all of the organ inside: a step there would be taken for noise.
    Fat, air or bone stay where they are, in the share of a voxel that they have: a reader's label holds some of them.
    In HU, shape (D, H, W).
    """
    image_hu = scan.image_hu - _seen_outside_hu(scan)
    box = find_objects(scan.target.astype(np.uint8))[0]
    inside = scan.target[box]
    beside, other = scan.organ & ~scan.target, ~(scan.organ | scan.target)
    around = beside & (find_border(image_hu, beside, other, scan.spacing_mm).share >= 1.0)
    above_hu = np.where(around, np.clip(image_hu, *scan.window_hu) - tissue.level_hu, 0.0)
    sigma = _EDGE_SIGMA_MM / np.asarray(scan.spacing_mm)
    total_hu, weight = (gaussian_filter(values, sigma)[box] for values in (above_hu, around.astype(np.float32)))
    smooth_hu = tissue.level_hu + total_hu / (weight + _ORGAN_WEIGHT)
    healthy_hu = smooth_hu + tissue.quilt(inside.shape, rng)
    border = find_border(image_hu, scan.target, other, scan.spacing_mm).within(box)
    image_hu[box][inside] = border.mixed(image_hu[box], smooth_hu, border.share, healthy_hu)[inside]
    return image_hu


def _seen_outside_hu(scan: EvaluationScan) -> FloatArray:
    """What the target adds to the organ around its label, in HU: a reader may draw tight; 0 where it is not clear."""
    beside = scan.organ & ~scan.target
    edge = measure_edge(scan.limited_hu, scan.target, beside, scan.spacing_mm)
    if edge is None or not edge.is_clear:
        return np.zeros(scan.target.shape, dtype=np.float32)
    distance_mm = signed_distance_mm(scan.target, scan.spacing_mm)
    share = Edge(offset_mm=edge.offset_mm, width_mm=edge.width_mm).share(distance_mm)
    return np.where(beside, edge.depth_hu * share, 0.0).astype(np.float32)
