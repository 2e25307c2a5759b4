from __future__ import annotations

import json
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion, distance_transform_edt
from scipy.ndimage import label as connected_components

from nnunet_difftumor.cli import main
from nnunet_difftumor.errors import ConfigurationError, OutputExistsError
from nnunet_difftumor.phantom.acquisition import ScannedPatient
from nnunet_difftumor.phantom.anatomy import Anatomy
from nnunet_difftumor.phantom.dataset import make_patient, write_phantom_dataset
from nnunet_difftumor.phantom.lesions import draw_lesions
from nnunet_difftumor.phantom.styles import HOSPITALS, ORGANS, TUMOR_STYLES, PhantomStyle

LIVER_LABEL, TUMOR_LABEL = 1, 2
THREE = PhantomStyle.named(organs=list(ORGANS), hospitals=["standard"], size="small")
EARLY = PhantomStyle.named(organs=["liver"], hospitals=["standard"], size="small", tumors="early")


@pytest.fixture(scope="module")
def patient() -> ScannedPatient:
    return make_patient(0, 4, is_healthy=False)


@pytest.fixture(scope="module")
def healthy() -> ScannedPatient:
    return make_patient(0, 0, is_healthy=True)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "Dataset901_Phantom"
    assert main(["phantom", "--output", str(folder), "--cases", "2", "--healthy", "1"]) == 0
    return folder


def test_same_seed_and_number_give_the_same_voxels(patient: ScannedPatient) -> None:
    again = make_patient(0, 4, is_healthy=False)
    np.testing.assert_array_equal(again.image_hu, patient.image_hu)
    np.testing.assert_array_equal(again.label, patient.label)


def test_a_seed_gives_the_patient_that_it_gave_in_the_first_version(patient: ScannedPatient) -> None:
    assert patient.image_hu.shape == (34, 88, 112)
    tumor_voxels, total_hu = int((patient.label == TUMOR_LABEL).sum()), int(patient.image_hu.sum(dtype=np.int64))
    # to the bit on one machine; a processor may round a few voxels otherwise
    assert abs(tumor_voxels - 964) <= 1
    assert abs(total_hu + 99_428_137) <= 100


def test_early_tumors_are_small_and_can_be_seen() -> None:
    rng = np.random.default_rng(0)
    lesions = []
    for _ in range(20):
        lesions += draw_lesions(Anatomy(rng), ORGANS["liver"], TUMOR_STYLES["early"], 1, (-70.0, 70.0), rng)
    radii_mm = [lesion.spec.radius_mm for lesion in lesions]
    contrasts_hu = [lesion.spec.contrast_hu for lesion in lesions]
    assert len(lesions) == 20
    assert 5.0 <= min(radii_mm) < 6.0
    assert 10.0 < max(radii_mm) <= 12.0
    assert -78.0 <= min(contrasts_hu) < max(contrasts_hu) <= -27.0
    assert np.std([lesion.edge_mm for lesion in lesions]) > 0.3
    assert np.std([lesion.core_hu for lesion in lesions]) > 3.0


def test_early_tumors_change_nothing_in_healthy_patients(healthy: ScannedPatient) -> None:
    early = make_patient(0, 0, is_healthy=True, style=EARLY)
    np.testing.assert_array_equal(early.image_hu, healthy.image_hu)
    np.testing.assert_array_equal(early.label, healthy.label)


def test_early_tumors_are_the_same_with_the_same_seed(patient: ScannedPatient) -> None:
    first, again = (make_patient(0, 4, is_healthy=False, style=EARLY) for _ in range(2))
    np.testing.assert_array_equal(first.image_hu, again.image_hu)
    np.testing.assert_array_equal(first.label, again.label)
    assert first.image_hu.shape == patient.image_hu.shape
    assert 0 < (first.label == TUMOR_LABEL).sum() < (patient.label == TUMOR_LABEL).sum()


def test_patients_differ_in_grid_and_anatomy(patient: ScannedPatient, healthy: ScannedPatient) -> None:
    assert patient.spacing_mm != healthy.spacing_mm
    assert patient.image_hu.shape != healthy.image_hu.shape


