"""After the trainings: one comparison for each number of annotated cases, on test hospitals or on validation cases."""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nnunet_difftumor.ct.datasets import find_label_maps
from nnunet_difftumor.evaluation.comparison.inputs.plan import ComparisonPlan, file_name_of, read_experiment
from nnunet_difftumor.evaluation.comparison.report.page import REPORT_FILE
from nnunet_difftumor.study.data_views import StudyData
from nnunet_difftumor.study.plan import Annotated, StudyPlan
from nnunet_difftumor.study.running import state_of
from nnunet_difftumor.study.runs import Run
from nnunet_difftumor.study.validation_cases import validation_cases
from nnunet_difftumor.support.files.atomic_files import write_json, written_whole
from nnunet_difftumor.support.files.file_stamps import stamp_of
from nnunet_difftumor.support.processes.steps import FINISHED
from nnunet_difftumor.trainer.output_record import SPLIT_RECORD_NAME

COMPARE_FOLDER = "compare"
_STAMPS_FILE = "compared.json"
_VALIDATION = "validation"


def compare_all(
    study: StudyPlan, runs: Sequence[Run], data: StudyData, output: Path, *, compare: Callable[..., Any]
) -> tuple[Path, ...]:
    """Write the experiments for `difftumor compare` and run them; what was compared before is skipped.

    An arm's repetition is compared when all its folds are finished. One that lacks a fold is left out, and named in
    the output and in the notes of the report. A report counts as made before if the experiment, the models or
    predictions, the references, metadata and labels that it was made from are the same still, by size and time of
    change.

    Returns:
        The reports; none of a number of annotated cases of which no repetition is finished.
    """
    reports = []
    for annotated in study.annotated:
        of_number = [run for run in runs if run.annotated == annotated]
        folder = output.resolve() / COMPARE_FOLDER / f"annotated-{annotated}"
        finished, notes = _complete_repetitions(study, of_number)
        for note in notes:
            print(f"{annotated} annotated cases: {note}", flush=True)
        if not finished:
            continue
        path = write_experiment(study, finished, data, annotated, folder, notes=notes)
        report, stamps_file = folder / "report" / REPORT_FILE, folder / _STAMPS_FILE
        stamps = _stamp(path)
        before = json.loads(stamps_file.read_text(encoding="utf-8")) if stamps_file.is_file() else None
        if not report.is_file() or stamps != before:
            print(f"\n=== Comparing with {annotated} annotated cases", flush=True)
            compare(path, report.parent, overwrite=True)
            write_json(stamps_file, stamps, overwrite=True)
        reports.append(report)
    return tuple(reports)


def write_experiment(
    study: StudyPlan,
    runs: Sequence[Run],
    data: StudyData,
    annotated: Annotated,
    folder: Path,
    *,
    notes: Sequence[str] = (),
) -> Path:
    """Write the experiment of one number of annotated cases; its paths start from its folder, which may be moved.

    Args:
        runs: Its runs with that number, all folds of each repetition.
        folder: Where the experiment, and links to models or predictions, are written.
    """
    arms = list(dict.fromkeys(run.arm.name for run in runs))
    repetitions = sorted(_by_repetition(runs).items(), key=lambda item: arms.index(item[0][0]))
    models = [_model(arm, seed, folds, folder, study) for (arm, seed), folds in repetitions]
    content: dict[str, Any] = {
        "title": f"{study.title}: {annotated} annotated cases",
        "baseline": study.baseline if study.baseline in arms else arms[0],
        "dataset_json": str(data.cases.folder / "dataset.json"),
        **study.compare,
        **({"notes": list(notes)} if notes else {}),
        "models": models,
    }
    if "hospitals" not in content:
        files = [data.cases.label_file(case) for case in validation_cases(study, data)]
        references = _fill_with_links(folder / "references", {file.name: file for file in files})
        content["hospitals"] = [{"name": _VALIDATION, "labels": references.name}]
    content["prediction"] = {"device": study.device, **content.get("prediction", {})}
    path = folder / "experiment.yaml"
    with written_whole(path, overwrite=True) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def _by_repetition(runs: Sequence[Run]) -> dict[tuple[str, int], list[Run]]:
    """The folds of each arm and repetition."""
    found: dict[tuple[str, int], list[Run]] = defaultdict(list)
    for run in runs:
        found[run.arm.name, run.seed].append(run)
    return found


