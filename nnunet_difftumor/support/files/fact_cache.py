"""Facts of files that are read again only when the file has changed."""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnunet_difftumor.support.files.atomic_files import write_json

logger = logging.getLogger(__name__)

CASE_FACTS_FILE_NAME = "difftumor_cases.json"


class FactCache:
    """What was once computed about files, kept in a JSON file; a changed file is computed again.

    A file is known by its path from the folder of the cache and by `exact_stamp_of`.
    """

    def __init__(self, path: Path | None) -> None:
        """Open a JSON file, which is started anew if it cannot be read; None keeps nothing."""
        self._path = path
        self._entries: dict[str, dict[str, Any]] = _read_entries(path) if path is not None else {}
        self._is_changed = False

    def get(self, file: Path, fact: str) -> Any | None:
        """Return a fact about a file, or None if it is unknown or the file has changed."""
        return self._facts(file).get(fact)

    def put(self, file: Path, fact: str, value: Any) -> None:
        """Keep a fact (a JSON value) about a file."""
        self._entries[self._key(file)] = {"stamp": exact_stamp_of(file), "facts": {**self._facts(file), fact: value}}
        self._is_changed = True

    def get_or_compute(self, file: Path, fact: str, compute: Callable[[], Any]) -> Any:
        """Return a fact about a file, computing and keeping it if it is unknown."""
        value = self.get(file, fact)
        if value is None:
            value = compute()
            self.put(file, fact, value)
        return value

    def save(self) -> None:
        """Write the cache if it has changed, with what others wrote of other files; an error is only logged."""
        if self._path is None or not self._is_changed:
            return
        self._entries = {**_read_entries(self._path), **self._entries}
        try:
            write_json(self._path, {"format": 1, "files": self._entries}, overwrite=True)
        except OSError as error:
            logger.warning("The case facts cannot be kept in %s (%s); they are computed each time.", self._path, error)
        self._is_changed = False

    def _facts(self, file: Path) -> dict[str, Any]:
        entry = self._entries.get(self._key(file))
        return entry["facts"] if entry is not None and entry["stamp"] == exact_stamp_of(file) else {}

    def _key(self, file: Path) -> str:
        root = Path("/") if self._path is None else self._path.resolve().parent
        return os.path.relpath(file.resolve(), root)


def stamp_of(path: Path) -> list[int]:
    """What tells that a file has changed, as JSON holds it: its size in bytes and its time of change in nanoseconds."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def exact_stamp_of(path: Path) -> list[int]:
    """Return this and a checksum of the file's end, where gzip keeps one of the whole: times are coarse, or set."""
    with path.open("rb") as file:
        file.seek(-min(path.stat().st_size, 4096), os.SEEK_END)
        return [*stamp_of(path), zlib.crc32(file.read())]


def _read_entries(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = content["files"] if content["format"] == 1 else {}
        return {key: {"stamp": list(entry["stamp"]), "facts": dict(entry["facts"])} for key, entry in entries.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be read (%s); the cases are looked at again.", path, error)
        return {}
