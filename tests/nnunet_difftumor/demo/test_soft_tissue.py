from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_difftumor.ct.datasets import load_raw_dataset
from nnunet_difftumor.ct.reading import read_ct, read_labels
from nnunet_difftumor.demo.soft_tissue import make_cross_validation_dataset, make_real_dataset, tumor_free_slices
from nnunet_difftumor.errors import DatasetError, OutputExistsError

AFFINE = np.array([[-1.0, 0, 0, 40.0], [0, -1.0, 0, 30.0], [0, 0, 3.0, -100.0], [0, 0, 0, 1]])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Four small scans of 40 slices; the tumour of number n starts at slice 14 + n."""
    folder = tmp_path / "real" / "sts"
    folder.mkdir(parents=True)
    for number, case in enumerate(("STS_001", "STS_002", "STS_003", "STS_031")):
        rng = np.random.default_rng(number)
        image = rng.integers(-120, 150, size=(20, 22, 40)).astype(np.int16)
        labels = np.zeros(image.shape, np.uint8)
        labels[4:16, 4:16] = 1
        labels[8:12, 8:12, 14 + number : 30] = 2
        for name, array in (("ct", image), ("label", labels)):
            nibabel.save(nibabel.Nifti1Image(array, AFFINE), folder / f"{case}_{name}.nii.gz")
    return tmp_path / "real"


def test_the_data_set_is_one_of_nnunet_with_a_split(tmp_path: Path, source: Path) -> None:
    made = make_real_dataset(source, tmp_path / "raw", healthy_count=2)
    dataset = load_raw_dataset(made.folder)
    identifiers = {case.identifier for case in dataset.cases}
    assert identifiers == {*made.folds[0].train, *made.folds[0].val}
    assert made.folds[0].val == ("STS_031",)
    assert made.healthy == ("STS_002_healthy", "STS_003_healthy")  # the thickest parts
    assert set(made.healthy) <= set(made.folds[0].train)
    assert json.loads((made.folder / "dataset.json").read_text())["numTraining"] == 6


def test_scans_are_copied_voxel_by_voxel(tmp_path: Path, source: Path) -> None:
    made = make_real_dataset(source, tmp_path / "raw")
    original, copy = (
        read_ct(source / "sts" / "STS_031_ct.nii.gz"),
        read_ct(made.folder / "imagesTr/STS_031_0000.nii.gz"),
    )
    assert np.array_equal(original.image_hu, copy.image_hu)
    assert np.allclose(original.geometry.affine, copy.geometry.affine)


def test_healthy_cases_hold_no_tumour_and_lie_where_they_were(tmp_path: Path, source: Path) -> None:
    made = make_real_dataset(source, tmp_path / "raw")
    for case in made.healthy:
        labels, geometry = read_labels(made.folder / "labelsTr" / f"{case}.nii.gz")
        whole, _ = read_labels(source / "sts" / f"{case.removesuffix('_healthy')}_label.nii.gz")
        start = round((geometry.affine[2, 3] + 100.0) / 3.0)
        part = slice(start, start + labels.shape[0])
        assert set(np.unique(labels)) == {0, 1}
        assert labels.shape[0] >= 12
        assert np.array_equal(labels, whole[part])
        tumor = np.flatnonzero((whole == 2).any(axis=(1, 2)))
        distance = min(abs(t - s) for t in tumor for s in range(part.start, part.stop))
        assert distance * 3.0 >= 5.0


def test_runs_that_are_too_thin_or_empty_are_no_healthy_case() -> None:
    labels = np.ones((30, 5, 5), np.int16)
    labels[11:25] = 2
    assert tumor_free_slices(labels, (3.0, 1.0, 1.0)) is None
    labels[11:14] = 1
    assert tumor_free_slices(labels, (3.0, 1.0, 1.0)) == (0, 13)
    labels[:14] = 0
    assert tumor_free_slices(labels, (3.0, 1.0, 1.0)) is None


def test_wrong_use_is_refused(tmp_path: Path, source: Path) -> None:
    with pytest.raises(DatasetError, match="STS_001 would train and validate"):
        make_real_dataset(source, tmp_path / "raw", validation=("STS_001",))
    with pytest.raises(DatasetError, match="DIFFTUMOR_REAL_CT"):
        make_real_dataset(tmp_path, tmp_path / "raw")
    make_real_dataset(source, tmp_path / "raw")
    with pytest.raises(OutputExistsError):
        make_real_dataset(source, tmp_path / "raw")


REAL = Path(os.environ.get("DIFFTUMOR_REAL_CT", Path(__file__).parents[4] / "shared" / "data"))


@pytest.mark.real
@pytest.mark.skipif(not (REAL / "sts").is_dir(), reason="DIFFTUMOR_REAL_CT names no folder with sts/")
def test_no_slice_of_a_validation_scan_is_in_a_healthy_case(tmp_path: Path) -> None:
    made = make_real_dataset(REAL, tmp_path, training=("STS_002", "STS_019"), validation=("STS_032",), healthy_count=2)
    slices = {
        s.tobytes()
        for case in made.folds[0].val
        for s in read_ct(made.folder / f"imagesTr/{case}_0000.nii.gz").image_hu
    }
    assert made.healthy == ("STS_002_healthy", "STS_019_healthy")
    for case in made.folds[0].train:
        assert not slices & {s.tobytes() for s in read_ct(made.folder / f"imagesTr/{case}_0000.nii.gz").image_hu}


def test_folds_of_all_cases_share_no_patient_and_keep_healthy_parts_out_of_validation(
    tmp_path: Path, source: Path
) -> None:
    made = make_cross_validation_dataset(source, tmp_path / "raw", folds=2)

    def patients(cases: Sequence[str]) -> set[str]:
        return {case.removesuffix("_healthy") for case in cases}

    everyone = patients([case for fold in made.folds for case in fold.val])
    assert sum(len(fold.val) for fold in made.folds) == len(everyone) > 2
    for fold in made.folds:
        assert not patients(fold.train) & patients(fold.val)
        assert patients(fold.train) | patients(fold.val) == everyone
        assert not set(fold.val) & set(made.healthy)
        expected = {case for case in made.healthy if case.removesuffix("_healthy") in fold.train}
        assert expected == set(fold.train) & set(made.healthy)
    assert made.healthy
