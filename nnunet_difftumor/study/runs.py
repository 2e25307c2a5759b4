"""The runs of a study: one training each, with a name, a folder and a command of its own."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_difftumor.cases.splits import Split
from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.evaluation.comparison.inputs.plan import check_names, file_name_of
from nnunet_difftumor.evaluation.comparison.inputs.prediction import trainer_search_environment
from nnunet_difftumor.injection.sources import COPY_PASTE, DIFFUSION, HANDCRAFTED, HEALTHY_ONLY
from nnunet_difftumor.settings.resolving import resolve_config
from nnunet_difftumor.settings.sources import ENVIRONMENT_VARIABLE, ConfigSource
from nnunet_difftumor.settings.trainer_settings import DiffTumorConfig, is_generator_name
from nnunet_difftumor.study.data_views import StudyData, settings_beside_plans, view_name
from nnunet_difftumor.study.exposure import EQUAL, SampleShares, fitting_epochs, shares_of
from nnunet_difftumor.study.generators import GeneratorStage, check_stages, generator_folder, plan_generator
from nnunet_difftumor.study.plan import Annotated, Arm, StudyPlan
from nnunet_difftumor.study.settings import STUDY_GENERATOR
from nnunet_difftumor.study.trainers import TrainerFacts, trainer_of
from nnunet_difftumor.study.validation_cases import check_validation_cases
from nnunet_difftumor.support.processes.logged_command import program
from nnunet_difftumor.support.processes.steps import relative_paths
from nnunet_difftumor.synthesis.tissue.generator_names import DEFAULT_GENERATOR, resolve_generator
from nnunet_difftumor.trainer.schedule import SCHEDULE_KEYS

RUNS_FOLDER, VIEWS_FOLDER = "runs", "data"
_OF_LOOKS = {"generator", "targets"}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training.

    Attributes:
        name: Its name in the file system; no other run of the study has it.
        annotated: How many annotated tumour cases train, or "all".
        seed: Number of the repetition.
        healthy: Whether healthy cases train.
        trainer: Name of the trainer's class.
        shares: What its samples are drawn from; None: not known before it is trained.
        settings: The file that nnUNet_difftumor will name.
        missing_generators: Generator folders that do not exist yet and that the study does not train.
        generator_stages: What the study trains before this run, unless it is finished.
        root: Output folder of the study.
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
    batch_size: int
    settings: Mapping[str, Any]
    missing_generators: tuple[str, ...]
    generator_stages: tuple[GeneratorStage, ...]
    study: StudyPlan
    dataset: str
    root: Path

    @property
    def folder(self) -> Path:
        """Everything of this run."""
        return self.root / RUNS_FOLDER / self.name

    @property
    def settings_file(self) -> Path:
        """The file that nnUNet_difftumor names."""
        return self.folder / "settings.json"

    @property
    def samples(self) -> int:
        """Training samples of all its epochs."""
        return self.epochs * self.study.schedule.iterations * self.batch_size

    @property
    def annotated_samples(self) -> float | None:
        """Expected number of them that are of annotated cases; None: not known before it is trained."""
        return None if self.shares is None else self.samples * self.shares.annotated

    @property
    def model_folder(self) -> Path:
        """Folder of the trained model, as nnU-Net names it."""
        name = f"{self.trainer}__{self.study.plans}__{self.study.configuration}"
        return self.folder / "results" / self.dataset / name

    @property
    def fold_folder(self) -> Path:
        """Folder of the checkpoints."""
        return self.model_folder / f"fold_{self.fold}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that keep this run apart from all others."""
        view = self.root / VIEWS_FOLDER / view_name(self.annotated, healthy=self.healthy)
        return {
            "nnUNet_preprocessed": str(view),
            "nnUNet_results": str(self.folder / "results"),
            ENVIRONMENT_VARIABLE: str(self.settings_file),
            **trainer_search_environment(),
        }

    def command(self, *, is_continued: bool) -> list[str]:
        """Words of nnU-Net's command."""
        words = [program("nnUNetv2_train"), self.dataset, self.study.configuration, str(self.fold)]
        words += ["-tr", self.trainer, "-p", self.study.plans, "-device", self.study.device]
        return [*words, "--c"] if is_continued else words

    def as_typed(self, *, is_continued: bool) -> str:
        """The command with its variables, for a shell."""
        variables = [f"{key}={shlex.quote(value)}" for key, value in self.environment.items()]
        words = self.command(is_continued=is_continued)
        return " ".join([*variables, shlex.join(["nnUNetv2_train", *words[1:]])])

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
            "dataset": self.dataset,
            "configuration": self.study.configuration,
            "plans": self.study.plans,
            **self.split.to_json(),
            "settings": relative_paths(self.settings, self.root),
        }


