"""Scoring predictions once: the call of the scorer, and what tells that scores are still good."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunet_difftumor import __version__
from nnunet_difftumor.ct.datasets import find_label_maps
from nnunet_difftumor.errors import DatasetError, DiffTumorError, OutputExistsError
from nnunet_difftumor.evaluation.scoring.run import (
    SUMMARY_FORMAT,
    KilledProcessError,
    ScoringRequest,
    plan_scoring,
    score_folders,
)
from nnunet_difftumor.evaluation.scoring.scheme import read_label_scheme
from nnunet_difftumor.evaluation.scoring.tables import CaseError
from nnunet_difftumor.support.files.atomic_files import write_json
from nnunet_difftumor.support.files.fact_cache import stamp_of

_INPUTS_FILE = "inputs.json"


def score_once(request: ScoringRequest, output: Path, *, workers: int = 1) -> bool:
    """Score predictions, unless the same files were scored into `output` before, alike.

    Scores are made again, in place of those, if a label map or a file of probabilities has changed, if dataset.json
    means other labels, or if the rules, the format of the scores or the version of this package are others.

    Returns:
        True if it scored, False if the scores there are still good.

    Raises:
        DatasetError: If a case has no prediction or cannot be scored, or dataset.json is wrong.
        MissingLabelError: If the tumour labels cannot be told.
        OutputExistsError: If `output` holds something else.
    """
    inputs = _describe(request)
    record = output / _INPUTS_FILE
    if output.exists():
        if not record.is_file():
            raise OutputExistsError(f"{output} holds no scores of a comparison; move it away.")
        if json.loads(record.read_text(encoding="utf-8")) == inputs:
            return False
    unfinished = output.with_name(f".unfinished-{output.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        scored = score_folders(request, unfinished, workers=workers, show_progress=True)
    except KilledProcessError as error:
        raise DiffTumorError(
            f"One of {error.workers} processes that scored {request.prediction} was killed, most likely for want of "
            "memory. What was predicted and scored before is kept. Use fewer: write "
            f"prediction: {{processes: {error.fewer_workers}}} in the experiment."
        ) from error
    _refuse_errors(scored.errors, request)
    write_json(unfinished / _INPUTS_FILE, inputs)
    shutil.rmtree(output, ignore_errors=True)
    os.replace(unfinished, output)
    return True


def _describe(request: ScoringRequest) -> dict[str, Any]:
    """All that scores are made from, as JSON holds it."""
    scheme = read_label_scheme(request.labels, request.tumor_labels)
    references, predictions = (find_label_maps(folder) for folder in (request.reference, request.prediction))
    missing = sorted(references.keys() - predictions.keys())
    if missing:
        raise DatasetError(
            f"{request.prediction} has no prediction of {len(missing)} of {len(references)} cases: "
            f"{', '.join(missing[:5])}. Predict them, or remove their references for all models."
        )
    plan = plan_scoring(request, scheme)
    _refuse_errors(plan.errors, request)
    stamps = {
        files.case: {
            "reference": stamp_of(files.reference),
            "prediction": stamp_of(files.prediction),
            "probabilities": {label: stamp_of(path) for label, path in files.probabilities.items()},
        }
        for files in plan.cases
    }
    package = {"format": SUMMARY_FORMAT, "version": __version__}
    inputs = {**package, "rules": asdict(request.rules), "scheme": asdict(scheme), "cases": stamps}
    return json.loads(json.dumps(inputs, default=sorted))  # sets become sorted lists


def _refuse_errors(errors: Sequence[CaseError], request: ScoringRequest) -> None:
    """Raise for errors of cases with a reference; predictions of other cases do not count."""
    references = find_label_maps(request.reference)
    failed = [error for error in errors if error.case in references]
    if failed:
        lines = "\n  ".join(f"{error.case}: {error.message}" for error in failed[:10])
        raise DatasetError(
            f"{len(failed)} of {len(references)} cases of {request.prediction} could not be scored:\n  {lines}\n"
            "Correct them: leaving cases out of a comparison would favour the model that fails on them."
        )
