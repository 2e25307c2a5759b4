"""After the trainings: one comparison for each number of annotated cases, on test hospitals or on validation cases."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nnunet_difftumor.atomic_files import written_whole
from nnunet_difftumor.comparison.experiment import file_name_of
from nnunet_difftumor.comparison.report import REPORT_FILE
from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.experiment.data_views import StudyData
from nnunet_difftumor.experiment.runs import Run
from nnunet_difftumor.experiment.study import Annotated, Study

COMPARE_FOLDER = "compare"
_VALIDATION = "validation"


def compare_all(
    study: Study, runs: Sequence[Run], data: StudyData, output: Path, *, compare: Callable[..., Any]
) -> tuple[Path, ...]:
    """Write the experiments for `difftumor compare` and run them; what was compared before is skipped.

    Args:
        study: The study.
        runs: All its runs, finished.
        data: Its data set.
        output: Output folder of the study.
        compare: `nnunet_difftumor.comparison.run.compare`.

    Returns:
        The reports.
    """
    reports = []
    for annotated in study.annotated:
        of_number = [run for run in runs if run.annotated == annotated]
        folder = output.resolve() / COMPARE_FOLDER / f"annotated-{annotated}"
        path, is_new = write_experiment(study, of_number, data, annotated, folder)
        report = folder / "report" / REPORT_FILE
        if is_new or not report.is_file():
            print(f"\n=== Comparing with {annotated} annotated cases", flush=True)
            compare(path, report.parent, overwrite=True)
        reports.append(report)
    return tuple(reports)


def write_experiment(
    study: Study, runs: Sequence[Run], data: StudyData, annotated: Annotated, folder: Path
) -> tuple[Path, bool]:
    """Write the experiment of one number of annotated cases.

    Args:
        study: The study.
        runs: Its runs with that number.
        data: Its data set.
        annotated: The number.
        folder: Where the experiment, and links to models or predictions, are written.

    Returns:
        The experiment, and False if the same one was there before.
    """
    arms = list(dict.fromkeys(run.arm.name for run in runs))
    models = [
        _model(name, seed, [run for run in runs if run.arm.name == name and run.seed == seed], folder, study)
        for name in arms
        for seed in study.seeds
    ]
    content: dict[str, Any] = {
        "title": f"{study.title}: {annotated} annotated cases",
        "baseline": study.baseline if study.baseline in arms else arms[0],
        "dataset_json": str(data.cases.folder / "dataset.json"),
        **study.compare,
        "models": models,
    }
    if "hospitals" not in content:
        content["hospitals"] = [{"name": _VALIDATION, "labels": str(_link_references(study, data, folder))}]
    content["prediction"] = {"device": study.device, **content.get("prediction", {})}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    path = folder / "experiment.yaml"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return path, False
    with written_whole(path, overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path, True


def _model(arm: str, seed: int, runs: Sequence[Run], folder: Path, study: Study) -> dict[str, Any]:
    """One model: the folds of one arm and repetition together."""
    name = file_name_of(f"{arm}.seed-{seed}")
    model: dict[str, Any] = {"arm": arm, "name": f"{arm}, seed {seed}"}
    if len(study.seeds) > 1:
        model["seed"] = seed
    if "hospitals" in study.compare:
        return {**model, "trained": str(_link_model(runs, folder / "models" / name)), "folds": [r.fold for r in runs]}
    return {**model, "predictions": str(_link_predictions(runs, folder / "predictions" / name))}


def _link_model(runs: Sequence[Run], folder: Path) -> Path:
    """One folder with the folds of several runs, as nnU-Net predicts from."""
    first = runs[0].model_folder
    links = {path.name: path for path in first.iterdir() if path.is_file()}
    links |= {run.fold_folder.name: run.fold_folder for run in runs}
    return _fill_with_links(folder, links)


def _link_predictions(runs: Sequence[Run], folder: Path) -> Path:
    """What nnU-Net predicted of the validation cases of each fold, by the model that did not see them."""
    links = {
        f"{case}{ending}": run.fold_folder / _VALIDATION / f"{case}{ending}"
        for run in runs
        for case, ending in ((case, _ending(run)) for case in run.split.val)
    }
    return _fill_with_links(folder, links)


def _link_references(study: Study, data: StudyData, folder: Path) -> Path:
    cases = [case for fold in study.folds for case in data.folds[fold].split.val]
    if len(set(cases)) < len(cases):
        raise ConfigurationError(
            f"{study.path}: the folds share validation cases, which would be counted twice. Name test data in compare: "
            "hospitals, or correct the splits."
        )
    files = [data.cases.label_file(case) for case in cases]
    return _fill_with_links(folder / "references", {file.name: file for file in files})


def _ending(run: Run) -> str:
    return str(json.loads((run.model_folder / "dataset.json").read_text(encoding="utf-8"))["file_ending"])


def _fill_with_links(folder: Path, links: Mapping[str, Path]) -> Path:
    """Make a folder of links to files, in place of an earlier one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, target in links.items():
        os.symlink(target.resolve(), folder / name)
    return folder
