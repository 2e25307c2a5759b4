"""What every maker of tumour tissue takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.tumor.appearance import Appearance
from nnunet_difftumor.tumor.region import RoiRule

if TYPE_CHECKING:
    from diffusion.generator.info import EdgeStatistics, GeneratorInfo

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class GeneratedRegions:
    """Smooth tissue for a batch of regions, without the host's noise: HU of shape (N, S, S, S).

    Attributes:
        reconstruction_hu: The same model's reconstruction of the host.
    """

    tumor_hu: FloatArray
    reconstruction_hu: FloatArray


class TissueGenerator:
    """Makes tumour tissue for regions of interest; the same seed and region give the same tissue.

    Attributes:
        roi_rule: Regions that the generator was trained on, and can work on.
        window_hu: Lowest and highest value that the generator represents, in HU.
        appearances: Look of each tumour that the generator learned from, as far as it is known.
        edges: Where the visible edges of those tumours lie, as far as it was measured.
    """

    roi_rule: RoiRule
    window_hu: tuple[float, float]
    appearances: tuple[Appearance, ...]
    edges: tuple[EdgeStatistics, ...] = ()

    def generate(
        self, host_hu: FloatArray, tumor_masks: NDArray[np.bool_], appearances: Sequence[Appearance], seeds: list[int]
    ) -> GeneratedRegions:
        """Generate tissue for N regions of one side S.

        Args:
            host_hu: Regions of the host in HU. Shape (N, S, S, S).
            tumor_masks: True inside the tumour. Shape (N, S, S, S).
            appearances: Requested look of each region's tumour; contrast against `rim_median_hu` of the region (see
                `diffusion.conditioning`).
        """
        raise NotImplementedError

    def reconstruct(self, host_hu: FloatArray) -> FloatArray:
        """Regions of a host as its tissue has them in `generate`: smooth, or as they are. HU, shape (N, S, S, S)."""
        return host_hu


class UnchangedTissue(TissueGenerator):
    """The host's own tissue, as what makes tumours would show it: no tumour. Regions and window are that one's."""

    def __init__(self, tissue: TissueGenerator) -> None:
        self.reconstruct = tissue.reconstruct
        self.roi_rule, self.window_hu, self.appearances = tissue.roi_rule, tissue.window_hu, tissue.appearances

    def generate(
        self, host_hu: FloatArray, tumor_masks: NDArray[np.bool_], appearances: Sequence[Appearance], seeds: list[int]
    ) -> GeneratedRegions:
        """Reconstruct the regions (see `TissueGenerator.generate`)."""
        host_hu = self.reconstruct(host_hu)
        return GeneratedRegions(host_hu, host_hu)


class DescribedTissue(TissueGenerator):
    """Regions, window and looks of a generator folder, whatever the tissue is made by."""

    def __init__(self, info: GeneratorInfo) -> None:
        finest_mm, coarsest_mm = info.spacing_range_mm
        self.roi_rule = RoiRule(
            sides=tuple(info.roi_sides), margin_voxels=info.margin_voxels, spacing_range_mm=(finest_mm, coarsest_mm)
        )
        self.window_hu = (info.low_hu, info.high_hu)
        self.appearances = tuple(
            Appearance(contrast_hu=tumor.contrast_hu, heterogeneity_hu=tumor.heterogeneity_hu)
            for tumor in info.training_tumors
        )
        self.edges = info.edges


def require_in_window(level_hu: float, window_hu: tuple[float, float], what: str) -> None:
    """Refuse an organ that a generator cannot represent: its autoencoder limits all values to its window.

    Raises:
        DiffTumorError: If the typical value of the organ, which the message calls `what`, lies outside the window.
    """
    low_hu, high_hu = window_hu
    if not low_hu < level_hu < high_hu:
        raise DiffTumorError(
            f"{what} is at {level_hu:.0f} HU, but this generator represents {low_hu:g} to {high_hu:g} HU only. Train "
            "one on such tissue (difftumor train-autoencoder, then train-diffusion), or check that the image is in HU."
        )


def or_nan(value: float | None) -> float:
    """What a network is conditioned on where nothing is asked for is NaN."""
    return float("nan") if value is None else value
