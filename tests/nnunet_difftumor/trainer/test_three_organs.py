"""One run with tumours in three organs: phantoms and a real upper abdomen, through nnU-Net's own commands."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy import stats

from nnunet_difftumor.injection import data_loader
from nnunet_difftumor.injection.case_tumors import draw_case_tumors
from nnunet_difftumor.trainer.trainers import nnUNetTrainerDiffTumor

BIN = Path(sys.executable).parent
NAMES = ("liver_tumor", "pancreas_tumor", "kidney_tumor")
TOTALSEG_LABELS = {1: 1, 2: 5, 3: 3}  # liver, kidneys, pancreas; the spleen is background here


def size(name, low, high, probability):
    return {"name": name, "radius_mm": [low, high], "probability": probability}


TARGETS = [
    {
        "organ_label": "liver",
        "size_classes": [size("tiny", 4, 5, 0.5), size("small", 6, 8, 0.3), size("medium", 9, 11, 0.2)],
    },
    {"organ_label": "pancreas", "size_classes": [size("tiny", 3, 3.5, 0.6), size("small", 3.6, 4.2, 0.4)]},
    {"organ_label": "kidney", "size_classes": [size("tiny", 4, 5, 0.5), size("small", 6, 8, 0.5)]},
]


def run(project, *words):
    environment = {**project.environment(), "nnUNet_n_proc_DA": "1"}
    process = subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-4000:]
    return process.stdout


def add_totalseg_case(raw):
    """The real upper abdomen, where it is at hand; its labels were made by a model, its health is said by nobody."""
    root = os.environ.get("DIFFTUMOR_REAL_CT")
    source = None if root is None else Path(root) / "totalseg"
    if source is None or not source.is_dir():
        return
    label = nibabel.load(source / "example_label.nii.gz")
    values = np.asarray(label.dataobj)
    mapped = np.zeros_like(values)
    for old, new in TOTALSEG_LABELS.items():
        mapped[values == old] = new
    nibabel.save(nibabel.Nifti1Image(mapped, label.affine), raw / "labelsTr" / "totalseg_example.nii.gz")
    shutil.copy(source / "example_ct.nii.gz", raw / "imagesTr" / "totalseg_example_0000.nii.gz")
    content = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**content, "numTraining": content["numTraining"] + 1}))


@pytest.fixture(scope="module")
def project(make_nnunet_project):
    project = make_nnunet_project(is_preprocessed=False)
    shutil.rmtree(project.raw)
    words = ("--cases", "3", "--healthy", "5", "--organs", "liver", "pancreas", "kidney")
    run(project, "difftumor", "phantom", "--output", str(project.raw), *words)
    add_totalseg_case(project.raw)
    run(project, "nnUNetv2_plan_and_preprocess", "-d", "905", "-c", "3d_fullres", "-np", "1", "-npfp", "1")
    project.shrink_plans()
    return project


def make_trainer(project):
    plans = json.loads((project.preprocessed / "nnUNetPlans.json").read_text())
    dataset_json = json.loads((project.preprocessed / "dataset.json").read_text())
    plans["continue_training"] = False
    return nnUNetTrainerDiffTumor(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))


@pytest.mark.slow
def test_one_run_injects_tumours_into_three_organs(project):
    settings = {"generator": None, "targets": TARGETS, "num_iterations_per_epoch": 30, "confirmed_healthy": True}
    project.configure(**settings, healthy_share=0.8, healthy_holdout=0.0)
    printed = run(
        project, "nnUNetv2_train", "905", "3d_fullres", "0", "-tr", "nnUNetTrainerDiffTumor", "-device", "cpu"
    )
    assert "Synthetic tumours: healthy samples" in printed
    with (project.output() / "injection_histogram.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["quantity"] == "size_class"]
    placed = {name: sum(int(row["placed"]) for row in rows if row["target"] == name) for name in NAMES}
    assert min(placed.values()) >= 3, placed
    records = [json.loads(line) for line in (project.output() / "difftumor_records.jsonl").read_text().splitlines()]
    assert {record["tumor_label"] for record in records} <= {2, 4, 6}
    assert (project.output() / "injection_histogram.png").stat().st_size > 5000


@pytest.mark.slow
def test_two_thousand_injections_have_the_sizes_that_were_asked_for(project, monkeypatch):
    """Chi-square at 1% for each target, against its own requested frequencies: of the tumours of whole cases.

    Crops show large ones more often, as they do those of annotated cases.
    """
    for key, value in project.environment().items():
        if key.startswith("nnUNet_"):
            monkeypatch.setenv(key, value)
    shutil.rmtree(project.output().parent, ignore_errors=True)
    project.configure(
        generator="handcrafted", targets=TARGETS, confirmed_healthy=True, healthy_share=1.0, healthy_holdout=0.0
    )
    trainer = make_trainer(project)
    trainer.initialize()
    trainer._prepare_training()
    dataset, _ = trainer.get_tr_and_val_datasets()
    crop_size = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[2]
    loader = trainer._make_training_loader(dataset, crop_size, None)
    np.random.seed(0)  # noqa: NPY002 (nnU-Net draws from the global stream)
    landed, cases, injected = Counter(), set(), 0
    of_cases = Counter()

    def draw_and_count(labels, organ_voxels, rules, rng, **options):
        tumors = draw_case_tumors(labels, organ_voxels, rules, rng, **options)
        of_cases.update((rules.tumor_label, spec.size_class) for spec in tumors.specs)
        return tumors

    monkeypatch.setattr(data_loader, "draw_case_tumors", draw_and_count)
    while injected < 2000:
        batch = next(loader)
        report = batch["difftumor"]
        injected += report["counts"].get("injected", 0)
        cases |= {record["case"] for record in report["records"]}
        for number, tumor in report["tumors"]:
            landed[number, tumor.size_class] += tumor.radius_mm is not None
    assert ("totalseg_example" in cases) == (project.raw / "labelsTr" / "totalseg_example.nii.gz").is_file()
    for number, target in enumerate(TARGETS):
        classes = target["size_classes"]
        in_crops = np.array([landed[number, each["name"]] for each in classes])
        label = trainer.dataset_json["labels"][NAMES[number]]
        counts = np.array([of_cases[label, each["name"]] for each in classes])
        share = np.array([each["probability"] for each in classes])
        print(NAMES[number], "of cases", counts, "in crops", in_crops)
        assert min(in_crops.sum(), counts.sum()) >= 150
        assert stats.chisquare(counts, share / share.sum() * counts.sum()).pvalue > 0.01
