"""Views of a preprocessed data set: the same folds, with fewer annotated cases or without healthy ones."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_difftumor.cases.fold import FoldCases, PreprocessedCases, choose_cases, find_raw_images
from nnunet_difftumor.cases.healthy import CaseGroups, hashed_order
from nnunet_difftumor.cases.known_cases import read_known_cases
from nnunet_difftumor.cases.nnunet_folders import find_dataset_name, require_nnunet_folders
from nnunet_difftumor.cases.splits import (
    HOLDOUT_FILE_NAME,
    SPLITS_FILE_NAME,
    Split,
    cross_validation,
    read_holdout,
    read_splits,
    write_splits,
)
from nnunet_difftumor.ct.datasets import read_dataset_json
from nnunet_difftumor.errors import ConfigurationError, DatasetError, OutputExistsError
from nnunet_difftumor.settings.resolving import resolve_config
from nnunet_difftumor.settings.sources import CONFIG_FILE_NAME, ConfigSource, find_sources
from nnunet_difftumor.settings.trainer_settings import DiffTumorConfig
from nnunet_difftumor.study.plan import Annotated, StudyPlan
from nnunet_difftumor.study.settings import ALL_ANNOTATED
from nnunet_difftumor.support.files.atomic_files import written_whole
from nnunet_difftumor.support.files.fact_cache import CASE_FACTS_FILE_NAME
from nnunet_difftumor.support.processes.steps import alone

_NOT_LINKED = (SPLITS_FILE_NAME, HOLDOUT_FILE_NAME, CONFIG_FILE_NAME, CASE_FACTS_FILE_NAME)
_DECIDE_CASES = ("organ_label", "tumor_label", "healthy_holdout", "healthy_cases", "confirmed_healthy")


@dataclass(frozen=True)
class StudyData:
    """The data set of a study.

    Attributes:
        settings: Those that the data set comes with, to be read from any folder.
        folds: Cases of each fold, as a trainer with all annotated cases settles them; of the folds that the study
            leaves out, those that could be trained.
        fold_count: How many folds the data set's splits have.
        seed_of_cases: Seed of the order in which annotated cases join.
        raw: Its folder in nnUNet_raw, which may not be at hand.
    """

    cases: PreprocessedCases
    dataset_json: Mapping[str, Any]
    settings: Mapping[str, Any]
    folds: Mapping[int, FoldCases]
    fold_count: int
    seed_of_cases: int
    raw: Path
    batch_size: int

    @property
    def name(self) -> str:
        """Full name of the data set."""
        return self.cases.folder.name

    @property
    def groups(self) -> CaseGroups:
        """All cases by what their labels say."""
        return next(iter(self.folds.values())).groups

    def validation_cases(self, folds: Sequence[int]) -> list[str]:
        """Cases that folds validate on, fold by fold."""
        return [case for fold in folds for case in self.folds[fold].split.val]

    def split(self, fold: int, annotated: Annotated, *, healthy: bool) -> Split:
        """Cases of one run: validation as ever, fewer cases in the training list.

        The first N annotated cases in a fixed order train, so that those of a smaller number are among those of a
        larger one.

        Raises:
            ConfigurationError: If the fold has fewer annotated cases, or nothing is left to train on.
        """
        cases = self.folds[fold]
        order = hashed_order(cases.tumor_train, self.seed_of_cases)
        count = len(order) if annotated == ALL_ANNOTATED else int(annotated)
        if count > len(order):
            raise ConfigurationError(
                f"annotated: fold {fold} has {len(order)} training cases with annotated tumour, fewer than {count}. "
                f'Write a smaller number, or "{ALL_ANNOTATED}".'
            )
        left_out = set(order[count:]) | (set() if healthy else set(cases.healthy_train))
        train = tuple(case for case in cases.split.train if case not in left_out)
        if not train:
            raise ConfigurationError(
                f"annotated: {count} leaves fold {fold} without a training case where healthy: false. Give that arm an "
                "annotated list of its own without it."
            )
        return Split(train, cases.split.val)

    def lists_of_view(self, annotated: Annotated, *, healthy: bool) -> list[Split]:
        """Cases of all folds of the data set, also of folds that are left out; empty where one cannot be trained."""
        splits = [Split((), ())] * self.fold_count
        for fold in self.folds:
            with contextlib.suppress(ConfigurationError):
                splits[fold] = self.split(fold, annotated, healthy=healthy)
        return splits


def open_data(study: StudyPlan) -> StudyData:
    """Find a study's data set in nnUNet_preprocessed and settle its folds.

    They are those of its splits_final.json with the rules for healthy cases applied, or the trainer's default.

    Raises:
        ConfigurationError: If nnU-Net's folders are not set, or plans, configuration or a fold do not exist.
        DatasetError: If the data set is not there or not preprocessed.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    raw_root, preprocessed_root = require_nnunet_folders()
    name = find_dataset_name(study.dataset)
    raw, folder = raw_root.resolve() / name, preprocessed_root.resolve() / name
    plans_file = folder / f"{study.plans}.json"
    if not plans_file.is_file():
        raise DatasetError(f"{plans_file} does not exist. Plan and preprocess first, or correct dataset or plans.")
    dataset_json = read_dataset_json(folder / "dataset.json")
    try:
        configuration = PlansManager(str(plans_file)).get_configuration(study.configuration)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ConfigurationError(f"{study.path}, configuration: {study.plans} has no such one: {error}") from error
    data_folder = folder / configuration.data_identifier
    if not data_folder.is_dir():
        raise DatasetError(f"{data_folder} does not exist. Run nnUNetv2_preprocess for {study.configuration}.")
    cases = PreprocessedCases(
        folder=folder,
        identifiers=tuple(sorted(infer_dataset_class(str(data_folder)).get_identifiers(str(data_folder)))),
        label_ending=dataset_json["file_ending"],
        images=find_raw_images(raw, dataset_json["file_ending"]),
        labels=dataset_json["labels"],
    )
    sources = find_sources(None, folder, dataset_json)
    settings = {key: value for source in reversed(sources) for key, value in source.from_anywhere().items()}
    config = _common_config(study, settings, dataset_json["labels"], folder)
    folds = {fold: choose_cases(cases, config, fold, show_progress=True) for fold in study.folds}
    path, one = folder / SPLITS_FILE_NAME, folds[study.folds[0]]
    splits = read_splits(path) if path.is_file() else cross_validation(one.groups, one.holdout, known=one.known)
    for fold in set(range(len(splits))) - folds.keys():
        with contextlib.suppress(DatasetError):  # one that cannot be trained is no error of the study
            folds[fold] = choose_cases(cases, config, fold)
    batch_size = configuration.batch_size
    return StudyData(cases, dataset_json, settings, folds, len(splits), study.seed_of_cases, raw, batch_size)


