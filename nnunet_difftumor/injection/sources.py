"""The arms of a study: what is put into the same crops of the same healthy cases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nnunet_difftumor.synthesis.synthesizer import TumorSynthesizer
from nnunet_difftumor.synthesis.tissue.handcrafted import HandcraftedTissue

DIFFUSION = "generated"
HANDCRAFTED = "hand-crafted"
COPY_PASTE = "copied and pasted"
HEALTHY_ONLY = "none"
MISPLACED = "generated, labelled elsewhere"
"""What an arm puts in; with one seed all arms choose the same cases and crops, and draw the same tumours."""


@dataclass(frozen=True)
class HandcraftedSource:
    """Hand-crafted tumours with regions and looks of a generator folder; its networks are not loaded.

    Attributes:
        generator_folder: The generator folder.
    """

    generator_folder: Path

    def __call__(self) -> TumorSynthesizer:
        """Read the description of the generator."""
        from diffusion.generator_folder import read_generator_info

        return TumorSynthesizer(HandcraftedTissue(read_generator_info(self.generator_folder)))
