"""Synthetic tumours in one crop of nnU-Net's preprocessed data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from threadpoolctl import threadpool_limits

from nnunet_difftumor.injection.intensities import CTIntensities
from nnunet_difftumor.settings.trainer_settings import OrganTarget
from nnunet_difftumor.synthesis.host import Host
from nnunet_difftumor.synthesis.placement import INSIDE, Zone, with_look
from nnunet_difftumor.synthesis.synthesizer import INVISIBLE, SynthesisResult, SynthesizedTumor, TumorSynthesizer
from nnunet_difftumor.tumor.appearance import AppearanceRule
from nnunet_difftumor.tumor.drawing import draw_on_grid
from nnunet_difftumor.tumor.sizes import SizeClass
from nnunet_difftumor.tumor.surface import TumorSpec, TumorSurface

BACKGROUND = 0
PADDING_LABEL = -1
REAL_TUMOR_RIM_MM = 4.0
"""Distance that synthetic tumours, their soft rims included, keep from annotated ones, in mm."""

_LOOKS = 3  # looks that are tried for the tumours of a crop that cannot be seen


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
        size_classes: Classes of radii in mm.
        appearances: What contrast and heterogeneity are drawn from; without examples, those of the generator's
            training tumours are taken.
        zone: Where in the organ tumours lie.
        avoid_labels: Labels that tumours keep away from.
        tumor_counts: Numbers of tumours that a case may get, drawn from alike: those of the annotated cases. None: as
            many as the size class that is drawn for the case allows.
        real_tumor_labels: Labels of annotated tumours, which are not touched.
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
    tumor_counts: tuple[int, ...] | None = None
    real_tumor_labels: tuple[int, ...] = ()

    def replaceable(self, labels: NDArray[np.integer]) -> NDArray[np.bool_]:
        """True where a label may become tumour: organ, and background if tumours may leave it. Shape of the labels."""
        organ = labels == self.organ_label
        return organ | (labels == BACKGROUND) if self.exophytic else organ


def make_rules(
    target: OrganTarget,
    size_classes: Sequence[SizeClass],
    plans: Mapping[str, Any],
    spacing_mm: Sequence[float],
    *,
    tumor_counts: Sequence[int] = (),
    real_tumor_labels: Sequence[int] = (),
    is_kidney: bool = False,
) -> InjectionRules:
    """Derive the rules of one target from its settings and nnU-Net's plans.

    Args:
        target: Its settings.
        size_classes: Its radii in mm; those of the settings, or of the fold's real tumours.
        plans: Content of nnUNetPlans.json.
        spacing_mm: Spacing of the configuration in mm, array order.
        tumor_counts: Numbers of tumours in the fold's annotated cases; none if there are no such cases.
        real_tumor_labels: Labels of annotated tumours.
        is_kidney: Shares outside the organ that are not set are those of real kidney tumours.

    Returns:
        The rules.

    Raises:
        ConfigurationError: If the plans do not hold the constants of the normalisation.
    """
    depth, height, width = (float(value) for value in spacing_mm)
    outside = target.outside_share or ("kidney" if is_kidney else None)
    return InjectionRules(
        organ_label=target.organ_label,
        tumor_label=target.tumor_label,
        exophytic=target.exophytic,
        spacing_mm=(depth, height, width),
        intensities=CTIntensities.from_plans(plans),
        size_classes=tuple(size_classes),
        appearances=target.appearances,
        zone=Zone(
            surface_distance_mm=target.surface_distance_mm,
            avoid_distance_mm=target.avoid_distance_mm,
            outside_share=outside if target.exophytic else None,
        ),
        avoid_labels=target.avoid_labels,
        tumor_counts=tuple(tumor_counts) or None,
        real_tumor_labels=tuple(real_tumor_labels),
    )


@dataclass(frozen=True)
class InjectionRequest:
    """The tumours that reach one crop.

    Attributes:
        case: Case identifier.
        crop_start: Corner of the crop in the preprocessed case, in voxels; may be negative.
        specs: Tumours that reach the crop, without looks, in mm from its voxel (0, 0, 0).
        labelled: What is labelled: the same tumours, but for the negative control.
        target: Number of the target that is injected.
        stream: Words that the random streams of this sample start from: seed, rank, worker, number of the sample.
    """

    case: str
    crop_start: tuple[int, int, int]
    specs: tuple[TumorSpec, ...]
    labelled: tuple[TumorSpec, ...]
    target: int = 0
    stream: tuple[int, ...] = ()

    def only(self, reaches: Callable[[TumorSpec], bool]) -> InjectionRequest:
        """The same without the tumours that do not reach some place."""
        return replace(self, specs=tuple(filter(reaches, self.specs)), labelled=tuple(filter(reaches, self.labelled)))


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
        tumors: What was to be put in, with the look of the last try.
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

    def inject(self, image: NDArray[np.float32], labels: NDArray[np.int16], request: InjectionRequest) -> InjectedCrop:
        """Put the tumours of a crop into it.

        Voxels outside the tumours' supports keep their value to the bit. A tumour that cannot be seen keeps its place
        and size and gets another look, three in all; then it is left out.

        Args:
            image: Normalised image. Shape (D, H, W). Not changed.
            labels: Labels, -1 in padding. Shape (D, H, W). Not changed.
            request: The tumours.

        Returns:
            New image and labels, or the given ones if no tumour could be put in.
        """
        host, appearances = self.make_host(image, labels), self._appearances()
        specs = [with_look(spec, appearances) for spec in request.specs]
        result = self.synthesizer.synthesize(host, specs)
        for attempt in range(1, _LOOKS):
            seen = {tumor.record.spec.seed for tumor in result.tumors}
            if not result.rejected.get(INVISIBLE):
                break
            specs = [spec if spec.seed in seen else with_look(spec, appearances, attempt) for spec in specs]
            result = self.synthesizer.synthesize(host, specs)
        tumors = _describe_all(specs, result)
        is_misplaced = request.labelled != request.specs
        if not result.tumors and not is_misplaced:
            return InjectedCrop(image, labels, 0, dict(result.rejected), tumors)
        new_image, new_labels = self.apply(image, labels, result)
        if is_misplaced:
            new_labels = self._label(labels, request.labelled)
        record = _record(request, image.shape, self.rules, specs, result)
        return InjectedCrop(new_image, new_labels, len(result.tumors), dict(result.rejected), tumors, record)

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
            result = self.synthesizer.synthesize(self.make_host(image, labels), specs)
        new_image, new_labels = self.apply(image, labels, result)
        if record.get("labelled") is not None:
            new_labels = self._label(labels, [TumorSpec.from_json(values) for values in record["labelled"]])
        return new_image, new_labels

    def make_host(self, image: NDArray[np.float32], labels: NDArray[np.int16]) -> Host:
        """Describe a crop as a host in HU.

        Args:
            image: Normalised image. Shape (D, H, W).
            labels: Labels, -1 in padding. Shape (D, H, W).

        Returns:
            The host; padding is not valid and cannot be replaced.
        """
        replaceable = self.rules.replaceable(labels)
        real = np.isin(labels, self.rules.real_tumor_labels)
        if real.any():
            replaceable &= np.asarray(distance_transform_edt(~real, sampling=self.rules.spacing_mm)) > REAL_TUMOR_RIM_MM
        return Host(
            image_hu=self.rules.intensities.to_hu(image),
            spacing_mm=self.rules.spacing_mm,
            organ_mask=labels == self.rules.organ_label,
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
            part[tumor.label & self.rules.replaceable(part)] = self.rules.tumor_label
        return image, labels

    def _label(self, labels: NDArray[np.int16], specs: Sequence[TumorSpec]) -> NDArray[np.int16]:
        """Label places without looking at the image: the negative control."""
        labels = labels.copy()
        for spec in specs:
            drawn = draw_on_grid(TumorSurface(spec), self.rules.spacing_mm)
            voxels = np.argwhere(drawn.label) + drawn.start  # (N, 3)
            voxels = voxels[np.all((voxels >= 0) & (voxels < labels.shape), axis=1)]
            index = tuple(voxels.T)
            labels[index] = np.where(self.rules.replaceable(labels[index]), self.rules.tumor_label, labels[index])
        return labels

    def _appearances(self) -> AppearanceRule:
        appearances = self.rules.appearances
        return (
            appearances if appearances.examples else replace(appearances, examples=self.synthesizer.tissue.appearances)
        )


def describe_tumor(spec: TumorSpec, placed: SynthesizedTumor | None = None) -> InjectedTumor:
    """Return what counts and histograms need of a tumour that was put in, or was not."""
    return InjectedTumor(
        size_class=spec.size_class,
        drawn_radius_mm=spec.radius_mm,
        radius_mm=None if placed is None else placed.record.spec.radius_mm,
        requested_hu=spec.contrast_hu,
        contrast_hu=None if placed is None else placed.record.contrast_hu,
    )


def _describe_all(specs: Sequence[TumorSpec], result: SynthesisResult) -> tuple[InjectedTumor, ...]:
    by_seed = {tumor.record.spec.seed: tumor for tumor in result.tumors}
    return tuple(describe_tumor(spec, by_seed.get(spec.seed)) for spec in specs)


def _record(
    request: InjectionRequest,
    crop_size: tuple[int, ...],
    rules: InjectionRules,
    specs: Sequence[TumorSpec],
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
        "drawn": [spec.to_json() for spec in specs],
        "labelled": [spec.to_json() for spec in request.labelled] if request.labelled != request.specs else None,
        "tumors": [tumor.record.to_json() for tumor in result.tumors],
    }
