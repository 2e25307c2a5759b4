"""Files of public troubles, written by scripts beside the checkout that say what must happen, through the commands."""

from __future__ import annotations

import csv
import json
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_difftumor.cases.splits import read_splits
from nnunet_difftumor.cli import main
from tests.nnunet_difftumor.conftest import NnunetProject

SCRIPTS = Path(os.environ.get("DIFFTUMOR_REAL_CT", Path(__file__).parents[3] / "shared" / "data")).parent / "cases"
pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir(), reason="needs the folder cases beside that of DIFFTUMOR_REAL_CT")


@pytest.fixture
def folder(folders, monkeypatch):
    """nnU-Net's raw folder, in which the commands run and which the scripts write."""
    monkeypatch.chdir(folders / "raw")
    return folders / "raw"


def write(name, folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, str(folder)])
    runpy.run_path(str(SCRIPTS / f"{name}.py"))


@pytest.fixture
def write_case(folder, monkeypatch):
    return lambda name: write(name, folder, monkeypatch)


def synthesize(folder: Path, generator: Path, *radius_mm: str) -> int:
    files = ["--ct", f"{folder}/ct.nii.gz", "--organ-mask", f"{folder}/organ.nii.gz", "--output", "out"]
    size = ["--radius-mm", *radius_mm, "--contrast-hu", "-60", "-60", "--seed", "1"]
    return main(["synthesize", *files, "--generator", str(generator), "--count", "1", *size])


def score(folder: Path, output: str = "out") -> int:
    maps = ["--reference", f"{folder}/labels", "--prediction", f"{folder}/labels"]
    return main(["score", *maps, "--labels", f"{folder}/dataset.json", "--output", output])


def place_of(path: Path) -> tuple:
    image = sitk.ReadImage(str(path))
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


def train(stage: str, data: str, *words: str) -> int:
    return main([f"train-{stage}", "-d", data, "--output", stage, "--preset", "nano", "--steps", "3", *words])


def test_every_script_is_run():
    here = Path(__file__).read_text()
    assert [script.stem for script in SCRIPTS.glob("*.py") if f'"{script.stem}"' not in here] == []


@pytest.mark.parametrize(
    ("script", "part"),
    [
        ("forms_differ_label", "rotated"),
        ("forms_differ_label", "shifted"),
        ("forms_differ_label", "unset"),
        ("uncompressed_gz", "."),
        ("units_synthesize", "micron"),
        ("units_synthesize", "metre"),
    ],
)
def test_a_tumour_has_its_size_and_its_label_lies_on_the_ct(folder, write_case, nano_generator_folder, script, part):
    write_case(script)
    assert synthesize(folder / part, nano_generator_folder, "6", "6.5") == 0
    label, ct = folder / "out" / "label.nii.gz", folder / "out" / "ct.nii.gz"
    assert place_of(label) == place_of(ct) == place_of(folder / part / "ct.nii.gz")
    tumor_voxels = int((sitk.GetArrayFromImage(sitk.ReadImage(str(label))) == 2).sum())
    assert 4 / 3 * np.pi * 5.5**3 < 4.5 * tumor_voxels < 4 / 3 * np.pi * 7.0**3


def test_a_scan_of_one_slice_gets_all_four_files(folder, write_case, nano_generator_folder):
    write_case("single_slice")
    assert synthesize(folder, nano_generator_folder, "4", "5") == 0
    written = {path.name for path in (folder / "out").iterdir()}
    assert written == {"ct.nii.gz", "label.nii.gz", "tumors.json", "montage.png"}


def test_a_ball_has_the_same_volume_in_every_unit(folder, write_case):
    write_case("units_score")
    for unit in ("micron", "metre", "mm"):
        assert score(folder / unit, unit + "_scores") == 0
        with (folder / f"{unit}_scores" / "tumors.csv").open() as stream:
            assert [float(row["volume_mm3"]) for row in csv.DictReader(stream)] == [pytest.approx(724.5, rel=1e-3)]


@pytest.mark.parametrize(("script", "says"), [("sform_identity", "contradicts itself"), ("zero_spacing", "pixdim[3]")])
def test_a_header_without_a_sure_size_is_named(folder, write_case, capsys, script, says):
    write_case(script)
    assert score(folder) == 1
    assert says in capsys.readouterr().out  # beside the cases that could be scored


def test_zero_spacing_is_named_by_synthesize(folder, write_case, nano_generator_folder, capsys):
    write_case("zero_spacing")
    assert synthesize(folder, nano_generator_folder, "6", "6.5") == 1
    assert "no distance between slices" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_broken_links_are_named(write_case, capsys):
    write_case("broken_links")
    assert train("autoencoder", "site") == 1
    printed = capsys.readouterr().err
    assert "p3.nii.gz" in printed
    assert "p4.nii.gz" in printed


