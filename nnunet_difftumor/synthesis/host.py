"""The scan, or part of a scan, that receives synthetic tumours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter

from nnunet_difftumor.ct.boxes import Box, as_box, inside, widened
from nnunet_difftumor.errors import GeometryMismatchError

GROWTH_RANGE_HU = (-300.0, 300.0)
"""Outside its organ a tumour takes the place of fat and soft tissue only, not of air or bone."""

_LOWEST_FAT_HU = -120.0
"""Where an image is clipped below this, fat keeps its noise; above, much of it is as flat as air."""

_NEAR_MM = 20.0
_PLATEAU_VOXELS = 3
_RESAMPLED_WITHIN_HU = 1.0


@dataclass(frozen=True)
class Host:
    """A scan with what may be changed in it.

    Attributes:
        image_hu: Values in HU. Shape (D, H, W).
        organ_mask: True in the organ: centres and rims are taken there. Shape (D, H, W).
        replaceable_mask: True where a voxel may become tumour: organ, and background if tumours may
            leave the organ; never another label, ignore or padding. Shape (D, H, W).
        valid_mask: True in real CT, False in padding. Shape (D, H, W).
        avoid_mask: True in what tumours keep away from, such as vessels; None if there is nothing. Shape (D, H, W).
        clipped_to_hu: Lowest and highest value that the image was clipped to, in HU; None if it was not.
    """

    image_hu: NDArray[np.float32]
    spacing_mm: tuple[float, float, float]
    organ_mask: NDArray[np.bool_]
    replaceable_mask: NDArray[np.bool_]
    valid_mask: NDArray[np.bool_]
    avoid_mask: NDArray[np.bool_] | None = None
    clipped_to_hu: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        names = ("image_hu", "organ_mask", "replaceable_mask", "valid_mask")
        shapes = {name: getattr(self, name).shape for name in names}
        if len(set(shapes.values())) != 1 or self.image_hu.ndim != 3:
            raise GeometryMismatchError(
                f"A host needs one 3D shape for image and masks, got {shapes}. Bring the masks onto the image's grid."
            )

    @classmethod
    def of_organ(
        cls, image_hu: NDArray[np.float32], spacing_mm: tuple[float, float, float], organ_mask: NDArray[np.bool_]
    ) -> Host:
        """Make a host of a whole scan whose tumours stay in an organ.

        Args:
            image_hu: CT in HU. Shape (D, H, W).
            spacing_mm: Distance between voxels along D, H and W in mm.
            organ_mask: True in the organ; tumours and whatever they shall not touch left out. Shape (D, H, W).
        """
        return cls(image_hu, spacing_mm, organ_mask, organ_mask, np.ones_like(organ_mask))

    def may_become_tumor(self, box: Box) -> NDArray[np.bool_]:
        """Say which voxels of a box a tumour may change: replaceable real CT, and no air or bone beside the organ.

        A clipped image is flat at an end of its window where there is air or bone. Where the window ends above
        -120 HU, fat is as flat, and air is taken for fat. Shape of the box.
        """
        low_hu, high_hu = GROWTH_RANGE_HU
        image_hu, organ = self.image_hu[box], self.organ_mask[box]
        allowed = self.replaceable_mask[box] & self.valid_mask[box]
        tissue = (image_hu > low_hu) & (image_hu < high_hu)
        if (allowed & ~organ).any():
            for end_hu in self._telling_ends_hu():
                tissue &= ~self._plateaus(box, end_hu)
        return allowed & (organ | tissue)

    def level_hu(self, centre_mm: Sequence[float]) -> float | None:
        """Median of the organ near a place (mm from voxel (0, 0, 0)) in HU; of all of it if it has none there."""
        voxel = np.round(np.divide(centre_mm, self.spacing_mm)).astype(int)
        voxel = np.clip(voxel, 0, np.asarray(self.image_hu.shape) - 1)
        reach = np.ceil(_NEAR_MM / np.asarray(self.spacing_mm)).astype(int)
        near = widened(as_box(voxel, voxel + 1), reach, self.image_hu.shape)
        for box in (near, (slice(None),) * 3):
            organ = self.organ_mask[box] & self.valid_mask[box]
            if organ.any():
                return float(np.median(self.image_hu[box][organ]))
        return None

    def _telling_ends_hu(self) -> tuple[float, ...]:
        """Ends of the window inside the range of growth at which nothing but air or bone is flat."""
        if self.clipped_to_hu is None:
            return ()
        (low_hu, high_hu), (lowest_hu, highest_hu) = self.clipped_to_hu, GROWTH_RANGE_HU
        is_air, is_bone = lowest_hu < low_hu <= _LOWEST_FAT_HU, high_hu < highest_hu
        return (low_hu,) * is_air + (high_hu,) * is_bone

    def _plateaus(self, box: Box, end_hu: float) -> NDArray[np.bool_]:
        """Voxels of a box in cubes that lie at an end of the window as a whole. Shape of the box."""
        wide = widened(box, _PLATEAU_VOXELS - 1, self.image_hu.shape)
        is_clipped = is_clipped_to(self.image_hu[wide], end_hu)
        cubes = minimum_filter(is_clipped, _PLATEAU_VOXELS)  # at their centres
        plateaus = np.asarray(maximum_filter(cubes, _PLATEAU_VOXELS), dtype=bool)
        return plateaus[inside(box, wide)]


def is_clipped_to(image_hu: NDArray[np.float32], end_hu: float) -> NDArray[np.bool_]:
    """Say where an image lies at an end of the window that it was clipped to, but for nnU-Net's resampling after it."""
    return np.abs(image_hu - np.float32(end_hu)) <= _RESAMPLED_WITHIN_HU
