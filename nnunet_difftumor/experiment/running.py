"""Training the runs of a study: what is finished is never done again, what was interrupted continues."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Mapping, Sequence

from nnunet_difftumor.atomic_files import write_json
from nnunet_difftumor.comparison.prediction import Run as RunCommand
from nnunet_difftumor.errors import ConfigurationError, DiffTumorError
from nnunet_difftumor.experiment.data_views import StudyData, make_view
from nnunet_difftumor.experiment.generator_training import train_stage
from nnunet_difftumor.experiment.runs import VIEWS_FOLDER, Run
from nnunet_difftumor.experiment.work_folders import (
    DONE_FILE,
    FINISHED,
    INTERRUPTED,
    NOT_STARTED,
    RunError,
    alone,
    logs_in,
    next_log,
    refuse_changes,
)
from nnunet_difftumor.logged_command import end_of_log, run_logged

_RECORD_FILE = "run.json"


def state_of(run: Run) -> str:
    """Say whether a run is finished, was interrupted after its first checkpoint, or is not started."""
    if (run.folder / DONE_FILE).is_file():
        return FINISHED
    return INTERRUPTED if any(run.fold_folder.glob("checkpoint_*.pth")) else NOT_STARTED


def check_record(run: Run) -> None:
    """Refuse a run whose folder holds a run with other settings or cases.

    Raises:
        OutputExistsError: If anything differs from the record.
    """
    path = run.folder / _RECORD_FILE
    if not path.is_file():
        return
    if state_of(run) == NOT_STARTED:
        return
    advice = "Restore them, give the arm another name, or name another --output."
    refuse_changes(path, run.to_json(), run.folder, advice)


def train(run: Run, data: StudyData, *, run_command: RunCommand = run_logged) -> bool:
    """Train one run, unless it is finished; one that has a checkpoint continues with `--c`.

    A generator that the study trains comes first, unless it is finished.

    Args:
        run: The run.
        data: The study's data set.
        run_command: Runs the command; `run_logged` unless a test has another one.

    Returns:
        False if it was finished before.

    Raises:
        OutputExistsError: If it was started with other settings.
        ConfigurationError: If a generator is missing.
        RunError: If a command ends with an error, nnU-Net trained for other epochs, or another process trains this
            run.
    """
    check_record(run)
    if state_of(run) == FINISHED:
        return False
    if run.missing_generators:
        raise ConfigurationError(
            f"{run.name}: the generator folder {run.missing_generators[0]} does not exist. Train it with `difftumor "
            "train-diffusion`, or correct generator; {fold} and {annotated} in it stand for the run's."
        )
    run.folder.mkdir(parents=True, exist_ok=True)
    with alone(run.folder, run.name):
        if state_of(run) == FINISHED:  # by another process, meanwhile
            return False
        for stage in run.generator_stages:
            train_stage(stage, run_command=run_command)
        make_view(data, run.root / VIEWS_FOLDER, run.annotated, healthy=run.healthy)
        is_continued = state_of(run) == INTERRUPTED
        write_json(run.settings_file, dict(run.settings), overwrite=True)
        write_json(run.folder / _RECORD_FILE, run.to_json(), overwrite=True)
        log = next_log(run.folder)
        print(f"$ {run.as_typed(is_continued=is_continued)}", flush=True)
        start = time.monotonic()
        status = run_command(run.command(is_continued=is_continued), run.environment, log)
        if status != 0:
            raise RunError(
                f"{run.name}: nnU-Net ended with status {status}. Its log is {log}; it ends with:\n{end_of_log(log)}"
            )
        _check_training(run)
        content = {"seconds_of_last_start": round(time.monotonic() - start, 1), "starts": len(logs_in(run.folder))}
        write_json(run.folder / DONE_FILE, content)
    return True


def train_all(
    runs: Sequence[Run], data: StudyData, *, run_command: RunCommand = run_logged
) -> Mapping[str, DiffTumorError]:
    """Train runs one after the other; one that fails does not keep the others from being trained.

    Args:
        runs: The runs.
        data: The study's data set.
        run_command: Runs a command.

    Returns:
        What went wrong, by name of the run.
    """
    errors: dict[str, DiffTumorError] = {}
    for number, run in enumerate(runs, start=1):
        print(f"\n=== {number}/{len(runs)} {run.name}", flush=True)
        try:
            print("    done" if train(run, data, run_command=run_command) else "    done before, skipped", flush=True)
        except DiffTumorError as error:
            errors[run.name] = error
            print(f"    {type(error).__name__}: {error}", flush=True)
    return errors


def seconds_per_epoch(run: Run) -> float | None:
    """Median time of an epoch in a run's logs, in s; None if it has finished none."""
    times = [float(found) for text in _training_logs(run) for found in re.findall(r"Epoch time: ([\d.]+) s", text)]
    return statistics.median(times) if times else None


def _check_training(run: Run) -> None:
    """Make sure that nnU-Net left a model and validated it, and trained for the epochs of the study."""
    wanted = [run.fold_folder / "checkpoint_final.pth", run.fold_folder / "validation" / "summary.json"]
    missing = [str(path) for path in wanted if not path.is_file()]
    if missing:
        raise RunError(f"{run.name}: nnU-Net ended well but left no {', '.join(missing)}.")
    epochs = [int(found) for text in _training_logs(run) for found in re.findall(r": Epoch (\d+) *$", text, re.M)]
    trained = max(epochs, default=-1) + 1
    if trained != run.arm.epochs:
        raise RunError(
            f"{run.name}: {run.trainer} trained for {trained} epochs instead of {run.arm.epochs}, so the arms are not "
            "matched. Use a trainer that takes num_epochs from the settings, and move the run's folder away."
        )


def _training_logs(run: Run) -> list[str]:
    return [path.read_text(encoding="utf-8", errors="replace") for path in run.fold_folder.glob("training_log_*.txt")]
