"""Where the synthesizer of each arm comes from: what is put into the same crops of the same healthy cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import find_objects

from nnunet_difftumor.ct.components import label_components
from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.injection.rules import InjectionRules
from nnunet_difftumor.synthesis.pasted import CopyPasteSynthesizer
from nnunet_difftumor.synthesis.published import make_synthesizer
from nnunet_difftumor.synthesis.synthesizer import TumorSynthesizer
from nnunet_difftumor.synthesis.tissue.diffusion import DiffusionTissue
from nnunet_difftumor.synthesis.tissue.donors import Donor, donor_box, make_donor
from nnunet_difftumor.synthesis.tissue.handcrafted import HandcraftedTissue

DIFFUSION = "generated"
HANDCRAFTED = "hand-crafted"
COPY_PASTE = "copied and pasted"
HEALTHY_ONLY = "none"
MISPLACED = "generated, labelled elsewhere"
"""What an arm puts in; with one seed all arms choose the same cases and crops, and draw the same tumours."""

_SMALLEST_DONOR_VOXELS = 20

SynthesizerSource = Callable[[], TumorSynthesizer]
"""Makes the synthesizer in the process that uses it; must pickle, so that workers can be spawned."""


class LoadedOnce:
    """A source that several injectors of one process share; what it loaded does not travel to other processes."""

    def __init__(self, source: SynthesizerSource) -> None:
        self._source = source
        self._synthesizer: TumorSynthesizer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_synthesizer": None}

    def __call__(self) -> TumorSynthesizer:
        """Return the synthesizer, loaded at the first call."""
        if self._synthesizer is None:
            self._synthesizer = self._source()
        return self._synthesizer


@dataclass(frozen=True)
class GeneratorFolderSource:
    """A synthesizer on the CPU from a generator folder."""

    folder: Path
    steps: int

    def __call__(self) -> TumorSynthesizer:
        """Load the generator."""
        return make_synthesizer(DiffusionTissue.from_folder(self.folder, steps=self.steps))


@dataclass(frozen=True)
class HandcraftedSource:
    """Hand-crafted tumours with regions and looks of a generator folder; its networks are not loaded."""

    generator_folder: Path

    def __call__(self) -> TumorSynthesizer:
        """Read the description of the generator."""
        from diffusion.generator_folder import read_generator_info

        return TumorSynthesizer(HandcraftedTissue(read_generator_info(self.generator_folder)))


@dataclass(frozen=True, kw_only=True)
class CopyPasteSource:
    """Loads the real tumours of a fold's training cases, in the process that uses them.

    Attributes:
        generator_folder: Generator whose regions and looks are used; its networks are not.
        dataset_class: nnU-Net's class of preprocessed data sets, of which `data_folder` is one.
        cases: Training cases with tumours, and no others.
    """

    generator_folder: Path
    dataset_class: Any
    data_folder: Path
    cases: tuple[str, ...]
    tumor_labels: tuple[int, ...]
    rules: InjectionRules

    def __call__(self) -> CopyPasteSynthesizer:
        """Load the donors.

        Raises:
            ConfigurationError: If no training case has a tumour of at least 20 voxels.
        """
        from diffusion.generator_folder import read_generator_info

        donors = [donor for case in self.cases for donor in self._donors_of(case)]
        if not donors:
            raise ConfigurationError(
                f"None of the {len(self.cases)} training cases with tumours has one of {_SMALLEST_DONOR_VOXELS} voxels "
                f"of label {self.tumor_labels[0]}, so there is nothing to copy and paste. Use another trainer, or a "
                "fold with annotated tumours."
            )
        return CopyPasteSynthesizer(read_generator_info(self.generator_folder), donors)

    def _donors_of(self, case: str) -> Iterable[Donor]:
        data, segmentation, _, _ = self.dataset_class(str(self.data_folder), [case]).load_case(case)
        labels = np.asarray(segmentation[0])
        components, _ = label_components(np.isin(labels, self.tumor_labels))
        image_hu = self.rules.intensities.to_hu(np.asarray(data[0]))
        for number, box in enumerate(find_objects(components), start=1):
            if box is not None and int((components[box] == number).sum()) >= _SMALLEST_DONOR_VOXELS:
                near = donor_box(box, self.rules.spacing_mm, labels.shape)
                tumor, organ = components[near] == number, labels[near] == self.rules.organ_label
                yield make_donor(case, image_hu[near], tumor, organ, self.rules.spacing_mm)
