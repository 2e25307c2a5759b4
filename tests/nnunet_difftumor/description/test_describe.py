from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from nnunet_difftumor.cli import main
from nnunet_difftumor.tumor.edge import Edge

OFFSET_MM, DEPTH_HU = -2.0, -50.0


def write_dataset(folder: Path, cases: int = 3, *, with_tumors: bool = True) -> Path:
    """Balls of 16 and 24 mm in a uniform liver; their visible edge lies 2 mm inside the labels."""
    spacing_mm, shape = (2.5, 1.0, 1.0), (30, 80, 120)
    rng = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    grid = np.stack(
        np.meshgrid(*(np.arange(count) * mm for count, mm in zip(shape, spacing_mm, strict=True)), indexing="ij")
    )
    for number in range(cases):
        image_hu = 100.0 + 8.0 * rng.standard_normal(shape)
        label = np.ones(shape, dtype=np.uint8)
        for centre_mm, radius_mm in (((35.0, 40.0, 30.0), 8.0), ((38.0, 40.0, 85.0), 12.0)) if with_tumors else ():
            distance_mm = np.linalg.norm(grid - np.reshape(centre_mm, (3, 1, 1, 1)), axis=0) - radius_mm
            image_hu += DEPTH_HU * Edge(offset_mm=OFFSET_MM, width_mm=1.5).share(distance_mm)
            label[distance_mm <= 0] = 2
        affine = np.diag([*reversed(spacing_mm), 1.0])
        for path, array in (
            (f"imagesTr/p{number}_0000.nii.gz", image_hu.astype(np.int16)),
            (f"labelsTr/p{number}.nii.gz", label),
        ):
            nibabel.save(nibabel.Nifti1Image(array.T, affine), folder / path)
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "tumor": 2, "vessel": 3}}
    (folder / "dataset.json").write_text(json.dumps({**description, "file_ending": ".nii.gz", "numTraining": cases}))
    return folder


def test_tables_and_plot_tell_the_edge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "edges"
    assert main(["describe", "-d", str(write_dataset(tmp_path / "Dataset901_Balls")), "--output", str(output)]) == 0
    names = ["edges.json", "profile.csv", "profile.png", "sizes.csv", "tumors.csv"]
    assert sorted(path.name for path in output.iterdir()) == names
    sizes = pd.read_csv(output / "sizes.csv").set_index("size")
    assert sizes["tumors"].to_list() == [0, 3, 3]
    assert sizes["patients"].to_list() == [0, 3, 3]
    assert sizes["offset_mm"].to_list() == pytest.approx([OFFSET_MM] * 3, abs=0.4)
    assert sizes.loc["20 mm and more", "depth_hu"] == pytest.approx(DEPTH_HU, abs=4.0)
    profile = pd.read_csv(output / "profile.csv")
    large = profile[profile["size"] == "20 mm and more"].set_index("from_mm")["share_of_depth"]
    assert large[-8] == pytest.approx(1.0, abs=0.1)
    assert 0.3 < large[-3] + large[-2] < 1.3  # half of the depth between them
    assert large[2] == pytest.approx(0.0, abs=0.1)
    content = json.loads((output / "edges.json").read_text())
    assert content["measured_tumors"] == 6
    assert [each["tumors"] for each in content["edges"]] == [0, 3, 3]
    printed = capsys.readouterr().out
    assert "6 of 6 annotated tumours measured, in 3 patients" in printed
    assert "3 patients are few" in printed


@pytest.mark.parametrize(
    ("with_tumors", "options", "message"),
    [
        (False, [], "None of the 1 cases of"),
        (True, ["--tumor-label", "cyst"], "'cyst', which is no foreground label"),
        (True, ["--organ-label", "vessel"], "Name the label around them with --organ-label"),
        (True, ["--group-pattern", "x(.*)"], "finds no patient in p0"),
    ],
    ids=["no tumour", "unknown label", "no organ beside", "no patient"],
)
def test_what_cannot_be_described_is_said_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], with_tumors: bool, options: list[str], message: str
) -> None:
    folder = write_dataset(tmp_path / "Dataset901_Balls", 1, with_tumors=with_tumors)
    assert main(["describe", "-d", str(folder), "--output", str(tmp_path / "edges"), *options]) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_results_are_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "edges").mkdir()
    (tmp_path / "edges" / "sizes.csv").write_text("mine")
    folder = write_dataset(tmp_path / "Dataset901_Balls", 1)
    assert main(["describe", "-d", str(folder), "--output", str(tmp_path / "edges")]) == 1
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "edges" / "sizes.csv").read_text() == "mine"
