"""From what the user gave to settings with all values filled in, each with its origin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nnunet_difftumor.ct.label_roles import declared_values, is_exophytic_organ, name_of_label, resolve_label_roles
from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.settings.sources import ENVIRONMENT_VARIABLE, ConfigSource
from nnunet_difftumor.settings.trainer_settings import (
    HANDCRAFTED,
    TARGET_KEYS,
    DiffTumorConfig,
    OrganTarget,
    TargetSettings,
    TrainerSettings,
)
from nnunet_difftumor.support.files.declared import check, explained
from nnunet_difftumor.synthesis.tissue.generator_names import DEFAULT_GENERATOR, default_target, resolve_generator
from nnunet_difftumor.tumor.published_contrasts import find_target

_MAY_GROW = "num_epochs"
_LABEL_NAMES = "label names in dataset.json"


@dataclass(frozen=True)
class ResolvedConfig:
    """Settings after all sources were read, and where each came from, by key."""

    config: DiffTumorConfig
    origins: Mapping[str, str]

    def generator_folder(self, fold: int | str, target: OrganTarget | None = None) -> Path:
        """Return the generator folder of a fold (`{fold}` filled in), of one of several targets or the settings' own.

        The output folder of `train-diffusion` will do as well.

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

    Missing label roles are inferred from the `labels` of dataset.json.

    Raises:
        ConfigurationError: If a key is unknown, a value has the wrong type or range, or a label cannot be found.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for source in reversed(sources):
        given = _given(check(source.from_anywhere(), TrainerSettings, source.name))
        values |= given
        origins |= dict.fromkeys(given, source.name)
    shared = {key: value for key, value in values.items() if key in TARGET_KEYS}
    entries = values.pop("targets", ())
    if entries and {"organ_label", "tumor_label"} & set(shared):
        raise ConfigurationError(
            "organ_label and tumor_label belong into each entry of targets; take them out beside it."
        )
    targets = tuple(OrganTarget(**_target_values(labels, {**shared, **_given(entry)}, {})) for entry in entries)
    if targets:
        values.update({key: getattr(targets[0], key) for key in ("organ_label", "tumor_label")})
    values = {**_target_values(labels, values, origins), "targets": targets}
    try:
        config = DiffTumorConfig(**values)
    except ValidationError as error:
        names = ", ".join(source.name for source in sources) or "the defaults"
        raise explained(error, values, DiffTumorConfig, names) from error
    return ResolvedConfig(config, {key: origins.get(key, "default") for key in DiffTumorConfig.model_fields})


def _given(settings: TargetSettings) -> dict[str, Any]:
    return {key: getattr(settings, key) for key in settings.model_fields_set}


def _target_values(labels: Mapping[str, Any], given: Mapping[str, Any], origins: dict[str, str]) -> dict[str, Any]:
    """The settings of one target with what its labels tell filled in; `origins` learns where that came from."""
    values = dict(given)
    for key in ("organ_label", "tumor_label"):
        origins.setdefault(key, _LABEL_NAMES)
    organ, tumor = resolve_label_roles(labels, values.get("organ_label"), values.get("tumor_label"))
    values.update(organ_label=organ, tumor_label=tumor)
    if values.get("generator") is None:  # null in a file: not set there
        values["generator"], origins["generator"] = DEFAULT_GENERATOR, "default"
    if values.get("target") is None:
        name, generator = name_of_label(labels, organ), values["generator"]
        values["target"] = default_target(DEFAULT_GENERATOR if generator == HANDCRAFTED else generator, name)
        origins["target"] = _LABEL_NAMES if values["target"] == find_target(name) else "default"
    if "exophytic" not in values:
        values["exophytic"], origins["exophytic"] = is_exophytic_organ(labels, organ), _LABEL_NAMES
    if "avoid_labels" in values:
        values["avoid_labels"] = tuple(_label_value(labels, label) for label in values["avoid_labels"])
    return values


def _label_value(labels: Mapping[str, Any], label: str | int) -> int:
    value = labels.get(label, label) if isinstance(label, str) else label
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0 or value not in declared_values(labels):
        raise ConfigurationError(
            f"avoid_labels: {label!r} is no label of this data set. Labels in dataset.json: {dict(labels)}."
        )
    return value


def config_from_json(values: Mapping[str, Any]) -> DiffTumorConfig:
    """Read settings that `DiffTumorConfig.to_json` wrote.

    Raises:
        ConfigurationError: If a key is unknown or a value is wrong.
    """
    return check(values, DiffTumorConfig, "recorded settings")


def changed_settings(stored: Mapping[str, Any], current: Mapping[str, Any], *, is_continued: bool) -> tuple[str, ...]:
    """Compare the settings that a training recorded with the current ones: one line per setting that differs.

    The path of a generator may differ (its content is compared elsewhere), and a training that is continued from a
    checkpoint may get more or fewer epochs.
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
