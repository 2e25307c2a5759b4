"""Training the runs of a study: what is finished is never done again, what was interrupted continues."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from nnunet_difftumor.errors import ConfigurationError, DiffTumorError
from nnunet_difftumor.study.data_views import StudyData, make_view
from nnunet_difftumor.study.exposure import EQUAL
from nnunet_difftumor.study.runs import RUNS_FOLDER, VIEWS_FOLDER, Run
from nnunet_difftumor.study.versions import record_versions
from nnunet_difftumor.support.files.atomic_files import write_json
from nnunet_difftumor.support.processes.logged_command import run_logged
from nnunet_difftumor.support.processes.steps import (
    DONE_FILE,
    FINISHED,
    INTERRUPTED,
    NOT_STARTED,
    RunCommand,
    RunError,
    Step,
    next_log,
    refuse_changes,
    run_or_raise,
)
from nnunet_difftumor.trainer.sample_counts import SAMPLES_FILE_NAME, read_samples_seen

_RECORD_FILE = "run.json"
_CHECKPOINTS_TO_CONTINUE = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
"""From which nnU-Net goes on with `--c`: the first one that is there."""
_LINE_OF_EPOCH = re.compile(
    r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.\d+)?: Epoch (?:(\d+)|time: ([\d.]+) s) *$", re.MULTILINE
)


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
    if path.is_file() and state_of(run) != NOT_STARTED:
        advice = "Restore them, give the arm another name, or name another --output."
        refuse_changes(path, run.to_json(), run.folder, advice, run.root)


class Training(Step):
    """The training of one run; one that has a checkpoint continues with `--c`. Its generator comes first."""

    def __init__(self, run: Run, data: StudyData) -> None:
        self.run, self.data = run, data
        self.name, self.work_folder, self.done_file = run.name, run.folder, run.folder / DONE_FILE

    def state(self) -> str:
        """Say whether it is finished, was interrupted after its first checkpoint, or is not started."""
        return state_of(self.run)

    def check(self) -> None:
        """Refuse other settings or cases than it was started with, with an OutputExistsError."""
        check_record(self.run)

    def prepare(self, run_command: RunCommand) -> None:
        """Train the generator, make the view of the data, write settings and record.

        Raises:
            ConfigurationError: If a generator is missing.
            OutputExistsError: If a generator or the view was made otherwise.
            RunError: If a generator cannot be trained.
        """
        run = self.run
        if run.missing_generators:
            raise ConfigurationError(
                f"{run.name}: the generator folder {run.missing_generators[0]} does not exist. Train it with "
                "`difftumor train-diffusion`, or correct generator; {fold} and {annotated} in it stand for the run's."
            )
        for stage in run.generator_stages:
            stage.run_once(run_command)
        views = run.root / VIEWS_FOLDER
        make_view(self.data, views, run.annotated, healthy=run.healthy, trained_folds=_trained_folds(run))
        write_json(run.settings_file, dict(run.settings), overwrite=True)
        write_json(run.folder / _RECORD_FILE, run.to_json(), overwrite=True)
        record_versions(run)

    def execute(self, run_command: RunCommand) -> None:
        """Train.

        Raises:
            RunError: If nnU-Net ends with an error, or trained for other epochs or, in a study with equal exposure,
                on another number of annotated samples.
        """
        run, is_continued = self.run, self.state() == INTERRUPTED
        words, typed = run.command(is_continued=is_continued), run.as_typed(is_continued=is_continued)
        log = next_log(run.folder)
        run_or_raise(words, run.environment, log, run_command, typed=typed, who=f"{run.name}: nnU-Net")
        _check_training(run)
        _check_samples(run)


def train_all(
    runs: Sequence[Run], data: StudyData, *, run_command: RunCommand = run_logged
) -> Mapping[str, DiffTumorError]:
    """Train runs one after the other; one that fails does not keep the others from being trained.

    Returns:
        What went wrong, by name of the run.
    """
    errors: dict[str, DiffTumorError] = {}
    for number, run in enumerate(runs, start=1):
        print(f"\n=== {number}/{len(runs)} {run.name}", flush=True)
        try:
            is_new = Training(run, data).run_once(run_command)
            print("    done" if is_new else "    done before, skipped", flush=True)
        except DiffTumorError as error:
            errors[run.name] = error
            print(f"    {type(error).__name__}: {error}", flush=True)
    return errors


def seconds_per_epoch(run: Run) -> float | None:
    """Median time of an epoch in a run's logs, in s; None if it has finished none."""
    times = [float(found) for text in _training_logs(run) for found in re.findall(r"Epoch time: ([\d.]+) s", text)]
    return statistics.median(times) if times else None


