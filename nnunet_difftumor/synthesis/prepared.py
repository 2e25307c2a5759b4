"""A tumour that has a place on its host, before its tissue is made."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.ct.boxes import Box, inside
from nnunet_difftumor.synthesis.anatomy.border import OrganBorder, spread
from nnunet_difftumor.synthesis.host import Host
from nnunet_difftumor.synthesis.results import FloatArray
from nnunet_difftumor.synthesis.visibility import Noise
from nnunet_difftumor.tumor.region import RegionOfInterest
from nnunet_difftumor.tumor.spec import TumorSpec

ENOUGH_VOXELS = 20
"""Voxels of tissue that a level or a noise is measured in."""
_RIM_MM = 4.0
_NO_NOISE = Noise(1.0, 1.0)


@dataclass(frozen=True)
class PreparedTumor:
    """A tumour that has a place: its region of interest and its clipped drawing on the host.

    Attributes:
        roi_distance_mm: Signed distance to the outline in mm. Shape of the region.
        roi_share: Share of the tumour's tissue where the host may become tumour. Shape of the region.
        box: Where label, weight and distance lie in the host.
        label: True where the voxel becomes tumour. Shape of the box.
        weight: Share of synthetic tissue in the voxel. Shape of the box.
        distance_mm: Signed distance to the outline in mm. Shape of the box.
        drawn_voxels: Voxels of the label before clipping.
        shown_voxels: Those of them that lie in the host, whatever they may replace.
        wide: The box with its surroundings.
        border: The organ's border in the wide box; the weight is that of the organ's share there.
        rim_hu: Unchanged voxels around it: wholly organ if enough of them are, else any real CT. Shape (N,).
        noise: Noise of the rim.
        has_organ_rim: The rim is organ, so that the contrast against it is the one that was requested.
    """

    spec: TumorSpec
    roi: RegionOfInterest
    roi_distance_mm: FloatArray
    roi_share: FloatArray
    box: Box
    label: NDArray[np.bool_]
    weight: FloatArray
    distance_mm: FloatArray
    drawn_voxels: int
    shown_voxels: int
    wide: Box
    border: OrganBorder
    rim_hu: FloatArray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    noise: Noise = _NO_NOISE
    has_organ_rim: bool = False

    @property
    def level_hu(self) -> float | None:
        """Level that was asked for, in HU; None leaves it to what makes the tissue."""
        asked_hu = self.spec.contrast_hu
        return None if asked_hu is None or not self.has_organ_rim else float(self.rim_hu.mean()) + asked_hu

    @property
    def inner(self) -> Box:
        """Where the box lies in the wide one."""
        return inside(self.box, self.wide)

    @property
    def own_border(self) -> OrganBorder:
        """The border in the box."""
        return self.border.within(self.inner)

    @property
    def whole_voxels(self) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Weight and label without voxels that hold other tissue too, unless there is nothing else."""
        whole = self.label & (self.own_border.share >= 1.0)
        if not (whole & (self.weight > 0)).any():
            return self.weight, self.label
        return np.where(whole, self.weight, np.float32(0.0)), whole

    @property
    def touched(self) -> NDArray[np.bool_]:
        """True in the label and wherever the host changes. Shape of the box."""
        return self.label | (self.weight > 0)

    def with_rim(self, host: Host, occupied: NDArray[np.bool_]) -> PreparedTumor:
        """Measure the rim, when it is known where any tumour of the host changes it: `occupied`, shape (D, H, W)."""
        wide = self.wide
        near = np.zeros_like(host.valid_mask[wide])
        near[self.inner] = self.touched
        free = spread(near, _rim_voxels(host)) & host.valid_mask[wide] & ~occupied[wide]
        organ = free & host.organ_mask[wide] & (self.border.share >= 1.0)
        has_organ_rim = int(organ.sum()) >= ENOUGH_VOXELS
        rim = organ if has_organ_rim else free
        rim_hu, noise = host.image_hu[wide][rim], Noise.of(host.image_hu[wide], rim)
        return replace(self, rim_hu=rim_hu, noise=noise, has_organ_rim=has_organ_rim)


def _rim_voxels(host: Host) -> list[int]:
    return [max(1, round(_RIM_MM / spacing)) for spacing in host.spacing_mm]
