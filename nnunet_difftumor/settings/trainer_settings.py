"""The trainer's settings: one declaration each, as a user writes them and as they are with all labels resolved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from nnunet_difftumor.support.files.declared import (
    AtLeastOne,
    Declared,
    Expected,
    FromMapping,
    OneOf,
    Share,
    Text,
    ZeroOrMore,
    between,
    keep_if,
)
from nnunet_difftumor.synthesis.tissue.generator_names import DEFAULT_GENERATOR, is_builtin
from nnunet_difftumor.tumor.appearance import AppearanceRule, Range
from nnunet_difftumor.tumor.published_contrasts import TARGETS, TRAINING, check_target, make_appearance_rule
from nnunet_difftumor.tumor.sizes import PAPER_SIZE_CLASSES, SizeClass

HANDCRAFTED = "handcrafted"
TRAINING_TUMORS = "training_tumors"
EDGE_OF_GENERATOR, EDGE_OF_FOLD = "generator", "fold"
HEALTHY_CASES, ANNOTATED_CASES, BOTH = "healthy", "annotated", "both"
_MOST_OFFSET_MM, _MOST_WIDTH_MM = 8.0, 12.0
_EXTRA_EXAMPLE = '{"dataset": 802, "confirmed_healthy": true}'
_TARGET_EXAMPLE = '{"organ_label": "liver", "tumor_label": "liver_tumor"}'
_SIZE_EXAMPLE = '{"name": "tiny", "radius_mm": [3, 5], "probability": 0.4, "max_count": 3}'


def is_generator_name(generator: str) -> bool:
    """Say whether a generator is named (builtin:NAME or handcrafted) and not a path."""
    return is_builtin(generator) or generator == HANDCRAFTED


_Label = Annotated[str | int, Expected("a label name or value", shown="from the label names")]
_RangeHu = Annotated[Range, between(), Expected("two numbers in HU [smallest, largest]")]
_SpreadHu = Annotated[Range, between(0), Expected("two numbers in HU [smallest, largest], 0 or more")]
_RangeMm = Annotated[Range, between(0), Expected("two numbers in mm [smallest, largest], 0 or more")]
_Shares = Annotated[Range, between(0, 1), Expected("two numbers from 0 to 1 [smallest, largest]")]
_Counts = Annotated[tuple[int, int], between(1), Expected("two whole numbers [fewest, most], 1 or more")]
_SizeClasses = Annotated[
    Annotated[
        tuple[Annotated[SizeClass, FromMapping()], ...],
        AfterValidator(lambda sizes: keep_if(any(size.probability > 0 for size in sizes), sizes)),
    ]
    | Annotated[str, OneOf(TRAINING_TUMORS)],
    Expected(
        f'"{TRAINING_TUMORS}" or a list, not all off, of size classes like {_SIZE_EXAMPLE}',
        shown="the paper's: tiny 3-5 mm (0.4, up to 3 tumours), small 6-10 mm (0.4, up to 3), medium 12-20 mm (0.1), "
        "large 24-64 mm (0.1)",
    ),
]
_Edge = Annotated[
    Annotated[
        tuple[float, float],
        AfterValidator(lambda edge: keep_if(abs(edge[0]) <= _MOST_OFFSET_MM and 0 < edge[1] <= _MOST_WIDTH_MM, edge)),
    ]
    | Annotated[str, OneOf(EDGE_OF_GENERATOR, EDGE_OF_FOLD)],
    Expected(
        f'"{EDGE_OF_GENERATOR}", "{EDGE_OF_FOLD}" or [offset, width] in mm, from {-_MOST_OFFSET_MM:g} to '
        f"{_MOST_OFFSET_MM:g} and from 0 to {_MOST_WIDTH_MM:g}"
    ),
]
_Generator = Annotated[str, Expected("a path, builtin:NAME or handcrafted", shown=f'`"{DEFAULT_GENERATOR}"`')]
_Target = Annotated[
    str,
    AfterValidator(check_target),
    WithJsonSchema({"type": "string", "enum": list(TARGETS)}),
    Expected(f"one of {', '.join(TARGETS)}", shown="see below"),
]


class TargetSettings(Declared):
    """One kind of tumour, as a user describes it: where it is placed, what it looks like, and what makes it."""

    organ_label: _Label | None = None
    """Name or value of the label in which tumours are placed."""
    tumor_label: _Label | None = None
    """Name or value of the label that tumours get."""
    generator: _Generator | None = None
    """Generator folder; `{fold}` in it becomes the fold. A relative path starts at the file's folder. `builtin:NAME` is
    one that comes with this package; `handcrafted` needs none: a fill with a drawn texture.
    """
    probability: Annotated[float, Field(ge=0)] = 1.0
    """How often this target is drawn, relative to the others whose organ a case has."""
    size_classes: _SizeClasses = PAPER_SIZE_CLASSES
    """List of `{"name", "radius_mm": [low, high], "probability", "max_count"}`: radius of the sphere of equal volume in
    mm, relative frequency, most tumours of a case where `tumors_per_case` leaves it to the class. Radii beyond 0.4 of
    the case's shortest side are limited to it. `"training_tumors"` draws the sizes of the fold's real tumours.
    """
    edge: _Edge = EDGE_OF_GENERATOR
    """Where the visible edge of a tumour lies against the outline of its label, and how wide it is; [how it is
    measured](../explanation/edges.md). `"generator"`: as in the tumours that trained the generator; a builtin or
    handcrafted one, which knows other tumours, follows the fold's annotated training cases if four or more tumours can
    be measured, else what is published for the target (livers), else its own. `"fold"`: as in the fold's annotated
    training cases. `[offset, width]` in mm: half of the depth is reached at `offset` from the outline (negative:
    inside), and it falls from three quarters to a quarter over `width`.
    """
    exophytic: Annotated[bool, Expected("true or false", shown="true for kidneys")] = False
    """Tumours may leave the organ into background voxels of soft tissue. Those of other organs are clipped to the
    organ, as in the paper.
    """
    outside_share: _Shares | None = None
    """`[low, high]`: share of an exophytic tumour's surface outside the organ. `null`: in kidneys by size, as in 72
    real kidney tumours (median 0.34, 0.49 and 0.74 below 20 mm, to 50 mm and above); elsewhere as it comes.
    """
    surface_distance_mm: _RangeMm | None = None
    """`[low, high]`: distance of a tumour's centre from the organ's surface in mm."""
    avoid_labels: Annotated[tuple[str | int, ...], Expected("a list of label names or values")] = ()
    """Names or values of labels, such as vessels, that tumours keep away from."""
    avoid_distance_mm: Annotated[float, Field(ge=0), Expected("a number in mm, 0 or more")] = 2.0
    """How far, in mm."""
    target: _Target | None = None
    """What contrasts are drawn from: `"liver"`, `"pancreas"` (published values), `"training"` (the generator's training
    tumours), `"hypodense"` (those of them that are darker than their surroundings).
    """
    contrast_hu: _RangeHu | None = None
    """`[low, high]`: contrasts in HU, tumour minus surroundings, drawn evenly; in place of `target`."""
    heterogeneity_hu: _SpreadHu | None = None
    """`[low, high]`: standard deviation inside a tumour without noise, in HU. `null`: that of the generator's training
    tumours.
    """


TARGET_KEYS = tuple(TargetSettings.model_fields)
"""Settings that each of several targets may have of its own."""


class TargetEntry(TargetSettings):
    """One of several targets."""

    @model_validator(mode="before")
    @classmethod
    def _require_own_settings(cls, entry: Any) -> Any:
        if isinstance(entry, cls):
            return entry
        if not isinstance(entry, Mapping) or not {"organ_label", "tumor_label"} & set(entry):
            raise ValueError(f"Each of targets must be an object like {_TARGET_EXAMPLE}, got {entry!r}.")
        of_the_run = sorted(set(entry) & set(TrainerSettings.model_fields) - set(TARGET_KEYS))
        if of_the_run:
            raise ValueError(f"{', '.join(of_the_run)} holds for the whole run; write it beside targets.")
        return entry


class ExtraHealthyDataset(Declared):
    """A further data set whose cases are healthy and train in every fold."""

    dataset: Annotated[Text, Expected("a number or a full name")]
    """nnU-Net data set: number or full name."""
    confirmed_healthy: bool
    """Its cases are known to be free of tumours; nothing but `true` is accepted."""

    @model_validator(mode="before")
    @classmethod
    def _require_confirmation(cls, entry: Any) -> Any:
        if isinstance(entry, cls):
            return entry
        if not isinstance(entry, Mapping) or not {"dataset"} <= set(entry) <= set(cls.model_fields):
            raise ValueError(f"each of extra_healthy_datasets must look like {_EXTRA_EXAMPLE}, got {entry!r}.")
        dataset = entry["dataset"]
        if entry.get("confirmed_healthy") is not True:
            raise ValueError(
                f"data set {dataset} is not confirmed to be healthy. In a data set without tumour labels, no label "
                "may only mean that nobody looked. If its cases are known to be free of tumours, write "
                f'{{"dataset": {json.dumps(dataset)}, "confirmed_healthy": true}}.'
            )
        return entry


def _refuse_repeated(entries: tuple[ExtraHealthyDataset, ...]) -> tuple[ExtraHealthyDataset, ...]:
    names = [entry.dataset for entry in entries]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"extra_healthy_datasets names {repeated[0]} twice. Take one away.")
    return entries


_ExtraHealthyDatasets = Annotated[
    tuple[ExtraHealthyDataset, ...], AfterValidator(_refuse_repeated), Expected("a list of data sets")
]


class TrainerSettings(TargetSettings):
    """Settings of nnUNetTrainerDiffTumor as a user writes them."""

    removed = dict.fromkeys(
        ("curriculum_every", "curriculum_samples"),
        "sizes and contrasts are drawn as often as size_classes and contrast_hu say",
    )

    targets: tuple[TargetEntry, ...] = ()
    """Several targets in one run, see below."""
    injection_probability: Share = 0.5
    """Share of the samples of healthy cases whose case carries synthetic tumours, [whether the sample shows one or
    not](#what-samples-show).
    """
    inject_into: Annotated[str, OneOf(HEALTHY_CASES, ANNOTATED_CASES, BOTH)] = HEALTHY_CASES
    """Which cases carry synthetic tumours: `"healthy"`, `"annotated"` (in their tumour-free tissue, 4 mm or more off
    the real tumours) or `"both"`.
    """
    annotated_injection_probability: Share = 0.5
    """Share of the samples of annotated cases whose case carries synthetic tumours, where `inject_into` takes those in.
    """
    sham_probability: Share = 0.0
    """Share of the samples without synthetic tumours in which tissue goes the way of a tumour without becoming one:
    through autoencoder and blending, unlabelled, at places and sizes as tumours are drawn.
    """
    tumors_per_case: _Counts | None = None
    """`[fewest, most]`: tumours of a case that carries some, drawn evenly. `null`: as many as one of the fold's
    annotated training cases has; without any, as many as `max_count` of the drawn size class allows.
    """
    healthy_share: Share | None = None
    """Share of the samples that are drawn from healthy cases, so that many healthy scans do not dilute few real
    tumours: at equal iterations, a half cost [0.04 to 0.09 Dice](../results.md) in a small study. `null`: every case
    alike, as stock nnU-Net.
    """
    steps: Annotated[int, Field(ge=1), Expected("a whole number of 1 or more (4 in the paper)")] = 4
    """Denoising steps of the generator."""
    seed: ZeroOrMore = 0
    """Seed of the tumours. Splits and holdout do not depend on it."""
    healthy_holdout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the healthy cases that trains in no fold, where `difftumor splits` wrote no list of its own."""
    healthy_cases: Annotated[tuple[Text, ...], Expected("a list of case identifiers")] | None = None
    """Identifiers of the healthy cases; `null` finds them by their labels."""
    confirmed_healthy: bool = False
    """Cases without annotated tumour are known to be healthy. Needed where no case has an annotated tumour, and for
    cases with ignored voxels.
    """
    extra_healthy_datasets: _ExtraHealthyDatasets = ()
    """Further data sets of healthy cases, e.g. `[{"dataset": 802, "confirmed_healthy": true}]`; `difftumor add-healthy`
    [prepares them](../how-to/extra-healthy.md).
    """
    num_epochs: AtLeastOne | None = None
    """Epochs; `null` keeps nnU-Net's 1000."""
    num_iterations_per_epoch: AtLeastOne | None = None
    """Training iterations per epoch; `null` keeps nnU-Net's 250."""
    num_val_iterations_per_epoch: AtLeastOne | None = None
    """Validation iterations per epoch; `null` keeps nnU-Net's 50."""
    cpu_bfloat16: bool = False
    """On a CPU, run forward pass and loss, and the prediction of validation cases, in bfloat16, as nnU-Net does in
    float16 on a GPU. Faster where the CPU has instructions for it ([here](performance.md#threads-on-a-shared-cpu)
    nearly twice as fast). Set it for all arms of a study or for none.
    """
    acknowledge_identifier_matches: bool = False
    """Go on although the generator was trained on other images with the identifiers of validation cases."""
    acknowledge_autoencoder_overlap: bool = False
    """Go on although the autoencoder (not the diffusion model) was trained on validation cases."""
    recorded_samples: ZeroOrMore = 16
    """Injected samples that are recorded for replay."""


class OrganTarget(TargetSettings):
    """One kind of tumour, with its labels as values."""

    organ_label: int = Field()
    tumor_label: int = Field()
    avoid_labels: tuple[int, ...] = ()
    target: _Target = TRAINING

    @property
    def appearances(self) -> AppearanceRule:
        """What contrast and heterogeneity are drawn from, still without the generator's training tumours."""
        return make_appearance_rule(self.target, contrast_hu=self.contrast_hu, heterogeneity_hu=self.heterogeneity_hu)

    @property
    def knows_no_case(self) -> bool:
        """Whether nothing of a generator's training tumours is used: a handcrafted fill with looks of its own."""
        looks = self.appearances
        has_looks = looks.heterogeneity_hu is not None and bool(looks.contrast_hu or looks.contrast_prior_hu)
        return self.generator == HANDCRAFTED and has_looks


class DiffTumorConfig(OrganTarget, TrainerSettings):
    """Settings of a training. Those of a target describe the one there is, or the first of several."""

    targets: tuple[OrganTarget, ...] = ()

    @model_validator(mode="after")
    def _refuse_clashes(self) -> DiffTumorConfig:
        targets = self.organ_targets
        tumors, pairs = {each.tumor_label for each in targets}, {(t.organ_label, t.tumor_label) for t in targets}
        for target in targets:
            if target.organ_label in tumors:
                raise ValueError(
                    f"targets: label {target.organ_label} is the organ of one target and the tumour of another one."
                )
        if len(pairs) < len(targets):
            raise ValueError("targets: two targets have the same organ and tumour; join them into one.")
        if not any(target.probability > 0 for target in targets):
            raise ValueError("targets: at least one target needs a probability above 0.")
        return self

    @property
    def healthy_probability(self) -> float:
        """Share of the samples of healthy cases whose case carries tumours."""
        return 0.0 if self.inject_into == ANNOTATED_CASES else self.injection_probability

    @property
    def annotated_probability(self) -> float:
        """Share of the samples of annotated cases whose case carries synthetic tumours."""
        return 0.0 if self.inject_into == HEALTHY_CASES else self.annotated_injection_probability

    @property
    def injects(self) -> bool:
        """Whether any case carries synthetic tumours."""
        return max(self.healthy_probability, self.annotated_probability) > 0

    @property
    def organ_targets(self) -> tuple[OrganTarget, ...]:
        """All targets of the run, at least one."""
        return self.targets or (OrganTarget(**{key: getattr(self, key) for key in TARGET_KEYS}),)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return self.model_dump(mode="json")
