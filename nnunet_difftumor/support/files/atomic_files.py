"""Output files and folders that appear complete or not at all.

What exists already is refused (OutputExistsError) unless it is to be overwritten; a missing folder above is made.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_difftumor.errors import OutputExistsError


@contextmanager
def written_whole(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary name beside `path`, and rename it to `path` when the block ends without an error.

    The temporary name keeps the file's ending, so that libraries that choose a format by ending work.
    """
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists already; choose another name or remove the file first.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`, and rename it to `path` when the block ends without an error.

    The path may be an empty folder. The temporary folder is removed if the block ends with an error.
    """
    path = path.resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputExistsError(f"{path} exists already; choose another name or remove it first.")
    temporary = path.with_name(f".partial-{os.getpid()}-{path.name}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            path.rmdir()  # Windows replaces no folder, not even an empty one
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, content: Any, *, overwrite: bool = False) -> None:
    """Write what `json.dumps` accepts to a file."""
    with written_whole(path, overwrite=overwrite) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