def _complete_repetitions(study: StudyPlan, runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Runs of the repetitions of which every fold is finished, and what is to be said of the others."""
    finished, notes = [], []
    for (arm, seed), folds in _by_repetition(runs).items():
        missing = [run.name for run in folds if state_of(run) != FINISHED]
        if missing:
            notes.append(f"{arm}, seed {seed} is left out; runs that are not finished: {', '.join(missing)}.")
        else:
            finished += folds
    arms = {run.arm.name for run in finished}
    if arms and study.baseline not in arms and any(run.arm.name == study.baseline for run in runs):
        notes.append(f"The baseline is {finished[0].arm.name}: {study.baseline}, that of the study, is left out.")
    return finished, notes


def _stamp(path: Path) -> dict[str, Any]:
    """The experiment, and size and time of change of all files that its report is made from."""
    folder = path.resolve().parent
    files = {
        str(file.relative_to(folder) if file.is_relative_to(folder) else file): stamp_of(file)
        for file in _files_of(read_experiment(path))
    }
    return {"experiment": path.read_text(encoding="utf-8"), "files": files}


def _files_of(experiment: ComparisonPlan) -> Iterator[Path]:
    yield from (file for file in (experiment.dataset_json, experiment.metadata) if file is not None)
    for model in experiment.models:
        if model.trained is not None:
            yield from (model.trained / f"fold_{fold}" / model.checkpoint for fold in model.folds)
    for hospital in experiment.hospitals:
        if hospital.images is not None:
            yield from (file for file in sorted(hospital.images.iterdir()) if file.is_file())
        folders = [model.folder_of(hospital) for model in experiment.models if model.trained is None]
        for folder in (*folders, *([hospital.labels] if hospital.labels is not None else ())):
            yield from find_label_maps(folder).values()


def _model(arm: str, seed: int, runs: Sequence[Run], folder: Path, study: StudyPlan) -> dict[str, Any]:
    """One model: the folds of one arm and repetition together."""
    name = file_name_of(f"{arm}.seed-{seed}")
    model: dict[str, Any] = {"arm": arm, "name": f"{arm}, seed {seed}"}
    if len(study.seeds) > 1:
        model["seed"] = seed
    if "hospitals" in study.compare:
        _link_model(runs, folder / "models" / name)
        return {**model, "trained": f"models/{name}", "folds": [run.fold for run in runs]}
    _link_predictions(runs, folder / "predictions" / name)
    return {**model, "predictions": f"predictions/{name}"}


def _link_model(runs: Sequence[Run], folder: Path) -> None:
    """One folder with the folds of several runs, as nnU-Net predicts from.

    Each fold lists its training cases, which nnU-Net's own trainers do not, for the comparison's leak guard.
    """
    _fill_with_links(folder, {path.name: path for path in runs[0].model_folder.iterdir() if path.is_file()})
    for run in runs:
        fold = _fill_with_links(folder / run.fold_folder.name, {path.name: path for path in run.fold_folder.iterdir()})
        if not (fold / SPLIT_RECORD_NAME).is_file():
            write_json(fold / SPLIT_RECORD_NAME, run.split.to_json())


def _link_predictions(runs: Sequence[Run], folder: Path) -> None:
    """What nnU-Net predicted of the validation cases of each fold, by the model that did not see them."""
    links = {}
    for run in runs:
        ending = json.loads((run.model_folder / "dataset.json").read_text(encoding="utf-8"))["file_ending"]
        names = [f"{case}{ending}" for case in run.split.val]
        links.update({name: run.fold_folder / _VALIDATION / name for name in names})
    _fill_with_links(folder, links)


def _fill_with_links(folder: Path, links: Mapping[str, Path]) -> Path:
    """Make a folder of links to files, in place of an earlier one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, target in links.items():
        os.symlink(target.resolve(), folder / name)
    return folder
