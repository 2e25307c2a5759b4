"""The settings of a study, as declared for its YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo

from nnunet_difftumor.evaluation.comparison.inputs.plan import DEVICES, SharedSettings
from nnunet_difftumor.generator_training import PRESETS
from nnunet_difftumor.settings.trainer_settings import TrainerSettings
from nnunet_difftumor.study.exposure import EXPOSURES, ITERATIONS
from nnunet_difftumor.support.files.declared import (
    DIFFERENT,
    AsWritten,
    AtLeastOne,
    DeclaredInYaml,
    DifferentWholes,
    Expected,
    OneOf,
    Positive,
    Share,
    Text,
    ZeroOrMore,
    between,
)
from nnunet_difftumor.trainer.schedule import SCHEDULE_KEYS, STOCK_SCHEDULE

ALL_ANNOTATED = "all"
BACKBONES = ("nnunet", "unet", "swin_unetr")
LONGEST = "longest"
STUDY_GENERATOR = "study"
"""Value of `generator` that means: the one that the study trains for the run's fold and number of annotated cases."""
_OWN_SETTINGS = (*SCHEDULE_KEYS, "seed")


def _refuse_own(settings: Any) -> Any:
    for key in _OWN_SETTINGS:
        if isinstance(settings, Mapping) and key in settings:
            raise ValueError(f"settings must not hold {key}, which schedule and seeds of the study set.")
    return settings


def _refuse_no_value(value: Any, info: ValidationInfo) -> Any:
    if value == ():
        raise ValueError(
            f"{info.field_name} must be a value or a list of at least one, got []: the arm would not be trained. "
            f"Write a value, or remove {info.field_name}."
        )
    return value


AnnotatedCounts = Annotated[
    tuple[ZeroOrMore | Literal["all"], ...],
    DIFFERENT,
    Expected(f"a list of different numbers of annotated tumour cases like [0, 10, {ALL_ANNOTATED}]"),
]
_Backbone = Annotated[str, OneOf(*BACKBONES)]
_Settings = Annotated[Mapping[str, Any], AsWritten(TrainerSettings), BeforeValidator(_refuse_own)]
_NotEmpty = BeforeValidator(_refuse_no_value)
_Spacing = Annotated[
    tuple[Positive, Positive], between(0), Expected("the finest and the coarsest spacing in mm like [1.5, 6]")
]


class ScheduleSettings(DeclaredInYaml):
    """Epochs and iterations of all runs."""

    epochs: AtLeastOne = STOCK_SCHEDULE["num_epochs"]
    """Epochs."""
    iterations: AtLeastOne = STOCK_SCHEDULE["num_iterations_per_epoch"]
    """Training iterations per epoch."""
    val_iterations: AtLeastOne = STOCK_SCHEDULE["num_val_iterations_per_epoch"]
    """Validation iterations per epoch."""

    def of_trainer(self, epochs: int) -> dict[str, int]:
        """Settings of a trainer that trains for a number of epochs of its own."""
        return dict(zip(SCHEDULE_KEYS, (epochs, self.iterations, self.val_iterations), strict=True))


class GeneratorSettings(DeclaredInYaml):
    """How the generators of a study are trained, as arguments of the two training commands."""

    preset: Annotated[str, OneOf(*PRESETS)]
    """Size of both stages: it depends on the machine."""
    autoencoder_steps: AtLeastOne | None = None
    """Training steps of the autoencoder; those of the preset without it."""
    diffusion_steps: AtLeastOne | None = None
    """Training steps of the diffusion model; those of the preset without it."""
    spacing_mm: _Spacing | None = None
    """Finest and coarsest spacing in mm of the crops of the diffusion model, as `--spacing-mm` of its command."""
    precision: Annotated[str, OneOf("bf16", "fp16")] | None = None
    """What networks calculate in; full precision without it."""
    workers: ZeroOrMore = 0
    """Data-loading processes."""
    early_only: bool = False
    """The diffusion model learns from tumours of at most 10 mm radius alone."""


