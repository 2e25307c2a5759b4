"""Typed settings of the trainer: what can be set, where it came from, what a training recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nnunet_difftumor.cases.extra.requirements import ExtraHealthyDataset, parse_extra_healthy
from nnunet_difftumor.ct.label_roles import is_exophytic_organ, name_of_label, resolve_label_roles
from nnunet_difftumor.errors import ConfigurationError, unknown_key_message
from nnunet_difftumor.synthesis.tissue.generator_names import DEFAULT_GENERATOR, is_builtin, resolve_generator
from nnunet_difftumor.tumor.appearance import AppearanceRule, Range
from nnunet_difftumor.tumor.published_contrasts import (
    TARGETS,
    TRAINING,
    check_target,
    default_target,
    find_target,
    make_appearance_rule,
)
from nnunet_difftumor.tumor.sizes import PAPER_SIZE_CLASSES, SizeClass

CONFIG_FILE_NAME = "difftumor.json"
ENVIRONMENT_VARIABLE = "nnUNet_difftumor"
DATASET_JSON_KEY = "difftumor"
HANDCRAFTED = "handcrafted"
TRAINING_TUMORS = "training_tumors"
HEALTHY_CASES, ANNOTATED_CASES, BOTH = "healthy", "annotated", "both"
INJECT_INTO = (HEALTHY_CASES, ANNOTATED_CASES, BOTH)
_MAY_GROW = "num_epochs"
_RANGES = ("contrast_hu", "heterogeneity_hu", "surface_distance_mm", "outside_share")


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
        for key in _RANGES:
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


@dataclass(frozen=True)
class ConfigSource:
    """Settings found in one place.

    Attributes:
        name: Where they were found, for the log.
        values: The settings as written.
        folder: Folder that a relative generator path starts from.
    """

    name: str
    values: Mapping[str, Any]
    folder: Path


@dataclass(frozen=True)
class ResolvedConfig:
    """Settings after all sources were read.

    Attributes:
        config: The settings.
        origins: Where each setting came from, by key.
    """

    config: DiffTumorConfig
    origins: Mapping[str, str]

    def generator_folder(self, fold: int | str, target: OrganTarget | None = None) -> Path:
        """Return the generator folder of a fold; the output folder of `train-diffusion` will do as well.

        Args:
            fold: nnU-Net's fold: a number or "all".
            target: One of several targets; by default the settings' own generator.

        Returns:
            Path with `{fold}` filled in; of a builtin generator, the same for every fold.

        Raises:
            ConfigurationError: If no generator is set, or the folder does not exist.
        """
        generator = (target or self.config).generator
        if generator is None:
            raise ConfigurationError(
                'No generator is set. Write {"generator": "/path/to/generator"} into difftumor.json beside the '
                f"plans, or into a file named by the environment variable {ENVIRONMENT_VARIABLE}. "
                "`difftumor train-diffusion` makes a generator folder; {fold} in the path stands for the fold, "
                f'"{DEFAULT_GENERATOR}" for the one that comes with this package, and "{HANDCRAFTED}" for none.'
            )
        if generator == HANDCRAFTED:  # its looks and regions are those of the builtin generator
            generator = DEFAULT_GENERATOR
        folder = resolve_generator(generator.replace("{fold}", str(fold)))
        if not folder.is_dir():
            raise ConfigurationError(
                f"The generator folder {folder} (set in {self.origins.get('generator', '?')}) does not exist. "
                "Train it with `difftumor train-diffusion`, or correct the path."
            )
        return folder


def find_sources(
    environment_path: str | None, plans_folder: Path | None, dataset_json: Mapping[str, Any]
) -> tuple[ConfigSource, ...]:
    """Collect the places that hold settings, strongest first.

    Args:
        environment_path: Value of the environment variable nnUNet_difftumor: a JSON file; None: not set.
        plans_folder: Folder of nnUNetPlans.json, which may hold difftumor.json.
        dataset_json: Content of dataset.json, which may hold the key "difftumor".

    Returns:
        Sources in the order environment, difftumor.json, dataset.json.

    Raises:
        ConfigurationError: If a named file is missing or is no JSON object.
    """
    sources = []
    if environment_path:
        path = Path(environment_path).expanduser()
        sources.append(ConfigSource(f"{ENVIRONMENT_VARIABLE}={path}", _read_object(path), path.resolve().parent))
    if plans_folder is not None and (plans_folder / CONFIG_FILE_NAME).is_file():
        path = plans_folder / CONFIG_FILE_NAME
        sources.append(ConfigSource(str(path), _read_object(path), plans_folder.resolve()))
    if DATASET_JSON_KEY in dataset_json:
        values = dataset_json[DATASET_JSON_KEY]
        if not isinstance(values, Mapping):
            raise ConfigurationError(f'dataset.json["{DATASET_JSON_KEY}"] must be an object, got {values!r}.')
        folder = plans_folder.resolve() if plans_folder is not None else Path.cwd()
        sources.append(ConfigSource(f'dataset.json["{DATASET_JSON_KEY}"]', values, folder))
    return tuple(sources)


def resolve_config(labels: Mapping[str, Any], sources: Sequence[ConfigSource]) -> ResolvedConfig:
    """Combine the sources key by key; an earlier source wins, and defaults fill the rest.

    Args:
        labels: `labels` of dataset.json, from which missing label roles are inferred.
        sources: Sources, strongest first.

    Returns:
        The settings and where each came from.

    Raises:
        ConfigurationError: If a key is unknown, a value has the wrong type or range, or a label cannot be found.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for source in reversed(sources):
        for key, value in source.values.items():
            values[key] = _convert(key, value, source)
            origins[key] = source.name
    entries = values.pop("targets", ())
    shared = {key: value for key, value in values.items() if key in TARGET_KEYS}
    if entries and {"organ_label", "tumor_label"} & set(shared):
        raise ConfigurationError(
            "organ_label and tumor_label belong into each entry of targets; take them out beside it."
        )
    targets = tuple(_resolve_target(labels, {**shared, **entry}, {}) for entry in entries)
    if targets:
        values.update({key: getattr(targets[0], key) for key in ("organ_label", "tumor_label")})
    values.update(_target_values(labels, {**shared, **values}, origins))
    config = DiffTumorConfig(**{**values, "targets": targets})
    return ResolvedConfig(config, {field.name: origins.get(field.name, "default") for field in fields(config)})


