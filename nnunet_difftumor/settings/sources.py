"""Where settings are found: in which file, variable or key, and which of them wins."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_difftumor.errors import ConfigurationError

CONFIG_FILE_NAME = "difftumor.json"


ENVIRONMENT_VARIABLE = "nnUNet_difftumor"


DATASET_JSON_KEY = "difftumor"


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
