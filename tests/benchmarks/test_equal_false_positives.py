"""Arms at the baseline's false positives: thresholds of the other half, Dice without what falls below them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest


@pytest.fixture
def benchmark(load_file: Callable[[str], ModuleType]) -> ModuleType:
    return load_file("tests/benchmarks/equal_false_positives.py")


def _write(folder: Path, arm: str, false_scores: list[float], tumor_score: float = 0.9) -> None:
    """One hospital, four patients with a tumour of 1 ml each, found with IoU 0.6; a false positive where a score is."""
    place = folder / "scores" / f"{arm}_seed_0" / "one"
    place.mkdir(parents=True)
    names = [f"case_{i}" for i in range(4)]
    cases, tumors, predictions = [], [], []
    for name, score in zip(names, false_scores, strict=True):
        shared = 0.6 * 2.0 / 1.6  # ml of the tumour and of its prediction, 1 ml each
        predicted = 1.0 if np.isnan(score) else 1.5
        cases.append([name, "tumor", False, 2 * shared / (1.0 + predicted), 1.0, predicted])
        tumors.append([name, "tumor", 1, 1000.0, 12.4])
        predictions.append([name, "tumor", 1000.0, 1, 0.6, tumor_score, True])
        if not np.isnan(score):
            predictions.append([name, "tumor", 500.0, None, 0.0, score, False])
    for table, columns, rows in (
        ("cases", "case,label,is_healthy,dice,reference_ml,predicted_ml", cases),
        ("tumors", "case,label,tumor,volume_mm3,equivalent_diameter_mm", tumors),
        ("predictions", "case,label,volume_mm3,matched_tumor,iou,score,touches_tumor", predictions),
    ):
        pd.DataFrame(rows, columns=columns.split(",")).to_csv(place / f"{table}.csv", index=False)


def test_a_threshold_comes_from_the_other_half_and_takes_its_volume_from_dice(benchmark, tmp_path):
    none = float("nan")
    _write(tmp_path, "nnU-Net", [0.5, none, none, none])  # half 0 (cases 0 and 2) has one false positive, half 1 none
    _write(tmp_path, "DiffTumor", [0.6, 0.7, 0.5, 0.4])

    table = benchmark.compare(tmp_path, "nnU-Net", "tumor", 20.0).set_index(["arm", "case"])

    arm = table.loc["DiffTumor"]
    # half 0 is judged with the threshold 0.7 of half 1, half 1 with 0.5 of half 0: one of 0.6 and 0.5 may stay there
    assert arm["false_positives"].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert arm["found"].tolist() == [1.0] * 4
    assert arm["dice"].tolist() == pytest.approx([0.75, 0.6, 0.75, 0.75])
    baseline = table.loc["nnU-Net"]
    assert baseline["false_positives"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert baseline["dice"].tolist() == pytest.approx([0.6, 0.75, 0.75, 0.75])


def test_a_tumour_below_the_threshold_is_lost(benchmark, tmp_path):
    _write(tmp_path, "nnU-Net", [float("nan")] * 4)
    _write(tmp_path, "DiffTumor", [0.6, 0.95, 0.5, 0.4])

    arm = benchmark.compare(tmp_path, "nnU-Net", "tumor", 20.0).set_index(["arm", "case"]).loc["DiffTumor"]

    assert arm["found"].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert arm["found_small"].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert arm["dice"].tolist() == pytest.approx([0.0, 0.6, 0.0, 0.75])


def test_scores_without_probabilities_are_refused(benchmark, tmp_path):
    _write(tmp_path, "nnU-Net", [float("nan")] * 4, tumor_score=float("nan"))
    with pytest.raises(ValueError, match="probabilities: true"):
        benchmark.compare(tmp_path, "nnU-Net", "tumor", 20.0)
