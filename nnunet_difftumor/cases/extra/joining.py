"""Healthy cases of further data sets: preprocessed like the data set that is trained on, and trained with it.

They lie in their own folders of nnUNet_preprocessed, made by `difftumor add-healthy`; nothing is copied. They
train in every fold and are in no validation list and no holdout.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_difftumor.cases.extra.requirements import ExtraDataset, TargetDataset
from nnunet_difftumor.cases.fold import FoldCases, PreprocessedCases, choose_cases, roles_of
from nnunet_difftumor.cases.nnunet_folders import find_dataset_name
from nnunet_difftumor.ct.label_roles import LabelRoles
from nnunet_difftumor.errors import ConfigurationError, DatasetError, LeakError, list_some
from nnunet_difftumor.settings.trainer_settings import DiffTumorConfig, ExtraHealthyDataset

_is_close = functools.partial(np.allclose, rtol=0.0, atol=1e-3)  # a mirrored CT is resampled to nearly mirrored values


@dataclass(frozen=True)
class ExtraCases:
    """Cases of one extra data set.

    Attributes:
        identifiers: All cases, sorted.
        places: The healthy cases, which tumours may be placed in: the numbers of the targets whose organ each has.
        missing: Cases whose labels are there but which are not preprocessed.
    """

    name: str
    data_folder: Path
    identifiers: tuple[str, ...]
    places: Mapping[str, tuple[int, ...]]
    missing: tuple[str, ...]

    @property
    def without_organ(self) -> tuple[str, ...]:
        """Cases that train as they are."""
        return tuple(case for case in self.identifiers if case not in self.places)

    def describe(self) -> str:
        """Return a line for the log."""
        rest = f"; {len(self.without_organ)} without the organ, which get no tumours" if self.without_organ else ""
        lost = f" {len(self.missing)} are not preprocessed: {list_some(self.missing)}." if self.missing else ""
        return (
            f"Extra healthy cases of {self.name}: {len(self.identifiers)}{rest}. They train in every fold and are in "
            f"no validation list and no holdout.{lost}"
        )


def choose_all_cases(
    data: PreprocessedCases,
    config: DiffTumorConfig,
    fold: int | str,
    target: TargetDataset,
    *,
    show_progress: bool = False,
) -> tuple[FoldCases, tuple[ExtraCases, ...]]:
    """Return the cases of a fold with those of the extra healthy data sets, and the latter by data set.

    Raises:
        DiffTumorError: As `choose_cases` and `open_extra_healthy`.
    """
    cases = choose_cases(data, config, fold, show_progress=show_progress)
    roles = [roles_of(data.labels, each) for each in config.organ_targets]
    extra = open_extra_healthy(config.extra_healthy_datasets, target, roles, show_progress=show_progress)
    return add_extra_cases(cases, extra), extra


def open_extra_healthy(
    entries: Sequence[ExtraHealthyDataset],
    target: TargetDataset,
    roles: Sequence[LabelRoles],
    *,
    show_progress: bool = False,
) -> tuple[ExtraCases, ...]:
    """Find the preprocessed cases of the extra data sets, and check that they fit the target and its roles.

    Raises:
        DatasetError: If a data set is not preprocessed for the target, or an identifier occurs twice.
        ConfigurationError: If labels, channels, spacing or normalisation differ, or a case has a tumour.
    """
    found: list[ExtraCases] = []
    taken = dict.fromkeys(target.identifiers, target.name)
    for entry in entries:
        name = find_dataset_name(entry.dataset)
        if name == target.name or name in {extra.name for extra in found}:
            raise ConfigurationError(
                f"extra_healthy_datasets names {name}, which is trained on already. Take it off the list."
            )
        dataset = ExtraDataset(name, target)
        extra = _open_one(dataset, roles, show_progress=show_progress)
        dataset.refuse_collisions(extra.identifiers, taken)
        taken |= dict.fromkeys(extra.identifiers, name)
        found.append(extra)
    return tuple(found)


def _open_one(extra: ExtraDataset, roles: Sequence[LabelRoles], *, show_progress: bool) -> ExtraCases:
    description, labelled = extra.folder / "dataset.json", extra.folder / "gt_segmentations"
    if not extra.plans_file.is_file() or not description.is_file():
        raise DatasetError(f"{extra.name} is not preprocessed for {extra.target.name}. Run: {extra.command}")
    dataset_json = json.loads(description.read_text(encoding="utf-8"))
    extra.check_description(dataset_json)
    extra.check_plans()
    data_folder = extra.data_folder
    if not data_folder.is_dir() or not any(data_folder.iterdir()) or not labelled.is_dir():
        raise DatasetError(f"{data_folder} holds no preprocessed case. Run: {extra.command}")
    identifiers = _open_cases(data_folder).identifiers
    if unfinished := unfinished_cases(data_folder, identifiers):
        raise DatasetError(
            f"Preprocessing of {extra.name} was interrupted at {list_some(unfinished)}. Run: {extra.command}"
        )
    ending = dataset_json["file_ending"]
    files = {identifier: labelled / f"{identifier}{ending}" for identifier in identifiers}
    places = extra.check_healthy(files, roles, dataset_json["labels"], show_progress=show_progress)
    listed = {path.name.removesuffix(ending) for path in labelled.iterdir() if path.name.endswith(ending)}
    return ExtraCases(extra.name, data_folder, tuple(identifiers), places, tuple(sorted(listed - set(identifiers))))


def unfinished_cases(data_folder: Path, identifiers: Sequence[str]) -> list[str]:
    """Return the cases at which nnU-Net's preprocessing was interrupted: it writes their properties last."""
    return [case for case in identifiers if not (data_folder / f"{case}.pkl").is_file()]


