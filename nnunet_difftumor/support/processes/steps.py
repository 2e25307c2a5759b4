"""Commands that run once: what is finished is not done again, what was interrupted goes on, all output is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nnunet_difftumor.support.files.atomic_files import write_json
from nnunet_difftumor.support.processes.logged_command import end_of_log, run_logged
from nnunet_difftumor.support.processes.work_folder import FINISHED, NOT_STARTED, RunError, alone, logs_in

RunCommand = Callable[[Sequence[str], Mapping[str, str], Path], int]
"""Runs words with variables and a log, and returns the exit status: `run_logged`, unless a test has another one."""


class Step:
    """Something that is made once, by a command.

    Attributes:
        name: For messages.
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
        """Run the command, unless it is finished.

        Returns:
            False if it was finished before.

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
    """Print a command and run it.

    Args:
        typed: The command as it is printed.
        who: What the message of the error begins with, like "fold 0: nnU-Net".

    Raises:
        RunError: If it ends with an error; with the end of its log.
    """
    print(f"$ {typed}", flush=True)
    status = run_command(words, environment, log)
    if status != 0:
        advice = f"\n{advice}" if advice else ""
        raise RunError(f"{who} ended with status {status}. Its log is {log}; it ends with:\n{end_of_log(log)}{advice}")
