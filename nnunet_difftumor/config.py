"""Typed settings of the trainer: what can be set, where it came from, what a training recorded."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nnunet_difftumor.appearance import AppearanceRule
from nnunet_difftumor.appearance_priors import (
    TARGETS,
    TRAINING,
    check_target,
    default_target,
    find_target,
    make_appearance_rule,
)
from nnunet_difftumor.builtin import DEFAULT_GENERATOR, is_builtin, resolve_generator
from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.extra_healthy import ExtraHealthyDataset, parse_extra_healthy
from nnunet_difftumor.label_roles import is_exophytic_organ, name_of_label, resolve_label_roles
from nnunet_difftumor.sizes import PAPER_SIZE_CLASSES, SizeClass

CONFIG_FILE_NAME = "difftumor.json"
ENVIRONMENT_VARIABLE = "nnUNet_difftumor"
DATASET_JSON_KEY = "difftumor"
_MAY_GROW = "num_epochs"


@dataclass(frozen=True, kw_only=True)
class DiffTumorConfig:
    """Settings of nnUNetTrainerDiffTumor.

    Attributes:
        generator: Generator folder, in which `{fold}` stands for the fold, or `builtin:NAME`. None: not set.
        organ_label: Value of the label that tumours are placed in.
        tumor_label: Value of the label that tumours get.
        injection_probability: Share of the drawn healthy samples that get tumours (the paper: 0.5).
        size_classes: Radii in mm, frequencies and counts (the paper's by default).
        exophytic: Tumours may bulge out of the organ into background voxels. Inferred by default: true for
            kidneys, false for other organs, whose tumours are clipped to the organ as in the paper.
        steps: Sampling steps of the generator (the paper: 4).
        target: What looks are drawn from: an organ with published contrasts ("liver", "pancreas"), the tumours
            that the generator was trained on ("training"), or those of them that are darker than their rim
            ("hypodense"). Inferred by default, see `appearance_priors.default_target`.
        contrast_hu: Smallest and largest contrast between tumour and rim to draw, in HU. None: as `target` says.
        heterogeneity_hu: Smallest and largest standard deviation inside a tumour to draw, without noise, in HU.
            None: that of the tumours that the generator was trained on.
        seed: Seed of the tumours. Splits and holdout do not depend on it.
        healthy_holdout: Share of the healthy cases that trains in no fold, so that specificity can be measured.
        healthy_cases: Identifiers of the healthy cases; None finds them by their labels.
        confirmed_healthy: The cases without annotated tumour are known to be healthy. Needed for a data set
            in which no tumour is annotated at all: there, no label may only mean not annotated.
        extra_healthy_datasets: Further data sets whose cases are healthy and train in every fold.
        num_epochs: Epochs; None keeps nnU-Net's.
        num_iterations_per_epoch: Training iterations per epoch; None keeps nnU-Net's.
        num_val_iterations_per_epoch: Validation iterations per epoch; None keeps nnU-Net's.
        acknowledge_identifier_matches: Go on although the generator was trained on other images that have
            the identifiers of validation cases.
        acknowledge_autoencoder_overlap: Go on although the autoencoder was trained on validation cases.
        recorded_samples: How many injected samples are recorded for replay.
    """

    generator: str | None
    organ_label: int
    tumor_label: int
    injection_probability: float = 0.5
    size_classes: tuple[SizeClass, ...] = PAPER_SIZE_CLASSES
    exophytic: bool = False
    steps: int = 4
    target: str = TRAINING
    contrast_hu: tuple[float, float] | None = None
    heterogeneity_hu: tuple[float, float] | None = None
    seed: int = 0
    healthy_holdout: float = 0.2
    healthy_cases: tuple[str, ...] | None = None
    confirmed_healthy: bool = False
    extra_healthy_datasets: tuple[ExtraHealthyDataset, ...] = ()
    num_epochs: int | None = None
    num_iterations_per_epoch: int | None = None
    num_val_iterations_per_epoch: int | None = None
    acknowledge_identifier_matches: bool = False
    acknowledge_autoencoder_overlap: bool = False
    recorded_samples: int = 16

    def __post_init__(self) -> None:
        _require(0 <= self.injection_probability <= 1, "injection_probability", "from 0 to 1", self)
        _require(0 <= self.healthy_holdout < 1, "healthy_holdout", "at least 0 and below 1", self)
        _require(self.steps >= 1, "steps", "1 or more (4 in the paper)", self)
        _require(self.seed >= 0, "seed", "0 or more", self)
        _require(self.recorded_samples >= 0, "recorded_samples", "0 or more", self)
        _require(any(size.probability > 0 for size in self.size_classes), "size_classes", "not all off", self)
        for key in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch"):
            _require(getattr(self, key) is None or getattr(self, key) >= 1, key, "1 or more, or null", self)
        check_target(self.target)
        for key in ("contrast_hu", "heterogeneity_hu"):
            limits = getattr(self, key)
            _require(limits is None or limits[0] <= limits[1], key, "[smallest, largest]", self)
        lowest_hu = self.heterogeneity_hu[0] if self.heterogeneity_hu else 0.0
        _require(lowest_hu >= 0, "heterogeneity_hu", "0 or more", self)

    @property
    def appearances(self) -> AppearanceRule:
        """What contrast and heterogeneity are drawn from, still without the generator's training tumours."""
        return make_appearance_rule(self.target, contrast_hu=self.contrast_hu, heterogeneity_hu=self.heterogeneity_hu)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return json.loads(json.dumps(asdict(self)))


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

    def generator_folder(self, fold: int | str) -> Path:
        """Return the generator folder of a fold; the output folder of `train-diffusion` will do as well.

        Args:
            fold: nnU-Net's fold: a number or "all".

        Returns:
            Path with `{fold}` filled in; of a builtin generator, the same for every fold.

        Raises:
            ConfigurationError: If no generator is set, or the folder does not exist.
        """
        if self.config.generator is None:
            raise ConfigurationError(
                'No generator is set. Write {"generator": "/path/to/generator"} into difftumor.json beside the '
                f"plans, or into a file named by the environment variable {ENVIRONMENT_VARIABLE}. "
                "`difftumor train-diffusion` makes a generator folder; {fold} in the path stands for the fold, and "
                f'"{DEFAULT_GENERATOR}" for the one that comes with this package.'
            )
        folder = resolve_generator(self.config.generator.replace("{fold}", str(fold)))
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
    config = DiffTumorConfig(**values)
    return ResolvedConfig(config, {field.name: origins.get(field.name, "default") for field in fields(config)})


def changed_settings(stored: Mapping[str, Any], current: Mapping[str, Any], *, is_continued: bool) -> tuple[str, ...]:
    """Compare the settings that a training recorded with the current ones.

    The path of the generator may differ (its content is compared elsewhere), and a continued training may
    get more or fewer epochs.

    Args:
        stored: Settings as recorded.
        current: Settings now.
        is_continued: The training continues from a checkpoint.

    Returns:
        One line per setting that differs.
    """
    ignored = {"generator", _MAY_GROW} if is_continued else {"generator"}
    keys = sorted((set(stored) | set(current)) - ignored)
    return tuple(
        f"{key}: {stored.get(key)!r} was used, now {current.get(key)!r}"
        for key in keys
        if stored.get(key) != current.get(key)
    )


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
    return DiffTumorConfig(**{key: _convert(key, value, source) for key, value in values.items()})


def _infer_target(labels: Mapping[str, Any], organ_label: int, generator: str) -> tuple[str, str]:
    """Target for an organ label, and where it came from."""
    name = name_of_label(labels, organ_label)
    target = default_target(generator, name)
    return target, "label names in dataset.json" if target == find_target(name) else "default"


def _require(holds: bool, key: str, expected: str, config: DiffTumorConfig) -> None:
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
    "generator": ((str, type(None)), "a path or builtin:NAME"),
    "organ_label": ((str, int), "a label name or value"),
    "tumor_label": ((str, int), "a label name or value"),
    "injection_probability": (_NUMBER, "a number"),
    "size_classes": ((list, tuple), "a list of size classes"),
    "exophytic": ((bool,), "true or false"),
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
    "acknowledge_identifier_matches": ((bool,), "true or false"),
    "acknowledge_autoencoder_overlap": ((bool,), "true or false"),
    "recorded_samples": ((int,), "a whole number"),
}


