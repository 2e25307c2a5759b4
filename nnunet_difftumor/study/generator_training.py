"""Training the generators of a study with `difftumor train-autoencoder` and `train-diffusion`, before their runs."""

from __future__ import annotations

import time

from nnunet_difftumor.errors import OutputExistsError
from nnunet_difftumor.evaluation.comparison.inputs.prediction import Run as RunCommand
from nnunet_difftumor.study.generators import Stage
from nnunet_difftumor.support.files.atomic_files import write_json
from nnunet_difftumor.support.processes.logged_command import end_of_log, run_logged
from nnunet_difftumor.support.processes.work_folder import (
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

_RECORD_FILE = "stage.json"


def state_of_stage(stage: Stage) -> str:
    """Say whether a stage is finished, was interrupted, or is not started."""
    if (stage.folder / DONE_FILE).is_file() and stage.product.is_file():
        return FINISHED
    return INTERRUPTED if stage.folder.is_dir() and any(stage.folder.iterdir()) else NOT_STARTED


def check_stage(stage: Stage) -> None:
    """Refuse a folder that holds what this stage would not have made.

    Raises:
        OutputExistsError: If anything differs from the record, or there is none.
    """
    if state_of_stage(stage) == NOT_STARTED:
        return
    record = stage.work_folder / _RECORD_FILE
    if not record.is_file():
        raise OutputExistsError(
            f"{stage.folder} holds a training that is not of this study. Move it away, or name it: "
            "generator: its full path, instead of generator: study."
        )
    advice = "Restore them, or name another --output: runs that used this generator are matched with no other."
    refuse_changes(record, stage.to_json(), stage.folder, advice, stage.root.parent)


def train_stage(stage: Stage, *, run_command: RunCommand = run_logged) -> bool:
    """Train one stage, unless it is finished; an interrupted one goes on with `--resume`.

    Where another process trains it, this one waits until that has ended.

    Args:
        run_command: Runs the command; `run_logged` unless a test has another one.

    Returns:
        False if it was finished before.

    Raises:
        OutputExistsError: If its folder holds another training.
        RunError: If the command ends with an error or leaves nothing behind.
    """
    check_stage(stage)
    if state_of_stage(stage) == FINISHED:
        return False
    stage.work_folder.mkdir(parents=True, exist_ok=True)
    with alone(stage.work_folder, stage.name, waits=True):
        check_stage(stage)
        if state_of_stage(stage) == FINISHED:  # by another process, meanwhile
            return False
        is_continued = state_of_stage(stage) == INTERRUPTED
        write_json(stage.work_folder / _RECORD_FILE, stage.to_json(), overwrite=True)
        write_json(stage.splits_file, [split.to_json() for split in stage.folds_to_write()], overwrite=True)
        log = next_log(stage.work_folder)
        print(f"--- {stage.name}\n$ {stage.as_typed(is_continued=is_continued)}", flush=True)
        start = time.monotonic()
        status = run_command(stage.command(is_continued=is_continued), stage.environment, log)
        if status != 0:
            raise RunError(
                f"{stage.name}: difftumor {stage.subcommand} ended with status {status}. Its log is {log}; it ends "
                f"with:\n{end_of_log(log)}"
            )
        if not stage.product.is_file():
            raise RunError(f"{stage.name}: difftumor {stage.subcommand} ended well but left no {stage.product}.")
        content = {
            "seconds_of_last_start": round(time.monotonic() - start, 1),
            "starts": len(logs_in(stage.work_folder)),
        }
        write_json(stage.folder / DONE_FILE, content, overwrite=True)
    return True
