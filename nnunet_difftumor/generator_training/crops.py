"""Isotropic cubes of cached cases: where they may lie, and their sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from diffusion.conditioning import rim_shell
from nnunet_difftumor.ct.components import TumorComponent, label_components
from nnunet_difftumor.ct.resample import AIR_HU, Vector, resample
from nnunet_difftumor.generator_training.crop_cache import CachedCase, copy_box

FloatArray = NDArray[np.float32]

BODY_SHARE = 0.75
_MARGIN_VOXELS = (6.0, 12.0)
_FULL_MARGIN_SIDE = 32
_SMALLEST_RADIUS_VOXELS = 2.0
_LARGEST_JITTER_SHARE = 0.25
_FINER = 0.7
_FINER_TRIES = 6


@dataclass(frozen=True)
class Crop:
    """An isotropic cube of one case; what is sampled of it has the shape (side, side, side), side in voxels.

    `centre_mm` (D, H, W) is relative to the centre of the case's voxel (0, 0, 0), in mm as the spacing.
    """

    case: CachedCase
    side: int
    spacing_mm: float
    centre_mm: Vector

    def image_hu(self) -> FloatArray:
        """Sample the CT; beyond its outer voxels is air."""
        return self._sample(self.case.read_box, AIR_HU)

    def tumor_share(self) -> FloatArray:
        """Sample the tumour mask, 0 to 1: the share of a voxel that is tumour."""
        return self._sample(self._read_tumor_box, 0.0)

    def tumor_mask(self) -> NDArray[np.bool_]:
        """Sample the tumour mask: voxels of which at least half is tumour."""
        return self.tumor_share() >= 0.5

    def share_of(self, tumor: TumorComponent) -> FloatArray:
        """Sample the mask of one tumour alone, 0 to 1."""
        alone = read_component(self.case, tumor)
        return self._sample(partial(copy_box, alone, outside=0, first=tumor.start), 0.0)

    def _read_tumor_box(self, start: ArrayLike, stop: ArrayLike) -> NDArray[np.bool_]:
        return np.isin(self.case.read_label_box(start, stop), self.case.tumor_values)

    def _sample(self, read_box: Callable[[ArrayLike, ArrayLike], NDArray[Any]], outside: float) -> FloatArray:
        spacing_mm = np.array(self.case.spacing_mm)
        start_mm = np.array(self.centre_mm) - 0.5 * (self.side - 1) * self.spacing_mm
        stop_mm = start_mm + (self.side - 1) * self.spacing_mm
        reach_mm = np.maximum(spacing_mm, self.spacing_mm)  # half-width of the resampling kernel
        limit = np.array(self.case.shape)
        first = np.clip(np.floor((start_mm - reach_mm) / spacing_mm).astype(int), 0, limit - 1)
        last = np.clip(np.ceil((stop_mm + reach_mm) / spacing_mm).astype(int) + 1, first + 1, limit)
        return resample(
            read_box(first, last),
            self.case.spacing_mm,
            (self.side,) * 3,
            (self.spacing_mm,) * 3,
            start_mm - first * spacing_mm,
            fill_value=outside,
            whole_voxels=True,
        )


def draw_crop(case: CachedCase, side: int, spacing_range_mm: tuple[float, float], rng: np.random.Generator) -> Crop:
    """Draw a cube anywhere in a case; 75 % are centred in the body, and any may reach beyond the volume.

    The side is in voxels; the spacing in mm is drawn log-uniformly between the finest and the coarsest.
    """
    spacing_mm = _log_uniform(*spacing_range_mm, rng)
    is_in_body = rng.random() < BODY_SHARE
    voxel = case.draw_body_voxel(rng) if is_in_body else rng.integers(0, case.shape)
    return Crop(case, side, spacing_mm, np.multiply(voxel, case.spacing_mm))


def draw_tumor_crop(
    case: CachedCase, tumor: TumorComponent, side: int, spacing_range_mm: tuple[float, float], rng: np.random.Generator
) -> Crop:
    """Draw a cube, its side in voxels, that holds a whole tumour and its surroundings.

    The spacing is log-uniform from what leaves a margin of 6 to 12 voxels (drawn; less in cubes under 32)
    up to the coarsest; it is coarser than that where the tumour would not fit otherwise, and no coarser
    than what leaves a small tumour two voxels in radius. The centre is jittered inside the margin.
    """
    margin = margin_voxels(side)
    half_extent_mm = tumor.half_extent_mm(case.spacing_mm)
    fitting_mm = float(half_extent_mm.max()) / (side / 2 - rng.uniform(*margin))
    finest_mm = max(spacing_range_mm[0], fitting_mm)
    coarsest_mm = min(spacing_range_mm[1], max(finest_mm, tumor.radius_mm / _SMALLEST_RADIUS_VOXELS))
    spacing_mm = _log_uniform(finest_mm, max(finest_mm, coarsest_mm), rng)
    free = side / 2 - margin[0] - half_extent_mm / spacing_mm  # (3,) voxels on each side
    free = np.clip(free, 0.0, _LARGEST_JITTER_SHARE * side)
    jitter_mm = rng.uniform(-1.0, 1.0, size=3) * free * spacing_mm
    return Crop(case, side, spacing_mm, tumor.centre_mm(case.spacing_mm) + jitter_mm)


def centred_tumor_crop(case: CachedCase, tumor: TumorComponent, side: int, finest_mm: float) -> Crop:
    """Place a cube around a tumour as it is placed around a synthetic one: centred, with the largest margin.

    The side is in voxels; a tumour that does not fit at the finest spacing in mm gets a coarser one.
    """
    half_extent_mm = float(tumor.half_extent_mm(case.spacing_mm).max())
    spacing_mm = max(finest_mm, half_extent_mm / (side / 2 - margin_voxels(side)[1]))
    return Crop(case, side, spacing_mm, tumor.centre_mm(case.spacing_mm))


def sample_tumor_crop(crop: Crop, tumor: TumorComponent, *, alone: bool = False) -> tuple[Crop, NDArray[np.bool_]]:
    """Sample the mask (side, side, side) of a tumour that the cube holds; it is never empty.

    With `alone` it holds this tumour only, not the others of the cube. The cube that is returned has a finer spacing
    around the tumour's centre if the mask was empty at the given one. A tumour that half fills no voxel at any of these
    spacings is taken at half of its largest share.
    """
    tried = crop
    for _ in range(_FINER_TRIES):
        mask = (tried.share_of(tumor) if alone else tried.tumor_share()) >= 0.5
        if mask.any():
            return tried, mask
        tried = replace(tried, spacing_mm=tried.spacing_mm * _FINER, centre_mm=tumor.centre_mm(crop.case.spacing_mm))
    share = crop.share_of(tumor) if alone else crop.tumor_share()
    return crop, (share >= 0.5 * share.max()) & (share > 0.0)


def read_component(case: CachedCase, tumor: TumorComponent) -> NDArray[np.bool_]:
    """Read the voxels of one tumour's bounding box, without those of others that reach into it."""
    tumors = np.isin(case.read_label_box(tumor.start, tumor.stop), case.tumor_values)
    numbered, _ = label_components(tumors)
    voxels = tumor.volume_mm3 / float(np.prod(case.spacing_mm))
    return numbered == 1 + int(np.argmin(np.abs(np.bincount(numbered.ravel())[1:] - voxels)))


def rim_of(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The shell 2 to 4 voxels outside a mask (D, H, W)."""
    return rim_shell(torch.from_numpy(mask)[None, None])[0, 0].numpy()


def margin_voxels(side: int) -> tuple[float, float]:
    """Smallest and largest drawn margin between a tumour and the edge of a cube, in voxels."""
    scale = min(1.0, side / _FULL_MARGIN_SIDE)
    return _MARGIN_VOXELS[0] * scale, _MARGIN_VOXELS[1] * scale


def _log_uniform(low: float, high: float, rng: np.random.Generator) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))
