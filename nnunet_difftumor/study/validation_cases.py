"""The cases that a study tests on, its validation cases or hospitals: checked before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_difftumor.cases.healthy import count_label_voxels
from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.evaluation.comparison.inputs.plan import SharedSettings
from nnunet_difftumor.evaluation.comparison.inputs.trained_models import refuse_shared_names
from nnunet_difftumor.evaluation.comparison.measures import SPECIFICITY
from nnunet_difftumor.evaluation.scoring.scheme import read_label_scheme
from nnunet_difftumor.study.data_views import StudyData
from nnunet_difftumor.study.plan import StudyPlan
from nnunet_difftumor.support.files.declared import check

if TYPE_CHECKING:
    from nnunet_difftumor.study.runs import Run


def validation_cases(study: StudyPlan, data: StudyData) -> list[str]:
    """Cases that the folds of a study validate on, fold by fold."""
    return [case for fold in study.folds for case in data.folds[fold].split.val]


def check_validation_cases(study: StudyPlan, data: StudyData) -> None:
    """Refuse a study whose comparison could give no figure, if it is on validation cases.

    Raises:
        ConfigurationError: If folds share validation cases, or the primary measure is specificity and no validation
            case is healthy.
    """
    if "hospitals" in study.compare:
        return
    cases = validation_cases(study, data)
    if len(set(cases)) < len(cases):
        raise ConfigurationError(
            f"{study.path}: the folds share validation cases, which would be counted twice. Name test data in compare: "
            "hospitals, or correct the splits."
        )
    if study.compare.get("primary") == SPECIFICITY.key and not _has_healthy(study, data, cases):
        raise ConfigurationError(
            f"{study.path}, compare: primary is {SPECIFICITY.key}, which is measured on healthy scans, but all "
            f"{len(cases)} validation cases of the folds have a tumour (healthy cases train). Name test data with "
            "healthy scans in hospitals, or choose another primary."
        )


def _has_healthy(study: StudyPlan, data: StudyData, cases: list[str]) -> bool:
    """Whether one of the cases will be scored as healthy."""
    scheme = read_label_scheme(
        data.cases.folder / "dataset.json", [str(name) for name in study.compare.get("labels", ())]
    )
    files = {case: data.cases.label_file(case) for case in cases}
    not_healthy = {*scheme.tumor_values, scheme.ignore}
    counts = count_label_voxels(files, data.cases.open_cache()).values()
    return any(not_healthy.isdisjoint(label for label, count in voxels.items() if count > 0) for voxels in counts)


def check_hospitals(study: StudyPlan, runs: Sequence[Run]) -> None:
    """Refuse hospitals with cases that are named like training cases of an arm or of its generators.

    The folds of an arm predict hospitals together, so that what one fold validates on trains the others.

    Raises:
        LeakError: If there is such a case, and it is not acknowledged.
        DatasetError: If a hospital has no label map.
    """
    compare = check(study.compare, SharedSettings, study.path, "compare", folder=Path())
    if not compare.hospitals:
        return
    for arm in dict.fromkeys(run.arm.name for run in runs):
        own = [run for run in runs if run.arm.name == arm]
        training = set().union(*(_training_cases(run) for run in own))
        if len({run.fold for run in own}) > 1:
            training.update(case for run in own for case in run.split.val)
        subject = f"{study.path}, compare: the arm {arm!r} is trained"
        refuse_shared_names(subject, training, compare.hospitals, acknowledged=compare.acknowledge_identifier_matches)


def _training_cases(run: Run) -> set[str]:
    return {case for split in (run.split, *(stage.split for stage in run.generator_stages)) for case in split.train}
