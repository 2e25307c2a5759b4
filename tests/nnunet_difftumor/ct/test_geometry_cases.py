"""Files with the headers of public troubles, written by scripts that lie beside the checkout, through the commands."""

from __future__ import annotations

import csv
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_difftumor.cli import main

CASES = Path("/work/shared/cases")
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the scripts are not there")


@pytest.fixture
def write_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write(name: str) -> Path:
        monkeypatch.setattr(sys, "argv", [name, str(tmp_path / "case")])
        runpy.run_path(str(CASES / f"{name}.py"))
        monkeypatch.chdir(tmp_path)
        return tmp_path / "case"

    return write


def synthesize(folder: Path, output: Path, generator: Path, *radius_mm: str) -> int:
    files = ["--ct", str(folder / "ct.nii.gz"), "--organ-mask", str(folder / "organ.nii.gz"), "--output", str(output)]
    size = ["--radius-mm", *radius_mm, "--contrast-hu", "-60", "-60", "--seed", "1"]
    return main(["synthesize", *files, "--generator", str(generator), "--count", "1", *size])


def score(folder: Path, output: Path) -> int:
    maps = ["--reference", str(folder / "labels"), "--prediction", str(folder / "labels")]
    return main(["score", *maps, "--labels", str(folder / "dataset.json"), "--output", str(output)])


def place_of(path: Path) -> tuple:
    image = sitk.ReadImage(str(path))
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


@pytest.mark.parametrize(
    ("case", "part"),
    [
        ("forms_differ_label", "rotated"),
        ("forms_differ_label", "shifted"),
        ("forms_differ_label", "unset"),
        ("uncompressed_gz", "."),
        ("units_synthesize", "micron"),
        ("units_synthesize", "metre"),
    ],
)
def test_a_tumour_has_its_size_and_its_label_lies_on_the_ct(write_case, nano_generator_folder, tmp_path, case, part):
    folder, output = write_case(case) / part, tmp_path / "out"
    assert synthesize(folder, output, nano_generator_folder, "6", "6.5") == 0
    assert place_of(output / "label.nii.gz") == place_of(output / "ct.nii.gz") == place_of(folder / "ct.nii.gz")
    tumor_voxels = int((sitk.GetArrayFromImage(sitk.ReadImage(str(output / "label.nii.gz"))) == 2).sum())
    assert 4 / 3 * np.pi * 5.5**3 < 4.5 * tumor_voxels < 4 / 3 * np.pi * 7.0**3


def test_a_scan_of_one_slice_gets_all_four_files(write_case, nano_generator_folder, tmp_path):
    assert synthesize(write_case("single_slice"), tmp_path / "out", nano_generator_folder, "4", "5") == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"ct.nii.gz", "label.nii.gz", "tumors.json", "montage.png"}


def test_a_ball_has_the_same_volume_in_every_unit(write_case, tmp_path):
    folder = write_case("units_score")
    for unit in ("micron", "metre", "mm"):
        assert score(folder / unit, tmp_path / unit) == 0
        with (tmp_path / unit / "tumors.csv").open() as stream:
            assert [float(row["volume_mm3"]) for row in csv.DictReader(stream)] == [pytest.approx(724.5, rel=1e-3)]


@pytest.mark.parametrize(("case", "says"), [("sform_identity", "contradicts itself"), ("zero_spacing", "pixdim[3]")])
def test_a_header_without_a_sure_size_is_named(write_case, tmp_path, capsys, case, says):
    assert score(write_case(case), tmp_path / "out") == 1
    assert says in capsys.readouterr().err


def test_zero_spacing_is_named_by_synthesize(write_case, nano_generator_folder, tmp_path, capsys):
    assert synthesize(write_case("zero_spacing"), tmp_path / "out", nano_generator_folder, "6", "6.5") == 1
    assert "no distance between slices" in capsys.readouterr().err
