"""Strict reading of small JSON records into dataclasses."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any


def read_json(path: Path, error_type: type[ValueError], fix: str) -> Any:
    """Read a JSON file.

    Args:
        fix: What the user can do, appended to the message.

    Returns:
        The parsed value.

    Raises:
        error_type: If the file is missing, unreadable or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or no JSON
        raise error_type(f"{path} cannot be read ({error}). {fix}") from error


def require_entries(entries: object, record: type[Any], source: str, error_type: type[ValueError]) -> dict[str, Any]:
    """Check that a parsed JSON value is an object with exactly the fields of a dataclass.

    Args:
        entries: Parsed JSON value.
        record: Dataclass whose field names are expected.
        source: Where the value stands, for the message.

    Returns:
        The entries, as a new dictionary.

    Raises:
        error_type: If the value is no object, or an entry is missing or unknown.
    """
    if not isinstance(entries, dict):
        raise error_type(f"{source} must be a JSON object, got {type(entries).__name__}.")
    expected = {field.name for field in fields(record)}
    missing, unknown = sorted(expected - entries.keys()), sorted(entries.keys() - expected)
    if missing or unknown:
        raise error_type(
            f"{source} must have exactly the entries {sorted(expected)}; missing: {missing}, unknown: {unknown}. "
            f"Copy the generator folder again, or train it again."
        )
    return dict(entries)


def require_list(entries: object, source: str, error_type: type[ValueError]) -> list[Any]:
    """Check that a parsed JSON value is a list.

    Args:
        entries: Parsed JSON value.
        source: Where the value stands, for the message.

    Raises:
        error_type: If the value is no list.
    """
    if not isinstance(entries, list):
        raise error_type(f"{source} must be a JSON list, got {type(entries).__name__}.")
    return entries
