"""Scoring of a folder of predicted label maps against a folder of reference ones."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_difftumor import __version__
from nnunet_difftumor.ct.datasets import find_label_maps
from nnunet_difftumor.errors import DatasetError, DiffTumorError
from nnunet_difftumor.evaluation.scoring.case import OrganFilter, score_case, score_maps
from nnunet_difftumor.evaluation.scoring.case_maps import CaseFiles, find_probability_files, read_case_maps
from nnunet_difftumor.evaluation.scoring.rules import ScoringRules
from nnunet_difftumor.evaluation.scoring.scheme import LabelScheme, read_label_scheme
from nnunet_difftumor.evaluation.scoring.summary import write_scores
from nnunet_difftumor.evaluation.scoring.tables import FILTERED_FOLDER, CaseError, CaseScores, new_output_folder

__all__ = ["CaseScores", "FolderScores", "ScoringRequest", "score_case", "score_folders"]

SUMMARY_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ScoringRequest:
    """What to score.

    Attributes:
        reference: Folder of reference label maps, <case>.nii.gz or another image ending.
        prediction: Folder of predicted ones of the same names.
        labels: nnU-Net's dataset.json.
        probabilities: Folder of probabilities (see `case_maps.find_probability_files`), or None.
        tumor_labels: Names or values of the tumour labels; without any, all whose names say so.
        organ_label: Name or value of the organ; None infers it for each tumour label. Only the filter needs it.
        organ_filter: The scores are also taken without predicted tumours outside the organ; None does not.
        only_predicted: Score the cases that have a prediction, and list the others; else they are errors.
    """

    reference: Path
    prediction: Path
    labels: Path
    probabilities: Path | None = None
    tumor_labels: tuple[str, ...] = ()
    organ_label: str | None = None
    organ_filter: OrganFilter | None = None
    only_predicted: bool = False
    rules: ScoringRules = field(default_factory=ScoringRules)


@dataclass(frozen=True)
class ScoringPlan:
    """The cases of a request.

    Attributes:
        not_predicted: Cases that are left out because the request says so.
        without_reference: Predicted cases without a reference; they are among the errors.
    """

    cases: tuple[CaseFiles, ...]
    errors: tuple[CaseError, ...]
    not_predicted: tuple[str, ...]
    without_reference: tuple[str, ...]


@dataclass(frozen=True)
class FolderScores:
    """Scores of all cases.

    Attributes:
        cases: Scores, sorted by case.
        filtered: The same with the organ filter; empty without one.
        summary: The content of summary.json.
    """

    cases: tuple[CaseScores, ...]
    filtered: tuple[CaseScores, ...]
    errors: tuple[CaseError, ...]
    summary: Mapping[str, Any]


def score_folders(
    request: ScoringRequest, output: Path, *, workers: int = 1, overwrite: bool = False, show_progress: bool = False
) -> FolderScores:
    """Score a folder and write tables and summary.

    A case that cannot be scored is reported, and the others are scored all the same.

    Args:
        workers: Processes that score side by side; 1 scores in this one.
        overwrite: Replace the results of an earlier scoring.

    Raises:
        DatasetError: If a folder holds no label map, or two for one case.
        MissingLabelError: If tumour or organ labels cannot be told.
        OutputExistsError: If results would be overwritten.
        DiffTumorError: If the folder cannot be written to, or a process dies.
    """
    with new_output_folder(output, overwrite=overwrite) as folder:
        needs_organ = request.organ_filter is not None and request.organ_filter.folder is None
        scheme = read_label_scheme(request.labels, request.tumor_labels, request.organ_label, needs_organ=needs_organ)
        plan = plan_scoring(request, scheme)
        jobs = run_jobs(request, scheme, plan.cases, workers)
        results = list(tqdm(jobs, total=len(plan.cases), desc="Scoring", unit="case", disable=not show_progress))
        failed = [result for result in results if isinstance(result, CaseError)]
        scored = [result for result in results if not isinstance(result, CaseError)]
        errors = tuple(sorted([*plan.errors, *failed], key=lambda error: error.case))
        cases = tuple(plain for plain, *_ in scored)
        filtered = tuple(each for _, *others in scored for each in others)
        about = {
            "format": SUMMARY_FORMAT,
            "version": __version__,
            "rules": asdict(request.rules),
            "with_probabilities": request.probabilities is not None,
            "failed": [error.case for error in errors],
            "not_predicted": list(plan.not_predicted),
            "without_reference": list(plan.without_reference),
            "organ_filter": None,
        }
        summary = write_scores(folder, cases, errors, about)
        if request.organ_filter is not None and filtered:
            about["organ_filter"] = request.organ_filter.source
            write_scores(folder / FILTERED_FOLDER, filtered, errors, about)
    return FolderScores(cases, filtered, errors, summary)


def plan_scoring(request: ScoringRequest, scheme: LabelScheme) -> ScoringPlan:
    """Find the files of every case.

    Raises:
        DatasetError: If a folder holds no label map, or two for one case.
    """
    references = find_label_maps(request.reference, "--reference")
    predictions = find_label_maps(request.prediction, "--prediction")
    folder = request.probabilities
    is_one_folder = folder is not None and folder.resolve() == request.prediction.resolve()
    if is_one_folder:  # holds images of probabilities too, unless there is a reference of just that name
        named = {f"{case}_{label.name}" for case in predictions.keys() | references.keys() for label in scheme.tumors}
        predictions = {case: path for case, path in predictions.items() if case not in named - references.keys()}
    organ_folder = None if request.organ_filter is None else request.organ_filter.folder
    organ_masks = {} if organ_folder is None else find_label_maps(organ_folder, "--organ-filter")
    left_out = references.keys() - predictions.keys() if request.only_predicted else set()
    not_predicted = (
        f"prediction in {request.prediction}. Predict it, or score the predicted cases alone with --only-predicted"
    )
    cases, errors = [], []
    for case in sorted((references.keys() | predictions.keys()) - left_out):
        try:
            files = CaseFiles(
                case=case,
                reference=_file_of(case, references, f"reference in {request.reference}"),
                prediction=_file_of(case, predictions, not_predicted),
                probabilities={}
                if folder is None
                else find_probability_files(folder, case, scheme, is_prediction_folder=is_one_folder),
                organ_mask=None
                if organ_folder is None
                else _file_of(case, organ_masks, f"organ mask in {organ_folder}"),
            )
            cases.append(files)
        except DatasetError as error:
            errors.append(CaseError(case, type(error).__name__, str(error)))
    without_reference = sorted(predictions.keys() - references.keys())
    return ScoringPlan(tuple(cases), tuple(errors), tuple(sorted(left_out)), tuple(without_reference))


def _file_of(case: str, files: Mapping[str, Path], what: str) -> Path:
    if case not in files:
        raise DatasetError(f"{case} has no {what}.")
    return files[case]


class KilledProcessError(DiffTumorError):
    """One of several scoring processes was killed; `fewer_workers` may live."""

    def __init__(self, workers: int) -> None:
        self.workers, self.fewer_workers = workers, max(1, workers // 2)
        super().__init__(
            f"One of {workers} scoring processes was killed, most likely for want of memory. Nothing was written. "
            f"Use fewer: --workers {self.fewer_workers}."
        )


def run_jobs(
    request: ScoringRequest, scheme: LabelScheme, cases: Sequence[CaseFiles], workers: int
) -> Iterator[tuple[CaseScores, ...] | CaseError]:
    """Score cases in some processes, or in this one.

    Yields:
        Scores, and those with the organ filter if there is one, or why there are none, in the order of the cases.

    Raises:
        KilledProcessError: If a process dies.
    """
    score = partial(_run_job, request=request, scheme=scheme)
    workers = min(workers, len(cases))
    if workers <= 1:
        yield from map(score, cases)
        return
    try:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(score, cases)
    except BrokenProcessPool as error:
        raise KilledProcessError(workers) from error


def _run_job(files: CaseFiles, request: ScoringRequest, scheme: LabelScheme) -> tuple[CaseScores, ...] | CaseError:
    filters = (None,) if request.organ_filter is None else (None, request.organ_filter)
    try:
        maps = read_case_maps(files, scheme)
        return tuple(score_maps(maps, scheme, organ_filter=each, rules=request.rules) for each in filters)
    except Exception as error:  # whatever is wrong with one file, the other cases are to be scored; it is reported
        return CaseError(files.case, type(error).__name__, str(error))
