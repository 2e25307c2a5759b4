"""The settings of a study, as declared for its YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ValidationInfo

from nnunet_difftumor.evaluation.comparison.inputs.plan import DEVICES, SharedSettings
from nnunet_difftumor.generator_training.options import PRESETS
from nnunet_difftumor.settings.trainer_settings import TrainerSettings
from nnunet_difftumor.study.exposure import EXPOSURES, ITERATIONS
from nnunet_difftumor.support.files.declared import (
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
    refuse_unless,
    setting,
)
from nnunet_difftumor.trainer.schedule import SCHEDULE_KEYS, STOCK_SCHEDULE

ALL_ANNOTATED = "all"
BACKBONES = ("nnunet", "unet", "swin_unetr")
LONGEST = "longest"
STUDY_GENERATOR = "study"
"""Value of `generator` that means: the one that the study trains for the run's fold and number of annotated cases."""
_OWN_SETTINGS = (*SCHEDULE_KEYS, "seed")


def _different(counts: tuple[int | str, ...]) -> tuple[int | str, ...]:
    refuse_unless(len(counts) > 0 and len(set(counts)) == len(counts))
    return counts


def _finest_first(spacing_mm: tuple[float, float]) -> tuple[float, float]:
    refuse_unless(spacing_mm[0] <= spacing_mm[1])
    return spacing_mm


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
    AfterValidator(_different),
    Expected(f"a list of different numbers of annotated tumour cases like [0, 10, {ALL_ANNOTATED}]"),
]
_Backbone = Annotated[str, OneOf(*BACKBONES)]
_Settings = Annotated[Mapping[str, Any], AsWritten(TrainerSettings), BeforeValidator(_refuse_own)]
_NotEmpty = BeforeValidator(_refuse_no_value)
_Spacing = Annotated[
    tuple[Positive, Positive],
    AfterValidator(_finest_first),
    Expected("the finest and the coarsest spacing in mm like [1.5, 6]"),
]
_EVERY_ENTRY = "Of a list, every entry becomes an arm."


class ScheduleSettings(DeclaredInYaml):
    """Epochs and iterations of all runs."""

    epochs: AtLeastOne = setting(STOCK_SCHEDULE["num_epochs"], help="Epochs.")
    iterations: AtLeastOne = setting(
        STOCK_SCHEDULE["num_iterations_per_epoch"], help="Training iterations per epoch."
    )
    val_iterations: AtLeastOne = setting(
        STOCK_SCHEDULE["num_val_iterations_per_epoch"], help="Validation iterations per epoch."
    )


class GeneratorSettings(DeclaredInYaml):
    """How the generators of a study are trained, as arguments of the two training commands."""

    preset: Annotated[str, OneOf(*PRESETS)] = setting(help="Size of both stages: it depends on the machine.")
    autoencoder_steps: AtLeastOne | None = setting(
        None, help="Training steps of the autoencoder.", shown="the preset's"
    )
    diffusion_steps: AtLeastOne | None = setting(
        None, help="Training steps of the diffusion model.", shown="the preset's"
    )
    spacing_mm: _Spacing | None = setting(
        None, help="Finest and coarsest spacing in mm of the crops of the diffusion model.", shown="the command's"
    )
    precision: Annotated[str, OneOf("bf16", "fp16")] | None = setting(
        None, help="What networks calculate in.", shown="full precision"
    )
    workers: ZeroOrMore = setting(0, help="Data-loading processes.")
    early_only: bool = setting(
        False, help="The diffusion model learns from tumours of at most 10 mm radius alone."
    )


