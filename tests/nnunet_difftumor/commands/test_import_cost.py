"""A mistake is told before what takes seconds to import: held by what is imported, not by time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

HEAVY = (
    "torch",
    "diffusers",
    "accelerate",
    "matplotlib",
    "scipy.stats",
    "scipy.optimize",
    "skimage",
    "pandas",
    "nnunetv2",
)
CODE = """
import contextlib, io, json, sys
from nnunet_difftumor.cli import main
for words in json.loads(sys.argv[1]):
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        status = main(words)
    print(json.dumps([status, told.getvalue(), sorted(sys.modules)]))
"""


def run(*commands: list[str]) -> list[tuple[int, str, set[str]]]:
    """Run commands one after the other in a fresh process: status, what was told, and modules imported so far."""
    process = subprocess.run([sys.executable, "-c", CODE, json.dumps(commands)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    answers = (json.loads(line) for line in process.stdout.splitlines())
    return [(status, told, set(modules)) for status, told, modules in answers]


def assert_told_early(mistakes: dict[str, list[str]], heavy: tuple[str, ...] = HEAVY) -> None:
    """Check that each command says what is wrong with it, and that none has imported anything heavy."""
    for said, (status, told, modules) in zip(mistakes, run(*mistakes.values()), strict=True):
        assert status == 1
        assert said in told
        assert modules.isdisjoint(heavy), said


@pytest.fixture
def scan(tmp_path: Path) -> tuple[str, str]:
    """CT of soft tissue and mask of an organ of value 1, as files."""
    organ = np.zeros((48, 48, 24), dtype=np.uint8)
    organ[6:-6, 6:-6, 3:-3] = 1
    image_hu = np.random.default_rng(0).normal(60.0, 10.0, organ.shape).astype(np.int16)
    image_hu[organ == 0] -= 160
    image_hu[:3] -= 900
    names = (str(tmp_path / "ct.nii.gz"), str(tmp_path / "organ.nii.gz"))
    for name, values in zip(names, (image_hu, organ), strict=True):
        nibabel.save(nibabel.Nifti1Image(values, np.diag([1.5, 1.5, 3.0, 1.0])), name)
    return names


def test_a_wrong_argument_or_missing_file_of_synthesize_costs_no_heavy_import(scan, tmp_path):
    ct, organ = scan
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "tumors.json").write_text("{}")
    words = ["synthesize", "--output", str(tmp_path / "out"), "--ct", ct, "--organ-mask", organ]
    mistakes = {
        "--count and --steps must be at least 1": [*words, "--count", "0"],
        "needs 0 < smallest <= largest radius": [*words, "--radius-mm", "6", "3"],
        "width_mm > 0": [*words, "--edge-mm", "0", "-1"],
        "nowhere.nii.gz does not exist": [*words, "--ct", "nowhere.nii.gz"],
        "no-mask.nii.gz does not exist": [*words, "--tumor-mask", "no-mask.nii.gz"],
        "nowhere.json is no tumors.json": [*words, "--replay", "nowhere.json"],
        "no-generator is no folder": [*words, "--generator", "no-generator"],
        "There is no generator 'builtin:nobody'": [*words, "--generator", "builtin:nobody"],
        "holds tumors.json already": [*words, "--output", str(taken)],
        "is a file; name a folder": [*words, "--output", ct],
    }
    assert_told_early(mistakes, (*HEAVY, "scipy", "SimpleITK", "nibabel"))


def test_what_only_the_images_tell_is_said_before_the_network_is_imported(scan, nano_generator_folder, tmp_path):
    ct, organ = scan
    empty = str(tmp_path / "empty.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((48, 48, 24), np.uint8), np.diag([1.5, 1.5, 3.0, 1.0])), empty)
    words = ["synthesize", "--output", str(tmp_path / "out"), "--ct", ct, "--organ-mask", organ]
    words += ["--generator", str(nano_generator_folder)]
    mistakes = {
        "--organ-label 7 is not in": [*words, "--organ-label", "7"],
        "has no voxel above 0; draw the tumour": [*words, "--tumor-mask", empty],
    }
    assert_told_early(mistakes)


def test_synthesis_imports_no_diffusers(scan, nano_generator_folder, tmp_path):
    ct, organ = scan
    words = ["synthesize", "--output", str(tmp_path / "out"), "--ct", ct, "--organ-mask", organ, "--count", "1"]
    words += ["--generator", str(nano_generator_folder), "--radius-mm", "6", "8", "--contrast-hu", "-60", "-50"]
    ((status, told, modules),) = run(words)
    assert (status, told) == (0, "")
    assert {"torch", "matplotlib"} <= modules
    assert modules.isdisjoint(("diffusers", "accelerate", "scipy.stats", "scipy.optimize", "torch._dynamo", "pandas"))


@pytest.mark.parametrize("command", ["train-autoencoder", "train-diffusion"])
def test_a_mistake_in_a_training_costs_no_heavy_import(command, scan, tmp_path):
    data = tmp_path / "Dataset001_A"
    for folder, name, kept in (("imagesTr", "a_0000.nii.gz", scan[0]), ("labelsTr", "a.nii.gz", scan[1])):
        (data / folder).mkdir(parents=True)
        Path(kept).rename(data / folder / name)
    labels = {"background": 0, "tumor": 1}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (data / "dataset.json").write_text(json.dumps(dataset))
    output, taken = tmp_path / "run", tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("")
    words = [command, "-d", str(data), "--output", str(output), "--preset", "nano"]
    words += ["--autoencoder", "builtin:soft-tissue-tiny"] if command == "train-diffusion" else []
    mistakes = {
        "nowhere": [*words, "-d", "nowhere"],
        "is not empty": [*words, "--output", str(taken)],
        "no-splits.json": [*words, "--splits", "no-splits.json", "-f", "0"],
        "--splits FILE and -f K together": [*words, "--splits", "no-splits.json"],
        "no-list.txt must hold": [*words, "--exclude-cases", "no-list.txt"],
        "steps": [*words, "--steps", "0"],
    }
    if command == "train-diffusion":
        mistakes["--spacing-mm needs 0 < LO <= HI"] = [*words, "--spacing-mm", "3", "1"]
        mistakes["no-model holds no autoencoder"] = [*words, "--autoencoder", "no-model"]
        mistakes["lesion"] = [*words, "--tumor-label", "lesion"]
    assert_told_early(mistakes)
    assert not output.exists()


def test_a_mistake_in_a_conversion_costs_no_heavy_import(scan, tmp_path):
    there, taken = scan[0], tmp_path / "taken"
    taken.mkdir()
    words = ["convert-weights", "--autoencoder", there, "--diffusion", there, "--organ", "liver"]
    mistakes = {
        "nowhere.pt is no file": [*words, "--late", "nowhere.pt", "--output", str(tmp_path / "out")],
        "exists already": [*words, "--output", str(taken)],
    }
    assert_told_early(mistakes)


def test_a_mistake_in_an_evaluation_costs_no_heavy_import(nano_generator_folder, tmp_path):
    data = tmp_path / "Dataset001_A"
    for name in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"):
        (data / name).parent.mkdir(parents=True)
        (data / name).write_bytes(b"not read")
    labels = {"background": 0, "liver": 1, "tumor": 2}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (data / "dataset.json").write_text(json.dumps(dataset))
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "summary.json").write_text("{}")
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps([{"train": [], "val": ["a"]}]))
    words = ["evaluate-generator", "-d", str(data), "--output", str(tmp_path / "out")]
    words += ["--generator", str(nano_generator_folder)]
    mistakes = {
        "nowhere": [*words, "-d", "nowhere"],
        "summary.json exists": [*words, "--output", str(taken)],
        "no-generator is no folder": [*words, "--generator", "no-generator"],
        "--splits and -f belong together": [*words, "--splits", str(splits)],
        "no validation list for fold 3": [*words, "--splits", str(splits), "-f", "3"],
        "--steps must be 1 or more": [*words, "--steps", "0"],
        "spleen": [*words, "--organ-label", "spleen"],
    }
    assert_told_early(mistakes)
