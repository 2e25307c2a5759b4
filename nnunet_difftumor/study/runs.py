"""The runs of a study: what is finished is never trained again, what was interrupted continues."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunet_difftumor import __version__
from nnunet_difftumor.cases.splits import Split
from nnunet_difftumor.errors import ConfigurationError, DiffTumorError
from nnunet_difftumor.settings.sources import ENVIRONMENT_VARIABLE
from nnunet_difftumor.study.data_views import StudyData, make_view
from nnunet_difftumor.study.exposure import EQUAL, SampleShares
from nnunet_difftumor.study.generators import GeneratorStage
from nnunet_difftumor.study.plan import Annotated, Arm, StudyPlan
from nnunet_difftumor.study.training_step import TrainingStep
from nnunet_difftumor.support.files.atomic_files import write_json
from nnunet_difftumor.support.processes.logged_command import program, run_logged
from nnunet_difftumor.support.processes.steps import (
    DONE_FILE,
    FINISHED,
    INTERRUPTED,
    NOT_STARTED,
    RunCommand,
    RunError,
    refuse_changes,
    relative_paths,
)
from nnunet_difftumor.trainer.discovery import trainer_search_environment
from nnunet_difftumor.trainer.sample_counts import SAMPLES_FILE_NAME, read_samples_seen

VERSIONS_FILE = "versions.json"
MUST_NOT_MIX = ("nnunetv2", "batchgeneratorsv2")  # batchgeneratorsv2 0.3.4 turned rotations round
_RUNS_FOLDER, _RECORD_FILE = "runs", "run.json"
_CHECKPOINTS_TO_CONTINUE = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
"""From which nnU-Net goes on with `--c`: the first one that is there."""
_LINE_OF_EPOCH = re.compile(
    r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.\d+)?: Epoch (?:(\d+)|time: ([\d.]+) s) *$", re.MULTILINE
)


@dataclass(frozen=True, kw_only=True)
class Run(TrainingStep):
    """One training of nnU-Net, after the generator that it needs.

    Attributes:
        name: Its name in the file system; no other run of the study has it.
        seed: Number of the repetition.
        shares: What its samples are drawn from; None: not known before it is trained.
        settings: The file that nnUNet_difftumor will name.
        missing_generators: Generator folders that do not exist yet and that the study does not train.
        generator_stages: What the study trains before this run, unless it is finished.
    """

    name: str
    arm: Arm
    annotated: Annotated
    fold: int
    seed: int
    healthy: bool
    trainer: str
    split: Split
    epochs: int
    shares: SampleShares | None
    settings: Mapping[str, Any]
    missing_generators: tuple[str, ...]
    generator_stages: tuple[GeneratorStage, ...]
    study: StudyPlan
    data: StudyData
    root: Path
    trained_by = "nnU-Net"

    @property
    def work_folder(self) -> Path:
        """Everything of this run."""
        return self.root / _RUNS_FOLDER / self.name

    @property
    def done_file(self) -> Path:
        """Written when it is finished."""
        return self.work_folder / DONE_FILE

    @property
    def view(self) -> Path:
        """What nnUNet_preprocessed is set to: the data set with its number of annotated cases."""
        return self.root / "data" / f"annotated-{self.annotated}{'' if self.healthy else '-without-healthy'}"

    @property
    def settings_file(self) -> Path:
        """The file that nnUNet_difftumor names."""
        return self.work_folder / "settings.json"

    @property
    def model_folder(self) -> Path:
        """Folder of the trained model, as nnU-Net names it."""
        name = f"{self.trainer}__{self.study.plans}__{self.study.configuration}"
        return self.work_folder / "results" / self.data.name / name

    @property
    def fold_folder(self) -> Path:
        """Folder of the checkpoints."""
        return self.model_folder / f"fold_{self.fold}"

    @property
    def samples(self) -> int:
        """Training samples of all its epochs."""
        return self.epochs * self.study.schedule.iterations * self.data.batch_size

    @property
    def annotated_samples(self) -> float | None:
        """Expected number of them that are of annotated cases; None: not known before it is trained."""
        return None if self.shares is None else self.samples * self.shares.annotated

    def annotated_samples_seen(self) -> int | None:
        """Training samples of annotated cases that it has counted so far; None if it has not."""
        seen = read_samples_seen(self.fold_folder / SAMPLES_FILE_NAME)
        if seen is None or self.shares is None:
            return None
        return sum(seen.get(case, 0) for case in self.shares.annotated_cases)

    def seconds_per_epoch(self) -> float | None:
        """Median time of an epoch, in s; None if none was finished."""
        times = [float(seconds) for _, _, seconds in self._lines_of_epochs() if seconds]
        return statistics.median(times) if times else None

    def epochs_left(self) -> int:
        """Epochs that it has still to be trained for, from the checkpoint on that nnU-Net would continue from.

        A checkpoint that is younger than the middle of an epoch holds it, also where a file server's clock is a little
        off.
        """
        if self.state() == FINISHED:
            return 0
        checkpoints = [self.fold_folder / name for name in _CHECKPOINTS_TO_CONTINUE]
        saved_at = next((path.stat().st_mtime for path in checkpoints if path.is_file()), float("-inf"))
        epoch, saved = 0, -1
        for ended_at, number, seconds in self._lines_of_epochs():
            if number:
                epoch = int(number)
            elif datetime.fromisoformat(ended_at).timestamp() - float(seconds) / 2 <= saved_at:
                saved = max(saved, epoch)
        return max(0, self.epochs - 1 - saved)

    def _lines_of_epochs(self) -> Iterator[tuple[str, str, str]]:
        """Lines of logs that begin or end an epoch: time, and the number of what begins or the seconds of what ends."""
        for path in self.fold_folder.glob("training_log_*.txt"):
            yield from _LINE_OF_EPOCH.findall(path.read_text(encoding="utf-8", errors="replace"))

    @property
    def environment(self) -> dict[str, str]:
        """Variables that keep this run apart from all others."""
        return {
            "nnUNet_preprocessed": str(self.view),
            "nnUNet_results": str(self.work_folder / "results"),
            ENVIRONMENT_VARIABLE: str(self.settings_file),
            **trainer_search_environment(),
        }

    def command(self) -> list[str]:
        """Words of nnU-Net's command, with `--c` if there is a checkpoint."""
        words = [program("nnUNetv2_train"), self.data.name, self.study.configuration, str(self.fold)]
        words += ["-tr", self.trainer, "-p", self.study.plans, "-device", self.study.device]
        return [*words, "--c"] if self.state() == INTERRUPTED else words

    def to_json(self) -> dict[str, Any]:
        """What must not change between two starts of this run, wherever the study's folder lies."""
        return {
            "arm": self.arm.name,
            "annotated": self.annotated,
            "fold": self.fold,
            "seed": self.seed,
            "healthy": self.healthy,
            "wall_clock_factor": self.arm.wall_clock_factor,
            "trainer": self.trainer,
            "dataset": self.data.name,
            "configuration": self.study.configuration,
            "plans": self.study.plans,
            **self.split.to_json(),
            "settings": relative_paths(self.settings, self.root),
        }

    def state(self) -> str:
        """Say whether it is finished, was interrupted after its first checkpoint, or is not started."""
        if self.done_file.is_file():
            return FINISHED
        return INTERRUPTED if any(self.fold_folder.glob("checkpoint_*.pth")) else NOT_STARTED

    def check(self) -> None:
        """Refuse a folder that holds a run with other settings or cases, with an OutputExistsError."""
        path = self.work_folder / _RECORD_FILE
        if path.is_file() and self.state() != NOT_STARTED:
            advice = "Restore them, give the arm another name, or name another --output."
            refuse_changes(path, self.to_json(), self.work_folder, advice, self.root)

    def prepare(self, run_command: RunCommand) -> None:
        """Train the generator, make the view of the data, write settings and record.

        Raises:
            ConfigurationError: If a generator is missing.
            OutputExistsError: If a generator or the view was made otherwise.
        """
        if self.missing_generators:
            raise ConfigurationError(
                f"{self.name}: the generator folder {self.missing_generators[0]} does not exist. Train it with "
                "`difftumor train-diffusion`, or correct generator; {fold} and {annotated} in it stand for the run's."
            )
        for stage in self.generator_stages:
            stage.run_once(run_command)
        splits = self.data.lists_of_view(self.annotated, healthy=self.healthy)
        make_view(self.data, self.view, splits, self._trained_folds())
        write_json(self.settings_file, dict(self.settings), overwrite=True)
        write_json(self.work_folder / _RECORD_FILE, self.to_json(), overwrite=True)
        write_json(self.work_folder / VERSIONS_FILE, installed_versions(), overwrite=True)

    def _trained_folds(self) -> set[int]:
        """Folds that any run in the output folder, also one that the study no longer has, trained with its view."""
        mine = {"annotated": self.annotated, "healthy": self.healthy, "dataset": self.data.name}
        records = [path for path in (self.root / _RUNS_FOLDER).glob(f"*/{_RECORD_FILE}") if _was_trained(path.parent)]
        found = [json.loads(path.read_text(encoding="utf-8")) for path in records]
        return {record["fold"] for record in found if {key: record[key] for key in mine} == mine}

    def check_result(self) -> None:
        """Make sure that nnU-Net left a model and validated it, and trained for the epochs of the study.

        Raises:
            RunError: If it did not, or, in a study with equal exposure, saw other numbers of annotated samples.
        """
        wanted = [self.fold_folder / "checkpoint_final.pth", self.fold_folder / "validation" / "summary.json"]
        missing = [str(path) for path in wanted if not path.is_file()]
        if missing:
            raise RunError(f"{self.name}: nnU-Net ended well but left no {', '.join(missing)}.")
        trained = 1 + max((int(number) for _, number, _ in self._lines_of_epochs() if number), default=-1)
        if trained != self.epochs:
            raise RunError(
                f"{self.name}: {self.trainer} trained for {trained} epochs instead of {self.epochs}, so the arms are "
                "not matched. Use a trainer that takes num_epochs from the settings, and move the run's folder away."
            )
        if self.study.exposure == EQUAL and self.shares is not None:
            self._check_samples(self.samples * self.shares.annotated, self.shares.margin(self.samples))

    def _check_samples(self, expected: float, margin: float) -> None:
        path, seen = self.fold_folder / SAMPLES_FILE_NAME, self.annotated_samples_seen()
        if seen is None:
            raise RunError(
                f"{self.name}: {self.trainer} left no {path}, which says how many annotated samples it has seen. It is "
                "written where every epoch was counted; move the run's folder away to train it anew."
            )
        if abs(seen - expected) > margin:
            raise RunError(
                f"{self.name}: {self.trainer} has seen {seen} samples of annotated cases instead of {expected:.0f} "
                f"(+/- {margin:.0f}, three standard deviations), so the arms are not matched. {path} has the samples "
                "of each case; check healthy_share and that the trainer draws cases as nnU-Net does, and move the "
                "run's folder away."
            )


def installed_versions() -> dict[str, str]:
    """Versions of what trains, by name of the package."""
    return {**{name: version(name) for name in (*MUST_NOT_MIX, "torch")}, "nnunet-difftumor": __version__}


def _was_trained(folder: Path) -> bool:
    return (folder / DONE_FILE).is_file() or any(folder.glob("results/*/*/fold_*/checkpoint_*.pth"))


def train_all(runs: Sequence[Run], *, run_command: RunCommand = run_logged) -> Mapping[str, DiffTumorError]:
    """Train runs one after the other, whatever fails; gives what went wrong, by name of the run."""
    errors: dict[str, DiffTumorError] = {}
    for number, run in enumerate(runs, start=1):
        print(f"\n=== {number}/{len(runs)} {run.name}", flush=True)
        try:
            print("    done" if run.run_once(run_command) else "    done before, skipped", flush=True)
        except DiffTumorError as error:
            errors[run.name] = error
            print(f"    {type(error).__name__}: {error}", flush=True)
    return errors