@pytest.mark.parametrize(("script", "bad"), [("unrescaled_negative_padding", range(6)), ("intercept_twice", (1, 4))])
def test_values_that_are_no_hu_never_train(folder, write_case, capsys, script, bad):
    write_case(script)
    data = next(folder.glob("Dataset901_*")).name
    bad_files = {f"case_{number}_0000.nii.gz" for number in bad}
    for stage, words in (("autoencoder", ()), ("diffusion", ("--autoencoder", "autoencoder"))):
        assert train(stage, data, *words) == 1
        printed = capsys.readouterr().err
        assert {name for name in (f"case_{number}_0000.nii.gz" for number in range(6)) if name in printed} == bad_files
        if len(bad_files) == 6:
            return  # without an autoencoder there is no second stage
        assert train(stage, data, *words, "--skip-bad") == 0
        used = json.loads((folder / stage / "cases.json").read_text())
        assert set(used["left_out"]) == {"case_1", "case_4"}
        assert not {"case_1", "case_4"} & {*used["training"], *used["heldout"]}


def test_a_fourth_axis_of_size_1_is_dropped(folder, write_case, nano_generator_folder, capsys):
    write_case("four_axes")
    data = folder / "Dataset901_FourAxes"
    assert main(["splits", "-d", "901"]) == 0
    assert "3 cases with tumour, 3 healthy" in capsys.readouterr().out
    (folder / "labels").symlink_to(data / "labelsTr")
    (folder / "dataset.json").symlink_to(data / "dataset.json")
    assert score(folder) == 0
    (folder / "ct.nii.gz").symlink_to(data / "imagesTr" / "case_4_0000.nii.gz")
    (folder / "organ.nii.gz").symlink_to(data / "labelsTr" / "case_4.nii.gz")
    (folder / "out").rename(folder / "scores")
    assert synthesize(folder, nano_generator_folder, "6", "6.5") == 0
    assert train("autoencoder", data.name) == 0


@pytest.mark.slow
def test_the_trainer_takes_a_fourth_axis_of_size_1(folder, write_case, generator_with_provenance):
    write_case("four_axes")
    project = NnunetProject(folder.parent, generator_with_provenance, "Dataset901_FourAxes")
    planning = ("-d", "901", "-c", "3d_fullres", "-np", "1", "-npfp", "1")
    project.run("nnUNetv2_plan_and_preprocess", *planning, environment={"nnUNet_n_proc_DA": "1"})
    project.run("difftumor", "splits", "-d", "901", "--folds", "3")
    project.shrink_plans()
    project.configure()
    printed = project.run("nnUNetv2_train", "901", "3d_fullres", "0", "-tr", "nnUNetTrainerDiffTumor", "-device", "cpu")
    assert "Epoch 0" in printed


def test_healthy_scans_with_slightly_slanted_axes_are_prepared(folder, write_case, generator_with_provenance):
    write_case("slight_shear_add_healthy")
    project = NnunetProject(folder.parent, generator_with_provenance, "Dataset901_Main")
    planning = ("-d", "901", "-c", "3d_fullres", "-np", "1", "-npfp", "1")
    project.run("nnUNetv2_plan_and_preprocess", *planning, environment={"nnUNet_n_proc_DA": "1"})
    words = ("add-healthy", "-d", "901", "--from", "902", "--confirmed-healthy", "--workers", "1", "--write")
    assert "3 cases of Dataset902_Sheared are preprocessed" in project.run("difftumor", *words)


def test_scans_of_a_patient_are_on_one_side_of_every_fold(folder, write_case, capsys):
    write_case("patient_with_two_scans")
    assert main(["splits", "-d", "901"]) == 0
    assert "--group-pattern" in capsys.readouterr().out
    assert main(["splits", "-d", "901", "--group-pattern", r"genius_\d\d", "--overwrite"]) == 0
    folds = read_splits(folder.parent / "preprocessed" / "Dataset901_Patients" / "splits_final.json")
    assert len(folds) == 3
    for fold in folds:
        assert not {name[:9] for name in fold.train} & {name[:9] for name in fold.val}


def test_a_known_tumour_with_an_empty_mask_is_not_healthy(folder, write_case, capsys):
    write_case("tumour_case_empty_mask")
    (folder / "t.csv").write_text("case,tumor\n" + "".join(f"case_{n},{int(n < 4)}\n" for n in range(8)))
    assert main(["splits", "-d", "901"]) == 0
    assert "healthy: case_2, case_3, case_4, case_5, case_6, case_7" in capsys.readouterr().out
    assert main(["splits", "-d", "901", "--metadata", "t.csv", "--tumor-column", "tumor", "--overwrite"]) == 0
    assert "neither: case_2, case_3" in capsys.readouterr().out


def test_another_label_named_like_a_tumour_is_no_health(folder, monkeypatch, capsys):
    write("two_tumour_labels", folder.parent, monkeypatch)  # which names the folders raw and preprocessed itself
    assert main(["splits", "-d", "901"]) == 0
    printed = capsys.readouterr().out
    assert "4 cases with tumour, 2 healthy, 2 neither" in printed
    assert "healthy: case_4, case_7" in printed
