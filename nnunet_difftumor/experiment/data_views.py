"""Views of a preprocessed data set: the same folds, with fewer annotated cases or without healthy ones."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_difftumor.cases import read_dataset_json
from nnunet_difftumor.config import (
    CONFIG_FILE_NAME,
    ConfigSource,
    DiffTumorConfig,
    find_sources,
    is_generator_name,
    resolve_config,
)
from nnunet_difftumor.errors import ConfigurationError, DatasetError
from nnunet_difftumor.experiment.study import ALL_ANNOTATED, Annotated, Study
from nnunet_difftumor.healthy import CASE_FACTS_FILE_NAME, CaseGroups, hashed_order
from nnunet_difftumor.splits import HOLDOUT_FILE_NAME, SPLITS_FILE_NAME, Split, write_splits
from nnunet_difftumor.training_setup import FoldCases, PreprocessedCases, choose_cases, find_raw_images

_NOT_LINKED = (SPLITS_FILE_NAME, HOLDOUT_FILE_NAME, CONFIG_FILE_NAME, CASE_FACTS_FILE_NAME)


@dataclass(frozen=True)
class StudyData:
    """The data set of a study.

    Attributes:
        cases: Its preprocessed cases.
        dataset_json: Content of its dataset.json.
        folds: Cases of each fold of the study, as a trainer with all annotated cases settles them.
        seed_of_cases: Seed of the order in which annotated cases join.
        raw: Its folder in nnUNet_raw, which may not be at hand.
    """

    cases: PreprocessedCases
    dataset_json: Mapping[str, Any]
    folds: Mapping[int, FoldCases]
    seed_of_cases: int
    raw: Path

    @property
    def name(self) -> str:
        """Full name of the data set."""
        return self.cases.folder.name

    @property
    def groups(self) -> CaseGroups:
        """All cases by what their labels say."""
        return next(iter(self.folds.values())).groups

    def split(self, fold: int, annotated: Annotated, *, healthy: bool) -> Split:
        """Cases of one run: validation as ever, fewer cases in the training list.

        The first N annotated cases in a fixed order train, so that those of a smaller number are among those of a
        larger one.

        Args:
            fold: The fold.
            annotated: How many annotated tumour cases train, or "all".
            healthy: Whether healthy cases train.

        Returns:
            The lists.

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


def open_data(study: Study, *, show_progress: bool = False) -> StudyData:
    """Find a study's data set in nnUNet_preprocessed and settle its folds.

    They are those of its splits_final.json with the rules for healthy cases applied, or the trainer's default.

    Args:
        study: The study.
        show_progress: Show a progress bar while labels are read.

    Returns:
        The data set.

    Raises:
        ConfigurationError: If nnU-Net's folders are not set, or plans, configuration or a fold do not exist.
        DatasetError: If the data set is not there or not preprocessed.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    folders = {variable: os.environ.get(variable, "") for variable in ("nnUNet_raw", "nnUNet_preprocessed")}
    for variable, value in folders.items():
        if not value:
            raise ConfigurationError(f"The environment variable {variable} is not set; export it, as for nnU-Net.")
    try:
        name = maybe_convert_to_dataset_name(study.dataset)
    except (RuntimeError, ValueError) as error:
        raise DatasetError(f"{study.path}, dataset: {error}") from error
    folder = Path(folders["nnUNet_preprocessed"]).resolve() / name
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
    raw = Path(folders["nnUNet_raw"]).resolve() / name
    cases = PreprocessedCases(
        folder=folder,
        identifiers=tuple(sorted(infer_dataset_class(str(data_folder)).get_identifiers(str(data_folder)))),
        label_ending=dataset_json["file_ending"],
        images=find_raw_images(raw),
        labels=dataset_json["labels"],
    )
    config = common_config(study, folder, dataset_json)
    folds = {fold: choose_cases(cases, config, fold, show_progress=show_progress) for fold in study.folds}
    return StudyData(cases, dataset_json, folds, study.seed_of_cases, raw)


def settings_beside_plans(folder: Path, dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that a data set comes with, to be read from any folder."""
    values: dict[str, Any] = {}
    for source in reversed(find_sources(None, folder, dataset_json)):
        values |= {key: _from_anywhere(key, value, source) for key, value in source.values.items()}
    return values


