"""Commands that run once: what is finished is not done again, what was interrupted goes on, all output is kept."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_difftumor.errors import DiffTumorError, OutputExistsError
from nnunet_difftumor.support.files.atomic_files import write_json
from nnunet_difftumor.support.processes.logged_command import end_of_log, run_logged

DONE_FILE, LOG_FOLDER = "done.json", "logs"
LOCK_FILE = ".lock"
FINISHED, INTERRUPTED, NOT_STARTED = "finished", "interrupted", "not started"

RunCommand = Callable[[Sequence[str], Mapping[str, str], Path], int]
"""Runs words with variables and a log, and returns the exit status: `run_logged`, unless a test has another one."""


class RunError(DiffTumorError):
    """A command ended with an error, or did not do what it was to."""


class Step:
    """Something that is made once, by a command.

    Attributes:
        work_folder: Where its lock and its logs lie; made if it is missing.
        done_file: Written when it is finished.
        waits: Wait for another process that makes it, instead of raising.
    """

    name: str
    work_folder: Path
    done_file: Path
    waits = False

    def state(self) -> str:
        """Say whether it is finished, was interrupted, or is not started."""
        return FINISHED if self.done_file.is_file() else NOT_STARTED

    def check(self) -> None:
        """Refuse to go on with what was started otherwise, with an OutputExistsError."""

    def prepare(self, run_command: RunCommand) -> None:
        """Make what the command needs."""

    def execute(self, run_command: RunCommand) -> None:
        """Run the command; raise RunError if it fails, or did not do what it was to."""
        raise NotImplementedError

    def mark(self, seconds: float) -> dict[str, object]:
        """Content of the done file."""
        return {"seconds_of_last_start": round(seconds, 1), "starts": len(logs_in(self.work_folder))}

    def run_once(self, run_command: RunCommand = run_logged) -> bool:
        """Run the command and return True, unless it is finished.

        Raises:
            OutputExistsError: If it was started otherwise.
            RunError: If the command fails, or another process runs it and `waits` is False.
        """
        self.check()
        if self.state() == FINISHED:
            return False
        self.work_folder.mkdir(parents=True, exist_ok=True)
        with alone(self.work_folder, self.name, waits=self.waits):
            self.check()
            if self.state() == FINISHED:  # by another process, meanwhile
                return False
            self.prepare(run_command)
            start = time.monotonic()
            self.execute(run_command)
            write_json(self.done_file, self.mark(time.monotonic() - start), overwrite=True)
        return True


def run_or_raise(
    words: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    run_command: RunCommand,
    *,
    typed: str,
    who: str,
    advice: str = "",
) -> None:
    """Print a command as `typed` and run it.

    Raises:
        RunError: If it ends with an error; with the end of its log, `who` ("fold 0: nnU-Net") first, `advice` last.
    """
    print(f"$ {typed}", flush=True)
    status = run_command(words, environment, log)
    if status != 0:
        advice = f"\n{advice}" if advice else ""
        raise RunError(f"{who} ended with status {status}. Its log is {log}; it ends with:\n{end_of_log(log)}{advice}")


def refuse_changes(record: Path, current: Mapping[str, object], folder: Path, advice: str, root: Path) -> None:
    """Refuse to go on with a training that, by its record (JSON), was started with other settings or cases.

    Paths in the study's folder, `root`, may be full ones in the record.

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

    One that waits says so, and what the other process does (`work`).

    Raises:
        RunError: If another process holds the lock and `waits` is False.
    """
    with (folder / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not waits:
                raise RunError(f"{name}: another process {work} at the moment ({error}).") from error
            print(f"    {name}: another process {work} at the moment; waiting for that", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            print(f"    {name}: its file system knows no locks ({error}); start no other process on it", flush=True)
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
