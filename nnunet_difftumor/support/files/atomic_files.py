"""Output files and folders that appear complete or not at all.

What exists already is refused (OutputExistsError) unless it is to be overwritten; a missing folder above is made.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nnunet_difftumor.errors import DiffTumorError, OutputExistsError


def name_beside(path: Path) -> Path:
    """Draw a temporary name beside `path`, with its ending; containers that share a file system draw different ones."""
    return path.with_name(f".partial-{secrets.token_hex(6)}-{path.name}")


@contextmanager
def written_whole(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary name beside `path`, and rename it to `path` when the block ends without an error.

    The temporary name keeps the file's ending, so that libraries that choose a format by ending work.
    """
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists already; choose another name or remove the file first.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = name_beside(path)
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
    temporary = name_beside(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            path.rmdir()  # Windows replaces no folder, not even an empty one
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def made_folder(folder: Path, shown: Path | None = None) -> Iterator[None]:
    """Make a folder and those above it; of these, the ones that are empty when the block ends go again.

    Args:
        shown: What errors call it: the folder that the user named.

    Raises:
        DiffTumorError: If it cannot be made.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiffTumorError(
                f"--output {shown or folder} cannot be written to: {error.strerror} ({folder.parent}). Choose another "
                "folder, or make this one writable."
            ) from error
        yield
    finally:
        for path in new:
            with suppress(OSError):  # something is in it
                path.rmdir()


@contextmanager
def results_folder(output: Path, names: Sequence[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder, and move what is in it, if anything, to `output` when the block ends without an error.

    The temporary folder lies in `output` if that exists, else beside it: on the same file system, where `output` is
    a link or a mount point too. Of what is in `output`, earlier results alone are ever replaced.

    Args:
        names: Files and folders that results consist of.

    Raises:
        OutputExistsError: If `output` holds results and `overwrite` is False, or is a file.
        DiffTumorError: If `output` cannot be written to.
    """
    check_results(output, names, overwrite=overwrite)
    place = output.resolve()
    temporary = name_beside(place / "results" if place.exists() else place)
    with made_folder(temporary, output):
        try:
            yield temporary
            check_results(output, names, overwrite=overwrite)
            if place.exists() and any(temporary.iterdir()):
                for name in names:
                    _replace(temporary / name, place / name)
            elif any(temporary.iterdir()):
                os.replace(temporary, place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def check_results(output: Path, names: Sequence[str], *, overwrite: bool) -> None:
    """Refuse an output that is a file, or holds results that are not to be overwritten.

    Raises:
        OutputExistsError: If so.
    """
    if output.exists() and not output.is_dir():
        raise OutputExistsError(f"--output {output} is a file; name a folder.")
    existing = [name for name in names if (output / name).exists()]
    if existing and not overwrite:
        raise OutputExistsError(
            f"{output} holds {', '.join(existing)} already. Choose another --output, or add --overwrite."
        )


def _replace(new: Path, old: Path) -> None:
    """Put a file or folder in the place of another; without a new one the old one goes."""
    if old.is_dir():
        shutil.rmtree(old)
    if new.exists():
        os.replace(new, old)
    else:
        old.unlink(missing_ok=True)


def write_json(path: Path, content: Any, *, overwrite: bool = False) -> None:
    """Write what `json.dumps` accepts to a file."""
    with written_whole(path, overwrite=overwrite) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
