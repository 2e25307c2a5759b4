"""Synthetic tumours in one crop of nnU-Net's preprocessed data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.appearance import AppearanceRule
from nnunet_difftumor.config import DiffTumorConfig
from nnunet_difftumor.errors import EmptyOrganError
from nnunet_difftumor.host import Host
from nnunet_difftumor.intensities import CTIntensities
from nnunet_difftumor.placement import Box, TumorPlan, draw_tumors
from nnunet_difftumor.shape import TumorSpec
from nnunet_difftumor.sizes import SizeClass, fit_size_classes
from nnunet_difftumor.synthesis import SynthesisResult, TumorSynthesizer

BACKGROUND = 0
PADDING_LABEL = -1
_ROUNDS = 3
_LARGEST_SHARE_OF_PATCH = 0.4  # largest radius over the patch's shortest side: the longest semi-axis still fits


class SynthesizerSource(Protocol):
    """Makes the synthesizer in the process that uses it; must pickle, so that workers can be spawned."""

    def __call__(self) -> TumorSynthesizer:
        """Load the synthesizer."""
        ...


@dataclass(frozen=True)
class GeneratorFolderSource:
    """A synthesizer on the CPU from a generator folder.

    Attributes:
        folder: Generator folder.
        steps: Sampling steps.
    """

    folder: Path
    steps: int

    def __call__(self) -> TumorSynthesizer:
        """Load the generator."""
        return TumorSynthesizer.from_folder(self.folder, steps=self.steps)


@dataclass(frozen=True, kw_only=True)
class InjectionRules:
    """What may be put where in the crops of one data set.

    Attributes:
        organ_label: Label in which tumours are placed.
        tumor_label: Label that tumours get.
        exophytic: Tumours may replace background voxels as well.
        spacing_mm: Spacing of the preprocessed data in mm, array order.
        intensities: nnU-Net's normalisation.
        size_classes: Classes of radii in mm, limited to what the patch can show.
        appearances: What contrast and heterogeneity are drawn from; without examples, those of the generator's
            training tumours are taken.
    """

    organ_label: int
    tumor_label: int
    exophytic: bool
    spacing_mm: tuple[float, float, float]
    intensities: CTIntensities
    size_classes: tuple[SizeClass, ...]
    appearances: AppearanceRule = field(default_factory=AppearanceRule)


def make_rules(
    config: DiffTumorConfig, plans: Mapping[str, Any], spacing_mm: Sequence[float], patch_size: Sequence[int]
) -> InjectionRules:
    """Derive the rules of a training from its settings and nnU-Net's plans.

    Args:
        config: Settings.
        plans: Content of nnUNetPlans.json.
        spacing_mm: Spacing of the configuration in mm, array order.
        patch_size: Size of the network's patch in voxels. (D, H, W).

    Returns:
        The rules, with radii limited to what the patch can show.

    Raises:
        ConfigurationError: If the plans do not hold the constants of the normalisation.
    """
    depth, height, width = (float(value) for value in spacing_mm)
    extent_mm = float(np.multiply(patch_size, spacing_mm).min())
    return InjectionRules(
        organ_label=config.organ_label,
        tumor_label=config.tumor_label,
        exophytic=config.exophytic,
        spacing_mm=(depth, height, width),
        intensities=CTIntensities.from_plans(plans),
        size_classes=fit_size_classes(config.size_classes, _LARGEST_SHARE_OF_PATCH * extent_mm),
        appearances=config.appearances,
    )


@dataclass(frozen=True)
class InjectionRequest:
    """Where the tumours of one crop shall lie.

    Attributes:
        case: Case identifier.
        crop_start: Corner of the crop in the preprocessed case, in voxels; may be negative.
        centre: Voxel of the crop that the first tumour is centred on, in the organ.
        region: Part of the crop that reaches the network under every spatial augmentation.
    """

    case: str
    crop_start: tuple[int, int, int]
    centre: tuple[int, int, int]
    region: Box


@dataclass(frozen=True)
class InjectedCrop:
    """A crop after an attempt to put tumours into it.

    Attributes:
        image: Normalised image. Shape (D, H, W).
        labels: Labels. Shape (D, H, W).
        placed: Tumours that were put in.
        rejected: Drawn tumours that were not, by reason.
        record: Plain values that replay the tumours on the same crop; None if there are none.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.int16]
    placed: int
    rejected: Mapping[str, int] = field(default_factory=dict)
    record: Mapping[str, Any] | None = None

    @property
    def main_reason(self) -> str:
        """Most frequent reason for a rejection."""
        return max(self.rejected, key=lambda reason: self.rejected[reason], default="unknown")


