"""All scores of an experiment in two long tables, one row a scan or a tumour for each model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_difftumor.errors import DatasetError
from nnunet_difftumor.evaluation.comparison.inputs.metadata import read_metadata
from nnunet_difftumor.evaluation.comparison.inputs.plan import ComparisonPlan, Model
from nnunet_difftumor.evaluation.scoring.tables import (
    CASES_FILE,
    SUMMARY_FILE,
    TUMORS_FILE,
    Frame,
    LabelScores,
    columns_of,
    read_scores,
)

_TUMOR_COLUMNS = (
    *("case", "label", "tumor", "detected", "touched", "volume_mm3"),
    *("equivalent_diameter_mm", "axial_diameter_mm", "iou", "dice", "score"),
)
_KEY = ["hospital", "case", "label"]


@dataclass(frozen=True, eq=False)
class StudyScores:
    """Scores of every model in every hospital.

    Attributes:
        cases: One row for each model, hospital, case and tumour label, with the columns of cases.csv, `patient`,
            and a column for each kind of group.
        tumors: One row for each model and reference tumour, with the columns of tumors.csv and the same others.
        group_kinds: Kinds of groups that the metadata know, e.g. age and sex.
        rules: What counted as a tumour and as found; empty if the score folders do not say.
        notes: What a reader of the report should know.
    """

    cases: Frame
    tumors: Frame
    labels: tuple[str, ...]
    group_kinds: tuple[str, ...]
    rules: Mapping[str, Any]
    notes: tuple[str, ...]


def load_study(experiment: ComparisonPlan, score_folders: Mapping[tuple[str, str], Path]) -> StudyScores:
    """Read the scores of all models.

    Args:
        score_folders: Output folder of `difftumor score` by names of model and hospital.

    Raises:
        DatasetError: If tables are incomplete, or models were not scored on the same scans and references.
    """
    cases, tumors, rules, left_out = [], [], {}, {}
    for model in experiment.models:
        for hospital in experiment.hospitals:
            folder = score_folders[model.name, hospital.name]
            of_folder, summary = read_score_folder(folder, experiment.labels)
            for table, tables in zip(of_folder, (cases, tumors), strict=True):
                tables.append(table.assign(model=model.name, hospital=hospital.name))
            rules[folder] = summary["rules"] if isinstance(summary.get("rules"), dict) else {}
            left_out.setdefault(hospital.name, set()).update(map(str, summary.get("not_predicted") or ()))
    all_cases, all_tumors = (pd.concat(tables, ignore_index=True) for tables in (cases, tumors))
    _require_same(all_cases, _KEY, ("is_healthy", "reference_ml", "reference_tumors"), experiment.models)
    _require_same(all_tumors, [*_KEY, "tumor"], ("volume_mm3",), experiment.models)
    scans = list(dict.fromkeys(zip(all_cases["hospital"], all_cases["case"], strict=True)))
    metadata, notes = read_metadata(experiment.metadata, scans, experiment.statistics.age_bins)
    return StudyScores(
        cases=all_cases.join(metadata, on=["hospital", "case"]),
        tumors=all_tumors.join(metadata, on=["hospital", "case"]),
        labels=tuple(dict.fromkeys(all_cases["label"])),
        group_kinds=tuple(name for name in metadata.columns if name != "patient"),
        rules=_common_rules(rules),
        notes=(*notes, *_note_left_out(left_out)),
    )


def read_score_folder(
    folder: Path, labels: Sequence[str] | None = None
) -> tuple[tuple[Frame, Frame], Mapping[str, Any]]:
    """Read an output folder of `difftumor score`.

    Args:
        labels: Tumour labels to keep; None keeps all.

    Returns:
        cases.csv of tumour labels, with `is_clean` (1 without a false positive, else 0), and tumors.csv; and
        summary.json.

    Raises:
        DatasetError: If a table or column is missing, a value is none, a label was not scored, or cases failed.
    """
    summary = _read_summary(folder / SUMMARY_FILE)
    _refuse_failed(summary, folder)
    paths = folder / CASES_FILE, folder / TUMORS_FILE
    cases, tumors = read_scores(paths[0], list(columns_of(LabelScores))), read_scores(paths[1], _TUMOR_COLUMNS)
    cases = cases[cases["reference_tumors"].notna()]  # organs have no tumours to count
    known = list(dict.fromkeys(cases["label"]))
    unknown = [label for label in labels or () if label not in known]
    if unknown or not known:
        raise DatasetError(
            f"{paths[0]} has no tumour label {', '.join(unknown) or 'at all'}; it has "
            f"{', '.join(known) or 'none'}. Correct labels in the experiment, or score again."
        )
    kept = known if labels is None else labels
    cases, tumors = (table[table["label"].isin(kept)].reset_index(drop=True) for table in (cases, tumors))
    _require_values(cases[cases["reference_ml"] > 0], ("dice", "nsd_1mm", "nsd_2mm"), paths[0])
    _require_values(cases[cases["reference_tumors"] > 0], ("panoptic_quality",), paths[0])
    _require_values(tumors, ("dice", "equivalent_diameter_mm", "axial_diameter_mm"), paths[1])
    return (cases.assign(is_clean=(cases["false_positives"] == 0).astype(float)), tumors), summary


def _require_values(table: Frame, columns: Sequence[str], path: Path) -> None:
    for name in columns:
        empty = table[table[name].isna()]
        if len(empty):
            raise DatasetError(f"{path}: {name} of {empty.iloc[0]['case']} is empty, but it has a tumour. Score again.")


def _read_summary(path: Path) -> Mapping[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read: {error}. `difftumor score` writes it.") from error
    return summary if isinstance(summary, dict) else {}


def _refuse_failed(summary: Mapping[str, Any], folder: Path) -> None:
    """A case that failed in every model would be in no table. Predictions without a reference are no cases."""
    without_reference = summary.get("without_reference") or ()
    failed = [str(case) for case in summary.get("failed") or () if case not in without_reference]
    if failed:
        raise DatasetError(
            f"{folder}: {len(failed)} cases could not be scored: {', '.join(failed[:5])}; see errors.csv there. "
            "Correct them and score again: leaving cases out of a comparison would favour the model that fails on them."
        )


def _note_left_out(cases: Mapping[str, set[str]]) -> list[str]:
    return [
        f"{name}: {len(left_out)} cases are not in this comparison, because scores were made with --only-predicted and "
        f"without a prediction of them: {', '.join(sorted(left_out)[:5])}{' ...' if len(left_out) > 5 else ''}."
        for name, left_out in cases.items()
        if left_out
    ]


def _require_same(table: Frame, key: list[str], columns: Sequence[str], models: Sequence[Model]) -> None:
    """Every model must have been scored on the same scans with the same references, or pairs mean nothing."""
    twice = table[table.duplicated(["model", *key])]
    if len(twice):
        row = twice.iloc[0]
        raise DatasetError(f"{row['model']} was scored twice on {'/'.join(row[key])}. Remove one of the rows.")
    of_models = [table[table["model"] == model.name].set_index(key)[list(columns)] for model in models]
    first = of_models[0]
    for model, other in zip(models[1:], of_models[1:], strict=True):
        different = first.index.symmetric_difference(other.index)
        if len(different):
            raise DatasetError(
                f"{models[0].name} and {model.name} were not scored on the same scans and tumours: {len(different)} "
                f"differ, e.g. {'/'.join(different[0])}. Predict and score what is missing, with the same label maps."
            )
        values = first.astype(float), other.loc[first.index].astype(float)
        is_same = np.isclose(*values, rtol=1e-4, atol=1e-6).all(axis=1)
        if not is_same.all():
            differing = "/".join(map(str, first.index[~is_same][0]))
            raise DatasetError(
                f"{models[0].name} and {model.name} were scored with other references of {differing}. Score both with "
                "the same label maps and rules."
            )


def _common_rules(rules: Mapping[Path, Mapping[str, Any]]) -> Mapping[str, Any]:
    first, *others = rules
    for folder in others:
        if rules[folder] != rules[first]:
            raise DatasetError(
                f"{first} and {folder} were scored by different rules ({dict(rules[first])} and "
                f"{dict(rules[folder])}). Score both by the same."
            )
    return rules[first]
