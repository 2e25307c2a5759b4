"""A study: which arms are trained on which cases, read from one YAML file."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.evaluation.comparison.inputs.plan import (
    check_names,
    read_hospital,
    read_prediction,
    read_statistics,
)
from nnunet_difftumor.evaluation.comparison.measures import AUROC, DICE, MEASURES
from nnunet_difftumor.generator_training.options import PRESETS
from nnunet_difftumor.settings.trainer_settings import is_generator_name
from nnunet_difftumor.study.exposure import EQUAL, EXPOSURES, ITERATIONS
from nnunet_difftumor.support.files.entries import Entries, full_path, read_entries
from nnunet_difftumor.trainer.schedule import SCHEDULE_KEYS, STOCK_SCHEDULE

ALL_ANNOTATED = "all"
BACKBONES = ("nnunet", "unet", "swin_unetr")
DEVICES = ("cuda", "cpu", "mps")
PRECISIONS = ("bf16", "fp16")
SEED_OF_CASES = 12345
LONGEST = "longest"
STUDY_GENERATOR = "study"
"""Value of `generator` that means: the one that the study trains for the run's fold and number of annotated cases."""

Annotated = int | str


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm: what is trained, in every fold, repetition and number of annotated cases.

    Attributes:
        name: Its name, for tables and file names.
        trainer: "stock", "healthy-only", "copy-paste", "hand-crafted", "difftumor", "misplaced", or a
            trainer's class name.
        backbone: "nnunet", "unet" or "swin_unetr"; only with the short names.
        healthy: Whether healthy cases train; None where the trainer leaves no choice.
        annotated: Numbers of annotated tumour cases that train, "all" among them.
        settings: Settings of the trainer on top of the study's.
        epochs: Epochs of each run, before equal exposure or the longest other run stretch them.
        is_longest: Each run is trained as long as the longest other one of its fold and number of annotated cases.
        wall_clock_factor: By how much `epochs` was multiplied to take the time of another arm; None: equal epochs.
        seconds_per_epoch: Expected time of an epoch in s; None: unknown.
    """

    name: str
    trainer: str
    backbone: str = BACKBONES[0]
    healthy: bool | None = None
    annotated: tuple[Annotated, ...] = (ALL_ANNOTATED,)
    settings: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = STOCK_SCHEDULE["num_epochs"]
    is_longest: bool = False
    wall_clock_factor: float | None = None
    seconds_per_epoch: float | None = None


@dataclass(frozen=True, kw_only=True)
class GeneratorSettings:
    """How the generators of a study are trained, as arguments of the two training commands.

    Attributes:
        preset: Size of both stages.
        autoencoder_steps: Training steps of stage one; None: the preset's.
        diffusion_steps: Training steps of stage two; None: the preset's.
        spacing_mm: Finest and coarsest spacing of the crops of stage two; None: the command's.
        precision: "bf16" or "fp16"; None: full.
        workers: Data-loading processes.
        early_only: Stage two learns from tumours of at most 10 mm radius alone.
    """

    preset: str
    autoencoder_steps: int | None = None
    diffusion_steps: int | None = None
    spacing_mm: tuple[float, float] | None = None
    precision: str | None = None
    workers: int = 0
    early_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is trained and compared.

    Attributes:
        path: The file that it was read from.
        title: Heading of the reports.
        dataset: nnU-Net data set: number or full name.
        configuration: nnU-Net configuration, the same in all arms.
        plans: nnU-Net plans, the same in all arms.
        device: "cuda", "cpu" or "mps".
        seeds: Numbers of the repetitions; the `seed` setting of trainers with tumours.
        seed_of_cases: Seed of the order in which annotated cases join.
        iterations: Training iterations per epoch.
        val_iterations: Validation iterations per epoch.
        baseline: Name of the arm that the others are compared with.
        compare: Entries for `difftumor compare`, with full paths.
        generators: How the study trains generators; None: it trains none.
        exposure: What is equal in all arms: "iterations", or "equal" for the number of annotated samples.
    """

    path: Path
    title: str
    dataset: str
    configuration: str
    plans: str
    device: str
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    seed_of_cases: int
    iterations: int
    val_iterations: int
    arms: tuple[Arm, ...]
    baseline: str
    compare: Mapping[str, Any]
    generators: GeneratorSettings | None = None
    exposure: str = ITERATIONS

    @property
    def annotated(self) -> tuple[Annotated, ...]:
        """All numbers of annotated cases, rising, "all" last."""
        found = {count for arm in self.arms for count in arm.annotated}
        return tuple(sorted(found, key=lambda count: (isinstance(count, str), count if isinstance(count, int) else 0)))


