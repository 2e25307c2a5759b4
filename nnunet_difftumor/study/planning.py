"""From a study and its data set to its runs, and what is refused before anything is trained."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnunet_difftumor.cases.healthy import count_label_voxels
from nnunet_difftumor.cases.splits import Split
from nnunet_difftumor.errors import ConfigurationError, OutputExistsError, list_some
from nnunet_difftumor.evaluation.comparison.inputs.plan import check_names, file_name_of
from nnunet_difftumor.evaluation.comparison.inputs.trained_models import refuse_shared_names
from nnunet_difftumor.evaluation.comparison.measures import SPECIFICITY
from nnunet_difftumor.evaluation.scoring.scheme import read_label_scheme
from nnunet_difftumor.injection.sources import COPY_PASTE, DIFFUSION, HANDCRAFTED, HEALTHY_ONLY
from nnunet_difftumor.settings.resolving import resolve_config
from nnunet_difftumor.settings.sources import ConfigSource
from nnunet_difftumor.settings.trainer_settings import DiffTumorConfig, is_generator_name
from nnunet_difftumor.study.data_views import StudyData
from nnunet_difftumor.study.exposure import EQUAL, SampleShares, fitting_epochs, shares_of
from nnunet_difftumor.study.generators import check_stages, generator_folder, plan_generator
from nnunet_difftumor.study.plan import Annotated, Arm, StudyPlan
from nnunet_difftumor.study.runs import MUST_NOT_MIX, VERSIONS_FILE, Run, installed_versions
from nnunet_difftumor.study.settings import STUDY_GENERATOR
from nnunet_difftumor.study.trainers import TrainerFacts, trainer_of
from nnunet_difftumor.support.processes.steps import FINISHED, NOT_STARTED
from nnunet_difftumor.synthesis.tissue.generator_names import DEFAULT_GENERATOR, resolve_generator

_OF_LOOKS = {"generator", "targets"}


def plan_runs(study: StudyPlan, data: StudyData, output: Path) -> tuple[Run, ...]:
    """List every run of a study, repetition by repetition, so that what is comparable is trained together.

    Raises:
        ConfigurationError: If a trainer, a setting, a generator, or a number of annotated cases does not fit, or the
            runs could not be compared.
        DatasetError: If generators are to be trained and the raw data set is not at hand.
    """
    _check_validation_cases(study, data)
    trainers = {arm.name: trainer_of(arm, study) for arm in study.arms}
    runs: list[Run] = []
    for seed, annotated, fold in itertools.product(study.seeds, study.annotated, study.folds):
        beside = [
            _make_run(study, data, output.resolve(), arm, trainers[arm.name], annotated, fold, seed)
            for arm in study.arms
            if annotated in arm.annotated
        ]
        runs += _with_longest(beside)
    _check_exposure(study, runs)
    _check_looks(study, trainers, data.settings)
    check_names("runs", [run.name for run in runs], study.path)
    check_stages([stage for run in runs for stage in run.generator_stages], study.path)
    return tuple(runs)


def check_hospitals(runs: Sequence[Run]) -> None:
    """Refuse hospitals with cases that are named like training cases of an arm or of its generators.

    The folds of an arm predict hospitals together, so that what one fold validates on trains the others.

    Raises:
        LeakError: If there is such a case, and it is not acknowledged.
        DatasetError: If a hospital has no label map.
    """
    study, compare = runs[0].study, runs[0].study.compare
    for arm in dict.fromkeys(run.arm.name for run in runs):
        own = [run for run in runs if run.arm.name == arm]
        splits = [each.split for run in own for each in (run, *run.generator_stages)]
        training = {case for split in splits for case in split.train}
        if len({run.fold for run in own}) > 1:
            training.update(case for run in own for case in run.split.val)
        subject = f"{study.path}, compare: the arm {arm!r} is trained"
        refuse_shared_names(subject, training, compare.hospitals, acknowledged=compare.acknowledge_identifier_matches)


def check_versions(runs: Sequence[Run], *, trains: bool) -> None:
    """Refuse a study whose runs are trained with several versions of nnU-Net or of its augmentation.

    Runs without a record of their versions are accepted, with one warning.

    Args:
        trains: Runs that are not finished are to be trained, with the versions that are installed.

    Raises:
        OutputExistsError: If versions mix; names runs and versions.
    """
    states = {run.name: run.state() for run in runs}
    found: dict[str, list[str]] = {}
    for run in runs:
        if states[run.name] == FINISHED or (trains and states[run.name] != NOT_STARTED):
            path = run.work_folder / VERSIONS_FILE
            recorded = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
            found.setdefault("" if recorded is None else _versions_text(recorded), []).append(run.name)
    unknown = found.pop("", [])
    if unknown:
        print(
            f"Warning: {len(unknown)} runs have no {VERSIONS_FILE}; {' and '.join(MUST_NOT_MIX)} must have been the "
            f"same in all runs: {list_some(unknown)}",
            file=sys.stderr,
        )
    if found and trains and any(state != FINISHED for state in states.values()):
        found.setdefault(_versions_text(installed_versions()), []).append("what is installed")
    if len(found) > 1:
        lines = "\n".join(f"  {versions}: {list_some(names)}" for versions, names in found.items())
        raise OutputExistsError(
            f"Runs of one study were or would be trained with different versions:\n{lines}\nInstall the versions of "
            "the finished runs, move the folders of the other runs away, or name another --output."
        )


def _versions_text(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {versions.get(name, '?')}" for name in MUST_NOT_MIX)


def _check_validation_cases(study: StudyPlan, data: StudyData) -> None:
    """Refuse a study whose comparison could give no figure, if it is on validation cases."""
    if study.compare.hospitals:
        return
    cases = data.validation_cases(study.folds)
    if len(set(cases)) < len(cases):
        raise ConfigurationError(
            f"{study.path}: the folds share validation cases, which would be counted twice. Name test data in compare: "
            "hospitals, or correct the splits."
        )
    if study.compare.primary == SPECIFICITY.key and not _has_healthy(study, data, cases):
        raise ConfigurationError(
            f"{study.path}, compare: primary is {SPECIFICITY.key}, which is measured on healthy scans, but all "
            f"{len(cases)} validation cases of the folds have a tumour (healthy cases train). Name test data with "
            "healthy scans in hospitals, or choose another primary."
        )


def _has_healthy(study: StudyPlan, data: StudyData, cases: Sequence[str]) -> bool:
    """Whether one of the cases will be scored as healthy."""
    scheme = read_label_scheme(data.cases.folder / "dataset.json", study.compare.labels or ())
    counts = count_label_voxels({case: data.cases.label_file(case) for case in cases}, data.cases.open_cache())
    return any(map(scheme.is_healthy, counts.values()))


def _with_longest(beside: Sequence[Run]) -> list[Run]:
    """Runs of one fold, number of annotated cases and repetition; the long ones as long as the longest other."""
    first, epochs = beside[0], [run.epochs for run in beside if run.arm.length is None]
    if not epochs:
        raise ConfigurationError(
            f"{first.study.path}, arm {first.arm.name!r}: length: longest needs another arm with annotated: "
            f"{first.annotated} that it is to be as long as. Add one, or give this arm an annotated list without "
            f"{first.annotated}."
        )
    longest, schedule = max(epochs), first.study.schedule.of_trainer(max(epochs))
    return [
        run if run.arm.length is None else replace(run, epochs=longest, settings={**run.settings, **schedule})
        for run in beside
    ]


def _check_exposure(study: StudyPlan, runs: Sequence[Run]) -> None:
    """Refuse epochs that cannot be stretched to whole ones with the same annotated samples, to 1 %."""
    if study.exposure != EQUAL:
        return
    shares = [(run, run.shares) for run in runs if run.shares is not None and run.arm.length is None]
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


def _split_of(
    data: StudyData, fold: int, annotated: Annotated, facts: TrainerFacts, where: str, *, healthy: bool
) -> Split:
    if facts.tumors == COPY_PASTE and annotated == 0:
        raise ConfigurationError(
            f"{where}: with 0 annotated cases there is no real tumour to copy. Give the arm an annotated list of its "
            "own without 0."
        )
    try:
        return data.split(fold, annotated, healthy=healthy)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error


def _missing(generators: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in generators if not is_generator_name(name) and not resolve_generator(name).is_dir())


def _make_run(
    study: StudyPlan,
    data: StudyData,
    output: Path,
    arm: Arm,
    facts: TrainerFacts,
    annotated: Annotated,
    fold: int,
    seed: int,
) -> Run:
    where = f"{study.path}, arm {arm.name!r}"
    healthy = True if arm.healthy is None else arm.healthy
    split = _split_of(data, fold, annotated, facts, where, healthy=healthy)
    settings = {**data.settings, **arm.settings, **study.schedule.of_trainer(arm.epochs), "seed": seed}
    own_generator = str(generator_folder(output, fold, annotated))
    settings = _fill(settings, fold, annotated, own_generator)
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
        settings={**settings, **study.schedule.of_trainer(epochs)},
        missing_generators=_missing(generators),
        generator_stages=(
            plan_generator(study, data, output, fold, annotated, own_targets, where) if own_targets else ()
        ),
        study=study,
        data=data,
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


def _fill(settings: Mapping[str, Any], fold: int, annotated: Annotated, own_generator: str) -> dict[str, Any]:
    """Settings with full generator paths, those of several targets too: placeholders and the study's own filled in."""
    filled = dict(settings)
    if filled.get("generator") == STUDY_GENERATOR:
        filled["generator"] = own_generator
    elif filled.get("generator") is not None:
        filled["generator"] = filled["generator"].replace("{fold}", str(fold)).replace("{annotated}", str(annotated))
    if "targets" in filled:
        filled["targets"] = [_fill(entry, fold, annotated, own_generator) for entry in filled["targets"]]
    return filled
