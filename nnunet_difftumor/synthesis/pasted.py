"""Copy-paste inside training: real tumours of the training fold, put where synthetic ones would be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nnunet_difftumor.synthesis.blending import at_level
from nnunet_difftumor.synthesis.host import Host
from nnunet_difftumor.synthesis.prepared import PreparedTumor
from nnunet_difftumor.synthesis.synthesizer import TumorSynthesizer, attempt_seed
from nnunet_difftumor.synthesis.tissue.donors import Donor, paste_texture
from nnunet_difftumor.synthesis.tissue.interface import DescribedTissue, FloatArray, UnchangedTissue

if TYPE_CHECKING:
    from diffusion.generator.info import GeneratorInfo


class CopyPasteSynthesizer(TumorSynthesizer):
    """Fills the drawn masks with the texture of real tumours; place, shape, looks and blending are as ever."""

    def __init__(self, info: GeneratorInfo, donors: Sequence[Donor]) -> None:
        """Take donors on the grid of the hosts, at least one; a generator's looks let the same tumours be drawn."""
        super().__init__(DescribedTissue(info))
        self._donors = tuple(donors)

    def without_tumors(self) -> TumorSynthesizer:
        """Put the host's own tissue where a tumour would be pasted (see `TumorSynthesizer.without_tumors`)."""
        return TumorSynthesizer(UnchangedTissue(self.tissue))

    def blended(
        self, host: Host, pending: Sequence[PreparedTumor], attempt: int
    ) -> Iterable[tuple[PreparedTumor, FloatArray]]:
        """Paste and blend (see `TumorSynthesizer.blended`); the texture brings its own noise."""
        for prepared in pending:
            rng = np.random.default_rng(attempt_seed(prepared.spec.seed, attempt))
            spec, rim_hu = prepared.spec, prepared.rim_hu
            level_hu = float(np.median(rim_hu) if rim_hu.size else host.image_hu[prepared.box].mean())
            pasted_hu = paste_texture(self._donors, prepared.label, spec.radius_mm, spec.contrast_hu, level_hu, rng)
            host_hu, weight, shell_mm = host.image_hu[prepared.box], prepared.weight, max(host.spacing_mm)
            pasted_hu = at_level(pasted_hu, prepared.distance_mm, weight, shell_mm, prepared.level_hu)
            pasted_hu = np.clip(pasted_hu, *self.tissue.window_hu)
            blended_hu = (1.0 - weight) * host_hu + weight * pasted_hu
            blended_hu = prepared.own_border.mixed(host_hu, pasted_hu, weight, blended_hu)
            yield prepared, np.where(weight > 0, blended_hu, host_hu).astype(np.float32)
