"""What a synthesis gives back: the CT, its label and a record of every tumour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.ct.boxes import Box
from nnunet_difftumor.tumor.spec import TumorSpec

FloatArray = NDArray[np.float32]

INVISIBLE, CUT_OFF, OUT_OF_VIEW = "invisible", "cut_off", "out_of_view"
"""Why a tumour is left out: it does not stand out as it was requested, the network's window hides it, or no voxel of
its label lies in the host."""


@dataclass(frozen=True)
class TumorRecord:
    """What happened to one drawn tumour; with the host, it replays the tumour.

    Attributes:
        attempt: Number of the attempt that was kept, from 0.
        drawn_mm3: Volume on the host's grid before clipping to the organ, in mm3.
        contrast_hu: Mean of the label minus mean of the rim, as the network is shown them, in HU.
        depth_hu: Contrast of the tumour's tissue against the rim in HU: what `spec.contrast_hu` asks for.
        noise_ratio: Contrast of the visible part in standard deviations of the host's noise.
    """

    spec: TumorSpec
    attempt: int
    roi_side: int
    roi_spacing_mm: float
    drawn_mm3: float
    label_mm3: float
    contrast_hu: float
    depth_hu: float
    noise_ratio: float


@dataclass(frozen=True)
class SynthesizedTumor:
    """One tumour, as a change of the host inside a box.

    Attributes:
        box: Where the arrays lie in the host.
        image_hu: Host with the tumour, in HU; equal to the host outside the support. Shape of the box.
        support: True where the image may differ from the host. Shape of the box.
        label: True where the voxel is tumour: what a reader would outline. Shape of the box.
    """

    box: Box
    image_hu: FloatArray
    support: NDArray[np.bool_]
    label: NDArray[np.bool_]
    record: TumorRecord


@dataclass(frozen=True)
class SynthesisResult:
    """Tumours for one host.

    Attributes:
        tumors: Those that can be seen; their supports do not overlap.
        rejected: How many drawn tumours were dropped, by reason.
    """

    tumors: tuple[SynthesizedTumor, ...]
    rejected: Mapping[str, int]

    def apply_to(self, image_hu: FloatArray) -> FloatArray:
        """Return a copy of the host's image with the tumours in it. Shape (D, H, W), HU."""
        changed = image_hu.copy()
        self.apply_to_(changed)
        return changed

    def apply_to_(self, image_hu: FloatArray) -> None:
        """Put the tumours into the host's image itself. Shape (D, H, W), HU."""
        for tumor in self.tumors:
            image_hu[tumor.box][tumor.support] = tumor.image_hu[tumor.support]

    def label_mask(self, shape: Sequence[int]) -> NDArray[np.bool_]:
        """Return the union of the tumours' labels. Shape `shape`."""
        return _union(shape, [(tumor.box, tumor.label) for tumor in self.tumors])

    def support_mask(self, shape: Sequence[int]) -> NDArray[np.bool_]:
        """Return the union of the tumours' supports. Shape `shape`."""
        return _union(shape, [(tumor.box, tumor.support) for tumor in self.tumors])


def _union(shape: Sequence[int], parts: Iterable[tuple[Box, NDArray[np.bool_]]]) -> NDArray[np.bool_]:
    mask = np.zeros(tuple(shape), dtype=bool)
    for box, part in parts:
        mask[box] |= part
    return mask