def plan_runs(study: StudyPlan, data: StudyData, output: Path) -> tuple[Run, ...]:
    """List every run of a study, repetition by repetition, so that what is comparable is trained together.

    Raises:
        ConfigurationError: If a trainer, a setting, a generator, or a number of annotated cases does not fit, or the
            runs could not be compared.
        DatasetError: If generators are to be trained and the raw data set is not at hand.
    """
    check_validation_cases(study, data)
    trainers = {arm.name: _trainer_of(arm, study) for arm in study.arms}
    base = settings_beside_plans(data.cases.folder, data.dataset_json)
    runs: list[Run] = []
    for seed in study.seeds:
        for annotated in study.annotated:
            for fold in study.folds:
                beside = [
                    _make_run(study, data, output.resolve(), arm, trainers[arm.name], base, annotated, fold, seed)
                    for arm in study.arms
                    if annotated in arm.annotated
                ]
                runs += _with_longest(beside)
    _check_exposure(study, runs)
    _check_looks(study, trainers, base)
    check_names("runs", [run.name for run in runs], study.path)
    check_stages([stage for run in runs for stage in run.generator_stages], study.path)
    return tuple(runs)


def _trainer_of(arm: Arm, study: StudyPlan) -> TrainerFacts:
    is_steered = study.exposure == EQUAL or arm.is_longest
    return trainer_of(arm, _schedule(study, arm.epochs), str(study.path), is_steered=is_steered)


def _with_longest(beside: Sequence[Run]) -> list[Run]:
    """Runs of one fold, number of annotated cases and repetition; the long ones as long as the longest other."""
    longest = max((run.epochs for run in beside if not run.arm.is_longest), default=None)
    runs = []
    for run in beside:
        if run.arm.is_longest and longest is None:
            raise ConfigurationError(
                f"{run.study.path}, arm {run.arm.name!r}: length: longest needs another arm with annotated: "
                f"{run.annotated} that it is to be as long as. Add one, or give this arm an annotated list without "
                f"{run.annotated}."
            )
        if run.arm.is_longest and longest is not None:
            run = replace(run, epochs=longest, settings={**run.settings, **_schedule(run.study, longest)})
        runs.append(run)
    return runs


def _check_exposure(study: StudyPlan, runs: Sequence[Run]) -> None:
    """Refuse epochs that cannot be stretched to whole ones with the same annotated samples, to 1 %."""
    if study.exposure != EQUAL:
        return
    shares = [(run, run.shares) for run in runs if run.shares is not None and not run.arm.is_longest]
    for run, share in shares:
        epochs = run.arm.epochs
        if not share.fits(epochs):
            fitting = " or ".join(map(str, fitting_epochs(epochs, [each for _, each in shares])))
            raise ConfigurationError(
                f"{study.path}, run {run.name}: exposure: equal needs {share.stretch:.3f} times the {epochs} epochs of "
                f"the schedule, from which {share.epochs(epochs)} whole ones differ by more than 1 %. Write epochs: "
                f"{fitting}, which fits all runs."
            )


def _check_looks(study: StudyPlan, trainers: Mapping[str, TrainerFacts], base: Mapping[str, Any]) -> None:
    """Refuse a control arm whose tumours look like those of another generator only because none was written."""
    for control in study.arms:
        if trainers[control.name].tumors not in (COPY_PASTE, HANDCRAFTED) or _OF_LOOKS & control.settings.keys():
            continue
        beside = [arm for arm in study.arms if set(arm.annotated) & set(control.annotated)]
        users = [arm for arm in beside if trainers[arm.name].tumors == DIFFUSION]
        inherited = _generators(control, base)
        if users and all(_generators(user, base) != inherited for user in users):
            raise ConfigurationError(
                f"{study.path}, arm {control.name!r}: it names no generator, so that the looks of its tumours would "
                f"be drawn from {inherited[0]}, and it would differ from {users[0].name!r} in more than what is put "
                f"in. Write generator: {_generators(users[0], base)[0]} into it, or the other one if that is meant."
            )


