"""What a training records in its output folder, and the refusal to mix two trainings there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_difftumor.cases.fold import FoldCases, LeakFindings
from nnunet_difftumor.errors import DiffTumorError, OutputExistsError
from nnunet_difftumor.settings.resolving import ResolvedConfig, changed_settings, config_from_json
from nnunet_difftumor.settings.trainer_settings import DiffTumorConfig
from nnunet_difftumor.support.files.atomic_files import write_json

CONFIG_RECORD_NAME = "difftumor_config.json"
SPLIT_RECORD_NAME = "difftumor_split.json"


def refuse_other_training(
    output_folder: Path, resolved: ResolvedConfig, cases: FoldCases, generator_hash: str | None, *, is_continued: bool
) -> None:
    """Compare settings, generator and fold with what an earlier training in the folder recorded.

    A start that left no checkpoint is no training, and nothing could be mixed with it.

    Args:
        generator_hash: Hash of the generator's weights; None without a generator.

    Raises:
        OutputExistsError: If anything differs.
    """
    if not any(output_folder.glob("checkpoint_*.pth")):
        return
    conflicts: list[str] = []
    record = _read_record(output_folder / CONFIG_RECORD_NAME)
    if record is not None:
        conflicts += changed_settings(record["settings"], resolved.config.to_json(), is_continued=is_continued)
        if record.get("generator_hash") != generator_hash:
            conflicts.append("generator: its weights differ from those that were used")
    refuse_other_split(output_folder, cases, conflicts)


def refuse_other_split(output_folder: Path, cases: FoldCases, conflicts: Sequence[str] = ()) -> None:
    """Compare the cases of a fold with those that a training in the folder recorded.

    Raises:
        OutputExistsError: If anything differs, other conflicts included.
    """
    record = _read_record(output_folder / SPLIT_RECORD_NAME)
    lines = [
        f"{key}: {len(set(record.get(key, ())) ^ set(now))} cases were added or removed"
        for key, now in cases.to_json().items()
        if record is not None and record.get(key) != now
    ]
    if conflicts or lines:
        raise OutputExistsError(
            f"{output_folder} holds a training with other settings:\n  " + "\n  ".join([*conflicts, *lines]) + "\n"
            "Restore them to go on with it, or move that folder away to start anew. (nnU-Net names the folder by "
            "trainer, plans and configuration only.)"
        )


def write_output_record(
    output_folder: Path, resolved: ResolvedConfig, cases: FoldCases, generator_hash: str | None, findings: LeakFindings
) -> None:
    """Record settings, where they came from, what the leak guard found, and the cases, in the output folder."""
    record = {
        "settings": resolved.config.to_json(),
        "origins": dict(resolved.origins),
        "generator_hash": generator_hash,
        "acknowledged_overlap": list(findings.acknowledged),
        "leak_warnings": list(findings.warnings),
    }
    write_json(output_folder / CONFIG_RECORD_NAME, record, overwrite=True)
    write_json(output_folder / SPLIT_RECORD_NAME, cases.to_json(), overwrite=True)


def read_recorded_config(output_folder: Path) -> DiffTumorConfig | None:
    """Read the settings that a training recorded, or None if there is no record."""
    record = _read_record(output_folder / CONFIG_RECORD_NAME)
    return None if record is None else config_from_json(record["settings"])


def _read_record(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise TypeError("no JSON object")
        return record
    except (OSError, ValueError, TypeError) as error:
        raise DiffTumorError(
            f"{path} cannot be read ({error}). It tells what this folder was trained with; restore it, or move the "
            "folder away to start anew."
        ) from error