def _resolve_target(labels: Mapping[str, Any], entry: Mapping[str, Any], origins: dict[str, str]) -> OrganTarget:
    values = _target_values(labels, entry, origins)
    return OrganTarget(**{key: value for key, value in values.items() if key in TARGET_KEYS})


def _target_values(labels: Mapping[str, Any], given: Mapping[str, Any], origins: dict[str, str]) -> dict[str, Any]:
    """The settings of one target with what its labels tell filled in; `origins` learns where that came from."""
    values = dict(given)
    for key in ("organ_label", "tumor_label"):
        origins.setdefault(key, "label names in dataset.json")
    organ, tumor = resolve_label_roles(labels, values.get("organ_label"), values.get("tumor_label"))
    values.update(organ_label=organ, tumor_label=tumor)
    if values.get("generator") is None:  # null in a file: not set there
        values["generator"] = DEFAULT_GENERATOR
        origins["generator"] = "default"
    if values.get("target") is None:
        values["target"], origins["target"] = _infer_target(labels, organ, values["generator"])
    if "exophytic" not in values:
        values["exophytic"] = is_exophytic_organ(labels, organ)
        origins["exophytic"] = "label names in dataset.json"
    if "avoid_labels" in values:
        values["avoid_labels"] = tuple(_label_value(labels, label) for label in values["avoid_labels"])
    return values


def _label_value(labels: Mapping[str, Any], label: str | int) -> int:
    value = labels.get(label, label) if isinstance(label, str) else label
    known = {number for each in labels.values() for number in (each if isinstance(each, list) else [each])}
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0 or value not in known:
        raise ConfigurationError(
            f"avoid_labels: {label!r} is no label of this data set. Labels in dataset.json: {dict(labels)}."
        )
    return value


def is_generator_name(generator: str) -> bool:
    """Say whether a generator is named (builtin:NAME or handcrafted) and not a path."""
    return is_builtin(generator) or generator == HANDCRAFTED


