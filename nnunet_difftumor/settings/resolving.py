"""From what the user gave to settings with all values filled in, each with its origin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nnunet_difftumor.ct.label_roles import is_exophytic_organ, name_of_label, resolve_label_roles
from nnunet_difftumor.errors import ConfigurationError, unknown_key_message
from nnunet_difftumor.settings.extra_healthy import parse_extra_healthy
from nnunet_difftumor.settings.sources import ENVIRONMENT_VARIABLE, ConfigSource
from nnunet_difftumor.settings.trainer_settings import (
    HANDCRAFTED,
    INJECT_INTO,
    RANGES,
    TARGET_KEYS,
    TRAINING_TUMORS,
    DiffTumorConfig,
    OrganTarget,
    is_generator_name,
)
from nnunet_difftumor.synthesis.tissue.generator_names import (
    DEFAULT_GENERATOR,
    default_target,
    resolve_generator,
)
from nnunet_difftumor.tumor.published_contrasts import (
    TARGETS,
    find_target,
)
from nnunet_difftumor.tumor.sizes import SizeClass

_MAY_GROW = "num_epochs"


@dataclass(frozen=True)
class ResolvedConfig:
    """Settings after all sources were read.

    Attributes:
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


def changed_settings(stored: Mapping[str, Any], current: Mapping[str, Any], *, is_continued: bool) -> tuple[str, ...]:
    """Compare the settings that a training recorded with the current ones.

    The path of a generator may differ (its content is compared elsewhere), and a continued training may
    get more or fewer epochs.

    Args:
        is_continued: The training continues from a checkpoint.

    Returns:
        One line per setting that differs.
    """
    ignored = {"generator", _MAY_GROW} if is_continued else {"generator"}
    keys = sorted((set(stored) | set(current)) - ignored)
    return tuple(
        f"{key}: {stored.get(key)!r} was used, now {current.get(key)!r}"
        for key in keys
        if _without_generators(stored.get(key)) != _without_generators(current.get(key))
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

    Raises:
        ConfigurationError: If a key is unknown or a value is wrong.
    """
    source = ConfigSource("recorded settings", values, Path.cwd())
    converted = {key: _convert(key, value, source) for key, value in values.items()}
    converted["targets"] = tuple(OrganTarget(**entry) for entry in converted.get("targets", ()))
    return DiffTumorConfig(**converted)


def _infer_target(labels: Mapping[str, Any], organ_label: int, generator: str) -> tuple[str, str]:
    """Target for an organ label, and where it came from."""
    name = name_of_label(labels, organ_label)
    target = default_target(DEFAULT_GENERATOR if generator == HANDCRAFTED else generator, name)
    return target, "label names in dataset.json" if target == find_target(name) else "default"


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


def _convert(key: str, value: Any, source: ConfigSource) -> Any:
    """Check one setting's type and turn JSON's lists into the types of DiffTumorConfig."""
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
    if key in RANGES:
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