class ArmSettings(DeclaredInYaml):
    """One arm: what is trained, in every fold, repetition and number of annotated cases."""

    name: Text = setting(help="Its name, for tables and file names.")
    trainer: Text = setting(
        help="`stock`, `healthy-only`, `copy-paste`, `hand-crafted`, `difftumor`, `misplaced`, or the name of any "
        "trainer that nnU-Net finds."
    )
    backbone: Annotated[Any, AsWritten(_Backbone | tuple[_Backbone, ...]), _NotEmpty] = setting(
        BACKBONES[0], help=f"Network; only with the short names of trainers. {_EVERY_ENTRY}"
    )
    healthy: bool | None = setting(
        None,
        help="Whether healthy cases train; needed for `stock` and trainers that are not of this package.",
        shown="the trainer's",
    )
    annotated: AnnotatedCounts | None = setting(
        None, help="Numbers of annotated tumour cases that train.", shown="the study's"
    )
    generator: Text | None = setting(
        None,
        help="`study`, a folder, or `builtin:NAME`; `{fold}` and `{annotated}` in a path stand for the run's.",
        shown="that of the settings",
    )
    healthy_share: Annotated[Any, AsWritten(Share | tuple[Share, ...]), _NotEmpty] = setting(
        None, help=f"The trainer's setting. {_EVERY_ENTRY}", shown="that of the settings"
    )
    injection_probability: Annotated[Any, AsWritten(Share | tuple[Share, ...]), _NotEmpty] = setting(
        None, help=f"The trainer's setting. {_EVERY_ENTRY}", shown="that of the settings"
    )
    steps: Annotated[Any, AsWritten(AtLeastOne | tuple[AtLeastOne, ...]), _NotEmpty] = setting(
        None, help=f"The trainer's setting. {_EVERY_ENTRY}", shown="that of the settings"
    )
    settings: _Settings = setting({}, help="Settings of its trainer, on top of the study's.", shown="none")
    wall_clock_factor: Positive | None = setting(
        None, help="Adds a second arm that is trained for so many times the epochs.", shown="none"
    )
    length: Annotated[str, OneOf(LONGEST)] | None = setting(
        None,
        help="`longest`: as long as the longest other run of its fold and number of annotated cases.",
        shown="the schedule's",
    )
    seconds_per_epoch: Positive | None = setting(None, help="Expected time of an epoch in s.", shown="the study's")


class StudySettings(DeclaredInYaml):
    """The file of `difftumor experiment`."""

    title: Text | None = setting(None, help="Heading of the reports.", shown="the file's name")
    dataset: Text = setting(help="nnU-Net data set: number or full name.")
    configuration: Text = setting("3d_fullres", help="nnU-Net configuration, the same in all arms.")
    plans: Text = setting("nnUNetPlans", help="nnU-Net plans, the same in all arms.")
    device: Annotated[str, OneOf(*DEVICES)] = setting(DEVICES[0], help="What networks run on.")
    folds: DifferentWholes = setting((0,), help="Folds that are trained.")
    seeds: DifferentWholes = setting(
        (0,), help="Numbers of the repetitions; the `seed` of trainers with tumours."
    )
    seed_of_cases: ZeroOrMore = setting(12345, help="Seed of the order in which annotated cases join.")
    annotated: AnnotatedCounts = setting(
        (ALL_ANNOTATED,),
        help="How many annotated tumour cases are in the training lists; an arm may have a list of its own.",
    )
    schedule: ScheduleSettings = setting(
        ScheduleSettings(), help="Epochs and iterations, see below.", shown="nnU-Net's"
    )
    exposure: Annotated[str, OneOf(*EXPOSURES)] = setting(
        ITERATIONS,
        help="What is equal in all arms: iterations, or with `equal` the "
        "[samples of annotated cases](../how-to/experiment.md#what-is-matched).",
    )
    seconds_per_epoch: Positive | None = setting(
        None, help="Expected time of an epoch in s; logs of finished epochs count more.", shown="unknown"
    )
    settings: _Settings = setting(
        {},
        help="[Settings](configuration.md) of the trainers, for all arms, on top of `difftumor.json` beside the plans.",
        shown="none",
    )
    generators: GeneratorSettings | None = setting(
        None, help="How the study trains generators, see below.", shown="none"
    )
    arms: tuple[ArmSettings, ...] = setting(help="What is trained, see below.")
    baseline: Text | None = setting(None, help="Arm that the others are compared with.", shown="the first arm")
    compare: SharedSettings = setting(
        SharedSettings(), help="What `difftumor compare` is given, see below.", shown="none"
    )
