"""Running stages one after the other: print the command, keep its log, mark it as done."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.support.files.atomic_files import write_json
from nnunet_difftumor.support.processes.logged_command import end_of_log, run_logged


class StageError(DiffTumorError):
    """A stage of the demo ended with an error."""


@dataclass(frozen=True)
class Stage:
    """One step of the demo.

    Attributes:
        name: Short name; names the marker and the log.
        title: What happens, for people.
        words: Gives the command when the stage starts; None for a stage that is no command.
        action: Runs before the command, or alone; returns a line that says what it did.
        environment: Variables that the command gets in addition.
    """

    name: str
    title: str
    words: Callable[[], Sequence[str]] | None = None
    action: Callable[[], str] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StageRecord:
    """What is known about a finished stage.

    Attributes:
        title: What happened.
        command: The command as typed, or what was done.
        seconds: How long it took.
    """

    name: str
    title: str
    command: str
    seconds: float


class StageRunner:
    """Runs stages and skips those that are done."""

    def __init__(self, markers: Path, logs: Path, environment: Mapping[str, str]) -> None:
        """Prepare a run."""
        self._markers = markers
        self._logs = logs
        self._environment = dict(environment)

    def run(self, stages: Sequence[Stage]) -> None:
        """Run stages in order.

        Raises:
            StageError: If a command ends with an error; later stages do not run.
        """
        for number, stage in enumerate(stages, start=1):
            print(f"\n=== {number}/{len(stages)} {stage.title}", flush=True)
            marker = self._markers / f"{number:02d}-{stage.name}.json"
            if marker.is_file():
                print("    done before, skipped", flush=True)
                continue
            log = self._logs / f"{number:02d}-{stage.name}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            start = time.monotonic()
            command = self._run_stage(stage, log)
            seconds = time.monotonic() - start
            content = {"name": stage.name, "title": stage.title, "command": command, "seconds": round(seconds, 1)}
            write_json(marker, content, overwrite=True)
            print(f"    done in {seconds:.0f} s", flush=True)

    def _run_stage(self, stage: Stage, log: Path) -> str:
        done = stage.action() if stage.action is not None else ""
        if done:
            print(f"    {done}", flush=True)
        if stage.words is None:
            log.write_text(done + "\n", encoding="utf-8")
            return done
        words = list(stage.words())
        variables = [f"{key}={shlex.quote(value)}" for key, value in stage.environment.items()]
        command = " ".join([*variables, shlex.join(words)])
        print(f"$ {command}", flush=True)
        status = run_logged(words, {**self._environment, **stage.environment}, log)
        if status != 0:
            raise StageError(
                f"'{stage.title}' ended with status {status}. Its log is {log}; it ends with:\n{end_of_log(log)}\n"
                "Correct the cause and run the demo again: finished stages are skipped."
            )
        return command


def read_stage_records(markers: Path) -> tuple[StageRecord, ...]:
    """Read the markers of finished stages, in order.

    Args:
        markers: Folder of the markers; may be missing.
    """
    files = sorted(markers.glob("*.json")) if markers.is_dir() else []
    return tuple(StageRecord(**json.loads(path.read_text(encoding="utf-8"))) for path in files)
