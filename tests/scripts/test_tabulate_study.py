"""The table of a results page, from a study's folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest


@pytest.fixture
def script(load_file: Callable[[str], ModuleType]) -> ModuleType:
    return load_file("scripts/tabulate_study.py")


def add_run(
    study: Path, arm: str, fold: int, dice: Mapping[str, float], *, seed: int = 0, finished: bool = True
) -> None:
    folder = study / "runs" / f"{arm}.annotated-6.fold-{fold}.seed-{seed}"
    validation = folder / "results" / "Dataset001_X" / "trainer__plans__3d_fullres" / f"fold_{fold}" / "validation"
    validation.mkdir(parents=True)
    cases = [
        {"reference_file": f"/data/{case}.nii.gz", "metrics": {"1": {"Dice": 0.9}, "2": {"Dice": value}}}
        for case, value in dice.items()
    ]
    (validation / "summary.json").write_text(json.dumps({"metric_per_case": cases}))
    (folder / "run.json").write_text(json.dumps({"arm": arm, "annotated": 6, "fold": fold, "seed": seed}))
    if finished:
        (folder / "done.json").write_text("{}")


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, study: Path, scores: Path) -> int:
    monkeypatch.setattr(sys, "argv", ["tabulate_study.py", "--study", str(study), "--scores", str(scores)])
    return script.main()


def compared_rows(printed: str) -> list[list[str]]:
    """Cells of the rows that compare arms."""
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    return [cells for cells in rows if len(cells) == 7 and cells[0] != "arm"]


def test_an_arm_is_compared_on_the_patients_and_repetitions_that_both_have(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_run(tmp_path / "a", "nnU-Net", 0, {"p1": 0.2, "p2": 0.4, "p3": 0.6})
    add_run(tmp_path / "a", "DiffTumor", 0, {"p1": 0.3, "p2": 0.6, "p3": 0.6})
    add_run(tmp_path / "a", "nnU-Net", 1, {"p4": 0.0})
    add_run(tmp_path / "a", "DiffTumor", 1, {"p4": 1.0}, finished=False)
    assert run(script, monkeypatch, tmp_path / "a", tmp_path / "scores.csv") == 0
    capsys.readouterr()
    add_run(tmp_path / "b", "nnU-Net", 0, {"p1": 0.4, "p2": 0.4, "p3": 0.6}, seed=1)
    add_run(tmp_path / "b", "DiffTumor", 0, {"p1": 0.5, "p2": 0.4, "p3": 0.9}, seed=1)
    assert run(script, monkeypatch, tmp_path / "b", tmp_path / "scores.csv") == 0
    compared = compared_rows(capsys.readouterr().out)
    # p1: 0.4 - 0.3, p2: 0.5 - 0.4, p3: 0.75 - 0.6
    assert [(*cells[:3], *(cell.split(" ")[0] for cell in cells[3:6])) for cells in compared] == [
        ("DiffTumor", "2", "3", "0.550", "0.433", "0.117")
    ]
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 13


def test_each_arm_has_its_own_repetitions_and_only_whole_ones(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, gain in enumerate((0.1, 0.3, 0.5)):
        for fold, patients in enumerate((("p1", "p2"), ("p3", "p4"))):
            add_run(tmp_path / "a", "nnU-Net", fold, dict.fromkeys(patients, 0.2), seed=seed)
            if (seed, fold) != (2, 1):  # a repetition with one fold only
                add_run(tmp_path / "a", "DiffTumor", fold, dict.fromkeys(patients, 0.2 + gain), seed=seed)
            if seed == 1:
                add_run(tmp_path / "a", "copy-paste", fold, dict.fromkeys(patients, 0.1), seed=seed)
    add_run(tmp_path / "a", "hand-crafted", 1, {"p5": 0.3}, seed=1)  # a patient that nnU-Net lacks
    assert run(script, monkeypatch, tmp_path / "a", tmp_path / "scores.csv") == 0
    rows = {cells[0]: (*cells[1:3], cells[5].split(" ")[0]) for cells in compared_rows(capsys.readouterr().out)}
    assert rows == {"DiffTumor": ("2", "4", "0.200"), "copy-paste": ("1", "4", "-0.100")}


def test_a_run_has_one_result(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_run(tmp_path / "a", "nnU-Net", 0, {"p1": 0.2, "p2": 0.4})
    add_run(tmp_path / "b", "nnU-Net", 0, {"p1": 0.2, "p2": 0.5})
    assert run(script, monkeypatch, tmp_path / "a", tmp_path / "scores.csv") == 0
    before = (tmp_path / "scores.csv").read_text()
    assert run(script, monkeypatch, tmp_path / "a", tmp_path / "scores.csv") == 0
    assert run(script, monkeypatch, tmp_path / "b", tmp_path / "scores.csv") == 1
    assert "other scores of nnU-Net.annotated-6.fold-0.seed-0" in capsys.readouterr().err
    assert (tmp_path / "scores.csv").read_text() == before


def test_a_folder_without_finished_runs_is_named(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_run(tmp_path / "a", "nnU-Net", 0, {"p1": 0.2}, finished=False)
    assert run(script, monkeypatch, tmp_path / "a", tmp_path / "scores.csv") == 1
    assert "no finished run" in capsys.readouterr().err
    assert not (tmp_path / "scores.csv").exists()
