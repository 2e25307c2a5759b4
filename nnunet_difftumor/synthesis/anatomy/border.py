"""The organ's border: how much of a voxel is organ there, so that a tumour takes the place of that share alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, maximum_filter1d

from nnunet_difftumor.ct.boxes import Box
from nnunet_difftumor.synthesis.blending import robust_sd

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

BORDER_MM = 5.0
"""How deep the border reaches into the organ."""

_LEVEL_SIGMA_MM = 3.0
_TOUCHING = (0, 1, 1)  # voxels; thick slices are mixed as seldom as they are thick
_FEW = 1e-3  # where nothing else is near
_LEAST_STEP_HU = 40.0
_WITHIN_SD, _USUAL_SD = 2.0, 3.0
_LEAST_SHARE_OF_STEP = 0.5


@dataclass(frozen=True, eq=False)
class OrganBorder:
    """Voxels of an organ beside other tissue, which a scanner's voxels and a mask's errors mix with it.

    Attributes:
        mask: True in the border with tissue that differs. Shape (D, H, W), as the others.
        share: Share of organ in the voxel, 1 wherever nothing else is seen.
        organ_hu: Level of the organ in HU at the border, and in what is beside it.
        other: True in other tissue that differs from the organ, and in what holds some.
    """

    mask: BoolArray
    share: FloatArray
    organ_hu: FloatArray
    other: BoolArray

    def within(self, box: Box) -> OrganBorder:
        """Return the same in a box of it."""
        return OrganBorder(self.mask[box], self.share[box], self.organ_hu[box], self.other[box])

    def hidden_hu(self, image_hu: FloatArray) -> FloatArray:
        """What to add to a host, in HU, so that its organ goes on in the place of other tissue.

        Tissue that is made from such a host does not take on the level of what it borders on.
        """
        return np.where(self.other, self.organ_hu - image_hu, np.float32(0.0))

    def residual_hu(self, image_hu: FloatArray, reconstruction_hu: FloatArray) -> FloatArray:
        """What a host shows beside its reconstruction, in HU; at the border, where that mixes tissues, its organ."""
        residual_hu = image_hu - np.where(self.mask, self.organ_hu, reconstruction_hu)
        return np.where(self.share < 1.0, np.float32(0.0), residual_hu)

    def mixed(
        self,
        image_hu: FloatArray,
        tissue_hu: NDArray[np.floating],
        weight: FloatArray,
        blended_hu: NDArray[np.floating],
    ) -> FloatArray:
        """Put tissue into the organ's share of voxels that hold other tissue too; elsewhere keep what is blended.

        What a tumour adds to its organ is added to the voxel: w (y - o), where w is the share of tumour, y its tissue
        and o the organ's level.
        """
        mixed_hu = np.where(self.share < 1.0, image_hu + weight * (tissue_hu - self.organ_hu), blended_hu)
        return mixed_hu.astype(np.float32)


def find_border(image_hu: FloatArray, organ: BoolArray, other: BoolArray, spacing_mm: Sequence[float]) -> OrganBorder:
    """Tell organ from what it borders on, by the levels of both nearby.

    A voxel of the border that lies between the two levels holds as much organ as it has gone from one to the other;
    noise of the organ, two standard deviations of it, is none. Levels that are less than 40 HU apart tell nothing.

    Args:
        image_hu: Shape (D, H, W).
        organ: True in the organ. Same shape.
        other: True in any other tissue, and not in padding or in what counts as neither. Same shape.
    """
    share = np.ones_like(image_hu)
    nowhere = np.zeros_like(organ)
    none = OrganBorder(nowhere, share, image_hu, nowhere)
    if not other.any() or not organ.any():
        return none
    near = organ & spread(other, [int(BORDER_MM / mm) for mm in spacing_mm])
    if not near.any():
        return none
    inner = organ & ~spread(other, _TOUCHING)  # what touches the border is mixed itself
    inner = inner if inner.any() else organ
    middle_hu, sd_hu = np.float32(np.median(image_hu[inner])), robust_sd(image_hu[inner])
    inner &= np.abs(image_hu - middle_hu) <= _USUAL_SD * max(sd_hu, 1.0)
    outer = np.where(spread(organ, _TOUCHING), np.float32(_FEW), np.float32(1.0)) * other
    organ_hu = _local_level(image_hu, inner.astype(np.float32), spacing_mm, middle_hu)
    step_hu = organ_hu - (other_hu := _local_level(image_hu, outer, spacing_mm, organ_hu))
    differs = np.abs(step_hu) >= _LEAST_STEP_HU
    mask = near & differs
    noise_free = np.maximum(1.0 - _WITHIN_SD * sd_hu / np.abs(step_hu[mask]), _LEAST_SHARE_OF_STEP)
    share[mask] = np.clip((image_hu - other_hu)[mask] / (step_hu[mask] * noise_free), 0.0, 1.0)
    return OrganBorder(mask, share, organ_hu, (other & differs) | (share < 1.0))


def spread(mask: BoolArray, voxels: Sequence[int]) -> BoolArray:
    """True within a box of so many voxels (D, H, W) around a voxel that is. Shape (D, H, W)."""
    for axis, reach in enumerate(voxels):
        mask = np.asarray(maximum_filter1d(mask, size=2 * reach + 1, axis=axis, mode="constant"), dtype=bool)
    return mask


def _local_level(
    image_hu: FloatArray, weight: FloatArray, spacing_mm: Sequence[float], elsewhere_hu: np.float32 | FloatArray
) -> FloatArray:
    sigma = _LEVEL_SIGMA_MM / np.asarray(spacing_mm)
    total, sum_hu = (np.asarray(gaussian_filter(each, sigma, truncate=3.0)) for each in (weight, image_hu * weight))
    return np.where(total > 1e-6, sum_hu / np.maximum(total, 1e-6), elsewhere_hu).astype(np.float32)
