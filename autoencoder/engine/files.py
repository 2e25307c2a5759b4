"""Writing that is either complete or not there: a temporary name first, then a rename."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOCK_FILE = ".lock"
"""Held by the one process that trains in a folder, which counts as empty if nothing else is in it."""


def name_beside(path: Path) -> Path:
    """Draw a temporary name beside `path`, with its ending; processes that share a file system draw different ones."""
    return path.with_name(f".unfinished-{secrets.token_hex(6)}-{path.name}")


def write_json(path: Path, content: Any) -> None:
    """Write what `json.dumps` accepts but NaN and infinity, by way of a temporary name; an older file is replaced."""
    temporary = name_beside(path)
    try:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Fill a temporary folder that takes the name `folder` when the block ends without an error.

    An older version stays until the new one is complete. Files become readable as the umask allows (some writers create
    them for their owner only).
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, replaced = name_beside(folder), name_beside(folder)
    temporary.mkdir()
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        for path in temporary.rglob("*"):
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
        if folder.exists():
            os.replace(folder, replaced)
        os.replace(temporary, folder)
    finally:
        if replaced.exists() and not folder.exists():
            os.replace(replaced, folder)
        for leftover in (temporary, replaced):
            shutil.rmtree(leftover, ignore_errors=True)