def add_extra_cases(cases: FoldCases, extras: Sequence[ExtraCases]) -> FoldCases:
    """Put extra cases into the training list of a fold, but for scans of its validation and held-out patients."""
    patient_of, kept_out = cases.known.patient_of, {*cases.split.val, *cases.holdout}.difference(cases.split.train)
    scans = {case: patient_of(case) for extra in extras for case in extra.identifiers}
    apart = {case for case, patient in scans.items() if patient in set(map(patient_of, kept_out))}
    beside = {case for case in apart if scans[case] in set(map(patient_of, kept_out.difference(cases.holdout)))}
    places = {case: numbers for extra in extras for case, numbers in extra.places.items() if case not in apart}
    others = [case for extra in extras for case in extra.without_organ if case not in apart]
    groups = replace(
        cases.groups,
        healthy=tuple(sorted((*cases.groups.healthy, *places))),
        other=tuple(sorted((*cases.groups.other, *others))),
        places={**cases.groups.places, **places},
    )
    split = replace(cases.split, train=tuple(sorted((*cases.split.train, *places, *others))))
    notes = [extra.describe() for extra in extras]
    if apart:
        notes.append(f"But for scans of this fold's validation and held-out patients: {list_some(sorted(apart))}.")
    beside = tuple(sorted(beside.union(cases.beside)))
    return replace(cases, groups=groups, split=split, notes=(*cases.notes, *notes), beside=beside)


def refuse_copies(extras: Sequence[ExtraCases], data_folder: Path, cases: FoldCases) -> tuple[str, ...]:
    """Compare the preprocessed CTs of training cases, extra ones among them, with those of the data set trained on.

    Args:
        data_folder: Folder of the preprocessed cases that are trained on.

    Returns:
        Lines for the log about copies that do no harm.

    Raises:
        ConfigurationError: If a healthy case, or an extra one, has the CT of a case with an annotated tumour.
        LeakError: If a training case has the CT of a validation or held-out case, or of a scan of such a patient.
    """
    extra_names = {case for extra in extras for case in extra.identifiers}
    kept_out = {*cases.split.val, *cases.holdout, *cases.beside}.difference(cases.split.train)
    originals = [case for case in (*cases.split.train, *sorted(kept_out)) if case not in extra_names]
    copies = list(_find_copies(extras, data_folder, originals, cases.split.train))
    tumor, leaks = set(cases.groups.tumor), [pair for pair in copies if pair[1] in kept_out]
    ill = [(case, original) for case, original in copies if original in tumor and case not in tumor]
    ill = [(case, original) for case, original in ill if case in extra_names or original not in kept_out]
    for found, error_type, why in (
        (ill, ConfigurationError, "a case with an annotated tumour, so they are not healthy"),
        (leaks, LeakError, "a validation or held-out case, or of another scan of its patient"),
    ):
        if found:
            raise error_type(
                f"{len(found)} training cases have the CT of {why}: {_pairs(found)}. Take them out: extra ones of "
                "their raw data set, then run `difftumor add-healthy` again; others of the data set, then plan, "
                "preprocess and run `difftumor splits` again."
            )
    twice = [(case, original) for case, original in copies if case in extra_names or case < original]
    return (f"Cases with the CT of others that are training cases too: {_pairs(twice)}.",) if twice else ()


