"""Reading a YAML file strictly: every error names the file, the key, what was expected and what arrived."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nnunet_difftumor.errors import ConfigurationError, unknown_key_message

_NUMBER = (int, float)
_NAMED_BY_TEXT = ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")


def read_entries(path: Path, kind: str = "experiment") -> Entries:
    """Read the mapping that a file holds.

    Args:
        kind: What errors call it.

    Raises:
        ConfigurationError: If it cannot be read, gives a key twice, or holds no mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except OSError as error:
        raise ConfigurationError(f"The {kind} {path} cannot be read: {error}. Correct the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The {kind} {path} is no valid YAML: {error}.") from error
    return Entries(content, f"the {kind}", path)


class Entries:
    """One mapping of the file; reads values by type and names the key in every error."""

    def __init__(self, values: Any, name: str, path: Path) -> None:
        self.where = f"{path}, {name}"
        self.path = path
        if not isinstance(values, Mapping):
            raise ConfigurationError(f"{self.where} must hold keys and values, got {values!r}.")
        self._values = values

    def refuse_unknown(self, known: Sequence[str]) -> None:
        """Raise for the first key that is not known."""
        for key in self._values:
            if key not in known:
                raise ConfigurationError(unknown_key_message(str(key), known, self.where))

    def has(self, key: str) -> bool:
        """Say whether a key is there and not null."""
        return self._values.get(key) is not None

    def get(self, key: str) -> Any:
        """Return what was written; None if nothing."""
        return self._values.get(key)

    def list_of(self, key: str) -> list[Entries]:
        """Read a list of mappings."""
        values = self._values.get(key)
        if not isinstance(values, list):
            raise ConfigurationError(f"{self.where}: {key} must be a list, got {values!r}.")
        return [Entries(value, f"{key}[{number}]", self.path) for number, value in enumerate(values)]

    def mapping(self, key: str) -> Entries:
        """Read a mapping; empty if nothing was written."""
        return Entries(self._values.get(key) or {}, key, self.path)

    def text(self, key: str, default: str | None = None) -> str:
        """Read a text; without a default, it must be there."""
        value = self._values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool | list | dict) or value is None or not str(value).strip():
            raise self._wrong(key, "a text", value)
        return str(value).strip()

    def texts(self, key: str) -> tuple[str, ...] | None:
        """Read a list of texts, or None."""
        values = self._values.get(key)
        if values is None:
            return None
        if not isinstance(values, list) or not values:
            raise self._wrong(key, "a list like [tumor]", values)
        return tuple(str(value) for value in values)

    def wholes(self, key: str, default: tuple[int, ...], least: int) -> tuple[int, ...]:
        """Read a list of different whole numbers of at least `least`."""
        values = self._values.get(key, list(default))
        is_right = isinstance(values, list) and all(
            isinstance(value, int) and not isinstance(value, bool) and value >= least for value in values
        )
        if not is_right or not values or len(set(values)) < len(values):
            raise self._wrong(key, f"a list of different whole numbers of {least} or more", values)
        return tuple(values)

    def raw_mapping(self, key: str) -> dict[str, Any]:
        """Read a mapping as it was written; empty if nothing was."""
        values = self._values.get(key) or {}
        if not isinstance(values, dict):
            raise self._wrong(key, "keys and values", values)
        return dict(values)

    def boolean(self, key: str, default: bool) -> bool:
        """Read true or false."""
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def whole(self, key: str, default: int | None, least: int) -> int | None:
        """Read a whole number of at least `least`."""
        value = self._values.get(key, default)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise self._wrong(key, f"a whole number of {least} or more", value)
        return value

    def number(self, key: str, default: float, least: float, most: float) -> float:
        """Read a number from `least` to `most`."""
        value = self._values.get(key, default)
        if not isinstance(value, _NUMBER) or isinstance(value, bool) or not least <= value <= most:
            raise self._wrong(key, f"a number from {least:g} to {most:g}", value)
        return float(value)

    def rising(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """Read a rising list of positive numbers."""
        values = self._values.get(key, list(default))
        is_right = isinstance(values, list) and all(
            isinstance(value, _NUMBER) and not isinstance(value, bool) and value > 0 for value in values
        )
        if not is_right or any(low >= high for low, high in itertools.pairwise(values)):
            raise self._wrong(key, "a rising list of positive numbers", values)
        return tuple(float(value) for value in values)

    def choice(self, key: str, default: str, known: Sequence[str]) -> str:
        """Read one of several words."""
        value = self._values.get(key, default)
        if value not in known:
            raise self._wrong(key, f"one of {', '.join(known)}", value)
        return str(value)

    def template(self, key: str) -> str | None:
        """Read a path that may hold placeholders, or None; it starts from the file's folder."""
        return str(self._place(key, self.text(key))) if self.has(key) else None

    def existing(self, key: str, *, is_folder: bool = True) -> Path | None:
        """Read the path of a folder or file that exists, or None; it starts from the file's folder."""
        if not self.has(key):
            return None
        path = self._place(key, self.text(key))
        if not (path.is_dir() if is_folder else path.is_file()):
            raise ConfigurationError(
                f"{self.where}: {key} should be a {'folder' if is_folder else 'file'}, but {path} does not exist or "
                "is none. Paths start from the folder of that file."
            )
        return path

    def _place(self, key: str, written: str) -> Path:
        return full_path(written, self.path, f"{self.where}: {key}")

    def _wrong(self, key: str, expected: str, value: Any) -> ConfigurationError:
        return ConfigurationError(f"{self.where}: {key} must be {expected}, got {value!r}.")


def full_path(written: str, file: Path, what: str) -> Path:
    """Find a path that is written in a file.

    Args:
        written: The path; it may start with ~ and hold environment variables.
        file: The file; the path starts from its folder.
        what: What names it, for the error.

    Raises:
        ConfigurationError: If an environment variable is not set.
    """
    expanded = os.path.expanduser(os.path.expandvars(written))
    if "$" in expanded:
        raise ConfigurationError(f"{what} names an environment variable that is not set: {written}. Export it.")
    return file.resolve().parent / expanded


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that is given twice instead of taking the last; keys that are merged in (<<) may be overridden."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node: Any = super().compose_mapping_node(anchor)  # later, what is merged in cannot be told from what is written
        keys = [key.value if key.tag in _NAMED_BY_TEXT else self.construct_object(key, True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
        return node
