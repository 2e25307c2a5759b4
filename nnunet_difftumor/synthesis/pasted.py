"""Copy-paste inside training: real tumours of the training fold, put where synthetic ones would be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, label

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.injection.intensities import CTIntensities
from nnunet_difftumor.synthesis.host import Host
from nnunet_difftumor.synthesis.synthesizer import PreparedTumor, TumorSynthesizer, attempt_seed
from nnunet_difftumor.synthesis.tissue.diffusion import DescribedTissue, GeneratedRegions
from nnunet_difftumor.synthesis.tissue.donors import Donor, donor_box, make_donor, paste_texture

if TYPE_CHECKING:
    from diffusion.generator.info import GeneratorInfo

FloatArray = NDArray[np.float32]

_SMALLEST_DONOR_VOXELS = 20


class CopyPasteSynthesizer(TumorSynthesizer):
    """Fills the drawn masks with the texture of real tumours; place, shape, looks and blending are as ever."""

    def __init__(self, info: GeneratorInfo, donors: Sequence[Donor]) -> None:
        """Create a synthesizer.

        Args:
            info: Generator whose regions, window and looks are used, so that the same tumours are drawn.
            donors: Real tumours on the grid of the hosts, at least one.
        """
        super().__init__(_NoTissue(info))
        self._donors = tuple(donors)

    def blended(
        self, host: Host, pending: Sequence[PreparedTumor], attempt: int
    ) -> Iterable[tuple[PreparedTumor, FloatArray]]:
        """Paste and blend (see `TumorSynthesizer.blended`); the texture brings its own noise."""
        for prepared in pending:
            rng = np.random.default_rng(attempt_seed(prepared.spec.seed, attempt))
            spec, rim_hu = prepared.spec, prepared.rim_hu
            level_hu = float(np.median(rim_hu) if rim_hu.size else host.image_hu[prepared.box].mean())
            pasted_hu = paste_texture(self._donors, prepared.label, spec.radius_mm, spec.contrast_hu, level_hu, rng)
            host_hu, weight = host.image_hu[prepared.box], prepared.weight
            blended_hu = (1.0 - weight) * host_hu + weight * np.clip(pasted_hu, *self.tissue.window_hu)
            yield prepared, np.where(weight > 0, blended_hu, host_hu).astype(np.float32)


class _NoTissue(DescribedTissue):
    def generate(self, *_arguments: Any, **_options: Any) -> GeneratedRegions:
        raise RuntimeError("Copy-paste generates no tissue.")


@dataclass(frozen=True, kw_only=True)
class CopyPasteSource:
    """Loads the real tumours of a fold's training cases, in the process that uses them.

    Attributes:
        generator_folder: Generator whose regions and looks are used; its networks are not.
        dataset_class: nnU-Net's class of preprocessed data sets.
        data_folder: Folder of preprocessed cases.
        cases: Training cases with tumours, and no others.
        organ_label: Value of the organ.
        tumor_labels: Values of the tumour.
        spacing_mm: Spacing of the preprocessed data in mm, array order.
        intensities: nnU-Net's normalisation.
    """

    generator_folder: Path
    dataset_class: Any
    data_folder: Path
    cases: tuple[str, ...]
    organ_label: int
    tumor_labels: tuple[int, ...]
    spacing_mm: tuple[float, float, float]
    intensities: CTIntensities

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
        tumors = np.isin(labels, self.tumor_labels)
        components, _ = label(tumors, structure=np.ones((3, 3, 3)))  # type: ignore[misc]
        image_hu = self.intensities.to_hu(np.asarray(data[0]))
        for number, box in enumerate(find_objects(components), start=1):
            if box is not None and int((components[box] == number).sum()) >= _SMALLEST_DONOR_VOXELS:
                near = donor_box(box, self.spacing_mm, labels.shape)
                tumor, organ = components[near] == number, labels[near] == self.organ_label
                yield make_donor(case, image_hu[near], tumor, organ, self.spacing_mm)