def epochs_left(run: Run) -> int:
    """Epochs that a run has still to be trained for, from the checkpoint on that nnU-Net would continue from."""
    if state_of(run) == FINISHED:
        return 0
    checkpoints = [run.fold_folder / name for name in _CHECKPOINTS_TO_CONTINUE]
    saved_at = next((path.stat().st_mtime for path in checkpoints if path.is_file()), float("-inf"))
    saved = [epoch for text in _training_logs(run) for epoch, middle in _finished_epochs(text) if middle <= saved_at]
    return max(0, run.epochs - 1 - max(saved, default=-1))


def _finished_epochs(log: str) -> Iterator[tuple[int, float]]:
    """Number of each epoch in a log, and when half of it was over, in s.

    A checkpoint that is younger than its middle holds the epoch, also where a file server's clock is a little off.
    """
    epoch = 0
    for time_of_line, number, seconds in _LINE_OF_EPOCH.findall(log):
        if number:
            epoch = int(number)
        else:
            yield epoch, datetime.fromisoformat(time_of_line).timestamp() - float(seconds) / 2


def _trained_folds(run: Run) -> set[int]:
    """Folds that any run in the output folder, also one that the study no longer has, trained with this run's view."""
    mine = {"annotated": run.annotated, "healthy": run.healthy, "dataset": run.dataset}
    records = [path for path in (run.root / RUNS_FOLDER).glob(f"*/{_RECORD_FILE}") if _was_trained(path.parent)]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in records]
    return {record["fold"] for record in found if {key: record[key] for key in mine} == mine}


def _was_trained(folder: Path) -> bool:
    return (folder / DONE_FILE).is_file() or any(folder.glob("results/*/*/fold_*/checkpoint_*.pth"))


def _check_training(run: Run) -> None:
    """Make sure that nnU-Net left a model and validated it, and trained for the epochs of the study."""
    wanted = [run.fold_folder / "checkpoint_final.pth", run.fold_folder / "validation" / "summary.json"]
    missing = [str(path) for path in wanted if not path.is_file()]
    if missing:
        raise RunError(f"{run.name}: nnU-Net ended well but left no {', '.join(missing)}.")
    epochs = [int(found) for text in _training_logs(run) for found in re.findall(r": Epoch (\d+) *$", text, re.M)]
    trained = max(epochs, default=-1) + 1
    if trained != run.epochs:
        raise RunError(
            f"{run.name}: {run.trainer} trained for {trained} epochs instead of {run.epochs}, so the arms are not "
            "matched. Use a trainer that takes num_epochs from the settings, and move the run's folder away."
        )


def annotated_samples_seen(run: Run) -> int | None:
    """Training samples of annotated cases that a run has counted so far; None if it has not."""
    seen = read_samples_seen(run.fold_folder / SAMPLES_FILE_NAME)
    if seen is None or run.shares is None:
        return None
    return sum(seen.get(case, 0) for case in run.shares.annotated_cases)


def _check_samples(run: Run) -> None:
    """Make sure that a run of a study with equal exposure saw as many annotated samples as it was to."""
    if run.study.exposure != EQUAL or run.shares is None:
        return
    expected, margin = run.samples * run.shares.annotated, run.shares.margin(run.samples)
    seen = annotated_samples_seen(run)
    path = run.fold_folder / SAMPLES_FILE_NAME
    if seen is None:
        raise RunError(
            f"{run.name}: {run.trainer} left no {path}, which says how many annotated samples it has seen. It is "
            "written where every epoch was counted; move the run's folder away to train it anew."
        )
    if abs(seen - expected) > margin:
        raise RunError(
            f"{run.name}: {run.trainer} has seen {seen} samples of annotated cases instead of {expected:.0f} "
            f"(+/- {margin:.0f}, three standard deviations), so the arms are not matched. {path} has the samples of "
            "each case; check healthy_share and that the trainer draws cases as nnU-Net does, and move the run's "
            "folder away."
        )


def _training_logs(run: Run) -> list[str]:
    return [path.read_text(encoding="utf-8", errors="replace") for path in run.fold_folder.glob("training_log_*.txt")]
