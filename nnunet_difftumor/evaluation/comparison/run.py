"""One comparison from the experiment's file to the report."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from nnunet_difftumor.errors import ConfigurationError, OutputExistsError
from nnunet_difftumor.evaluation.comparison.analysis import EVERYONE, Finding, analyze
from nnunet_difftumor.evaluation.comparison.facts import collect_facts
from nnunet_difftumor.evaluation.comparison.inputs.plan import (
    ComparisonPlan,
    Hospital,
    Model,
    file_name_of,
    read_experiment,
)
from nnunet_difftumor.evaluation.comparison.inputs.prediction import cases_to_predict, predict_missing
from nnunet_difftumor.evaluation.comparison.inputs.scores import load_study
from nnunet_difftumor.evaluation.comparison.inputs.scoring import score_once
from nnunet_difftumor.evaluation.comparison.inputs.trained_models import refuse_training_cases
from nnunet_difftumor.evaluation.comparison.report.page import REPORT_FILE, write_report
from nnunet_difftumor.evaluation.comparison.report.tables import write_complete_tables, write_raw_tables
from nnunet_difftumor.evaluation.scoring.case_maps import NPZ_ENDING
from nnunet_difftumor.evaluation.scoring.run import ScoringRequest
from nnunet_difftumor.support.files.atomic_files import write_json

PREDICTIONS_FOLDER, SCORES_FOLDER, SUMMARY_FILE = "predictions", "scores", "summary.json"


def plan(experiment_path: Path, output: Path) -> dict[tuple[str, str], tuple[str, ...]]:
    """Check an experiment as `compare` does and say what each trained model has to predict; nothing is written.

    Returns:
        Cases without a prediction, or with another image since, by names of model and hospital.
    """
    experiment = read_experiment(experiment_path)
    _check_models(experiment)
    return {
        (model.name, hospital.name): cases_to_predict(model, hospital, _predictions_of(model, hospital, output))
        for model, hospital in _pairs(experiment)
        if model.trained is not None
    }


def compare(experiment_path: Path, output: Path, *, overwrite: bool = False) -> list[Finding]:
    """Predict what is missing, score it, compute all figures and write the report.

    Args:
        overwrite: Replace report and tables; predictions and scores of unchanged files are kept all the same.

    Returns:
        Figures of the primary measure in all patients: for each label those of arms, then differences.

    Raises:
        OutputExistsError: If there is a report already and `overwrite` is False.
        DiffTumorError: If the experiment or a file that it names is wrong, or nnU-Net ends with an error.
    """
    if (output / REPORT_FILE).exists() and not overwrite:
        raise OutputExistsError(
            f"{output / REPORT_FILE} exists already. Name another folder, or replace report and tables with "
            "--overwrite; predictions and scores are kept."
        )
    experiment = read_experiment(experiment_path)
    notes = [*_check_models(experiment), *_note_models_without_probabilities(experiment)]
    score_folders = {
        (model.name, hospital.name): _score(experiment, model, hospital, output)
        for model, hospital in _pairs(experiment)
    }
    print("Computing intervals and tests", flush=True)
    study = load_study(experiment, score_folders)
    findings = analyze(study, experiment)
    facts = collect_facts(study, experiment, findings)
    write_raw_tables(study, experiment, output)
    write_complete_tables(findings, output)
    write_json(output / SUMMARY_FILE, facts, overwrite=True)
    write_report(findings, experiment, facts, (*experiment.notes, *study.notes, *notes), output)
    figures = sorted((*findings.arms, *findings.differences), key=lambda each: study.labels.index(each.label))
    return [each for each in figures if (each.measure.key, each.group) == (experiment.primary, EVERYONE)]


def _pairs(experiment: ComparisonPlan) -> Iterator[tuple[Model, Hospital]]:
    return itertools.product(experiment.models, experiment.hospitals)


def _check_models(experiment: ComparisonPlan) -> list[str]:
    hospitals, acknowledged = experiment.hospitals, experiment.acknowledge_identifier_matches
    notes = (refuse_training_cases(each, hospitals, acknowledged=acknowledged) for each in experiment.models)
    return list(itertools.chain.from_iterable(notes))


def _score(experiment: ComparisonPlan, model: Model, hospital: Hospital, output: Path) -> Path:
    """Predict and score one model in one hospital where that is still to do."""
    if model.scores is not None:
        return model.folder_of(hospital)
    assert hospital.labels is not None
    predictions = _predictions_of(model, hospital, output)
    if model.trained is not None:
        done = predict_missing(model, hospital, experiment.prediction, predictions)
        print(f"{model.name}, {hospital.name}: {len(done)} scans predicted", flush=True)
    folder = output / SCORES_FOLDER / _place(model, hospital)
    has_probabilities = experiment.prediction.probabilities and _has_probabilities(model, hospital)
    request = ScoringRequest(
        reference=hospital.labels,
        prediction=predictions,
        labels=_dataset_json(experiment, model, predictions),
        probabilities=predictions if has_probabilities else None,
        tumor_labels=experiment.labels or (),
    )
    is_new = score_once(request, folder, workers=experiment.prediction.processes)
    print(f"{model.name}, {hospital.name}: {'scored' if is_new else 'scored before'}", flush=True)
    return folder


def _predictions_of(model: Model, hospital: Hospital, output: Path) -> Path:
    return model.folder_of(hospital) if model.trained is None else output / PREDICTIONS_FOLDER / _place(model, hospital)


def _place(model: Model, hospital: Hospital) -> Path:
    return Path(file_name_of(model.name)) / file_name_of(hospital.name)


def _has_probabilities(model: Model, hospital: Hospital) -> bool:
    """Whether a model's predictions come with nnU-Net's probabilities, if they are asked for."""
    return model.trained is not None or any(model.folder_of(hospital).glob(f"*{NPZ_ENDING}"))


def _note_models_without_probabilities(experiment: ComparisonPlan) -> list[str]:
    lacking = [
        f"{model.name} in {hospital.name}"
        for model, hospital in _pairs(experiment)
        if experiment.prediction.probabilities and model.scores is None and not _has_probabilities(model, hospital)
    ]
    listed = ", ".join(lacking)
    return [f"No AUROC: no probabilities (<case>.npz) lie beside the predictions of {listed}."] if lacking else []


def _dataset_json(experiment: ComparisonPlan, model: Model, predictions: Path) -> Path:
    """The file that names the labels: as written, or beside the model or the predictions."""
    trained = [each.trained for each in (model, *experiment.models) if each.trained is not None]
    places = [folder / "dataset.json" for folder in (predictions, *trained)]
    found = experiment.dataset_json or next((place for place in places if place.is_file()), None)
    if found is None:
        raise ConfigurationError(
            f"{experiment.path}: which label of {predictions} is the tumour? Write dataset_json: PATH, nnU-Net's "
            "dataset.json of the training data."
        )
    return found
