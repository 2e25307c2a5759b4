"""The scan, or part of a scan, that receives synthetic tumours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.errors import GeometryMismatchError

GROWTH_RANGE_HU = (-300.0, 300.0)
"""Outside its organ a tumour takes the place of fat and soft tissue only, not of air or bone."""


@dataclass(frozen=True)
class Host:
    """A scan with what may be changed in it.

    Attributes:
        image_hu: Values in HU. Shape (D, H, W).
        spacing_mm: Spacing in mm, array order.
        organ_mask: True in the organ: centres and rims are taken there. Shape (D, H, W).
        replaceable_mask: True where a voxel may become tumour: organ, and background if tumours may
            leave the organ; never another label, ignore or padding. Shape (D, H, W).
        valid_mask: True in real CT, False in padding. Shape (D, H, W).
        avoid_mask: True in what tumours keep away from, such as vessels; None if there is nothing. Shape (D, H, W).
    """

    image_hu: NDArray[np.float32]
    spacing_mm: tuple[float, float, float]
    organ_mask: NDArray[np.bool_]
    replaceable_mask: NDArray[np.bool_]
    valid_mask: NDArray[np.bool_]
    avoid_mask: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        shapes = {
            "image_hu": self.image_hu.shape,
            "organ_mask": self.organ_mask.shape,
            "replaceable_mask": self.replaceable_mask.shape,
            "valid_mask": self.valid_mask.shape,
        }
        if len(set(shapes.values())) != 1 or self.image_hu.ndim != 3:
            raise GeometryMismatchError(
                f"A host needs one 3D shape for image and masks, got {shapes}. Bring the masks onto the image's grid."
            )

    def may_become_tumor(self, box: tuple[slice, slice, slice]) -> NDArray[np.bool_]:
        """Say which voxels of a box a tumour may change: replaceable real CT, and no air or bone beside the organ.

        Args:
            box: Part of the scan.

        Returns:
            Shape of the box.
        """
        low_hu, high_hu = GROWTH_RANGE_HU
        image_hu = self.image_hu[box]
        tissue = (image_hu > low_hu) & (image_hu < high_hu)
        return self.replaceable_mask[box] & self.valid_mask[box] & (self.organ_mask[box] | tissue)