def read_study(path: Path) -> Study:
    """Read a study and check it, as far as that goes without the data set and nnU-Net.

    Raises:
        ConfigurationError: If the file cannot be read, or a key or value in it is wrong.
    """
    path = Path(path)
    entries = read_entries(path, "study")
    entries.refuse_unknown(_STUDY_KEYS)
    schedule = entries.mapping("schedule")
    schedule.refuse_unknown(tuple(_SCHEDULE))
    epochs, iterations, val_iterations = (_at_least_one(schedule, key, default) for key, default in _SCHEDULE.items())
    seconds = _positive(entries, "seconds_per_epoch")
    shared = _Shared(
        annotated=_read_annotated(entries, (ALL_ANNOTATED,)),
        settings=_read_settings(entries, path),
        epochs=epochs,
        seconds_per_epoch=seconds,
        exposure=entries.choice("exposure", ITERATIONS, EXPOSURES),
        path=path,
    )
    arms = tuple(arm for entry in entries.list_of("arms") for arm in _read_arms(entry, shared))
    if not arms:
        raise ConfigurationError(f"{path}: arms must list at least one, got []; see `difftumor experiment --help`.")
    check_names("arms", [arm.name for arm in arms], path)
    baseline = entries.text("baseline", arms[0].name)
    if baseline not in [arm.name for arm in arms]:
        names = ", ".join(arm.name for arm in arms)
        raise ConfigurationError(f"{path}: baseline must be one of the arms {names}, got {baseline!r}.")
    generators = _read_generators(entries)
    _check_use_of_generators(path, arms, generators)
    return Study(
        path=path,
        title=entries.text("title", path.stem),
        dataset=entries.text("dataset"),
        configuration=entries.text("configuration", "3d_fullres"),
        plans=entries.text("plans", "nnUNetPlans"),
        device=entries.choice("device", DEVICES[0], DEVICES),
        folds=entries.wholes("folds", (0,), 0),
        seeds=entries.wholes("seeds", (0,), 0),
        seed_of_cases=entries.whole("seed_of_cases", SEED_OF_CASES, 0) or 0,
        iterations=iterations,
        val_iterations=val_iterations,
        arms=arms,
        baseline=baseline,
        compare=_read_compare(entries),
        generators=generators,
        exposure=shared.exposure,
    )


_SCHEDULE = {
    "epochs": STOCK_SCHEDULE["num_epochs"],
    "iterations": STOCK_SCHEDULE["num_iterations_per_epoch"],
    "val_iterations": STOCK_SCHEDULE["num_val_iterations_per_epoch"],
}
_STUDY_KEYS = (
    *("title", "dataset", "configuration", "plans", "device", "folds", "seeds", "seed_of_cases", "annotated"),
    *("schedule", "seconds_per_epoch", "settings", "arms", "baseline", "compare"),
    *("generators", "exposure"),
)
_GENERATOR_KEYS = (
    *("preset", "autoencoder_steps", "diffusion_steps", "spacing_mm", "precision", "workers", "early_only"),
)
_AXES = ("backbone", "healthy_share", "injection_probability", "steps")
_ARM_KEYS = (
    *("name", "trainer", "healthy", "annotated", "generator", "settings", "wall_clock_factor", "seconds_per_epoch"),
    "length",
    *_AXES,
)
_OWN_SETTINGS = (*SCHEDULE_KEYS, "seed")
_COMPARE_KEYS = (
    *("hospitals", "primary", "labels", "metadata", "prediction", "statistics"),
    "acknowledge_identifier_matches",
)


@dataclass(frozen=True)
class _Shared:
    """What arms take from the study unless they say otherwise."""

    annotated: tuple[Annotated, ...]
    settings: Mapping[str, Any]
    epochs: int
    seconds_per_epoch: float | None
    exposure: str
    path: Path


