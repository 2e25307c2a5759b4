"""What belongs to a step and not to its result: a record that must not change, a lock, numbered logs."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_difftumor.errors import DiffTumorError, OutputExistsError

DONE_FILE, LOG_FOLDER = "done.json", "logs"
FINISHED, INTERRUPTED, NOT_STARTED = "finished", "interrupted", "not started"
_LOCK_FILE = ".lock"


class RunError(DiffTumorError):
    """A command ended with an error, or did not do what it was to."""


def refuse_changes(record: Path, current: Mapping[str, object], folder: Path, advice: str, root: Path) -> None:
    """Refuse to go on with a training that was started with other settings or cases.

    Args:
        record: What it was started with, as JSON; paths in the study's folder may be full ones.
        root: Output folder of the study, from which paths in it start.

    Raises:
        OutputExistsError: If anything differs.
    """
    recorded = relative_paths(json.loads(record.read_text(encoding="utf-8")), root)
    changed = _differences(recorded, json.loads(json.dumps(current)))
    if changed:
        raise OutputExistsError(f"{folder} was started with other settings:\n  " + "\n  ".join(changed) + f"\n{advice}")


def relative_paths(content: Any, root: Path) -> Any:
    """Let the paths of a study's own files in what JSON can hold start from its output folder, which may be moved."""
    if isinstance(content, Mapping):
        return {key: relative_paths(value, root) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [relative_paths(value, root) for value in content]
    return content.removeprefix(f"{root}/") if isinstance(content, str) else content


@contextmanager
def alone(folder: Path, name: str, *, waits: bool = False, work: str = "trains it") -> Iterator[None]:
    """Keep two processes from making one thing; the lock goes with the process that holds it.

    Args:
        waits: Wait for the other process, and say so, instead of raising.
        work: What the other process does, for messages.

    Raises:
        RunError: If another process holds the lock and `waits` is False.
    """
    with (folder / _LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not waits:
                raise RunError(f"{name}: another process {work} at the moment ({error}).") from error
            print(f"    {name}: another process {work} at the moment; waiting for that", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def logs_in(folder: Path) -> list[Path]:
    """Logs of all starts of a training, the first one first."""
    return sorted((folder / LOG_FOLDER).glob("train-*.log"))


def next_log(folder: Path) -> Path:
    """Log of the next start; its folder is made."""
    (folder / LOG_FOLDER).mkdir(exist_ok=True)
    return folder / LOG_FOLDER / f"train-{len(logs_in(folder)) + 1:03d}.log"


def _differences(recorded: Mapping[str, object], current: Mapping[str, object], prefix: str = "") -> list[str]:
    lines = []
    for key in sorted({*recorded, *current}):
        before, now = recorded.get(key), current.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            lines += _differences(before, now, f"{prefix}{key}: ")
        elif isinstance(before, list) and isinstance(now, list) and key in ("train", "val"):
            changed = set(before) ^ set(now)
            lines += [f"{prefix}{key}: {len(changed)} cases were added or removed"] if changed else []
        elif before != now:
            lines.append(f"{prefix}{key}: {before!r} was used, now {now!r}")
    return lines
