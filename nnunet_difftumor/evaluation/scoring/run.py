"""Scoring of a folder of predicted label maps against a folder of reference ones."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_difftumor import __version__
from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.evaluation.scoring.case import score_case, score_maps
from nnunet_difftumor.evaluation.scoring.case_maps import CaseFiles, read_case_maps
from nnunet_difftumor.evaluation.scoring.organ_filter import OrganFilter
from nnunet_difftumor.evaluation.scoring.records import CaseError, CaseScores
from nnunet_difftumor.evaluation.scoring.request import ScoringPlan, ScoringRequest, plan_scoring
from nnunet_difftumor.evaluation.scoring.rules import ScoringRules
from nnunet_difftumor.evaluation.scoring.scheme import LabelScheme, read_label_scheme
from nnunet_difftumor.evaluation.scoring.summary import summarize
from nnunet_difftumor.evaluation.scoring.tables import FILTERED_FOLDER, check_output, new_output_folder, write_tables

__all__ = ["CaseScores", "FolderScores", "ScoringRequest", "score_case", "score_folders"]

SUMMARY_FORMAT = 1


@dataclass(frozen=True)
class FolderScores:
    """Scores of all cases.

    Attributes:
        cases: Scores, sorted by case.
        filtered: The same with the organ filter; empty without one.
        errors: Cases that could not be scored.
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
    check_output(output, overwrite=overwrite)
    scheme = read_label_scheme(
        request.labels,
        request.tumor_labels,
        request.organ_label,
        needs_organ=request.organ_filter is not None and request.organ_filter.folder is None,
    )
    plan = plan_scoring(request, scheme)
    jobs = [ScoringJob(files, scheme, request.organ_filter, request.rules) for files in plan.cases]
    with new_output_folder(output, overwrite=overwrite) as folder:
        bar = tqdm(run_jobs(jobs, workers), total=len(jobs), desc="Scoring", unit="case", disable=not show_progress)
        scores = _collect(request, plan, list(bar))
        write_tables(folder, scores.cases, scores.errors, scores.summary)
        if request.organ_filter is not None and scores.filtered:
            other = {"organ_filter": request.organ_filter.source, "labels": summarize(scores.filtered)}
            write_tables(folder / FILTERED_FOLDER, scores.filtered, scores.errors, {**scores.summary, **other})
    return scores


def _collect(request: ScoringRequest, plan: ScoringPlan, results: Sequence[ScoredCase | CaseError]) -> FolderScores:
    scored = [result for result in results if isinstance(result, ScoredCase)]
    failed = [result for result in results if isinstance(result, CaseError)]
    cases = tuple(result.scores for result in scored)
    filtered = tuple(result.filtered for result in scored if result.filtered is not None)
    errors = tuple(sorted([*plan.errors, *failed], key=lambda error: error.case))
    about = _describe(request, plan, errors)
    summary = {**about, "organ_filter": None, "cases": len(cases), "labels": summarize(cases)}
    return FolderScores(cases, filtered, errors, summary)


def _describe(request: ScoringRequest, plan: ScoringPlan, errors: Sequence[CaseError]) -> dict[str, Any]:
    return {
        "format": SUMMARY_FORMAT,
        "version": __version__,
        "rules": asdict(request.rules),
        "with_probabilities": request.probabilities is not None,
        "failed": [error.case for error in errors],
        "not_predicted": list(plan.not_predicted),
        "without_reference": list(plan.without_reference),
    }


class KilledProcessError(DiffTumorError):
    """A scoring process was killed.

    Attributes:
        workers: Processes that ran.
        fewer_workers: Processes to try with next.
    """

    def __init__(self, workers: int) -> None:
        self.workers, self.fewer_workers = workers, max(1, workers // 2)
        super().__init__(
            f"One of {workers} scoring processes was killed, most likely for want of memory. Nothing was written. "
            f"Use fewer: --workers {self.fewer_workers}."
        )


@dataclass(frozen=True)
class ScoringJob:
    """One case to score.

    Attributes:
        scheme: What the labels mean.
        organ_filter: Score a second time with this filter; None does not.
        rules: What counts.
    """

    files: CaseFiles
    scheme: LabelScheme
    organ_filter: OrganFilter | None
    rules: ScoringRules


@dataclass(frozen=True)
class ScoredCase:
    """A case that could be scored.

    Attributes:
        filtered: Its scores with the organ filter; None without one.
    """

    scores: CaseScores
    filtered: CaseScores | None = None


def run_jobs(jobs: Sequence[ScoringJob], workers: int) -> Iterator[ScoredCase | CaseError]:
    """Score cases.

    Args:
        workers: Processes; 1 scores in this one.

    Yields:
        Scores, or why there are none, in the order of the jobs.

    Raises:
        KilledProcessError: If a process dies.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        yield from map(_run_job, jobs)
        return
    context = multiprocessing.get_context("spawn")
    try:
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
            yield from pool.map(_run_job, jobs)
    except BrokenProcessPool as error:
        raise KilledProcessError(workers) from error


def _run_job(job: ScoringJob) -> ScoredCase | CaseError:
    try:
        maps = read_case_maps(job.files, job.scheme)
        scores = score_maps(maps, job.scheme, rules=job.rules)
        if job.organ_filter is None:
            return ScoredCase(scores)
        return ScoredCase(scores, score_maps(maps, job.scheme, organ_filter=job.organ_filter, rules=job.rules))
    except Exception as error:  # whatever is wrong with one file, the other cases are to be scored; it is reported
        return CaseError(job.files.case, type(error).__name__, str(error))