def _common_config(
    study: StudyPlan, settings: Mapping[str, Any], labels: Mapping[str, Any], folder: Path
) -> DiffTumorConfig:
    """The settings that decide which cases are healthy; refuse arms that differ in them."""
    configs: list[DiffTumorConfig] = []
    for arm in study.arms:
        source = ConfigSource(f"{study.path}, arm {arm.name!r}", {**settings, **arm.settings}, folder)
        configs.append(resolve_config(labels, [source]).config)
        for key in _DECIDE_CASES:
            mine, others = getattr(configs[-1], key), getattr(configs[0], key)
            if mine != others:
                raise ConfigurationError(
                    f"{source.name}: {key} is {mine!r} but {others!r} in arm {study.arms[0].name!r}; all arms must see "
                    "the same healthy cases. Write it into settings of the study."
                )
    return configs[0]


def make_view(data: StudyData, view: Path, splits: Sequence[Split], trained_folds: Collection[int] = ()) -> None:
    """Make a folder that is the preprocessed data set in all but its splits, with links to other data sets beside it.

    Its files are links; extra healthy cases are in the data sets beside. Nothing is written where it is there already.

    Args:
        view: What nnUNet_preprocessed is to be set to.
        splits: Cases of all folds of the data set, so that the study may train others later.
        trained_folds: Folds that were trained with this view: their lists, the holdout and the data must stay.

    Raises:
        OutputExistsError: If something that must stay would change, or something else is in its place.
    """
    source, folder = data.cases.folder, view / data.name
    entries = {folder / entry.name: entry for entry in source.iterdir() if not entry.name.startswith(".")}
    others = {view / other.name: other for other in source.parent.glob("Dataset[0-9][0-9][0-9]_*")}
    view.mkdir(parents=True, exist_ok=True)
    with alone(view, f"the view {view.name}", waits=True, work="makes it"):
        if folder.is_symlink():
            raise OutputExistsError(f"{view} is a view of another data set than {data.name}. Name another --output.")
        folder.mkdir(exist_ok=True)
        for link, target in {**entries, **others}.items():
            if target.name not in (*_NOT_LINKED, data.name):
                _link(link, target, is_trained=bool(trained_folds))
        _write_lists(data, folder, splits, trained_folds)


def _link(link: Path, target: Path, *, is_trained: bool) -> None:
    """Let a link lead to its target, also where it led elsewhere, unless trainings have read from there."""
    if link.is_symlink() and link.resolve() == target.resolve():
        return
    if link.exists() and not link.is_symlink():
        raise OutputExistsError(f"{link} should be a link to {target}, but is none. Move it away.")
    if link.is_symlink() and is_trained:
        fix = shlex.join(["ln", "-s", str(target.parent), str(Path(os.readlink(link)).parent)])
        raise OutputExistsError(
            f"{link} leads to {os.readlink(link)}, from which runs of this study were trained, but nnUNet_preprocessed "
            f"now has {target}. Export it as before; if the data were moved, link the old place to the new one "
            f"({fix}); if they are others, name another --output."
        )
    with written_whole(link, overwrite=True) as temporary:
        temporary.symlink_to(target)


def _write_lists(data: StudyData, folder: Path, splits: Sequence[Split], trained_folds: Collection[int]) -> None:
    """Write splits and holdout of a view where they are missing, or differ in what no run was trained on."""
    first = next(iter(data.folds.values()))
    holdout, known = first.holdout, first.known
    if (folder / SPLITS_FILE_NAME).is_file():
        before, holdout_before = read_splits(folder / SPLITS_FILE_NAME), read_holdout(folder / HOLDOUT_FILE_NAME)
        is_known = read_known_cases(folder / HOLDOUT_FILE_NAME) == known
        if before == tuple(splits) and holdout_before == holdout and is_known:
            return
        changed = [f"fold {n}" for n in sorted(trained_folds) if before[n : n + 1] != tuple(splits[n : n + 1])]
        changed += ["the held-out healthy cases"] if trained_folds and holdout_before != holdout else []
        if changed:
            raise OutputExistsError(
                f"{folder} holds other lists than the study would write now, and runs were trained with them: "
                f"{', '.join(changed)}. Restore the data set's splits, seed_of_cases and the settings of healthy cases "
                "that they were made with, or name another --output."
            )
    write_splits(folder, splits, {"holdout": list(holdout), **known.to_json()}, overwrite=True)