def join_datasets(dataset: Any, extras: Sequence[ExtraCases]) -> Any:
    """Let nnU-Net's data set over the training list, extra cases in the list, open these where they lie."""
    if not extras:
        return dataset
    names = [sorted({*dataset.identifiers}.intersection(extra.identifiers)) for extra in extras]
    parts = [_open_cases(extra.data_folder, own) for extra, own in zip(extras, names, strict=True) if own]
    extra_names = {case for extra in extras for case in extra.identifiers}
    dataset.identifiers = [case for case in dataset.identifiers if case not in extra_names]
    return CompositeDataset([dataset, *parts])


class CompositeDataset:
    """Cases of several of nnU-Net's data sets under one sorted list of identifiers; each opens where it lies.

    A folder of links is no faster to read, takes seconds to make, and would have to follow data sets that move or are
    preprocessed again.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        """Join data sets.

        Raises:
            ValueError: If two parts share an identifier.
        """
        self._parts = {identifier: part for part in parts for identifier in part.identifiers}
        self.identifiers = sorted(self._parts)
        if len(self.identifiers) != sum(len(part.identifiers) for part in parts):
            raise ValueError("Two preprocessed data sets share a case identifier; rename the case in one of them.")

    def load_case(self, identifier: str) -> Any:
        """Open one case: image, labels, labels of the previous stage, properties."""
        return self._parts[identifier].load_case(identifier)

    __getitem__ = load_case


def _open_cases(data_folder: Path, identifiers: Sequence[str] | None = None) -> Any:
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    dataset_class: Any = infer_dataset_class(str(data_folder))
    return dataset_class(str(data_folder), list(identifiers) if identifiers else None)


def _find_copies(
    extras: Sequence[ExtraCases], data_folder: Path, originals: Sequence[str], trained: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Find cases that train with the preprocessed CT of another, mirrored or not: same grid, middle and whole image."""
    by_grid: dict[Any, list[str]] = defaultdict(list)
    grid_of = functools.cache(_raw_grid)
    for original in originals:
        by_grid[grid_of(data_folder, original)].append(original)
    own = _open_cases(data_folder)
    middle = functools.cache(_mean_of_middle)
    mirrors = [axes for count in range(4) for axes in itertools.combinations((1, 2, 3), count)]
    parts = [(_open_cases(extra.data_folder), extra.data_folder, extra.identifiers) for extra in extras]
    for theirs, folder, identifiers in ((own, data_folder, originals), *parts):
        for case in [case for case in identifiers if case in trained]:
            for original in by_grid.get(grid_of(folder, case), ()):
                if (theirs is own and case == original) or not _is_close(middle(theirs, case), middle(own, original)):
                    continue
                image, other = theirs.load_case(case)[0][:], own.load_case(original)[0][:]
                flips = (np.flip(image, axes) for axes in mirrors if image.shape == other.shape)
                if any(_is_close(flipped, other) for flipped in flips):
                    yield case, original


def _raw_grid(data_folder: Path, case: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Shape and spacing in mm of the raw CT."""
    from batchgenerators.utilities.file_and_folder_operations import load_pickle

    properties = load_pickle(str(data_folder / f"{case}.pkl"))
    spacing_mm = tuple(round(float(step), 4) for step in properties["spacing"])
    return tuple(map(int, properties["shape_before_cropping"])), spacing_mm


def _mean_of_middle(dataset: Any, case: str) -> float:
    """Mean of the middle slice, or of the two middle slices: as far from both ends."""
    image = dataset.load_case(case)[0]
    return float(image[:, (image.shape[1] - 1) // 2 : image.shape[1] // 2 + 1].mean(dtype=np.float64))


def _pairs(copies: Sequence[tuple[str, str]]) -> str:
    return list_some([f"{case} ({original})" for case, original in copies])