def test_spacing_is_anisotropic_in_the_stated_range(patient: ScannedPatient, healthy: ScannedPatient) -> None:
    for scan in (patient, healthy):
        slice_mm, row_mm, column_mm = scan.spacing_mm
        assert 2.5 <= slice_mm <= 5.0
        assert row_mm == column_mm
        assert 2.1 <= row_mm <= 2.6


def test_tissues_have_the_values_of_a_portal_venous_ct(healthy: ScannedPatient) -> None:
    image = healthy.image_hu
    liver = image[healthy.label == LIVER_LABEL]
    assert 92 <= np.median(liver) <= 130
    assert 8 <= 1.4826 * np.median(np.abs(liver - np.median(liver))) <= 25  # noise and veins
    assert np.median(image[:, 0, 0]) < -950  # air beside the body
    share = {
        "fat": np.mean((image > -140) & (image < -60)),
        "muscle": np.mean((image > 30) & (image < 80)),
        "bone": np.mean(image > 230),
        "lung": np.mean((image > -930) & (image < -700)),
    }
    assert share["fat"] > 0.1
    assert share["muscle"] > 0.05
    assert 0.005 < share["bone"] < 0.1
    assert share["lung"] > 0.01


def test_liver_is_one_organ_of_a_plausible_volume(healthy: ScannedPatient) -> None:
    parts, count = connected_components(healthy.label == LIVER_LABEL)
    sizes = np.bincount(parts.ravel())[1:]
    volume_ml = sizes.max() * np.prod(healthy.spacing_mm) / 1000.0
    assert count >= 1
    assert sizes.max() / sizes.sum() > 0.98
    assert 700 < volume_ml < 2200


def test_liver_lies_on_the_patients_right_in_the_written_file(dataset: Path) -> None:
    label = nib.load(dataset / "labelsTr" / "phantom_tumor_000.nii.gz")
    image = nib.load(dataset / "imagesTr" / "phantom_tumor_000_0000.nii.gz")
    organ = np.argwhere(np.asarray(label.dataobj) > 0).mean(axis=0)
    middle = (np.array(label.shape) - 1) / 2.0
    world_offset = (label.affine[:3, :3] @ (organ - middle))[0]  # +x is the patient's right in NIfTI
    assert world_offset > 20
    np.testing.assert_allclose(image.affine, label.affine)
    assert np.asarray(image.dataobj).dtype == np.int16


def test_tumors_are_darker_than_the_liver_around_them(patient: ScannedPatient) -> None:
    tumor = patient.image_hu[patient.label == TUMOR_LABEL].mean()
    liver = np.median(patient.image_hu[patient.label == LIVER_LABEL])
    assert -75 < tumor - liver < -10


def test_tumor_volume_lies_between_the_drawn_sizes() -> None:
    for index in range(3):
        scan = make_patient(1, index, is_healthy=False)
        volume_mm3 = (scan.label == TUMOR_LABEL).sum() * np.prod(scan.spacing_mm)
        assert 4.0 / 3.0 * np.pi * 10.0**3 < volume_mm3 < scan.tumor_count * 4.0 / 3.0 * np.pi * 20.5**3


def test_healthy_patient_has_a_liver_and_no_tumor(healthy: ScannedPatient) -> None:
    assert set(np.unique(healthy.label)) == {0, LIVER_LABEL}


def test_noise_is_correlated_between_neighbours(healthy: ScannedPatient) -> None:
    air = healthy.image_hu.astype(np.float64)[:, :4, :16]
    assert air.std() < 60
    liver = healthy.label == LIVER_LABEL
    inside = liver[:, :, 1:] & liver[:, :, :-1]
    values = np.clip(healthy.image_hu.astype(np.float64) - np.median(healthy.image_hu[liver]), -40, 40)
    pairs = values[:, :, 1:][inside], values[:, :, :-1][inside]
    assert 0.3 < np.corrcoef(*pairs)[0, 1] < 0.95


def test_a_small_case_takes_a_few_seconds() -> None:
    start = time.process_time()
    make_patient(2, 0, is_healthy=False)
    assert time.process_time() - start < 8.0