def changed_settings(stored: Mapping[str, Any], current: Mapping[str, Any], *, is_continued: bool) -> tuple[str, ...]:
    """Compare the settings that a training recorded with the current ones.

    The path of a generator may differ (its content is compared elsewhere), and a continued training may
    get more or fewer epochs. A setting that did not exist when the training was recorded had its default.

    Args:
        stored: Settings as recorded.
        current: Settings now.
        is_continued: The training continues from a checkpoint.

    Returns:
        One line per setting that differs.
    """
    ignored = {"generator", _MAY_GROW} if is_continued else {"generator"}
    keys = sorted((set(stored) | set(current)) - ignored)
    defaults = {field.name: field.default for field in fields(DiffTumorConfig) if field.default is not MISSING}
    before = {**{key: list(each) if isinstance(each, tuple) else each for key, each in defaults.items()}, **stored}
    return tuple(
        f"{key}: {before.get(key)!r} was used, now {current.get(key)!r}"
        for key in keys
        if _without_generators(before.get(key)) != _without_generators(current.get(key))
    )


def _without_generators(value: Any) -> Any:
    """A setting without the paths of generators in its entries, as `targets` has them."""
    if not isinstance(value, list | tuple):
        return value
    return [
        {key: each for key, each in entry.items() if key != "generator"} if isinstance(entry, Mapping) else entry
        for entry in value
    ]


def config_from_json(values: Mapping[str, Any]) -> DiffTumorConfig:
    """Read settings that `DiffTumorConfig.to_json` wrote.

    Args:
        values: The recorded settings.

    Returns:
        The settings.

    Raises:
        ConfigurationError: If a key is unknown or a value is wrong.
    """
    source = ConfigSource("recorded settings", values, Path.cwd())
    converted = {key: _convert(key, value, source) for key, value in values.items() if key not in _REMOVED}
    converted["targets"] = tuple(OrganTarget(**entry) for entry in converted.get("targets", ()))
    return DiffTumorConfig(**converted)


def _infer_target(labels: Mapping[str, Any], organ_label: int, generator: str) -> tuple[str, str]:
    """Target for an organ label, and where it came from."""
    name = name_of_label(labels, organ_label)
    target = default_target(DEFAULT_GENERATOR if generator == HANDCRAFTED else generator, name)
    return target, "label names in dataset.json" if target == find_target(name) else "default"


def _require(holds: bool, key: str, expected: str, config: OrganTarget) -> None:
    if not holds:
        raise ConfigurationError(f"{key} must be {expected}, got {getattr(config, key)!r}.")


def _read_object(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"The settings file {path} cannot be read: {error}. Correct the path.") from error
    except ValueError as error:
        raise ConfigurationError(f"The settings file {path} is no valid JSON: {error}.") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f'{path} must hold a JSON object like {{"generator": "..."}}, got {values!r}.')
    return values


_NUMBER = (int, float)
_EXPECTED: dict[str, tuple[tuple[type, ...], str]] = {
    "generator": ((str, type(None)), "a path, builtin:NAME or handcrafted"),
    "organ_label": ((str, int), "a label name or value"),
    "tumor_label": ((str, int), "a label name or value"),
    "injection_probability": (_NUMBER, "a number"),
    "annotated_injection_probability": (_NUMBER, "a number"),
    "inject_into": ((str,), f"one of {', '.join(INJECT_INTO)}"),
    "tumors_per_case": ((list, tuple, type(None)), "two whole numbers [fewest, most], or null"),
    "probability": (_NUMBER, "a number"),
    "size_classes": ((list, tuple, str), f'a list of size classes, or "{TRAINING_TUMORS}"'),
    "exophytic": ((bool,), "true or false"),
    "outside_share": ((list, tuple, type(None)), "two numbers from 0 to 1, or null"),
    "surface_distance_mm": ((list, tuple, type(None)), "two numbers in mm, or null"),
    "avoid_labels": ((list, tuple), "a list of label names or values"),
    "avoid_distance_mm": (_NUMBER, "a number in mm"),
    "targets": ((list, tuple), "a list of objects"),
    "healthy_share": ((*_NUMBER, type(None)), "a number from 0 to 1, or null"),
    "steps": ((int,), "a whole number"),
    "target": ((str, type(None)), f"one of {', '.join(TARGETS)}, or null"),
    "contrast_hu": ((list, tuple, type(None)), "two numbers in HU, or null"),
    "heterogeneity_hu": ((list, tuple, type(None)), "two numbers in HU, or null"),
    "seed": ((int,), "a whole number"),
    "healthy_holdout": (_NUMBER, "a number"),
    "healthy_cases": ((list, tuple, type(None)), "a list of case identifiers, or null"),
    "confirmed_healthy": ((bool,), "true or false"),
    "extra_healthy_datasets": ((list, tuple), "a list of data sets"),
    "num_epochs": ((int, type(None)), "a whole number, or null"),
    "num_iterations_per_epoch": ((int, type(None)), "a whole number, or null"),
    "num_val_iterations_per_epoch": ((int, type(None)), "a whole number, or null"),
    "cpu_bfloat16": ((bool,), "true or false"),
    "acknowledge_identifier_matches": ((bool,), "true or false"),
    "acknowledge_autoencoder_overlap": ((bool,), "true or false"),
    "recorded_samples": ((int,), "a whole number"),
}


