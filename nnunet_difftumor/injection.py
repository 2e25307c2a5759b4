"""Synthetic tumours in one crop of nnU-Net's preprocessed data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from nnunet_difftumor.appearance import AppearanceRule
from nnunet_difftumor.config import OrganTarget
from nnunet_difftumor.curriculum import NO_EMPHASIS, Emphasis
from nnunet_difftumor.errors import EmptyOrganError
from nnunet_difftumor.host import Host
from nnunet_difftumor.intensities import CTIntensities
from nnunet_difftumor.placement import (
    INSIDE,
    Box,
    DrawnSample,
    TumorPlan,
    Zone,
    draw_sample,
    largest_radius_mm,
    place_tumors,
)
from nnunet_difftumor.shape import TumorSpec
from nnunet_difftumor.sizes import SizeClass, fit_size_classes
from nnunet_difftumor.synthesis import SynthesisResult, SynthesizedTumor, TumorSynthesizer

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


class LoadedOnce:
    """A source that several injectors of one process share; what it loaded does not travel to other processes."""

    def __init__(self, source: SynthesizerSource) -> None:
        """Wrap a source; nothing is loaded yet."""
        self._source = source
        self._synthesizer: TumorSynthesizer | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was loaded."""
        return {**self.__dict__, "_synthesizer": None}

    def __call__(self) -> TumorSynthesizer:
        """Return the synthesizer, loaded at the first call."""
        if self._synthesizer is None:
            self._synthesizer = self._source()
        return self._synthesizer


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
        zone: Where in the organ tumours lie.
        avoid_labels: Labels that tumours keep away from.
    """

    organ_label: int
    tumor_label: int
    exophytic: bool
    spacing_mm: tuple[float, float, float]
    intensities: CTIntensities
    size_classes: tuple[SizeClass, ...]
    appearances: AppearanceRule = field(default_factory=AppearanceRule)
    zone: Zone = INSIDE
    avoid_labels: tuple[int, ...] = ()


def make_rules(
    target: OrganTarget,
    size_classes: Sequence[SizeClass],
    plans: Mapping[str, Any],
    spacing_mm: Sequence[float],
    patch_size: Sequence[int],
    *,
    is_kidney: bool = False,
) -> InjectionRules:
    """Derive the rules of one target from its settings and nnU-Net's plans.

    Args:
        target: Its settings.
        size_classes: Its radii in mm; those of the settings, or of the fold's real tumours.
        plans: Content of nnUNetPlans.json.
        spacing_mm: Spacing of the configuration in mm, array order.
        patch_size: Size of the network's patch in voxels. (D, H, W).
        is_kidney: Shares outside the organ that are not set are those of real kidney tumours.

    Returns:
        The rules, with radii limited to what the patch can show.

    Raises:
        ConfigurationError: If the plans do not hold the constants of the normalisation.
    """
    depth, height, width = (float(value) for value in spacing_mm)
    extent_mm = float(np.multiply(patch_size, spacing_mm).min())
    outside = target.outside_share or ("kidney" if is_kidney else None)
    return InjectionRules(
        organ_label=target.organ_label,
        tumor_label=target.tumor_label,
        exophytic=target.exophytic,
        spacing_mm=(depth, height, width),
        intensities=CTIntensities.from_plans(plans),
        size_classes=fit_size_classes(size_classes, _LARGEST_SHARE_OF_PATCH * extent_mm),
        appearances=target.appearances,
        zone=Zone(
            surface_distance_mm=target.surface_distance_mm,
            avoid_distance_mm=target.avoid_distance_mm,
            outside_share=outside if target.exophytic else None,
        ),
        avoid_labels=target.avoid_labels,
    )


@dataclass(frozen=True)
class InjectionRequest:
    """Where the tumours of one crop shall lie.

    Attributes:
        case: Case identifier.
        crop_start: Corner of the crop in the preprocessed case, in voxels; may be negative.
        centre: Voxel of the crop that the first tumour is centred on, in the organ.
        region: Part of the crop that reaches the network under every spatial augmentation.
        target: Number of the target that is injected.
        stream: Words that the random stream of this sample starts from: seed, rank, worker, number of the sample.
    """

    case: str
    crop_start: tuple[int, int, int]
    centre: tuple[int, int, int]
    region: Box
    target: int = 0
    stream: tuple[int, ...] = ()


@dataclass(frozen=True)
class InjectedTumor:
    """One drawn tumour of a sample, for counts and histograms.

    Attributes:
        size_class: Name of its size class.
        drawn_radius_mm: Radius that was drawn, in mm.
        radius_mm: Radius that was put in, in mm; None if it was not.
        requested_hu: Contrast that was asked for, in HU; None if it was left to the generator.
        contrast_hu: Contrast that was reached, in HU; None if it was not put in.
    """

    size_class: str
    drawn_radius_mm: float
    radius_mm: float | None = None
    requested_hu: float | None = None
    contrast_hu: float | None = None


@dataclass(frozen=True)
class InjectedCrop:
    """A crop after an attempt to put tumours into it.

    Attributes:
        image: Normalised image. Shape (D, H, W).
        labels: Labels. Shape (D, H, W).
        placed: Tumours that were put in.
        rejected: Drawn tumours that were not, by reason.
        tumors: What was drawn in the last round, put in or not.
        record: Plain values that replay the tumours on the same crop; None if there are none.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.int16]
    placed: int
    rejected: Mapping[str, int] = field(default_factory=dict)
    tumors: tuple[InjectedTumor, ...] = ()
    record: Mapping[str, Any] | None = None

    @property
    def main_reason(self) -> str:
        """Most frequent reason for a rejection."""
        return max(self.rejected, key=lambda reason: self.rejected[reason], default="unknown")


