"""The generators that a study trains itself: one for each fold and number of annotated cases."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_difftumor.cases.splits import SPLITS_FILE_NAME, Split
from nnunet_difftumor.ct.datasets import parse_labels
from nnunet_difftumor.errors import ConfigurationError, DatasetError, OutputExistsError
from nnunet_difftumor.settings.trainer_settings import OrganTarget
from nnunet_difftumor.study.data_views import StudyData
from nnunet_difftumor.study.plan import Annotated, StudyPlan
from nnunet_difftumor.study.settings import ALL_ANNOTATED
from nnunet_difftumor.study.training_step import TrainingStep
from nnunet_difftumor.support.files.atomic_files import write_json
from nnunet_difftumor.support.processes.logged_command import program
from nnunet_difftumor.support.processes.steps import (
    DONE_FILE,
    FINISHED,
    INTERRUPTED,
    LOCK_FILE,
    NOT_STARTED,
    RunCommand,
    RunError,
    refuse_changes,
)

GENERATORS_FOLDER = "generators"
_TRAINING_FOLDER, _RECORD_FILE = "training", "stage.json"


@dataclass(frozen=True, kw_only=True)
class GeneratorStage(TrainingStep):
    """One training of a generator: the autoencoder of a fold, or the diffusion model of a number of annotated cases.

    Several runs may need it: one of them trains it, the others wait.

    Attributes:
        name: Its name in the file system; no other stage of the study has it.
        options: Words of the command that must not change between two starts.
        working_options: Words that may: where files are, how many processes read them.
        product: A file in the command's folder that is there when the training is finished.
    """

    name: str
    subcommand: str
    options: tuple[str, ...]
    working_options: tuple[str, ...]
    fold: int
    split: Split
    product: str
    environment: dict[str, str]
    root: Path
    waits = True

    @property
    def folder(self) -> Path:
        """What the command writes."""
        return self.root / GENERATORS_FOLDER / self.name

    @property
    def work_folder(self) -> Path:
        """Splits, record, lock and logs: the command wants its own folder empty."""
        return self.root / GENERATORS_FOLDER / _TRAINING_FOLDER / self.name

    @property
    def done_file(self) -> Path:
        """It lies with what the command wrote, which may be copied to another study."""
        return self.folder / DONE_FILE

    @property
    def trained_by(self) -> str:
        """The command as one speaks of it."""
        return f"difftumor {self.subcommand}"

    def command(self) -> list[str]:
        """Words of the command, with `--c` if it was interrupted."""
        words = [program("difftumor"), self.subcommand, *self.options, *self.working_options]
        words += ["--splits", str(self.work_folder / SPLITS_FILE_NAME), "-f", str(self.fold)]
        words += ["--output", str(self.folder)]
        return [*words, "--c"] if self.state() == INTERRUPTED else words

    def to_json(self) -> dict[str, Any]:
        """What must not change between two starts."""
        return {"command": [self.subcommand, *self.options], "fold": self.fold, **self.split.to_json()}

    def state(self) -> str:
        """Say whether it is finished, was interrupted, or is not started."""
        if self.done_file.is_file() and (self.folder / self.product).is_file():
            return FINISHED
        is_started = self.folder.is_dir() and any(path.name != LOCK_FILE for path in self.folder.iterdir())
        return INTERRUPTED if is_started else NOT_STARTED

    def check(self) -> None:
        """Refuse a folder that holds what this stage would not have made, with an OutputExistsError."""
        if self.state() == NOT_STARTED:
            return
        record = self.work_folder / _RECORD_FILE
        if not record.is_file():
            raise OutputExistsError(
                f"{self.folder} holds a training that is not of this study. Move it away, or name it: "
                "generator: its full path, instead of generator: study."
            )
        advice = "Restore them, or name another --output: runs that used this generator are matched with no other."
        refuse_changes(record, self.to_json(), self.folder, advice, self.root)

    def prepare(self, run_command: RunCommand) -> None:
        """Write the record, and the splits file with the fold at its place, so that the generator says its number."""
        write_json(self.work_folder / _RECORD_FILE, self.to_json(), overwrite=True)
        write_json(self.work_folder / SPLITS_FILE_NAME, [self.split.to_json()] * (self.fold + 1), overwrite=True)
        print(f"--- {self.name}", flush=True)

    def check_result(self) -> None:
        """Make sure that there is a model."""
        if not (self.folder / self.product).is_file():
            raise RunError(f"{self.name}: {self.trained_by} ended well but left no {self.folder / self.product}.")


def generator_folder(output: Path, fold: int, annotated: Annotated) -> Path:
    """Where the generator of a fold and number of annotated cases is, or will be."""
    return output / GENERATORS_FOLDER / _diffusion_name(fold, annotated) / "generator"


def plan_generator(
    study: StudyPlan,
    data: StudyData,
    output: Path,
    fold: int,
    annotated: Annotated,
    targets: Sequence[OrganTarget],
    where: str,
) -> tuple[GeneratorStage, ...]:
    """Plan the two trainings that make one generator, the first one first.

    The autoencoder needs no annotation and sees all training cases of the fold. The diffusion model sees the
    annotated cases of its arms, never more.

    Args:
        targets: The targets of a run whose generator it is to be.
        where: The arm, for errors.

    Raises:
        ConfigurationError: If there is nothing to learn from, or the targets have different tumours.
        DatasetError: If the raw data set is not at hand.
    """
    settings = study.generators
    assert settings is not None
    _refuse_nothing_to_learn(data, annotated, where)
    tumors = ["--tumor-label", _tumor_label(data.dataset_json["labels"], targets, where)]
    tumors += ["--early-only"] if settings.early_only else []
    spacing = [] if settings.spacing_mm is None else ["--spacing-mm", *(f"{value:g}" for value in settings.spacing_mm)]
    precision, preset = _option("--precision", settings.precision), _option("--preset", settings.preset)
    working = (*_option("-d", data.raw), *_option("--workers", settings.workers or None))
    autoencoder = GeneratorStage(
        name=f"fold-{fold}.autoencoder",
        subcommand="train-autoencoder",
        options=(*preset, *_option("--steps", settings.autoencoder_steps), *precision),
        working_options=working,
        fold=fold,
        split=data.split(fold, ALL_ANNOTATED, healthy=True),
        product="autoencoder/config.json",
        environment={"ACCELERATE_USE_CPU": "1"} if study.device == "cpu" else {},  # else a GPU, where there is one
        root=output,
    )
    diffusion = replace(
        autoencoder,
        name=_diffusion_name(fold, annotated),
        subcommand="train-diffusion",
        options=(*preset, *tumors, *_option("--steps", settings.diffusion_steps), *spacing, *precision),
        working_options=(*working, "--autoencoder", str(autoencoder.folder)),
        split=data.split(fold, annotated, healthy=True),
        product="generator/model_index.json",
    )
    return autoencoder, diffusion


def _refuse_nothing_to_learn(data: StudyData, annotated: Annotated, where: str) -> None:
    if annotated == 0:
        raise ConfigurationError(
            f"{where}: with 0 annotated cases there is no tumour to train a generator on. Name one that was trained "
            "elsewhere (generator: a folder, or builtin:NAME) in an arm of its own with annotated: [0], or give this "
            "arm an annotated list without 0."
        )
    if not (data.raw / "dataset.json").is_file():
        raise DatasetError(
            f"{where}: generators are trained on the raw data set, but {data.raw}/dataset.json does not exist. "
            "Export nnUNet_raw, or train the generators elsewhere and name their folders."
        )


def check_stages(stages: Sequence[GeneratorStage], path: Path) -> None:
    """Refuse runs that need different generators at one place, with a ConfigurationError."""
    by_name: dict[str, GeneratorStage] = {}
    for stage in stages:
        first = by_name.setdefault(stage.name, stage)
        if first != stage:
            raise ConfigurationError(
                f"{path}: arms need different generators {stage.name}: {shlex.join(first.options)} and "
                f"{shlex.join(stage.options)}. A study trains one for each fold and number of annotated cases; give "
                "all arms with generator: study one tumor_label, or train the others elsewhere and name their folders."
            )


def _diffusion_name(fold: int, annotated: Annotated) -> str:
    return f"fold-{fold}.annotated-{annotated}"


def _option(name: str, value: object | None) -> tuple[str, ...]:
    return () if value is None else (name, str(value))


def _tumor_label(labels: Mapping[str, Any], targets: Sequence[OrganTarget], where: str) -> str:
    """Name of the one label that the targets call tumour; of regions, the smallest that has its value."""
    values = {target.tumor_label for target in targets}
    named = parse_labels(labels, Path(where))
    found = [
        min((name for name, region in named.items() if value in region), key=lambda name: len(named[name]))
        for value in values
    ]
    if len(found) != 1:
        raise ConfigurationError(
            f"{where}: a generator of the study learns from one tumour label, but the targets have "
            f"{', '.join(sorted(found))}. Train a generator for each tumour with `difftumor train-diffusion "
            "--tumor-label NAME`, and name their folders; {fold} and {annotated} in them stand for the run's."
        )
    return found[0]