def _read_arms(entries: Entries, shared: _Shared) -> list[Arm]:
    """One arm for each combination of the keys that hold a list, and for equal epochs and equal wall-clock time."""
    entries.refuse_unknown(_ARM_KEYS)
    lists = {key: _values_of(entries, key) for key in _AXES}
    factor = _positive(entries, "wall_clock_factor")
    is_longest = entries.has("length") and entries.choice("length", LONGEST, (LONGEST,)) == LONGEST
    _check_length(entries, factor, shared.exposure, is_longest=is_longest)
    seconds = _positive(entries, "seconds_per_epoch") or shared.seconds_per_epoch
    arms = []
    for values in itertools.product(*lists.values()):
        point = dict(zip(_AXES, values, strict=True))
        varied = [f"{key} {value}" for key, value in point.items() if isinstance(entries.get(key), list)]
        backbone = point.pop("backbone") or BACKBONES[0]
        if backbone not in BACKBONES:
            known = ", ".join(BACKBONES)
            raise ConfigurationError(f"{entries.where}: backbone must be one of {known}, got {backbone!r}.")
        settings = {**shared.settings, **_read_settings(entries, shared.path)}
        settings |= {key: value for key, value in point.items() if value is not None}
        if entries.has("generator"):
            settings["generator"] = _full_path(entries.text("generator"), shared.path)
        arm = Arm(
            name=", ".join([entries.text("name"), *varied]),
            trainer=entries.text("trainer"),
            backbone=backbone,
            healthy=entries.boolean("healthy", True) if entries.has("healthy") else None,
            annotated=_read_annotated(entries, shared.annotated),
            settings=settings,
            epochs=shared.epochs,
            is_longest=is_longest,
            seconds_per_epoch=seconds,
        )
        arms.append(arm)
        if factor is not None:
            arms.append(_with_more_epochs(arm, factor))
    return arms


def _check_length(entries: Entries, factor: float | None, exposure: str, *, is_longest: bool) -> None:
    """Refuse an arm whose epochs would follow two rules."""
    if factor is None or (exposure != EQUAL and not is_longest):
        return
    other = f"length: {LONGEST}" if is_longest else f"exposure: {EQUAL}"
    raise ConfigurationError(
        f"{entries.where}: wall_clock_factor {factor:g} and {other} both say how long the arm is trained. Remove one "
        "of them; for equal time beside an arm of another length, write a second study."
    )


def _values_of(entries: Entries, key: str) -> list[Any]:
    """The values of a key that may hold one or a list of them."""
    value = entries.get(key)
    if isinstance(value, list) and not value:
        raise ConfigurationError(
            f"{entries.where}: {key} must be a value or a list of at least one, got []: the arm would not be trained. "
            f"Write a value, or remove {key}."
        )
    return value if isinstance(value, list) else [value]


def _with_more_epochs(arm: Arm, factor: float) -> Arm:
    """The same arm, trained for a measured factor of the epochs: equal wall-clock time, not equal epochs."""
    changes = {
        "name": f"{arm.name} (wall-clock control, epochs x {factor:g})",
        "epochs": max(1, round(arm.epochs * factor)),
        "wall_clock_factor": factor,
    }
    return Arm(**{**vars(arm), **changes})


def _read_annotated(entries: Entries, default: tuple[Annotated, ...]) -> tuple[Annotated, ...]:
    if not entries.has("annotated"):
        return default
    values = entries.get("annotated")
    is_right = isinstance(values, list) and all(
        value == ALL_ANNOTATED or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)
        for value in values
    )
    if not is_right or not values or len(set(values)) < len(values):
        raise ConfigurationError(
            f"{entries.where}: annotated must be a list of different numbers of annotated tumour cases like "
            f"[0, 10, {ALL_ANNOTATED}], got {values!r}."
        )
    return tuple(values)


def _read_settings(entries: Entries, path: Path) -> dict[str, Any]:
    settings = entries.raw_mapping("settings")
    for key in _OWN_SETTINGS:
        if key in settings:
            raise ConfigurationError(
                f"{entries.where}: settings must not hold {key}, which schedule and seeds of the study set."
            )
    return _with_full_paths(settings, path)