_REMOVED = dict.fromkeys(
    ("curriculum_every", "curriculum_samples"),
    "there is no curriculum: sizes and contrasts are drawn as often as size_classes and contrast_hu say",
)


def _convert(key: str, value: Any, source: ConfigSource) -> Any:
    """Check one setting's type and turn JSON's lists into the types of DiffTumorConfig."""
    if key in _REMOVED:
        raise ConfigurationError(f"{key} in {source.name} is no setting; {_REMOVED[key]}. Take it out.")
    if key not in _EXPECTED:
        raise ConfigurationError(unknown_key_message(key, _EXPECTED, source.name))
    types, description = _EXPECTED[key]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise ConfigurationError(f"{key} must be {description}, got {value!r} in {source.name}.")
    return _to_field(key, value, source)


def _to_field(key: str, value: Any, source: ConfigSource) -> Any:
    if value is None:
        return None
    if key == "generator":
        return value if is_generator_name(value) else str(source.folder / Path(value).expanduser())
    if key == "healthy_cases":
        return tuple(str(identifier) for identifier in value)
    if key == "extra_healthy_datasets":
        return parse_extra_healthy(value, source.name)
    if key in _RANGES:
        return _numbers(key, value, source)
    if key == "tumors_per_case":
        if not all(isinstance(end, int) for end in value):
            raise ConfigurationError(f"{key} must be two whole numbers [fewest, most], got {value!r} in {source.name}.")
        fewest, most = _numbers(key, value, source)
        return int(fewest), int(most)
    if key == "size_classes" and not isinstance(value, str):
        return tuple(_size_class(entry, source) for entry in value)
    if key == "avoid_labels":
        return tuple(value)
    if key == "targets":
        return tuple(_target_entry(entry, source) for entry in value)
    return value


def _target_entry(entry: Any, source: ConfigSource) -> dict[str, Any]:
    if not isinstance(entry, Mapping) or not {"organ_label", "tumor_label"} & set(entry):
        raise ConfigurationError(
            'Each of targets must be an object like {"organ_label": "liver", "tumor_label": "liver_tumor"}, got '
            f"{entry!r} in {source.name}."
        )
    foreign = sorted(set(entry) & set(_EXPECTED) - set(TARGET_KEYS))
    if foreign:
        raise ConfigurationError(
            f"targets: {', '.join(foreign)} holds for the whole run; write it beside targets in {source.name}."
        )
    return {key: _convert(key, value, source) for key, value in entry.items()}


def _numbers(key: str, value: Sequence[Any], source: ConfigSource) -> tuple[float, float]:
    if len(value) != 2 or not all(isinstance(end, _NUMBER) and not isinstance(end, bool) for end in value):
        raise ConfigurationError(f"{key} must be two numbers [smallest, largest], got {value!r} in {source.name}.")
    return float(value[0]), float(value[1])


def _size_class(entry: Any, source: ConfigSource) -> SizeClass:
    known = {field.name for field in fields(SizeClass)}
    if isinstance(entry, SizeClass):
        return entry
    if (
        not isinstance(entry, Mapping)
        or not set(entry) <= known
        or not {"name", "radius_mm", "probability"} <= set(entry)
    ):
        raise ConfigurationError(
            'Each of size_classes must look like {"name": "tiny", "radius_mm": [3, 5], "probability": 0.4, '
            f'"max_count": 3}}, got {entry!r} in {source.name}.'
        )
    count, probability = entry.get("max_count", 1), entry["probability"]
    for key, value, types, expected in (
        ("name", entry["name"], str, "a text"),
        ("probability", probability, _NUMBER, "a number"),
        ("max_count", count, int, "a whole number"),
    ):
        if not isinstance(value, types) or isinstance(value, bool):
            raise ConfigurationError(f"size_classes: {key} must be {expected}, got {value!r} in {source.name}.")
    return SizeClass(**{**entry, "radius_mm": _numbers("radius_mm", entry["radius_mm"], source)})
