"""What makes the tumours of an evaluation: the generator and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nnunet_difftumor.evaluation.realism.tumors import making
from nnunet_difftumor.evaluation.realism.tumors.scans import BoolArray, FloatArray
from nnunet_difftumor.synthesis.pasted import CopyPasteSynthesizer
from nnunet_difftumor.synthesis.synthesizer import TumorSynthesizer
from nnunet_difftumor.synthesis.tissue.diffusion import DiffusionTissue
from nnunet_difftumor.synthesis.tissue.donors import Donor
from nnunet_difftumor.synthesis.tissue.interface import GeneratedRegions, TissueGenerator, or_nan
from nnunet_difftumor.tumor.appearance import Appearance, AppearanceRule
from nnunet_difftumor.tumor.drawing import MaskSurface
from nnunet_difftumor.tumor.region import choose_roi
from nnunet_difftumor.tumor.surface import TumorSurface

if TYPE_CHECKING:
    from diffusion.generator.info import GeneratorInfo

Fill = Callable[[FloatArray, BoolArray, Sequence[Appearance], list[int]], FloatArray]
"""Fills regions with tumours. Arguments as for `TissueGenerator.generate`; shape (N, S, S, S), in HU."""


@dataclass(frozen=True, eq=False)
class Sources:
    """Where tissue comes from.

    Attributes:
        info: What the generator's folder says of it.
        looks: What requested looks are drawn from.
        donors: Real tumours for copy-paste, on the grid of the scans.
    """

    generator: DiffusionTissue
    info: GeneratorInfo
    looks: AppearanceRule
    donors: tuple[Donor, ...] = ()

    def synthesizers(self, patient: str) -> dict[str, TumorSynthesizer]:
        """What makes tumours of each method in the scan of a patient, whose own tumours are no donors."""
        others = [donor for donor in self.donors if donor.identifier != patient]
        return {
            making.GENERATED: TumorSynthesizer(self.generator),
            making.NO_RESIDUAL: TumorSynthesizer(self.generator, has_residual=False),
            making.NO_DIFFUSION: self._filling(flat_fill),
            making.TEXTURED_FILL: self._filling(self.generator.fill),
            **({making.COPY_PASTE: CopyPasteSynthesizer(self.info, others)} if others else {}),
        }

    def floor(self, place: making.Place) -> TumorSynthesizer:
        """What puts a real tumour back in its place, encoded and decoded: the floor for this autoencoder."""
        surface = place.tumor if isinstance(place.tumor, MaskSurface) else TumorSurface(place.tumor)
        roi = choose_roi(surface, place.scan.spacing_mm, self.generator.roi_rule)
        real_hu = roi.sample(place.scan.image_hu, place.scan.spacing_mm)
        return self._filling(lambda *_request: real_hu[None])

    def _filling(self, fill: Fill) -> TumorSynthesizer:
        return TumorSynthesizer(FilledTissue(self.generator, fill))


class FilledTissue(TissueGenerator):
    """No diffusion: a fill, encoded and decoded. Regions, window and looks are those of a generator."""

    def __init__(self, generator: TissueGenerator, fill: Fill) -> None:
        self.reconstruct, self._fill = generator.reconstruct, fill
        self.roi_rule, self.window_hu = generator.roi_rule, generator.window_hu
        self.appearances = generator.appearances

    def generate(
        self, host_hu: FloatArray, tumor_masks: BoolArray, appearances: Sequence[Appearance], seeds: list[int]
    ) -> GeneratedRegions:
        """Decode the fill of every region (see `TissueGenerator.generate`)."""
        filled_hu = self._fill(host_hu, tumor_masks, appearances, seeds)
        return GeneratedRegions(self.reconstruct(filled_hu), self.reconstruct(host_hu))


def flat_fill(
    host_hu: FloatArray, tumor_masks: BoolArray, appearances: Sequence[Appearance], _seeds: list[int]
) -> FloatArray:
    """Fill regions at the requested contrast, without noise (see `Fill`)."""
    import torch

    from diffusion.conditioning import fill_tumor_region

    return fill_tumor_region(
        torch.from_numpy(np.ascontiguousarray(host_hu[:, None], dtype=np.float32)),
        torch.from_numpy(tumor_masks[:, None].astype(np.float32)),
        torch.tensor([or_nan(look.contrast_hu) for look in appearances]),
    )[:, 0].numpy()
