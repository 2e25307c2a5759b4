"""The positive control in small: all arms of its study file, on a data set made in seconds, for two iterations."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

STUDY = Path(__file__).parents[3] / "docs" / "results" / "positive_control.yaml"


@pytest.mark.slow
def test_every_arm_of_the_positive_control_trains_and_is_compared(make_nnunet_project, tmp_path):
    project = make_nnunet_project(tumor_cases=6, healthy_cases=5)
    study = yaml.safe_load(STUDY.read_text(encoding="utf-8"))
    study.update(
        dataset=905,
        plans="nnUNetPlans",
        seeds=[0],
        schedule={"epochs": 1, "iterations": 4, "val_iterations": 1},
        generators={"preset": "nano", "autoencoder_steps": 2, "diffusion_steps": 2},
        compare={"statistics": {"draws": 1000}},
    )
    study["arms"][0]["annotated"] = [3]
    path, output = tmp_path / "study.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(study))
    printed = project.run("difftumor", "experiment", str(path), "--output", str(output))
    assert "FAILED" not in printed
    runs = {folder.name: folder for folder in (output / "runs").iterdir()}
    assert len(runs) == len(study["arms"]) == 8
    records = {name: json.loads((folder / "run.json").read_text()) for name, folder in runs.items()}
    epochs = {name: record["settings"]["num_epochs"] for name, record in records.items()}
    assert epochs.pop("nnU-Net.annotated-3.fold-0.seed-0") == 1
    assert set(epochs.values()) == {2}  # half of the samples are of healthy cases, or as long as the longest
    for name, folder in runs.items():
        (seen,) = folder.glob("results/*/*/fold_0/samples_seen.csv")
        with seen.open(newline="") as file:
            samples = {row["case"]: int(row["samples"]) for row in csv.DictReader(file)}
        assert sum(samples.values()) == 8 * (1 if name.startswith("nnU-Net.") else 2)
    table = pd.read_csv(output / "compare" / "annotated-3" / "report" / "tables" / "tumor_arms.csv")
    assert set(table.columns) >= {arm["name"] for arm in study["arms"]}
