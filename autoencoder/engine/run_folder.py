"""The output folder of one training run: whose it is, and whether it may be gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SETTINGS_FILE = "fit.json"
_FREE_AT_RESUME = ("settings.checkpoint_every", "settings.keep_checkpoints", "settings.workers")


class FitError(ValueError):
    """A training run cannot start or go on."""


class OutputFolderExistsError(FitError):
    """The output folder holds something and the run was not asked to resume."""


class ResumeError(FitError):
    """The output folder belongs to a run with other settings, or to no run."""


def check_run_folder(folder: Path, manifest: dict[str, Any], resume: bool) -> None:
    """Refuse a folder that this run must not write into; it need not exist.

    Args:
        manifest: What must be the same when a run is resumed, as JSON content.

    Raises:
        OutputFolderExistsError: If the folder is not empty and `resume` is False.
        ResumeError: If `resume` is True and the folder holds another run, or none.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not resume:
        raise OutputFolderExistsError(
            f"{folder} is not empty. Choose another output folder, or resume the run that is in it."
        )
    settings_file = folder / SETTINGS_FILE
    if not settings_file.is_file():
        raise ResumeError(f"{folder} is not empty and has no {SETTINGS_FILE}: no training run to resume.")
    differences = _differences(json.loads(settings_file.read_text(encoding="utf-8")), manifest)
    if differences:
        raise ResumeError(
            f"The run in {folder} was started with other settings: {'; '.join(differences)}. Resume it with "
            f"its own settings, or choose another output folder."
        )


def _differences(stored: Any, now: Any, name: str = "") -> list[str]:
    """Describe where two JSON values differ, leaving out what may change at a resume."""
    if name in _FREE_AT_RESUME or stored == now:
        return []
    if isinstance(stored, dict) and isinstance(now, dict):
        keys = sorted(stored.keys() | now.keys())
        prefix = f"{name}." if name else ""
        return [d for key in keys for d in _differences(stored.get(key), now.get(key), prefix + key)]
    return [f"{name} was {stored}, is {now}"]
