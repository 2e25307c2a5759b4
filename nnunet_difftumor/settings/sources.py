"""Where settings are found: in which file, variable or key, and which of them wins."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.settings.trainer_settings import is_generator_name
from nnunet_difftumor.support.files.declared import full_path

CONFIG_FILE_NAME = "difftumor.json"
ENVIRONMENT_VARIABLE = "nnUNet_difftumor"
DATASET_JSON_KEY = "difftumor"


@dataclass(frozen=True)
class ConfigSource:
    """Settings as they were written in one place.

    Attributes:
        name: Where they were found, for the log.
        folder: Folder that a relative generator path starts from.
    """

    name: str
    values: Mapping[str, Any]
    folder: Path

    def from_anywhere(self) -> dict[str, Any]:
        """The settings as they are read from any folder."""
        return with_full_paths(self.values, self.folder, self.name)


def with_full_paths(
    settings: Mapping[str, Any], folder: Path, where: str, names: Collection[str] = ()
) -> dict[str, Any]:
    """Give settings of a folder whose generators, those of targets too, can be read from any other one.

    Args:
        settings: As written; values of other types are left for the check of the settings.
        where: What holds the settings, for errors.
        names: Further values of `generator` that are no paths.

    Raises:
        ConfigurationError: If a path names an environment variable that is not set.
    """
    full = dict(settings)
    generator, targets = full.get("generator"), full.get("targets")
    if isinstance(generator, str) and generator not in names and not is_generator_name(generator):
        full["generator"] = str(full_path(generator, folder, f"{where}: generator"))
    if isinstance(targets, list | tuple):
        full["targets"] = [
            with_full_paths(each, folder, where, names) if isinstance(each, Mapping) else each for each in targets
        ]
    return full


def find_sources(
    environment_path: str | None, plans_folder: Path | None, dataset_json: Mapping[str, Any]
) -> tuple[ConfigSource, ...]:
    """Collect the places that hold settings, strongest first.

    Args:
        environment_path: Value of the environment variable nnUNet_difftumor: a JSON file.
        plans_folder: Folder of nnUNetPlans.json, which may hold difftumor.json, the next source.
        dataset_json: Content of dataset.json, which may hold the key "difftumor", the last one.

    Raises:
        ConfigurationError: If a named file is missing or is no JSON object.
    """
    sources = []
    if environment_path:
        path = Path(environment_path).expanduser()
        sources.append(ConfigSource(f"{ENVIRONMENT_VARIABLE}={path}", _read_object(path), path.resolve().parent))
    if plans_folder is not None and (plans_folder / CONFIG_FILE_NAME).is_file():
        path = plans_folder / CONFIG_FILE_NAME
        sources.append(ConfigSource(str(path), _read_object(path), plans_folder))
    if DATASET_JSON_KEY in dataset_json:
        values = dataset_json[DATASET_JSON_KEY]
        if not isinstance(values, Mapping):
            raise ConfigurationError(f'dataset.json["{DATASET_JSON_KEY}"] must be an object, got {values!r}.')
        sources.append(ConfigSource(f'dataset.json["{DATASET_JSON_KEY}"]', values, plans_folder or Path.cwd()))
    return tuple(sources)


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
