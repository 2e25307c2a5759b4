"""Healthy cases of further data sets: preprocessed like the data set that is trained on, and trained with it.

They lie in their own folders of nnUNet_preprocessed, made by `difftumor add-healthy`; nothing is copied. They
train in every fold and are in no validation list and no holdout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.cases.extra.requirements import (
    TargetDataset,
    check_description,
    check_healthy,
    check_plans,
    list_some,
    refuse_collisions,
)
from nnunet_difftumor.cases.healthy import CaseGroups
from nnunet_difftumor.cases.nnunet_folders import find_dataset_name
from nnunet_difftumor.cases.splits import Split
from nnunet_difftumor.ct.label_roles import LabelRoles
from nnunet_difftumor.errors import ConfigurationError, DatasetError, LeakError
from nnunet_difftumor.settings.extra_healthy import ExtraHealthyDataset
from nnunet_difftumor.support.files.fact_cache import CASE_FACTS_FILE_NAME, FactCache

if TYPE_CHECKING:
    from nnunet_difftumor.cases.extra.composite_dataset import PreprocessedDataset
    from nnunet_difftumor.cases.fold import FoldCases


@dataclass(frozen=True)
class ExtraCases:
    """Cases of one extra data set.

    Attributes:
        name: `DatasetXXX_Name`.
        data_folder: Folder of its preprocessed cases.
        healthy: Cases with the organ: tumours may be placed in them.
        without_organ: The rest, which train as they are.
        missing: Cases whose labels are there but which are not preprocessed.
        places: For each healthy case, the numbers of the targets whose organ it has.
    """

    name: str
    data_folder: Path
    healthy: tuple[str, ...]
    without_organ: tuple[str, ...]
    missing: tuple[str, ...] = ()
    places: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def identifiers(self) -> tuple[str, ...]:
        """All cases, sorted."""
        return tuple(sorted((*self.healthy, *self.without_organ)))

    def describe(self) -> str:
        """Return a line for the log."""
        rest = f"; {len(self.without_organ)} without the organ, which get no tumours" if self.without_organ else ""
        lost = f" {len(self.missing)} are not preprocessed: {list_some(self.missing)}." if self.missing else ""
        return (
            f"Extra healthy cases of {self.name}: {len(self.identifiers)}{rest}. They train in every fold and are in "
            f"no validation list and no holdout.{lost}"
        )


def open_extra_healthy(
    entries: Sequence[ExtraHealthyDataset],
    target: TargetDataset,
    roles: Sequence[LabelRoles],
    *,
    show_progress: bool = False,
) -> tuple[ExtraCases, ...]:
    """Find the preprocessed cases of the extra data sets, and check that they fit.

    Args:
        target: The data set that is trained on.
        roles: Organ and tumour of each kind of synthetic tumour.
        show_progress: Show a progress bar while labels are read.

    Returns:
        Cases of each data set.

    Raises:
        DatasetError: If a data set is not preprocessed for this one, or an identifier occurs twice.
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
        extra = _open_one(name, target, roles, show_progress=show_progress)
        refuse_collisions(extra.identifiers, name, taken)
        taken |= dict.fromkeys(extra.identifiers, name)
        found.append(extra)
    return tuple(found)


def _open_one(name: str, target: TargetDataset, roles: Sequence[LabelRoles], *, show_progress: bool) -> ExtraCases:
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    folder = target.folder.parent / name
    plans_file = folder / f"{target.transferred_plans_name}.json"
    if not plans_file.is_file() or not (folder / "dataset.json").is_file():
        raise DatasetError(f"{name} is not preprocessed for {target.name}. Run: {target.command_for(name)}")
    dataset_json = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    check_description(dataset_json, name, target)
    plans = json.loads(plans_file.read_text(encoding="utf-8"))
    check_plans(plans, name, target)
    data_folder = folder / PlansManager(plans).get_configuration(target.configuration).data_identifier
    labelled = folder / "gt_segmentations"
    if not data_folder.is_dir() or not any(data_folder.iterdir()) or not labelled.is_dir():
        raise DatasetError(f"{data_folder} holds no preprocessed case. Run: {target.command_for(name)}")
    identifiers = sorted(infer_dataset_class(str(data_folder)).get_identifiers(str(data_folder)))
    unfinished = [case for case in identifiers if not (data_folder / f"{case}.pkl").is_file()]
    if unfinished:
        raise DatasetError(
            f"Preprocessing of {name} was interrupted at {list_some(unfinished)}. Run: {target.command_for(name)}"
        )
    ending = dataset_json["file_ending"]
    files = {identifier: labelled / f"{identifier}{ending}" for identifier in identifiers}
    cache = FactCache(folder / CASE_FACTS_FILE_NAME)
    healthy = check_healthy(files, roles, dataset_json["labels"], name, cache, show_progress=show_progress)
    listed = {path.name[: -len(ending)] for path in labelled.iterdir() if path.name.endswith(ending)}
    without_organ = tuple(case for case in identifiers if case not in healthy)
    missing = tuple(sorted(listed - set(identifiers)))
    return ExtraCases(name, data_folder, tuple(healthy), without_organ, missing, healthy)