class TumorInjector:
    """Puts synthetic tumours into crops. The generator is loaded at the first use, once a process."""

    def __init__(self, source: SynthesizerSource | None, rules: InjectionRules) -> None:
        """Prepare an injector; nothing is loaded yet.

        Args:
            source: Where the synthesizer comes from; None if nothing will be injected.
            rules: What may be put where.
        """
        self.rules = rules
        self._source = source
        self._synthesizer: TumorSynthesizer | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the loaded generator out: each process loads its own."""
        return {**self.__dict__, "_synthesizer": None}

    @property
    def synthesizer(self) -> TumorSynthesizer:
        """The synthesizer of this process."""
        if self._synthesizer is None:
            if self._source is None:
                raise RuntimeError("This injector was made without a generator; nothing can be injected with it.")
            self._synthesizer = self._source()
        return self._synthesizer

    def inject(
        self,
        image: NDArray[np.float32],
        labels: NDArray[np.int16],
        request: InjectionRequest,
        rng: np.random.Generator,
    ) -> InjectedCrop:
        """Draw tumours for a crop and put them in.

        Voxels outside the tumours' supports keep their value to the bit. If no drawn tumour can be used,
        others are drawn, three times in all.

        Args:
            image: Normalised image. Shape (D, H, W). Not changed.
            labels: Labels, -1 in padding. Shape (D, H, W). Not changed.
            request: Where the tumours shall lie.
            rng: Random generator of this worker.

        Returns:
            New image and labels, or the given ones if no tumour could be placed.
        """
        host = self.make_host(image, labels)
        rejected: Counter[str] = Counter()
        for _ in range(_ROUNDS):
            try:
                specs, given_up = draw_tumors(
                    host, self._plan(), rng, first_centre=request.centre, region=request.region
                )
            except EmptyOrganError:
                rejected["no_organ_in_patch"] += 1
                break
            rejected.update(given_up)
            if not specs:
                continue
            result = self.synthesizer.synthesize(host, specs)
            rejected.update(result.rejected)
            if result.tumors:
                new_image, new_labels = self.apply(image, labels, result)
                record = _record(request, image.shape, self.rules, specs, result)
                return InjectedCrop(new_image, new_labels, len(result.tumors), dict(rejected), record)
        return InjectedCrop(image, labels, 0, dict(rejected))

    def replay(
        self, image: NDArray[np.float32], labels: NDArray[np.int16], record: Mapping[str, Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """Put recorded tumours into the same crop again.

        Args:
            image: Normalised image of the recorded crop. Shape (D, H, W).
            labels: Its labels. Shape (D, H, W).
            record: A line of difftumor_records.jsonl.

        Returns:
            Image and labels with the recorded tumours.
        """
        specs = [TumorSpec.from_json(values) for values in record["drawn"]]
        return self.apply(image, labels, self.synthesizer.synthesize(self.make_host(image, labels), specs))

    def make_host(self, image: NDArray[np.float32], labels: NDArray[np.int16]) -> Host:
        """Describe a crop as a host in HU.

        Args:
            image: Normalised image. Shape (D, H, W).
            labels: Labels, -1 in padding. Shape (D, H, W).

        Returns:
            The host; padding is not valid and cannot be replaced.
        """
        organ = labels == self.rules.organ_label
        replaceable = organ | (labels == BACKGROUND) if self.rules.exophytic else organ
        return Host(
            image_hu=self.rules.intensities.to_hu(image),
            spacing_mm=self.rules.spacing_mm,
            organ_mask=organ,
            replaceable_mask=replaceable,
            valid_mask=labels != PADDING_LABEL,
        )

    def apply(
        self, image: NDArray[np.float32], labels: NDArray[np.int16], result: SynthesisResult
    ) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """Write tumours into copies of a crop: image in the supports only, labels in organ or background only.

        Args:
            image: Normalised image. Shape (D, H, W).
            labels: Labels. Shape (D, H, W).
            result: The tumours.

        Returns:
            New image, clipped to the plans' window inside the supports, and new labels.
        """
        image, labels = image.copy(), labels.copy()
        for tumor in result.tumors:
            part = labels[tumor.box]
            support = tumor.support & (part != PADDING_LABEL)
            image[tumor.box][support] = self.rules.intensities.normalise(tumor.image_hu[support])
            may_change = (part == self.rules.organ_label) | ((part == BACKGROUND) & self.rules.exophytic)
            part[tumor.label & may_change] = self.rules.tumor_label
        return image, labels

    def _plan(self) -> TumorPlan:
        appearances = self.rules.appearances
        if not appearances.examples:
            appearances = replace(appearances, examples=self.synthesizer.tissue.appearances)
        return TumorPlan(size_classes=self.rules.size_classes, appearances=appearances)


def _record(
    request: InjectionRequest,
    crop_size: tuple[int, ...],
    rules: InjectionRules,
    specs: list[TumorSpec],
    result: SynthesisResult,
) -> dict[str, Any]:
    """Everything that replays a crop's tumours, and what became of them."""
    return {
        "case": request.case,
        "crop_start": list(request.crop_start),
        "crop_size": [int(size) for size in crop_size],
        "spacing_mm": list(rules.spacing_mm),
        "organ_label": rules.organ_label,
        "tumor_label": rules.tumor_label,
        "exophytic": rules.exophytic,
        "drawn": [spec.to_json() for spec in specs],
        "tumors": [tumor.record.to_json() for tumor in result.tumors],
    }
