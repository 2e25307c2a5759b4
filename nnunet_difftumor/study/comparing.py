"""After the trainings: one comparison for each number of annotated cases, on test hospitals or on validation cases."""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nnunet_difftumor.ct.datasets import find_label_maps
from nnunet_difftumor.evaluation.comparison.inputs.plan import ComparisonPlan, file_name_of, read_experiment
from nnunet_difftumor.evaluation.comparison.report.page import REPORT_FILE
from nnunet_difftumor.evaluation.comparison.run import compare
from nnunet_difftumor.study.runs import Run
from nnunet_difftumor.support.files.atomic_files import write_json, written_whole
from nnunet_difftumor.support.files.fact_cache import stamp_of
from nnunet_difftumor.support.processes.steps import FINISHED
from nnunet_difftumor.trainer.output_record import SPLIT_RECORD_NAME

_VALIDATION = "validation"


def compare_all(runs: Sequence[Run]) -> tuple[Path, ...]:
    """Write the experiments of all runs of a study for `difftumor compare` and run them, unless that was done before.

    An arm's repetition is compared when all its folds are finished. One that lacks a fold is left out, and named in
    the output and in the notes of the report. A report counts as made before if the experiment, the models or
    predictions, references, metadata and labels that it was made from have the same size and time of change still.

    Returns:
        The reports; none of a number of annotated cases of which no repetition is finished.
    """
    reports = []
    for annotated in runs[0].study.annotated:
        folder = runs[0].root / "compare" / f"annotated-{annotated}"
        complete, notes = _complete_repetitions([run for run in runs if run.annotated == annotated])
        for note in notes:
            print(f"{annotated} annotated cases: {note}", flush=True)
        if not complete:
            continue
        path = _write_experiment(complete, folder, notes)
        report, stamps_file = folder / "report" / REPORT_FILE, folder / "compared.json"
        stamps = _stamp(path)
        before = json.loads(stamps_file.read_text(encoding="utf-8")) if stamps_file.is_file() else None
        if not report.is_file() or stamps != before:
            print(f"\n=== Comparing with {annotated} annotated cases", flush=True)
            compare(path, report.parent, overwrite=True)
            write_json(stamps_file, stamps, overwrite=True)
        reports.append(report)
    return tuple(reports)


def _complete_repetitions(runs: Sequence[Run]) -> tuple[list[list[Run]], list[str]]:
    """The folds of each arm and repetition that are all finished, and what is to be said of the others."""
    repetitions: dict[tuple[str, int], list[Run]] = defaultdict(list)
    for run in runs:
        repetitions[run.arm.name, run.seed].append(run)
    complete, notes = [], []
    for (arm, seed), folds in repetitions.items():
        missing = [run.name for run in folds if run.state() != FINISHED]
        if missing:
            notes.append(f"{arm}, seed {seed} is left out; runs that are not finished: {', '.join(missing)}.")
        else:
            complete.append(folds)
    arms, baseline = [folds[0].arm.name for folds in complete], runs[0].study.baseline
    if arms and baseline not in arms and any(run.arm.name == baseline for run in runs):
        notes.append(f"The baseline is {arms[0]}: {baseline}, that of the study, is left out.")
    return complete, notes


def _write_experiment(repetitions: Sequence[Sequence[Run]], folder: Path, notes: Sequence[str]) -> Path:
    """Write the experiment of one number of annotated cases, and what it links to, into a folder that may be moved."""
    first = repetitions[0][0]
    study, data = first.study, first.data
    arms = list(dict.fromkeys(folds[0].arm.name for folds in repetitions))
    arm_by_arm = sorted(repetitions, key=lambda folds: arms.index(folds[0].arm.name))
    content: dict[str, Any] = {
        "title": f"{study.title}: {first.annotated} annotated cases",
        "baseline": study.baseline if study.baseline in arms else arms[0],
        "dataset_json": str(data.cases.folder / "dataset.json"),
        **json.loads(json.dumps(study.compare.model_dump(exclude_unset=True), default=os.path.realpath)),
        **({"notes": list(notes)} if notes else {}),
        "models": [_model(folds, folder) for folds in arm_by_arm],
    }
    if "hospitals" not in content:
        files = [data.cases.label_file(case) for case in data.validation_cases(study.folds)]
        references = _fill_with_links(folder / "references", {file.name: file for file in files})
        content["hospitals"] = [{"name": _VALIDATION, "labels": references.name}]
    content["prediction"] = {"device": study.device, **content.get("prediction", {})}
    path = folder / "experiment.yaml"
    with written_whole(path, overwrite=True) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


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
        for folder in [*folders, hospital.labels] if hospital.labels is not None else folders:
            yield from find_label_maps(folder).values()


def _model(runs: Sequence[Run], folder: Path) -> dict[str, Any]:
    """One model: the folds of one arm and repetition together."""
    arm, seed, study = runs[0].arm.name, runs[0].seed, runs[0].study
    name = file_name_of(f"{arm}.seed-{seed}")
    model: dict[str, Any] = {"arm": arm, "name": f"{arm}, seed {seed}"}
    if len(study.seeds) > 1:
        model["seed"] = seed
    if study.compare.hospitals:
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