class ArmSettings(DeclaredInYaml):
    """One arm: what is trained, in every fold, repetition and number of annotated cases."""

    name: Text
    """Its name, for tables and file names."""
    trainer: Text
    """`stock`, `healthy-only`, `copy-paste`, `hand-crafted`, `difftumor`, `misplaced`, or the name of any trainer that
    nnU-Net finds.
    """
    backbone: Annotated[Any, AsWritten(_Backbone | tuple[_Backbone, ...]), _NotEmpty] = BACKBONES[0]
    """Network; only with the short names of trainers. Of a list, every entry becomes an arm."""
    healthy: bool | None = None
    """Whether healthy cases train; needed for `stock` and trainers that are not of this package."""
    annotated: AnnotatedCounts | None = None
    """Numbers of annotated tumour cases that train; those of the study without it."""
    generator: Text | None = None
    """`study`, a folder, or `builtin:NAME`; `{fold}` and `{annotated}` in a path stand for the run's."""
    healthy_share: Annotated[Any, AsWritten(Share | tuple[Share, ...]), _NotEmpty] = None
    """As in the settings of the trainer; of a list, every entry becomes an arm."""
    injection_probability: Annotated[Any, AsWritten(Share | tuple[Share, ...]), _NotEmpty] = None
    """As in the settings of the trainer; of a list, every entry becomes an arm."""
    steps: Annotated[Any, AsWritten(AtLeastOne | tuple[AtLeastOne, ...]), _NotEmpty] = None
    """As in the settings of the trainer; of a list, every entry becomes an arm."""
    settings: _Settings = Field(default_factory=dict)
    """Settings of its trainer, on top of the study's."""
    wall_clock_factor: Positive | None = None
    """Adds a second arm that is trained for so many times the epochs."""
    length: Annotated[str, OneOf(LONGEST)] | None = None
    """`longest`: as long as the longest other run of its fold and number of annotated cases."""
    seconds_per_epoch: Positive | None = None
    """Expected time of an epoch in s."""


class StudySettings(DeclaredInYaml):
    """The file of `difftumor experiment`."""

    title: Text | None = None
    """Heading of the reports; the file's name without it."""
    dataset: Text
    """nnU-Net data set: number or full name."""
    configuration: Text = "3d_fullres"
    """nnU-Net configuration, the same in all arms."""
    plans: Text = "nnUNetPlans"
    """nnU-Net plans, the same in all arms."""
    device: Annotated[str, OneOf(*DEVICES)] = DEVICES[0]
    """What networks run on."""
    folds: DifferentWholes = (0,)
    """Folds that are trained."""
    seeds: DifferentWholes = (0,)
    """Numbers of the repetitions; the `seed` of trainers with tumours."""
    seed_of_cases: ZeroOrMore = 12345
    """Seed of the order in which annotated cases join."""
    annotated: AnnotatedCounts = (ALL_ANNOTATED,)
    """How many annotated tumour cases are in the training lists; an arm may have a list of its own."""
    schedule: ScheduleSettings = ScheduleSettings()
    """Epochs and iterations."""
    exposure: Annotated[str, OneOf(*EXPOSURES)] = ITERATIONS
    """What is equal in all arms: iterations, or with `equal` the [samples of annotated
    cases](../how-to/experiment.md#what-is-matched).
    """
    seconds_per_epoch: Positive | None = None
    """Expected time of an epoch in s; logs of finished epochs count more."""
    settings: _Settings = Field(default_factory=dict)
    """[Settings](configuration.md) of the trainers, for all arms, on top of `difftumor.json` beside the plans."""
    generators: GeneratorSettings | None = None
    """How the study trains generators; it trains none without it."""
    arms: tuple[ArmSettings, ...]
    """What is trained."""
    baseline: Text | None = None
    """Arm that the others are compared with; the first without it."""
    compare: SharedSettings = SharedSettings()
    """What `difftumor compare` is given, for each number of annotated cases."""