def _convert(key: str, value: Any, source: ConfigSource) -> Any:
    """Check one setting's type and turn JSON's lists into the types of DiffTumorConfig."""
    if key not in _EXPECTED:
        close = difflib.get_close_matches(key, _EXPECTED, n=1, cutoff=0.4)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise ConfigurationError(
            f"Unknown setting '{key}' in {source.name}.{hint} Known: {', '.join(sorted(_EXPECTED))}."
        )
    types, description = _EXPECTED[key]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise ConfigurationError(f"{key} must be {description}, got {value!r} in {source.name}.")
    return _to_field(key, value, source)


def _to_field(key: str, value: Any, source: ConfigSource) -> Any:
    if value is None:
        return None
    if key == "generator":
        return value if is_builtin(value) else str(source.folder / Path(value).expanduser())
    if key == "healthy_cases":
        return tuple(str(identifier) for identifier in value)
    if key == "extra_healthy_datasets":
        return parse_extra_healthy(value, source.name)
    if key in ("contrast_hu", "heterogeneity_hu"):
        return _numbers(key, value, source)
    if key == "size_classes":
        return tuple(_size_class(entry, source) for entry in value)
    return value


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
    return SizeClass(**{**entry, "radius_mm": _numbers("radius_mm", entry["radius_mm"], source)})
