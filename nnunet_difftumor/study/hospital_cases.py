"""The hospitals that a study tests on: none of their cases may train, which is checked before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunet_difftumor.evaluation.comparison.inputs.plan import SharedSettings
from nnunet_difftumor.evaluation.comparison.inputs.prediction import refuse_shared_names
from nnunet_difftumor.study.plan import StudyPlan
from nnunet_difftumor.study.runs import Run
from nnunet_difftumor.support.files.declared import check


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
