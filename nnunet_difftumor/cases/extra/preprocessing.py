"""Preprocessing an extra data set with the plans of the data set that is trained on, by nnU-Net's own functions."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_difftumor.cases.extra.requirements import ExtraDataset, TargetDataset
from nnunet_difftumor.cases.fold import roles_of
from nnunet_difftumor.ct.datasets import RawDataset, load_raw_dataset
from nnunet_difftumor.ct.reading import check_organ_files, read_shape
from nnunet_difftumor.errors import ConfigurationError, DatasetError, OutputExistsError, list_some
from nnunet_difftumor.settings.resolving import resolve_config
from nnunet_difftumor.settings.sources import CONFIG_FILE_NAME, ENVIRONMENT_VARIABLE, find_sources
from nnunet_difftumor.settings.trainer_settings import ExtraHealthyDataset, TrainerSettings
from nnunet_difftumor.support.files.atomic_files import write_json
from nnunet_difftumor.support.files.declared import check

_KEY = "extra_healthy_datasets"


@dataclass(frozen=True)
class ExtraPreprocessing(ExtraDataset):
    """An extra data set that is to be preprocessed, with its raw cases."""

    raw: RawDataset

    @property
    def is_complete(self) -> bool:
        """Whether the raw cases, and no others, are preprocessed with their present labels.

        nnU-Net writes the properties of a case after its voxels, and copies the labels after all cases.
        """
        preprocessed = {path.stem for path in self.data_folder.glob("*.pkl")}
        return preprocessed == {case.identifier for case in self.raw.cases} and all(
            copy.is_file() and copy.stat().st_mtime >= label.stat().st_mtime
            for identifier, label in self.label_files.items()
            for copy in [self.folder / "gt_segmentations" / f"{identifier}{self.raw.file_ending}"]
        )

    @property
    def label_files(self) -> dict[str, Path]:
        """Raw label file of each case."""
        return {case.identifier: case.label_path for case in self.raw.cases if case.label_path is not None}


def open_target(folder: Path, plans_name: str, configuration: str) -> TargetDataset:
    """Read what extra cases must fit: a data set's folder in nnUNet_preprocessed.

    Raises:
        DatasetError: If it is not preprocessed with these plans and this configuration.
    """
    plans_file = folder / f"{plans_name}.json"
    if not plans_file.is_file() or not (folder / "dataset.json").is_file():
        raise DatasetError(
            f"{plans_file} does not exist: preprocess {folder.name} first (nnUNetv2_plan_and_preprocess), and give the "
            "name of its plans with --plans."
        )
    plans = json.loads(plans_file.read_text(encoding="utf-8"))
    if configuration not in plans["configurations"]:
        raise DatasetError(
            f"{plans_file} has no configuration {configuration!r}, only {', '.join(plans['configurations'])}. "
            "Choose one with -c."
        )
    dataset_json = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    ending = dataset_json["file_ending"]
    labels = (folder / "gt_segmentations").glob(f"*{ending}")
    return TargetDataset(
        name=folder.name,
        folder=folder,
        plans=plans,
        configuration=configuration,
        dataset_json=dataset_json,
        identifiers=tuple(sorted(path.name[: -len(ending)] for path in labels)),
    )


def plan_extra(target: TargetDataset, raw_folder: Path) -> ExtraPreprocessing:
    """Check that an extra data set in nnUNet_raw fits, before hours are spent on it.

    Raises:
        DatasetError: If the extra data set is incomplete or shares an identifier.
        ConfigurationError: If its channels or labels differ, or a case has a tumour.
        NotHounsfieldError, GeometryMismatchError: If a CT is not in HU, or the mask of an organ lies in air.
    """
    if raw_folder.name == target.name:
        raise ConfigurationError(f"--from names {target.name} itself. Name another data set.")
    work = ExtraPreprocessing(raw_folder.name, target, load_raw_dataset(raw_folder))
    work.check_description(work.raw.options)
    identifiers = [case.identifier for case in work.raw.cases]
    work.refuse_collisions(identifiers, dict.fromkeys(target.identifiers, target.name))
    labels = target.dataset_json["labels"]
    sources = find_sources(os.environ.get(ENVIRONMENT_VARIABLE), target.folder, target.dataset_json)
    roles = [roles_of(labels, each) for each in resolve_config(labels, sources).config.organ_targets]
    _refuse_other_grids(work)
    if not work.check_healthy(work.label_files, roles, work.raw.options["labels"], show_progress=True):
        organs = " or ".join(str(each.organ) for each in roles)
        raise ConfigurationError(
            f"No case of {work.name} has a voxel of the organ's label {organs}, so there would be "
            "nowhere to put tumours. Annotate the organ first, for example with a published organ segmentation model."
        )
    if not (work.plans_file.is_file() and work.is_complete):
        for case in tqdm(work.raw.cases, "Looking at CTs and organs", unit="case"):
            label_path = work.label_files[case.identifier]
            if warning := check_organ_files(case.image_path, label_path, {role.organ for role in roles}):
                print(warning)
    return work


def preprocess_extra(work: ExtraPreprocessing, *, processes: int, overwrite: bool = False) -> bool:
    """Take the fingerprint, transfer the plans and preprocess; False if everything was there already.

    Args:
        overwrite: Replace transferred plans that differ, and preprocess again what is there.

    Raises:
        OutputExistsError: If other transferred plans are there and `overwrite` is False.
        DatasetError: If a case is not preprocessed in the end.
    """
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset, preprocess_dataset
    from nnunetv2.experiment_planning.plans_for_pretraining.move_plans_between_datasets import (
        move_plans_between_datasets,
    )

    if work.plans_file.is_file() and not overwrite:
        try:
            work.check_plans()
        except ConfigurationError as error:
            raise OutputExistsError(f"{work.plans_file} exists already, made for other plans. {error}") from error
        if work.is_complete:
            return False
    number, target = int(work.name.removeprefix("Dataset")[:3]), work.target
    work.folder.mkdir(parents=True, exist_ok=True)
    extract_fingerprint_dataset(number, num_processes=processes, clean=overwrite, verbose=False)
    if overwrite or not (work.folder / "dataset.json").is_file():
        shutil.copy(work.raw.folder / "dataset.json", work.folder / "dataset.json")
    move_plans_between_datasets(target.name, work.name, target.plans["plans_name"], work.plans_name)
    preprocess_dataset(number, work.plans_name, (target.configuration,), [processes])
    if not work.is_complete:
        raise DatasetError(
            f"nnU-Net did not preprocess every case of {work.name}; see its messages above, and run this command again."
        )
    return True


def setting_with(folder: Path, dataset: str) -> tuple[ExtraHealthyDataset, ...]:
    """Return the entries of the setting in a folder's difftumor.json, and one more unless its data set is there.

    The data set is given by its full name; an entry may have its number.
    """
    path = folder / CONFIG_FILE_NAME
    written = check({_KEY: _read_settings(path).get(_KEY, [])}, TrainerSettings, path).extra_healthy_datasets
    if any(
        dataset == each.dataset or (each.dataset.isdigit() and dataset.startswith(f"Dataset{int(each.dataset):03d}_"))
        for each in written
    ):
        return written
    return (*written, ExtraHealthyDataset(dataset=dataset, confirmed_healthy=True))


def write_setting(folder: Path, entries: Sequence[ExtraHealthyDataset]) -> Path:
    """Write the setting into a folder's difftumor.json; every other setting in it stays."""
    path = folder / CONFIG_FILE_NAME
    write_json(path, {**_read_settings(path), **setting_to_json(entries)}, overwrite=True)
    return path


def setting_to_json(entries: Sequence[ExtraHealthyDataset]) -> dict[str, Any]:
    """Return the setting as it stands in difftumor.json."""
    return {_KEY: [each.model_dump() for each in entries]}


def _refuse_other_grids(work: ExtraPreprocessing) -> None:
    """Compare the shapes of images and labels, which nnU-Net would find out after hours, naming no case."""
    shapes = {
        case.identifier: (read_shape(case.image_path), read_shape(work.label_files[case.identifier]))
        for case in work.raw.cases
    }
    odd = [case for case, (image, label) in shapes.items() if image != label]
    if odd:
        image, label = shapes[odd[0]]
        raise DatasetError(
            f"{len(odd)} label maps of {work.name} have another shape than their image: "
            f"{list_some(odd)} ({odd[0]}: image {image}, label {label}, D H W). Correct them."
        )


def _read_settings(path: Path) -> Mapping[str, Any]:
    return next((source.values for source in find_sources(None, path.parent, {})), {})
