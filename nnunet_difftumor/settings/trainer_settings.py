"""Typed settings of the trainer: what can be set, where it came from, what a training recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.settings.extra_healthy import ExtraHealthyDataset
from nnunet_difftumor.synthesis.tissue.generator_names import (
    is_builtin,
)
from nnunet_difftumor.tumor.appearance import AppearanceRule, Range
from nnunet_difftumor.tumor.published_contrasts import (
    TRAINING,
    check_target,
    make_appearance_rule,
)
from nnunet_difftumor.tumor.sizes import PAPER_SIZE_CLASSES, SizeClass

HANDCRAFTED = "handcrafted"
TRAINING_TUMORS = "training_tumors"
HEALTHY_CASES, ANNOTATED_CASES, BOTH = "healthy", "annotated", "both"
INJECT_INTO = (HEALTHY_CASES, ANNOTATED_CASES, BOTH)
RANGES = ("contrast_hu", "heterogeneity_hu", "surface_distance_mm", "outside_share")


@dataclass(frozen=True, kw_only=True)
class OrganTarget:
    """One kind of tumour: where it is placed, what it looks like, and what makes it.

    Attributes:
        organ_label: Value of the label that tumours are placed in.
        tumor_label: Value of the label that tumours get.
        generator: Generator folder, in which `{fold}` stands for the fold, `builtin:NAME`, or `handcrafted`.
        probability: How often this target is drawn, relative to the others whose organ a case has.
        size_classes: Radii in mm, frequencies and counts, or `training_tumors`: those of the fold's real ones.
        exophytic: Tumours may bulge out of the organ into background voxels.
        outside_share: Smallest and largest share of an exophytic tumour's surface outside the organ. None: in
            kidneys by size, as in 72 real kidney tumours; elsewhere as it comes.
        surface_distance_mm: Smallest and largest distance of a tumour's centre from the organ's surface in mm.
        avoid_labels: Values of labels, such as vessels, that tumours keep away from.
        avoid_distance_mm: Distance of a tumour's surface from those labels in mm.
        target: What looks are drawn from (see `DiffTumorConfig`).
        contrast_hu: Smallest and largest contrast between tumour and rim, in HU. None: as `target` says.
        heterogeneity_hu: Smallest and largest standard deviation inside a tumour without noise, in HU.
    """

    organ_label: int
    tumor_label: int
    generator: str | None = None
    probability: float = 1.0
    size_classes: tuple[SizeClass, ...] | str = PAPER_SIZE_CLASSES
    exophytic: bool = False
    outside_share: Range | None = None
    surface_distance_mm: Range | None = None
    avoid_labels: tuple[int, ...] = ()
    avoid_distance_mm: float = 2.0
    target: str = TRAINING
    contrast_hu: Range | None = None
    heterogeneity_hu: Range | None = None

    def __post_init__(self) -> None:
        _require(self.probability >= 0, "probability", "0 or more", self)
        _require(self.avoid_distance_mm >= 0, "avoid_distance_mm", "0 or more", self)
        if isinstance(self.size_classes, str):
            _require(self.size_classes == TRAINING_TUMORS, "size_classes", f'a list or "{TRAINING_TUMORS}"', self)
        else:
            _require(any(size.probability > 0 for size in self.size_classes), "size_classes", "not all off", self)
        check_target(self.target)
        for key in RANGES:
            limits = getattr(self, key)
            _require(limits is None or limits[0] <= limits[1], key, "[smallest, largest]", self)
        for key in ("heterogeneity_hu", "surface_distance_mm", "outside_share"):
            limits = getattr(self, key)
            _require(limits is None or limits[0] >= 0, key, "0 or more", self)
        _require(self.outside_share is None or self.outside_share[1] <= 1, "outside_share", "at most 1", self)

    @property
    def appearances(self) -> AppearanceRule:
        """What contrast and heterogeneity are drawn from, still without the generator's training tumours."""
        return make_appearance_rule(self.target, contrast_hu=self.contrast_hu, heterogeneity_hu=self.heterogeneity_hu)


