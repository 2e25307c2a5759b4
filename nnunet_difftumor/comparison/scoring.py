"""Scoring predictions once: the call of the scorer, and what tells that scores are still good."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_difftumor.atomic_files import write_json
from nnunet_difftumor.errors import DatasetError, OutputExistsError
from nnunet_difftumor.scoring.request import find_label_maps

_INPUTS_FILE = "inputs.json"


def score_once(
    reference: Path,
    prediction: Path,
    dataset_json: Path,
    output: Path,
    *,
    labels: Sequence[str] = (),
    probabilities: bool = False,
    workers: int = 1,
) -> bool:
    """Score predictions, unless the same files were scored into `output` before.

    Args:
        reference: Folder of reference label maps.
        prediction: Folder of predictions of the same cases.
        dataset_json: nnU-Net's dataset.json, which names the labels.
        output: Folder for the scores; replaced if files have changed since.
        labels: Tumour labels; without any, all whose names say so.
        probabilities: The prediction folder holds probabilities too.
        workers: Processes that score side by side.

    Returns:
        True if it scored, False if the scores there are still good.

    Raises:
        DatasetError: If a case has no prediction or cannot be scored.
        OutputExistsError: If `output` holds something else.
    """
    inputs = _describe(reference, prediction, labels, probabilities)
    record = output / _INPUTS_FILE
    if output.exists():
        if not record.is_file():
            raise OutputExistsError(f"{output} holds no scores of a comparison; move it away.")
        if json.loads(record.read_text(encoding="utf-8")) == inputs:
            return False
    unfinished = output.with_name(f".unfinished-{output.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    _call_scorer(reference, prediction, dataset_json, unfinished, labels, probabilities, workers)
    write_json(unfinished / _INPUTS_FILE, inputs)
    shutil.rmtree(output, ignore_errors=True)
    os.replace(unfinished, output)
    return True


def _call_scorer(
    reference: Path,
    prediction: Path,
    dataset_json: Path,
    output: Path,
    labels: Sequence[str],
    probabilities: bool,
    workers: int,
) -> None:
    """Call `difftumor score`; the only place that knows its arguments."""
    scorer: Any = importlib.import_module("nnunet_difftumor.scoring.run")
    request = scorer.ScoringRequest(
        reference=reference,
        prediction=prediction,
        labels=dataset_json,
        probabilities=prediction if probabilities else None,
        tumor_labels=tuple(labels),
    )
    scored = scorer.score_folders(request, output, workers=workers, show_progress=True)
    references = find_label_maps(reference)
    failed = [error for error in scored.errors if error.case in references]
    if failed:
        lines = "\n  ".join(f"{error.case}: {error.message}" for error in failed[:10])
        raise DatasetError(
            f"{len(failed)} of {len(references)} cases of {prediction} could not be scored:\n  {lines}\n"
            "Correct them: leaving cases out of a comparison would favour the model that fails on them."
        )


def _describe(reference: Path, prediction: Path, labels: Sequence[str], probabilities: bool) -> dict[str, Any]:
    files = {
        side: {case: [path.stat().st_size, path.stat().st_mtime_ns] for case, path in find_label_maps(folder).items()}
        for side, folder in (("reference", reference), ("prediction", prediction))
    }
    missing = sorted(files["reference"].keys() - files["prediction"].keys())
    if missing:
        raise DatasetError(
            f"{prediction} has no prediction of {len(missing)} of {len(files['reference'])} cases: "
            f"{', '.join(missing[:5])}. Predict them, or remove their references for all models."
        )
    return {"labels": list(labels), "probabilities": probabilities, **files}