def _with_full_paths(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Settings whose generators, those of targets too, can be read from any folder."""
    values = dict(settings)
    if isinstance(values.get("generator"), str):
        values["generator"] = _full_path(values["generator"], path)
    if isinstance(values.get("targets"), list):
        targets = values["targets"]
        values["targets"] = [_with_full_paths(each, path) if isinstance(each, Mapping) else each for each in targets]
    return values


def _full_path(generator: str, path: Path) -> str:
    """A generator as trainers read it from any folder."""
    if generator == STUDY_GENERATOR or is_generator_name(generator):
        return generator
    return str(full_path(generator, path, f"{path}: generator"))


def _read_generators(entries: Entries) -> GeneratorSettings | None:
    if not entries.has("generators"):
        return None
    generators = entries.mapping("generators")
    generators.refuse_unknown(_GENERATOR_KEYS)
    generators.text("preset")  # there is no default: the sizes are for machines of different kinds
    return GeneratorSettings(
        preset=generators.choice("preset", "", PRESETS),
        autoencoder_steps=generators.whole("autoencoder_steps", None, 1),
        diffusion_steps=generators.whole("diffusion_steps", None, 1),
        spacing_mm=_read_spacing(generators),
        precision=generators.choice("precision", "", PRECISIONS) if generators.has("precision") else None,
        workers=generators.whole("workers", 0, 0) or 0,
        early_only=generators.boolean("early_only", False),
    )


def _read_spacing(generators: Entries) -> tuple[float, float] | None:
    values = generators.get("spacing_mm")
    if values is None:
        return None
    are_numbers = isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    )
    if not are_numbers or len(values) != 2 or not 0 < values[0] <= values[1]:
        raise ConfigurationError(
            f"{generators.where}: spacing_mm must be the finest and the coarsest spacing in mm like [1.5, 6], "
            f"got {values!r}."
        )
    return float(values[0]), float(values[1])


def _generators_of(settings: Mapping[str, Any]) -> list[Any]:
    """What the settings and their targets name; values of other types, the settings' own check refuses."""
    targets = settings.get("targets")
    entries = [settings, *(targets if isinstance(targets, list) else ())]
    return [entry.get("generator") for entry in entries if isinstance(entry, Mapping)]


def _check_use_of_generators(path: Path, arms: Sequence[Arm], generators: GeneratorSettings | None) -> None:
    users = [arm.name for arm in arms if STUDY_GENERATOR in _generators_of(arm.settings)]
    if users and generators is None:
        raise ConfigurationError(
            f"{path}: arm {users[0]!r} has generator: {STUDY_GENERATOR}, which the study is to train, but nothing says "
            "how. Write for example generators: {preset: base}, or name a generator folder."
        )
    if generators is not None and not users:
        raise ConfigurationError(
            f"{path}: generators says how generators are trained, but no arm uses them. Write generator: "
            f"{STUDY_GENERATOR} in an arm, or remove generators."
        )


def _read_compare(entries: Entries) -> dict[str, Any]:
    """Check what `difftumor compare` will be given, now and not after weeks of training."""
    compare = entries.mapping("compare")
    compare.refuse_unknown(_COMPARE_KEYS)
    content = {key: value for key, value in entries.raw_mapping("compare").items() if compare.has(key)}
    primary = compare.choice("primary", DICE.key, [measure.key for measure in MEASURES])
    compare.texts("labels")
    compare.boolean("acknowledge_identifier_matches", False)
    prediction = read_prediction(compare.mapping("prediction"))
    read_statistics(compare.mapping("statistics"))
    metadata = compare.existing("metadata", is_folder=False)
    if metadata is not None:
        content["metadata"] = str(metadata.resolve())
    if compare.has("hospitals"):
        hospitals = [read_hospital(entry) for entry in compare.list_of("hospitals")]
        check_names("hospitals", [hospital.name for hospital in hospitals], entries.path)
        for hospital in hospitals:
            if hospital.images is None or hospital.labels is None:
                raise ConfigurationError(f"{compare.where}: the hospital {hospital.name!r} needs images and labels.")
        content["hospitals"] = [
            {key: str(value.resolve() if isinstance(value, Path) else value) for key, value in vars(each).items()}
            for each in hospitals
        ]
    if primary == AUROC.key and not (compare.has("hospitals") and prediction.probabilities):
        raise ConfigurationError(
            f"{compare.where}: primary is {AUROC.key}, which needs probabilities, and nnU-Net keeps none of its "
            "validation cases. Name test data in hospitals and write prediction: {probabilities: true}, or choose "
            "another primary."
        )
    return content


def _at_least_one(entries: Entries, key: str, default: int) -> int:
    return entries.whole(key, default, 1) or default


def _positive(entries: Entries, key: str) -> float | None:
    if not entries.has(key):
        return None
    return entries.number(key, 1.0, 1e-6, 1e9)