class TumorInjector:
    """Puts synthetic tumours into crops. The generator is loaded at the first use, once a process."""

    def __init__(
        self,
        source: SynthesizerSource | None,
        rules: InjectionRules,
        *,
        emphasis: Callable[[], Emphasis] | None = None,
    ) -> None:
        """Prepare an injector; nothing is loaded yet.

        Args:
            source: Where the synthesizer comes from; None if nothing will be injected.
            rules: What may be put where.
            emphasis: Tells what is drawn more often at the moment; None draws as the rules say.
        """
        self.rules = rules
        self._emphasis = emphasis
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
        others of the same size class are drawn, three times in all. What is drawn in each round depends on the
        random stream alone; only the places, and radii that have no room, depend on the crop.

        Args:
            image: Normalised image. Shape (D, H, W). Not changed.
            labels: Labels, -1 in padding. Shape (D, H, W). Not changed.
            request: Where the tumours shall lie.
            rng: Random generator of this sample.

        Returns:
            New image and labels, or the given ones if no tumour could be placed.
        """
        host = self.make_host(image, labels)
        plan = self._plan()
        limit_mm = largest_radius_mm(image.shape, self.rules.spacing_mm)
        rejected: Counter[str] = Counter()
        size_class: SizeClass | None = None
        missed: tuple[InjectedTumor, ...] = ()
        for _ in range(_ROUNDS):
            draw_rng, place_rng = rng.spawn(2)
            sample = draw_sample(plan, limit_mm, draw_rng, size_class=size_class)
            size_class = sample.size_class
            missed = tuple(_describe(spec) for spec in sample.specs)
            try:
                specs, given_up = place_tumors(
                    host, plan, sample, place_rng, first_centre=request.centre, region=request.region
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
                record = _record(request, image.shape, self.rules, sample, specs, result)
                tumors = _describe_all(sample, result)
                return InjectedCrop(new_image, new_labels, len(result.tumors), dict(rejected), tumors, record)
        return InjectedCrop(image, labels, 0, dict(rejected), missed)

    def replay(
        self, image: NDArray[np.float32], labels: NDArray[np.int16], record: Mapping[str, Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """Put recorded tumours into the same crop again, with one thread as in nnU-Net's loaders: bit by bit the same.

        Args:
            image: Normalised image of the recorded crop. Shape (D, H, W).
            labels: Its labels. Shape (D, H, W).
            record: A line of difftumor_records.jsonl.

        Returns:
            Image and labels with the recorded tumours.
        """
        specs = [TumorSpec.from_json(values) for values in record["drawn"]]
        with threadpool_limits(limits=1, user_api=None):
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
            avoid_mask=np.isin(labels, self.rules.avoid_labels) if self.rules.avoid_labels else None,
            clipped_to_hu=(self.rules.intensities.low_hu, self.rules.intensities.high_hu),
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
        emphasis = NO_EMPHASIS if self._emphasis is None else self._emphasis()
        return TumorPlan(
            size_classes=emphasis.apply_to(self.rules.size_classes),
            appearances=appearances,
            zone=self.rules.zone,
            keeps_class=True,
            faint_share=emphasis.faint_share,
        )


def _describe(spec: TumorSpec, placed: SynthesizedTumor | None = None) -> InjectedTumor:
    return InjectedTumor(
        size_class=spec.size_class,
        drawn_radius_mm=spec.radius_mm,
        radius_mm=None if placed is None else placed.record.spec.radius_mm,
        requested_hu=spec.contrast_hu,
        contrast_hu=None if placed is None else placed.record.contrast_hu,
    )


def _describe_all(sample: DrawnSample, result: SynthesisResult) -> tuple[InjectedTumor, ...]:
    by_seed = {tumor.record.spec.seed: tumor for tumor in result.tumors}
    return tuple(_describe(spec, by_seed.get(spec.seed)) for spec in sample.specs)


def _record(
    request: InjectionRequest,
    crop_size: tuple[int, ...],
    rules: InjectionRules,
    sample: DrawnSample,
    specs: list[TumorSpec],
    result: SynthesisResult,
) -> dict[str, Any]:
    """Everything that replays a crop's tumours, and what became of them."""
    return {
        "case": request.case,
        "stream": list(request.stream),
        "target": request.target,
        "crop_start": list(request.crop_start),
        "crop_size": [int(size) for size in crop_size],
        "spacing_mm": list(rules.spacing_mm),
        "organ_label": rules.organ_label,
        "tumor_label": rules.tumor_label,
        "exophytic": rules.exophytic,
        "requested": [spec.to_json() for spec in sample.specs],
        "drawn": [spec.to_json() for spec in specs],
        "tumors": [tumor.record.to_json() for tumor in result.tumors],
    }