def common_config(study: Study, folder: Path, dataset_json: Mapping[str, Any]) -> DiffTumorConfig:
    """The settings that decide which cases are healthy; refuse arms that differ in them.

    Raises:
        ConfigurationError: If arms differ in them, or a setting is wrong.
    """
    base = settings_beside_plans(folder, dataset_json)
    first: DiffTumorConfig | None = None
    for arm in study.arms:
        source = ConfigSource(f"{study.path}, arm {arm.name!r}", {**base, **arm.settings}, folder)
        config = resolve_config(dataset_json["labels"], [source]).config
        first = first or config
        for key in _DECIDE_CASES:
            mine, others = getattr(config, key), getattr(first, key)
            if mine != others:
                raise ConfigurationError(
                    f"{source.name}: {key} is {mine!r} but {others!r} in arm {study.arms[0].name!r}; all arms must see "
                    "the same healthy cases. Write it into settings of the study."
                )
    if first is None:
        raise ConfigurationError(f"{study.path}: arms must list at least one arm.")
    return first


_DECIDE_CASES = ("organ_label", "tumor_label", "healthy_holdout", "healthy_cases", "confirmed_healthy")


def make_view(data: StudyData, root: Path, annotated: Annotated, *, healthy: bool) -> Path:
    """Make a folder that is the preprocessed data set in all but its splits, with links to other data sets beside it.

    Its files are links. Nothing is written where the same view is there already.

    Args:
        data: The data set.
        root: Folder for views.
        annotated: How many annotated tumour cases train, or "all".
        healthy: Whether healthy cases train.

    Returns:
        What nnUNet_preprocessed is to be set to.

    Raises:
        OutputExistsError: If another view is there.
    """
    parent = root / view_name(annotated, healthy=healthy)
    folder = parent / data.name
    folder.mkdir(parents=True, exist_ok=True)
    for entry in data.cases.folder.iterdir():
        link = folder / entry.name
        if entry.name not in _NOT_LINKED and not entry.name.startswith(".") and not link.is_symlink():
            link.symlink_to(entry)
    _link_other_datasets(data, parent)
    splits = [
        data.split(fold, annotated, healthy=healthy) if fold in data.folds else _never_trained(data)
        for fold in range(max(data.folds) + 1)
    ]
    holdout = next(iter(data.folds.values())).holdout
    write_splits(folder, splits, {"holdout": list(holdout)})
    return parent


def _link_other_datasets(data: StudyData, parent: Path) -> None:
    """Extra healthy cases are looked for beside the data set."""
    for other in data.cases.folder.parent.glob("Dataset[0-9][0-9][0-9]_*"):
        if other.name != data.name and not (parent / other.name).is_symlink():
            (parent / other.name).symlink_to(other)


def view_name(annotated: Annotated, *, healthy: bool) -> str:
    """Name of a view's folder."""
    return f"annotated-{annotated}{'' if healthy else '-without-healthy'}"


def _never_trained(data: StudyData) -> Split:
    """Fills the place of a fold that the study leaves out, so that the others keep their numbers."""
    return next(iter(data.folds.values())).split


def _from_anywhere(key: str, value: Any, source: ConfigSource) -> Any:
    """Replace relative generator paths, which start from the folder of the file that holds them."""
    if key == "generator" and isinstance(value, str) and not is_generator_name(value):
        return str(source.folder / Path(value).expanduser())
    if key == "targets" and isinstance(value, list):
        return [
            {each: _from_anywhere(each, entry[each], source) for each in entry} if isinstance(entry, dict) else entry
            for entry in value
        ]
    return value
