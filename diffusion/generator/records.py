"""Strict reading of small JSON records into dataclasses."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

RecordT = TypeVar("RecordT")
_field_types = cache(get_type_hints)


def read_json(path: Path, error_type: type[ValueError], fix: str) -> Any:
    """Read a JSON file.

    Raises:
        error_type: If the file is missing, unreadable or no JSON; `fix` says what the user can do.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or no JSON
        raise error_type(f"{path} cannot be read ({error}). {fix}") from error


def read_record(record: type[RecordT], content: object, source: str, error_type: type[ValueError]) -> RecordT:
    """Build a dataclass from a parsed JSON object that has exactly its fields and, if it has one, its `format_version`.

    A field may be missing whose metadata says `may_lack`.

    A field that is a tuple is read from a list, and dataclasses in it in the same way. What the values must be, the
    dataclass checks itself.

    Raises:
        error_type: If the value is no object, of another version, an entry is missing or unknown, or the dataclass
            refuses a value; the message begins with `source`.
    """
    if not isinstance(content, dict):
        raise error_type(f"{source} must be a JSON object, got {type(content).__name__}.")
    version = getattr(record, "format_version", None)
    if version is not None and content.get("format_version", version) != version:  # it may have other entries
        raise error_type(
            f"{source} has format_version {content['format_version']!r}, this release reads {version}. Use the release "
            f"that wrote it or update nnunet-difftumor, or train the generator again."
        )
    declared = fields(record)  # pyright: ignore[reportArgumentType]
    expected = {field.name for field in declared}
    optional = {field.name for field in declared if field.metadata.get("may_lack")}
    missing, unknown = sorted(expected - optional - content.keys()), sorted(content.keys() - expected)
    if missing or unknown:
        raise error_type(
            f"{source} must have exactly the entries {sorted(expected)}; missing: {missing}, unknown: {unknown}. "
            f"Copy the generator folder again, or train it again."
        )
    types = _field_types(record)
    values = {name: read_value(types[name], value, f"{source}: {name}", error_type) for name, value in content.items()}
    try:
        return record(**values)
    except ValueError as error:
        raise error_type(f"{source}: {error}") from error


def read_value(kind: Any, value: Any, source: str, error_type: type[ValueError]) -> Any:
    """Read one entry of a record, of a kind such as `tuple[Record, ...] | None` or `int`.

    A tuple is read from a list, a dataclass from an object; anything else is taken as it is.

    Raises:
        error_type: If a tuple is no list, or a dataclass in it is malformed; the message begins with `source`.
    """
    if isinstance(kind, UnionType):
        if value is None:
            return None
        kind = next(each for each in get_args(kind) if each is not NoneType)
    if isinstance(kind, type) and is_dataclass(kind):
        return read_record(kind, value, source, error_type)
    if get_origin(kind) is not tuple:
        return value
    if not isinstance(value, list):
        raise error_type(f"{source} must be a JSON list, got {type(value).__name__}.")
    item = get_args(kind)[0]
    return tuple(read_value(item, each, f"{source}[{index}]", error_type) for index, each in enumerate(value))


def require_numbers(**values: object) -> None:
    """Refuse what is no number as JSON means it: a boolean, NaN, infinity or text.

    Raises:
        ValueError: If a value is none; the message has its name.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value!r}.")