@dataclass(frozen=True, kw_only=True)
class DiffTumorConfig(OrganTarget):
    """Settings of nnUNetTrainerDiffTumor. Those of `OrganTarget` describe the one target, or hold for all `targets`.

    Attributes:
        generator: Generator folder, in which `{fold}` stands for the fold, `builtin:NAME`, or `handcrafted`: no
            network, a fill with drawn texture. None: not set.
        organ_label: Value of the label that tumours are placed in; of the first of several targets.
        tumor_label: Value of the label that tumours get; of the first of several targets.
        size_classes: Radii in mm, frequencies and counts (the paper's by default).
        exophytic: Inferred by default: true for kidneys, false for other organs, whose tumours are clipped to the
            organ as in the paper.
        target: What looks are drawn from: an organ with published contrasts ("liver", "pancreas"), the tumours
            that the generator was trained on ("training"), or those of them that are darker than their rim
            ("hypodense"). Inferred by default, see `appearance_priors.default_target`.
        heterogeneity_hu: Range to draw; None: that of the tumours that the generator was trained on.
        targets: Several targets in one run; empty: one, described by the other settings.
        injection_probability: Share of the samples of healthy cases whose case carries tumours (the paper: 0.5).
        inject_into: Cases that carry synthetic tumours: "healthy", "annotated" (in tumour-free tissue, 4 mm off the
            real tumours) or "both".
        annotated_injection_probability: Share of the samples of annotated cases whose case carries synthetic tumours,
            where `inject_into` takes those in.
        tumors_per_case: Fewest and most tumours of a case that carries some. None: as many as the fold's annotated
            cases have; without any, as many as the size class allows.
        healthy_share: Share of the samples that are drawn from healthy cases. None: as many as there are, as stock
            nnU-Net does.
        steps: Sampling steps of the generator (the paper: 4).
        seed: Seed of the tumours. Splits and holdout do not depend on it.
        healthy_holdout: Share of the healthy cases that trains in no fold, so that specificity can be measured.
        healthy_cases: Identifiers of the healthy cases; None finds them by their labels.
        confirmed_healthy: The cases without annotated tumour are known to be healthy. Needed where no case has an
            annotated tumour of a target: there, no label may only mean not annotated.
        extra_healthy_datasets: Further data sets whose cases are healthy and train in every fold.
        num_epochs: Epochs; None keeps nnU-Net's.
        num_iterations_per_epoch: Training iterations per epoch; None keeps nnU-Net's.
        num_val_iterations_per_epoch: Validation iterations per epoch; None keeps nnU-Net's.
        cpu_bfloat16: Train in bfloat16 on a CPU, as nnU-Net trains in float16 on a GPU.
        acknowledge_identifier_matches: Go on although the generator was trained on other images that have
            the identifiers of validation cases.
        acknowledge_autoencoder_overlap: Go on although the autoencoder was trained on validation cases.
        recorded_samples: How many injected samples are recorded for replay.
    """

    targets: tuple[OrganTarget, ...] = ()
    injection_probability: float = 0.5
    inject_into: str = HEALTHY_CASES
    annotated_injection_probability: float = 0.5
    tumors_per_case: tuple[int, int] | None = None
    healthy_share: float | None = None
    steps: int = 4
    seed: int = 0
    healthy_holdout: float = 0.2
    healthy_cases: tuple[str, ...] | None = None
    confirmed_healthy: bool = False
    extra_healthy_datasets: tuple[ExtraHealthyDataset, ...] = ()
    num_epochs: int | None = None
    num_iterations_per_epoch: int | None = None
    num_val_iterations_per_epoch: int | None = None
    cpu_bfloat16: bool = False
    acknowledge_identifier_matches: bool = False
    acknowledge_autoencoder_overlap: bool = False
    recorded_samples: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("injection_probability", "annotated_injection_probability"):
            _require(0 <= getattr(self, key) <= 1, key, "from 0 to 1", self)
        _require(self.inject_into in INJECT_INTO, "inject_into", f"one of {', '.join(INJECT_INTO)}", self)
        counts = self.tumors_per_case
        _require(counts is None or 1 <= counts[0] <= counts[1], "tumors_per_case", "[fewest, most], 1 or more", self)
        _require(self.healthy_share is None or 0 <= self.healthy_share <= 1, "healthy_share", "from 0 to 1", self)
        _require(0 <= self.healthy_holdout < 1, "healthy_holdout", "at least 0 and below 1", self)
        _require(self.steps >= 1, "steps", "1 or more (4 in the paper)", self)
        _require(self.seed >= 0, "seed", "0 or more", self)
        _require(self.recorded_samples >= 0, "recorded_samples", "0 or more", self)
        for key in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch"):
            _require(getattr(self, key) is None or getattr(self, key) >= 1, key, "1 or more, or null", self)
        _refuse_clashes(self.organ_targets)

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
        return json.loads(json.dumps(asdict(self)))


TARGET_KEYS = tuple(field.name for field in fields(OrganTarget))
"""Settings that each of several targets may have of its own."""


def _refuse_clashes(targets: Sequence[OrganTarget]) -> None:
    tumors, pairs = {target.tumor_label for target in targets}, [(t.organ_label, t.tumor_label) for t in targets]
    for target in targets:
        if target.organ_label in tumors:
            raise ConfigurationError(
                f"targets: label {target.organ_label} is the organ of one target and the tumour of another one."
            )
    if len(set(pairs)) < len(pairs):
        raise ConfigurationError("targets: two targets have the same organ and tumour; join them into one.")
    if not any(target.probability > 0 for target in targets):
        raise ConfigurationError("targets: at least one target needs a probability above 0.")


def is_generator_name(generator: str) -> bool:
    """Say whether a generator is named (builtin:NAME or handcrafted) and not a path."""
    return is_builtin(generator) or generator == HANDCRAFTED


def _require(holds: bool, key: str, expected: str, config: OrganTarget) -> None:
    if not holds:
        raise ConfigurationError(f"{key} must be {expected}, got {getattr(config, key)!r}.")