def add_extra_cases(cases: FoldCases, extras: Sequence[ExtraCases]) -> FoldCases:
    """Put extra cases into a fold: all into its training list, none into validation or holdout.

    Returns:
        The fold with them; the same without any.
    """
    if not extras:
        return cases
    healthy = [case for extra in extras for case in extra.healthy]
    others = [case for extra in extras for case in extra.without_organ]
    groups = CaseGroups(
        cases.groups.tumor,
        tuple(sorted((*cases.groups.healthy, *healthy))),
        tuple(sorted((*cases.groups.other, *others))),
        {**cases.groups.places, **{case: extra.places[case] for extra in extras for case in extra.healthy}},
    )
    split = Split(tuple(sorted((*cases.split.train, *healthy, *others))), cases.split.val)
    return replace(cases, groups=groups, split=split, notes=(*cases.notes, *(extra.describe() for extra in extras)))


def refuse_copies(
    extras: Sequence[ExtraCases], data_folder: Path, cases: FoldCases, fold: int | str
) -> tuple[str, ...]:
    """Compare the preprocessed CTs of extra cases with those of the data set that is trained on.

    Args:
        data_folder: Folder of the preprocessed cases that are trained on.
        fold: nnU-Net's fold; "all" makes no validation claim.

    Returns:
        Lines for the log about copies that do no harm.

    Raises:
        ConfigurationError: If an extra case is the CT of a case with an annotated tumour.
        LeakError: If it is the CT of a validation or held-out case.
    """
    if not extras:
        return ()
    own = _PreprocessedImages(data_folder)
    extra_names = {case for extra in extras for case in extra.identifiers}
    targets = [case for case in (*cases.split.train, *cases.split.val, *cases.holdout) if case not in extra_names]
    by_grid: dict[Any, list[str]] = {}
    for case in dict.fromkeys(targets):
        by_grid.setdefault(own.grid(case), []).append(case)
    copies = [
        (case, original)
        for extra in extras
        for theirs in [_PreprocessedImages(extra.data_folder)]
        for case in extra.identifiers
        for original in by_grid.get(theirs.grid(case), ())
        if theirs.is_same(case, own, original)
    ]
    _refuse(
        [pair for pair in copies if pair[1] in cases.groups.tumor],
        ConfigurationError,
        "have the CT of a case with an annotated tumour, so they are not healthy",
    )
    kept_out = {*cases.holdout, *(() if fold == "all" else cases.split.val)}
    _refuse(
        [pair for pair in copies if pair[1] in kept_out],
        LeakError,
        "have the CT of a validation or held-out case, which would train in every fold",
    )
    return (f"Extra healthy cases that are training cases too: {_pairs(copies)}.",) if copies else ()


def join_datasets(dataset: PreprocessedDataset, extras: Sequence[ExtraCases]) -> PreprocessedDataset:
    """Make one data set of the training cases of a data set and of extra cases.

    Args:
        dataset: nnU-Net's data set over the training list, extra cases in the list.

    Returns:
        The data set itself without extra cases.
    """
    if not extras:
        return dataset
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    from nnunet_difftumor.cases.extra.composite_dataset import CompositeDataset

    extra_names = {case for extra in extras for case in extra.identifiers}
    dataset.identifiers = [case for case in dataset.identifiers if case not in extra_names]
    parts = [
        infer_dataset_class(str(extra.data_folder))(str(extra.data_folder), list(extra.identifiers)) for extra in extras
    ]
    return CompositeDataset([dataset, *parts])


class _PreprocessedImages:
    """Preprocessed cases of a folder, compared by grid first, then by one slice, then as a whole."""

    def __init__(self, data_folder: Path) -> None:
        from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

        self._folder = data_folder
        self._dataset: Any = infer_dataset_class(str(data_folder))(str(data_folder))
        self._slices: dict[str, NDArray[np.float32]] = {}

    def grid(self, case: str) -> Any:
        """Shape and spacing of the raw CT."""
        from batchgenerators.utilities.file_and_folder_operations import load_pickle

        properties = load_pickle(str(self._folder / f"{case}.pkl"))
        spacing = tuple(round(float(step), 4) for step in properties["spacing"])
        return tuple(map(int, properties["shape_before_cropping"])), spacing

    def is_same(self, case: str, others: _PreprocessedImages, other: str) -> bool:
        """Say whether two cases have the same preprocessed CT."""
        if not np.array_equal(self._middle(case), others._middle(other)):
            return False
        return np.array_equal(self._dataset.load_case(case)[0][:], others._dataset.load_case(other)[0][:])

    def _middle(self, case: str) -> NDArray[np.float32]:
        if case not in self._slices:
            image = self._dataset.load_case(case)[0]
            self._slices[case] = np.asarray(image[:, image.shape[1] // 2])
        return self._slices[case]


def _refuse(
    copies: Sequence[tuple[str, str]], error_type: type[ConfigurationError] | type[LeakError], why: str
) -> None:
    if copies:
        raise error_type(
            f"{len(copies)} extra cases {why}: {_pairs(copies)}. Take them out of the raw extra data "
            "set and run `difftumor add-healthy` again."
        )


def _pairs(copies: Sequence[tuple[str, str]]) -> str:
    return list_some([f"{case} ({original})" for case, original in copies])
