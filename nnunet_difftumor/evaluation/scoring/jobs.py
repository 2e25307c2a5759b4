"""Cases scored side by side in processes that import little."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.evaluation.scoring.case import score_maps
from nnunet_difftumor.evaluation.scoring.case_maps import CaseFiles, read_case_maps
from nnunet_difftumor.evaluation.scoring.organ_filter import OrganFilter
from nnunet_difftumor.evaluation.scoring.records import CaseScores
from nnunet_difftumor.evaluation.scoring.rules import ScoringRules
from nnunet_difftumor.evaluation.scoring.scheme import LabelScheme


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
class CaseError:
    """Why a case has no scores; the attributes are the columns of errors.csv.

    Attributes:
        message: What is wrong, and how to fix it.
    """

    case: str
    error: str
    message: str


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