def _generators(arm: Arm, base: Mapping[str, Any]) -> list[str]:
    settings = {**base, **arm.settings}
    one = settings.get("generator") or DEFAULT_GENERATOR
    return [target.get("generator") or one for target in settings.get("targets") or [{}]]


def _make_run(
    study: StudyPlan,
    data: StudyData,
    output: Path,
    arm: Arm,
    facts: TrainerFacts,
    base: Mapping[str, Any],
    annotated: Annotated,
    fold: int,
    seed: int,
) -> Run:
    where = f"{study.path}, arm {arm.name!r}"
    healthy = True if arm.healthy is None else arm.healthy
    if facts.tumors == COPY_PASTE and annotated == 0:
        raise ConfigurationError(
            f"{where}: with 0 annotated cases there is no real tumour to copy. Give the arm an annotated list of its "
            "own without 0."
        )
    try:
        split = data.split(fold, annotated, healthy=healthy)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error
    settings = {**base, **arm.settings, **_schedule(study, arm.epochs), "seed": seed}
    own_generator = str(generator_folder(output, fold, annotated))
    settings = _fill(settings, {"fold": str(fold), "annotated": str(annotated)}, own_generator)
    config = resolve_config(data.dataset_json["labels"], [ConfigSource(where, settings, output)]).config
    shares = _shares(study, data, split, facts, config, where)
    epochs = arm.epochs if shares is None or study.exposure != EQUAL else shares.epochs(arm.epochs)
    if annotated == 0 and settings.get("healthy_share") is not None:
        settings["healthy_share"] = 1.0  # there is nothing else to draw
    needs_generator = facts.tumors not in (None, HEALTHY_ONLY) and config.injects
    targets = config.organ_targets if needs_generator else ()
    own_targets = [each for each in targets if study.generators is not None and each.generator == own_generator]
    generators = [target.generator or DEFAULT_GENERATOR for target in targets if target not in own_targets]
    return Run(
        name=file_name_of(f"{arm.name}.annotated-{annotated}.fold-{fold}.seed-{seed}"),
        arm=arm,
        annotated=annotated,
        fold=fold,
        seed=seed,
        healthy=healthy,
        trainer=facts.name,
        split=split,
        epochs=epochs,
        shares=shares,
        batch_size=data.batch_size,
        settings={**settings, **_schedule(study, epochs)},
        missing_generators=tuple(
            name for name in generators if not is_generator_name(name) and not resolve_generator(name).is_dir()
        ),
        generator_stages=(
            plan_generator(study, data, output, fold, annotated, own_targets, where) if own_targets else ()
        ),
        study=study,
        dataset=data.name,
        root=output,
    )


def _shares(
    study: StudyPlan, data: StudyData, split: Split, facts: TrainerFacts, config: DiffTumorConfig, where: str
) -> SampleShares | None:
    """What a run's samples are drawn from; trainers without this package's data loading draw all cases alike."""
    healthy_share = None if facts.tumors is None else config.healthy_share
    if facts.tumors is not None and healthy_share is None and config.extra_healthy_datasets:
        if study.exposure != EQUAL:
            return None
        raise ConfigurationError(
            f"{where}: how often cases of extra_healthy_datasets are drawn is not known before training. Write "
            "healthy_share (e.g. 0.5) beside exposure: equal, or remove extra_healthy_datasets."
        )
    return shares_of(split.train, set(data.groups.tumor), set(data.groups.healthy), healthy_share)


def _schedule(study: StudyPlan, epochs: int) -> dict[str, int]:
    return dict(zip(SCHEDULE_KEYS, (epochs, study.schedule.iterations, study.schedule.val_iterations), strict=True))


def _fill(settings: Mapping[str, Any], values: Mapping[str, str], own_generator: str) -> dict[str, Any]:
    """Settings with full generator paths, those of several targets too: placeholders and the study's own filled in."""
    filled = dict(settings)
    if filled.get("generator") == STUDY_GENERATOR:
        filled["generator"] = own_generator
    elif filled.get("generator") is not None:
        for name, value in values.items():
            filled["generator"] = filled["generator"].replace(f"{{{name}}}", value)
    if "targets" in filled:
        filled["targets"] = [_fill(entry, values, own_generator) for entry in filled["targets"]]
    return filled