def test_dataset_json_describes_what_is_there(dataset: Path) -> None:
    content = json.loads((dataset / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "liver": 1, "tumor": 2}
    assert content["channel_names"] == {"0": "CT"}
    assert content["numTraining"] == len(list((dataset / "imagesTr").iterdir())) == 3
    assert "phantom" in content["description"].lower()


def test_nnunet_accepts_the_data_set(dataset: Path) -> None:
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    verify_dataset_integrity(str(dataset), num_processes=1)


def test_existing_data_set_is_never_overwritten(dataset: Path) -> None:
    before = sorted(path.stat().st_mtime_ns for path in dataset.rglob("*"))
    with pytest.raises(OutputExistsError, match="exists already"):
        next(write_phantom_dataset(dataset, cases=1, healthy=0))
    assert sorted(path.stat().st_mtime_ns for path in dataset.rglob("*")) == before


def test_interrupted_writing_leaves_nothing(tmp_path: Path) -> None:
    written = write_phantom_dataset(tmp_path / "Dataset902_Phantom", cases=0, healthy=2)
    next(written)
    written.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("cases", "healthy", "message"), [(0, 0, "at least one"), (-1, 2, "cases=-1"), (3, -2, "healthy=-2")]
)
def test_wrong_requests_are_refused(tmp_path: Path, cases: int, healthy: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        list(write_phantom_dataset(tmp_path / "out", cases=cases, healthy=healthy))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def three_organs() -> list[ScannedPatient]:
    return [make_patient(0, index, is_healthy=False, style=THREE) for index in range(6)]


def test_each_organ_has_its_own_tumors(three_organs: list[ScannedPatient]) -> None:
    for scan in three_organs:
        assert {1, 3, 5} <= set(np.unique(scan.label))
    found = [{value for value in (2, 4, 6) if (scan.label == value).any()} for scan in three_organs]
    assert all(found)
    assert set.union(*found) == {2, 4, 6}
    for organ, tumor, low, high in ((1, 2, -75, -10), (3, 4, -90, -8), (5, 6, -130, -25)):
        differences = [
            scan.image_hu[scan.label == tumor].mean() - np.median(scan.image_hu[scan.label == organ])
            for scan in three_organs
            if (scan.label == tumor).any()
        ]
        assert all(low < difference < high for difference in differences), (organ, differences)


def test_organs_have_plausible_volumes(three_organs: list[ScannedPatient]) -> None:
    for scan in three_organs:
        voxel_ml = float(np.prod(scan.spacing_mm)) / 1000.0
        pancreas_ml, kidneys_ml = (np.isin(scan.label, part).sum() * voxel_ml for part in ((3, 4), (5, 6)))
        assert 15 < pancreas_ml < 110
        assert 120 < kidneys_ml < 450


def test_kidney_tumors_may_grow_out_of_the_kidney() -> None:
    style = PhantomStyle.named(organs=["kidney"], hospitals=["standard"], size="small")
    outside = []
    for index in range(4):
        with_tumor = make_patient(3, index, is_healthy=False, style=style)
        tumor = with_tumor.label == 2
        kidney = binary_dilation(with_tumor.label == 1, iterations=2)
        outside.append(1.0 - (tumor & kidney).sum() / tumor.sum())
    assert max(outside) > 0.15


@pytest.mark.parametrize("name", HOSPITALS)
def test_hospitals_differ_in_what_they_are_named_for(name: str) -> None:
    style = PhantomStyle.named(organs=["liver"], hospitals=[name], size="small")
    scan = make_patient(0, 0, is_healthy=True, style=style)
    liver = scan.image_hu[scan.label == 1].astype(float)
    inside = scan.label == 1
    step = np.diff(scan.image_hu.astype(float), axis=2)[inside[:, :, 1:] & inside[:, :, :-1]]
    roughness_hu = 1.4826 * np.median(np.abs(step))
    median_hu, slice_mm = np.median(liver), scan.spacing_mm[0]
    phases = {"arterial": (55, 95), "low-dose": (38, 75)}
    low, high = phases.get(name, (90, 130))
    assert low < median_hu < high
    thickness = {"thin-sharp": (1.5, 2.5), "thick-smooth": (4.5, 6.0), "low-dose": (4.0, 5.0)}
    low, high = thickness.get(name, (2.5, 5.0))
    assert low <= slice_mm <= high
    noise = {"thin-sharp": (14, 40), "thick-smooth": (1, 6), "low-dose": (10, 40)}
    low, high = noise.get(name, (5, 17))
    assert low < roughness_hu < high, roughness_hu


def test_a_data_set_names_its_organs_and_hospital(tmp_path: Path) -> None:
    from nnunet_difftumor.ct.label_roles import resolve_label_roles

    folder = tmp_path / "Dataset903_Phantom"
    words = ["--cases", "1", "--healthy", "1", "--organs", "pancreas", "kidney", "--hospital", "thick-smooth"]
    words += ["--tumors", "early"]
    assert main(["phantom", "--output", str(folder), *words]) == 0
    content = json.loads((folder / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "pancreas": 1, "pancreas_tumor": 2, "kidney": 3, "kidney_tumor": 4}
    assert "thick-smooth" in content["description"]
    assert "early tumours" in content["description"]
    assert resolve_label_roles(content["labels"], organ="kidney") == (3, 4)


def test_patients_come_from_several_hospitals_in_turn() -> None:
    both = PhantomStyle.named(organs=["liver"], hospitals=["thick-smooth", "low-dose"], size="small")
    for index, name in enumerate(("thick-smooth", "low-dose", "thick-smooth")):
        alone = PhantomStyle.named(organs=["liver"], hospitals=[name], size="small")
        expected = make_patient(3, index, is_healthy=True, style=alone)
        found = make_patient(3, index, is_healthy=True, style=both)
        assert np.array_equal(found.image_hu, expected.image_hu)


def test_unknown_styles_are_refused() -> None:
    for organs, hospital in ((["spleen"], "standard"), ([], "standard"), (["liver", "liver"], "standard")):
        with pytest.raises(ConfigurationError, match="organs must be"):
            PhantomStyle.named(organs=organs, hospitals=[hospital], size="small")
    with pytest.raises(ConfigurationError, match="tumors must be one of mixed, early, got 'late'"):
        PhantomStyle.named(organs=["liver"], hospitals=["standard"], size="small", tumors="late")
    with pytest.raises(ConfigurationError, match="hospital must be one of standard"):
        PhantomStyle.named(organs=["liver"], hospitals=["mars"], size="small")
    with pytest.raises(ConfigurationError, match="size must be one of small, full, got 'huge'"):
        PhantomStyle.named(organs=["liver"], hospitals=["standard"], size="huge")


def _read_by(edge_offset_mm: float, index: int = 4) -> ScannedPatient:
    style = PhantomStyle.named(
        organs=["liver"], hospitals=["standard"], size="small", tumors="early", edge_offset_mm=edge_offset_mm
    )
    return make_patient(0, index, is_healthy=False, style=style)


def _outer_voxels(mask: np.ndarray) -> np.ndarray:
    return mask & ~binary_erosion(mask)


@pytest.mark.parametrize("edge_offset_mm", [-3.0, 2.0])
def test_readers_draw_other_outlines_in_the_same_image(edge_offset_mm: float) -> None:
    on_the_edge, other = _read_by(0.0), _read_by(edge_offset_mm)
    np.testing.assert_array_equal(other.image_hu, on_the_edge.image_hu)
    seen, drawn = on_the_edge.label == TUMOR_LABEL, other.label == TUMOR_LABEL
    inner, outer = (seen, drawn) if edge_offset_mm < 0 else (drawn, seen)
    assert (inner & ~outer).sum() == 0
    distance_mm = distance_transform_edt(~inner, sampling=on_the_edge.spacing_mm)
    assert np.mean(distance_mm[_outer_voxels(outer)]) == pytest.approx(abs(edge_offset_mm), abs=0.6)


def test_a_very_tight_reader_marks_one_voxel_of_each_tumor() -> None:
    assert (_read_by(5.0, 1).label == TUMOR_LABEL).sum() == 1


def test_an_edge_too_far_off_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "Dataset901_Phantom")
    assert main(["phantom", "--output", folder, "--cases", "1", "--edge-offset-mm", "6"]) == 1
    assert "edge_offset_mm must be from -5 (a generous reader) to 5 (a tight one), got 6" in capsys.readouterr().err


def test_the_description_names_the_reader(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset901_Phantom"
    words = ["--cases", "0", "--healthy", "1", "--edge-offset-mm", "-2.5"]
    assert main(["phantom", "--output", str(folder), *words]) == 0
    text = json.loads((folder / "dataset.json").read_text())["description"]
    assert "tumours visible to 2.5 mm inside their labels" in text
