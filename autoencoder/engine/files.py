"""Writing that is either complete or not there: a temporary name first, then a rename."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Write what `json.dumps` accepts but NaN and infinity, by way of a temporary name; an older file is replaced."""
    temporary = path.with_name(f".unfinished_{path.name}")
    temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Fill a temporary folder that takes the name `folder` when the block ends without an error.

    An older version stays until the new one is complete. Files become readable as the umask allows (some writers create
    them for their owner only).
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".unfinished_{folder.name}")
    replaced = folder.with_name(f".replaced_{folder.name}")
    for leftover in (temporary, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    yield temporary
    mask = os.umask(0)
    os.umask(mask)
    for path in temporary.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
    if folder.exists():
        os.replace(folder, replaced)
    os.replace(temporary, folder)
    shutil.rmtree(replaced, ignore_errors=True)
