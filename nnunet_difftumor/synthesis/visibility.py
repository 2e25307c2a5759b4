"""Whether a tumour can be seen: against its host, after what the network's window cuts off, and in the scan's noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.synthesis.blending import robust_sd

MINIMUM_CONTRAST_HU = 5.0
SMALLEST_CNR = 0.5
"""Least contrast-to-noise ratio of a large tumour; below, the noise of a voxel hides it from a reader."""
ROSE_CRITERION = 3.0
"""Least signal-to-noise ratio of a whole tumour; Rose (1948) found 3 to 5 to be what a human reader needs."""

_LEAST_NOISE_HU = 0.5
_SMALLEST_CORRELATION, _LARGEST_CORRELATION = 0.01, 0.95
_USUAL_CORRELATION = 0.5
_FEWEST_PAIRS = 30
_MOST_CUT_OFF_SHARE = 0.25
_UNCHANGED_HU = 0.5

FloatArray = NDArray[np.floating]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Noise:
    """Noise of a host around a tumour.

    Attributes:
        sd_hu: Robust standard deviation in HU.
        correlated_voxels: Voxels that together tell as much as one of independent noise.
    """

    sd_hu: float
    correlated_voxels: float

    @classmethod
    def of(cls, image_hu: FloatArray, tissue: BoolArray) -> Noise:
        """Measure the noise of one tissue, as a reader does in a region of interest.

        Along each axis it is taken for white noise smoothed by a Gaussian: its neighbours' correlation r makes
        sqrt(pi / -ln r) voxels, the integral of its autocorrelation, as good as one.

        Args:
            image_hu: Unchanged host in HU. Shape (D, H, W).
            tissue: True in the tissue to measure. Same shape.
        """
        values = image_hu[tissue]
        sd_hu = robust_sd(values) if values.size else 0.0
        if sd_hu <= _LEAST_NOISE_HU:
            return cls(_LEAST_NOISE_HU, 1.0)
        standard = np.clip((image_hu - np.median(values)) / sd_hu, -3.0, 3.0)
        correlated = 1.0
        for axis in range(3):
            near, far = (np.moveaxis(tissue, axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
            pairs = near & far
            moved = np.moveaxis(standard, axis, 0)
            first, second = moved[:-1][pairs], moved[1:][pairs]
            correlation = _USUAL_CORRELATION
            if first.size >= _FEWEST_PAIRS:
                correlation = float(np.mean(first * second) / np.mean(0.5 * (first**2 + second**2)))
            correlation = float(np.clip(correlation, _SMALLEST_CORRELATION, _LARGEST_CORRELATION))
            correlated *= max(1.0, math.sqrt(math.pi / -math.log(correlation)))
        return cls(sd_hu, correlated)

    def shows(self, contrast_hu: float, signal_hu: float, rim_voxels: int) -> bool:
        """Say whether a reader, and a network, can tell a tumour from noise.

        It needs 5 HU, two standard errors of the rim, a contrast-to-noise ratio of 0.5 and Rose's criterion.

        Args:
            contrast_hu: Contrast of its visible part in HU.
            signal_hu: Root of the sum of its voxels' squared contrasts in HU.
            rim_voxels: Voxels of the rim that it is seen against.
        """
        ratio, correlated = abs(contrast_hu) / self.sd_hu, math.sqrt(self.correlated_voxels)
        return (
            abs(contrast_hu) >= MINIMUM_CONTRAST_HU
            and ratio >= max(SMALLEST_CNR, 2.0 * correlated / math.sqrt(rim_voxels))
            and signal_hu / (self.sd_hu * correlated) >= ROSE_CRITERION
        )


@dataclass(frozen=True)
class Sight:
    """A tumour as the network sees it.

    Attributes:
        contrast_hu: Mean of the label minus mean of the rim in HU.
        depth_hu: Contrast of the tumour's tissue in HU: what the voxels' contrasts say together, each as far as it
            holds tissue.
        noise_ratio: Contrast of the visible part against the rim, in standard deviations of the noise.
        cut_off_share: Share of the visible part that the network's window leaves as it was.
        is_visible: It can be seen on the side that was asked for.
    """

    contrast_hu: float
    depth_hu: float
    noise_ratio: float
    cut_off_share: float
    is_visible: bool

    @property
    def is_cut_off(self) -> bool:
        """The window hides too much of it."""
        return self.cut_off_share > _MOST_CUT_OFF_SHARE


def look_at(
    before_hu: FloatArray,
    after_hu: FloatArray,
    weight: FloatArray,
    label: BoolArray,
    rim_hu: FloatArray,
    noise: Noise,
    *,
    organ: BoolArray | None,
    requested_hu: float | None,
    window_hu: tuple[float, float] | None,
    shown_share: float = 1.0,
) -> Sight | None:
    """Look at a tumour with the eyes of the network that trains on it; None without a rim or any of its tissue.

    Visible is what stands out from the rim and was not there before: both the contrast and the change of the same
    voxels count. Bright where dark was requested is not as requested, nor the other way round; a requested contrast
    that is too faint to be seen has no side.

    Args:
        before_hu, after_hu: The host without and with the tumour in HU. Shape (D, H, W), as weight and label.
        weight: Share of the tumour's tissue in the voxel.
        rim_hu: Unchanged host tissue around the tumour in HU. Shape (N,).
        organ: True in the organ that the rim belongs to, where the change is measured; None if the rim is none, so
            that the change has no side.
        window_hu: Lowest and highest value that the network is shown, in HU; None shows all.
        shown_share: Share of the tumour that lies in the host; what a crop cuts off helps a reader to see it.
    """
    shown = label & (weight > 0)
    if not shown.any() or rim_hu.size == 0:
        return None
    core = shown & (weight >= 0.5 * float(weight[shown].max()))
    before, after = before_hu, after_hu
    if window_hu is not None:
        before, after, rim_hu = (np.clip(each, *window_hu) for each in (before_hu, after_hu, rim_hu))
    level_hu = float(rim_hu.mean())
    changed = core if organ is None or not (core & organ).any() else core & organ
    contrast_hu, change_hu = float(after[core].mean()) - level_hu, float((after - before)[changed].mean())
    cut_off = (np.abs(after - before) < _UNCHANGED_HU) & (np.abs(after_hu - before_hu) >= MINIMUM_CONTRAST_HU)
    share = weight[shown].astype(np.float64)
    depth_hu = float((share * (after[shown] - level_hu)).sum() / (share * share).sum())
    signal_hu = abs(depth_hu) * math.sqrt(float((share * share).sum()) / shown_share)
    has_side = requested_hu is not None and abs(requested_hu) >= MINIMUM_CONTRAST_HU
    side = (requested_hu or 0.0) if has_side else contrast_hu
    return Sight(
        contrast_hu=float(after[label].mean()) - level_hu,
        depth_hu=depth_hu,
        noise_ratio=contrast_hu / noise.sd_hu,
        cut_off_share=float(cut_off[core].mean()),
        is_visible=contrast_hu * side > 0
        and (organ is None or change_hu * side > 0)
        and abs(change_hu) >= MINIMUM_CONTRAST_HU
        and noise.shows(contrast_hu, signal_hu, rim_hu.size),
    )
