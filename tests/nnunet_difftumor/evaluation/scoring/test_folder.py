"""`difftumor score` on folders: tables, summary, curves, broken cases, nothing half-written."""

import errno
import json
import math
import os
import shutil
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from nnunet_difftumor.cli import main
from nnunet_difftumor.errors import DatasetError, DiffTumorError, OutputExistsError
from nnunet_difftumor.evaluation.scoring import run as scoring_run
from nnunet_difftumor.evaluation.scoring.case import OrganFilter
from nnunet_difftumor.evaluation.scoring.curves import (
    average_precision,
    froc_curve,
    patient_curve,
    sensitivity_at,
)
from nnunet_difftumor.evaluation.scoring.run import ScoringRequest, score_folders
from nnunet_difftumor.evaluation.scoring.tables import new_output_folder, read_scores
from nnunet_difftumor.evaluation.statistics.intervals import wilson_interval

SHARED_MEMORY = Path("/dev/shm")
SHAPE = (10, 40, 40)
LABELS = {"background": 0, "liver": 1, "tumor": 2}
ORGAN = np.s_[1:9, 2:30, 2:30]
SMALL = np.s_[3:6, 5:8, 5:8]  # 27 mm3, diameter 3.7 mm
LARGE = np.s_[2:8, 12:28, 12:28]  # 1536 mm3, diameter 14.3 mm; 22 mm in a slice
OUTSIDE = np.s_[3:6, 34:37, 34:37]
CASE_COLUMNS = (
    "case label is_healthy dice nsd_1mm nsd_2mm reference_ml predicted_ml reference_tumors detected_tumors "
    "touched_tumors predicted_tumors false_positives panoptic_quality patient_score"
).split()
TUMOR_COLUMNS = (
    "case label tumor volume_mm3 equivalent_diameter_mm axial_diameter_mm size_bin detected touched iou dice score"
).split()
PREDICTION_COLUMNS = "case label component volume_mm3 matched_tumor iou score touches_tumor".split()


def save(path, **boxes):
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[ORGAN] = 1
    for box in boxes.values():
        labels[box] = 2
    nibabel.save(nibabel.Nifti1Image(labels.T, np.eye(4)), path)
    return labels


@pytest.fixture
def folders(tmp_path):
    """Five cases: both tumours found, one of two found, missed, healthy and clear, healthy with a false alarm."""
    cases = {
        "both": ({"small": SMALL, "large": LARGE}, {"small": SMALL, "large": LARGE}),
        "one": ({"small": SMALL, "large": LARGE}, {"large": LARGE}),
        "missed": ({"small": SMALL}, {}),
        "clear": ({}, {}),
        "false": ({}, {"outside": OUTSIDE}),
    }
    for folder in ("reference", "prediction"):
        (tmp_path / folder).mkdir()
    for case, (truth, found) in cases.items():
        save(tmp_path / "reference" / f"{case}.nii.gz", **truth)
        predicted = save(tmp_path / "prediction" / f"{case}.nii.gz", **found)
        tumor = np.where(predicted == 2, 0.8, 0.1)
        tumor[predicted == 2] += np.linspace(0, 0.1, int((predicted == 2).sum()))
        probabilities = np.stack([0.9 - tumor, np.full(SHAPE, 0.1), tumor])
        np.savez_compressed(tmp_path / "prediction" / f"{case}.npz", probabilities=probabilities.astype(np.float32))
    options = {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(options))
    return tmp_path


def request(folders, **others):
    names = {"reference": folders / "reference", "prediction": folders / "prediction"}
    return ScoringRequest(**{**names, "labels": folders / "dataset.json", **others})


def words(folders, *others):
    names = ("--reference", folders / "reference", "--prediction", folders / "prediction")
    paths = (*names, "--labels", folders / "dataset.json", "--output", folders / "out", "--workers", "1")
    return ["score", *map(str, paths), *others]


def read_summary(folder):
    return json.loads((folder / "summary.json").read_text())


def read_table(path):
    return pd.read_csv(path, dtype={"case": str}, keep_default_na=False, na_values=[""])


@pytest.mark.parametrize(
    "given",
    [["-d", "7"], ["-d", "7", "--reference", "labelsTs"], ["--reference", "raw/Dataset007_Liver/labelsTs"]],
    ids=["of the training", "of the test set", "a folder"],
)
def test_reference_and_labels_are_found_in_the_data_set(folders, monkeypatch, given, capsys):
    dataset = folders / "raw" / "Dataset007_Liver"
    dataset.mkdir(parents=True)
    for name in ("labelsTr", "labelsTs"):
        (dataset / name).symlink_to(folders / "reference")
    (folders / "dataset.json").rename(dataset / "dataset.json")
    for name in ("raw", "preprocessed"):
        (folders / name).mkdir(exist_ok=True)
        monkeypatch.setenv(f"nnUNet_{name}", str(folders / name))
    monkeypatch.chdir(folders)
    assert main(["score", *given, "--prediction", "prediction", "--output", "out", "--workers", "1"]) == 0
    assert read_summary(folders / "out")["cases"] == 5


def test_a_reference_that_is_not_given_is_asked_for(folders, capsys):
    assert main(["score", "--prediction", str(folders), "--output", str(folders / "out")]) == 1
    assert "Give -d ID, or --reference DIR" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- tables and summary


def test_summary_of_a_folder_by_hand(folders):
    summary = score_folders(request(folders), folders / "out").summary
    tumor = summary["labels"]["tumor"]
    assert summary["cases"] == 5
    assert (tumor["tumors"], tumor["detected"], tumor["touched"], tumor["predicted_tumors"]) == (5, 3, 3, 4)
    assert tumor["sensitivity"]["value"] == pytest.approx(3 / 5)
    assert tumor["false_positives_per_case"] == pytest.approx(1 / 5)
    assert tumor["precision"]["value"] == pytest.approx(3 / 4)
    assert tumor["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert tumor["panoptic_quality"] == pytest.approx(3 / (3 + 0.5 * 1 + 0.5 * 2))
    one = 2 * 1536 / (2 * 1536 + 27)
    assert tumor["dice_mean"] == pytest.approx((1 + one + 0 + 0) / 4)  # the clear scan has no Dice
    assert tumor["dice_cases"] == 4
    assert tumor["dice_mean_with_reference"] == pytest.approx((1 + one + 0) / 3)
    assert tumor["dice_mean_both_empty_as_1"] == pytest.approx((1 + one + 0 + 1 + 0) / 5)
    assert {name: row["tumors"] for name, row in tumor["by_equivalent_diameter"].items()} == {
        "<10 mm": 3,
        "10-20 mm": 2,
        "20-50 mm": 0,
        ">=50 mm": 0,
    }
    assert tumor["by_axial_diameter"]["20-50 mm"]["detected"] == 2
    assert tumor["by_equivalent_diameter"]["<10 mm"]["sensitivity"]["value"] == pytest.approx(1 / 3)
    assert tumor["by_equivalent_diameter"][">=50 mm"]["sensitivity"]["value"] is None
    assert tumor["healthy"]["scans"] == 2
    assert tumor["healthy"]["specificity"]["value"] == 0.5
    assert tumor["healthy"]["false_positives_per_scan"] == 0.5
    assert tumor["froc"] is tumor["patient"] is None
    liver = summary["labels"]["liver"]
    assert not liver["is_tumor"]
    assert "tumors" not in liver


def test_tables_can_be_read_again(folders):
    result = score_folders(request(folders, probabilities=folders / "prediction"), folders / "out")
    cases, tumors, predictions = (
        read_table(folders / "out" / name) for name in ("cases.csv", "tumors.csv", "predictions.csv")
    )
    assert list(cases.columns) == CASE_COLUMNS
    assert list(tumors.columns) == TUMOR_COLUMNS
    assert list(predictions.columns) == PREDICTION_COLUMNS
    assert read_summary(folders / "out") == json.loads(json.dumps(result.summary))
    cases = cases.set_index(["case", "label"])
    assert cases.loc[("false", "tumor"), "is_healthy"]
    assert cases.loc[("one", "tumor"), "reference_tumors"] == 2
    assert pd.isna(cases.loc[("one", "liver"), "reference_tumors"])
    assert pd.isna(cases.loc[("clear", "tumor"), "dice"])
    assert cases.loc[("false", "tumor"), "patient_score"] == pytest.approx(0.9)
    assert tumors["detected"].sum() == 3
    tumors = tumors.set_index(["case", "tumor"])
    assert tumors.loc[("both", 1), "volume_mm3"] == 1536
    assert tumors.loc[("both", 1), "axial_diameter_mm"] == pytest.approx(math.hypot(16, 15), rel=1e-6)
    assert tumors.loc[("both", 1), "size_bin"] == "10-20 mm"
    assert not tumors.loc[("one", 2), "detected"]
    assert predictions[predictions["case"] == "false"]["matched_tumor"].isna().all()
    assert not (folders / "out" / "errors.csv").exists()


def test_identifiers_stay_as_they_are_written(folders):
    for folder in ("reference", "prediction"):
        for old, new in (("clear", "007"), ("false", "NA")):
            os.rename(folders / folder / f"{old}.nii.gz", folders / folder / f"{new}.nii.gz")
    score_folders(request(folders), folders / "out")
    assert set(read_table(folders / "out" / "cases.csv")["case"]) == {"007", "NA", "both", "missed", "one"}


def test_curves_with_probabilities(folders):
    summary = score_folders(request(folders, probabilities=folders / "prediction"), folders / "out").summary
    tumor = summary["labels"]["tumor"]
    # patients: 0.9 for the three with predictions, one of them healthy; 0.1 for the two without, one of them healthy
    assert tumor["patient"]["auroc"]["value"] == pytest.approx((2 * 0.5 + 2 * 1 + 0.5) / 6)
    assert (tumor["patient"]["with_tumor"], tumor["patient"]["healthy"]) == (3, 2)
    assert tumor["froc"]["last"] == {"false_positives_per_case": 0.2, "sensitivity": 0.6}
    specificity = pd.read_csv(folders / "out" / "specificity.csv")
    assert specificity["smallest_volume_mm3"].tolist() == [math.inf, 1536, 27]
    assert specificity["specificity"].tolist() == [1, 1, 0.5]
    assert specificity["sensitivity"].tolist() == pytest.approx([0, 2 / 3, 2 / 3])
    froc = pd.read_csv(folders / "out" / "froc.csv")
    assert froc["false_positives_per_case"].iloc[-1] == 0.2
    assert (folders / "out" / "roc.csv").is_file()


def test_specks_and_ignored_scans_are_in_neither_group_of_patients(folders):
    save(folders / "reference" / "clear.nii.gz", speck=np.s_[3, 3, 3:6])
    summary = score_folders(request(folders, probabilities=folders / "prediction"), folders / "out").summary
    tumor = summary["labels"]["tumor"]
    assert (tumor["patient"]["with_tumor"], tumor["patient"]["healthy"], tumor["healthy"]["scans"]) == (3, 1, 1)


def test_without_a_tumor_what_needs_one_is_none(folders):
    for case in ("both", "one", "missed"):
        save(folders / "reference" / f"{case}.nii.gz")
    score_folders(request(folders, probabilities=folders / "prediction"), folders / "out")
    tumor = read_summary(folders / "out")["labels"]["tumor"]
    assert set(tumor["froc"]["sensitivity_at"].values()) == {None}
    assert tumor["froc"]["mean"] is tumor["average_precision"] is tumor["patient"]["auroc"]["value"] is None
    assert tumor["sensitivity"] == {"value": None, "low": None, "high": None}
    assert (tumor["tumors"], tumor["false_positives"], tumor["healthy"]["scans"]) == (0, 4, 5)


def test_the_organ_filter_is_reported_beside_the_unfiltered_scores(folders):
    score_folders(request(folders, organ_filter=OrganFilter("reference")), folders / "out")
    plain, filtered = read_summary(folders / "out"), read_summary(folders / "out" / "organ_filter")
    assert plain["labels"]["tumor"]["false_positives"] == 1
    assert plain["organ_filter"] is None
    assert filtered["labels"]["tumor"]["false_positives"] == 0
    assert filtered["organ_filter"] == "reference"
    assert filtered["labels"]["tumor"]["detected"] == 3


def test_organ_masks_of_a_folder(folders):
    (folders / "organs").mkdir()
    for case in ("both", "one", "missed", "clear", "false"):
        save(folders / "organs" / f"{case}.nii.gz")
    result = score_folders(request(folders, organ_filter=OrganFilter(str(folders / "organs"))), folders / "out")
    assert sum(case.of_label("tumor").false_positives for case in result.filtered) == 0
    (folders / "organs" / "one.nii.gz").unlink()
    again = score_folders(
        request(folders, organ_filter=OrganFilter(str(folders / "organs"))), folders / "out", overwrite=True
    )
    assert [(error.case, error.error) for error in again.errors] == [("one", "DatasetError")]


# ------------------------------------------------------------------------------------------------------ broken cases


def test_a_corrupt_case_is_reported_and_the_rest_finish(folders, capsys):
    whole = (folders / "prediction" / "one.nii.gz").read_bytes()
    (folders / "prediction" / "one.nii.gz").write_bytes(whole[: len(whole) // 2])
    nibabel.save(
        nibabel.Nifti1Image(np.zeros(SHAPE[::-1], np.uint8), np.diag([2, 2, 2, 1])),
        folders / "prediction" / "missed.nii.gz",
    )
    (folders / "prediction" / "clear.nii.gz").unlink()
    save(folders / "prediction" / "stranger.nii.gz")
    assert main(words(folders)) == 1
    errors = read_table(folders / "out" / "errors.csv")
    assert dict(zip(errors["case"], errors["error"], strict=True)) == {
        "clear": "DatasetError",
        "missed": "GeometryMismatchError",
        "one": "CorruptImageError",
        "stranger": "DatasetError",
    }
    messages = errors.set_index("case")["message"]
    assert "has no prediction" in messages["clear"]
    assert "has no reference" in messages["stranger"]
    assert set(read_table(folders / "out" / "cases.csv")["case"]) == {"both", "false"}
    summary = read_summary(folders / "out")
    assert summary["failed"] == ["clear", "missed", "one", "stranger"]
    assert summary["without_reference"] == ["stranger"]
    assert "4 cases could not be scored" in capsys.readouterr().out


def test_all_cases_corrupt_still_says_why(folders):
    for path in (folders / "prediction").glob("*.nii.gz"):
        path.write_bytes(b"nothing")
    assert main(words(folders)) == 1
    assert len(read_table(folders / "out" / "errors.csv")) == 5
    assert read_table(folders / "out" / "cases.csv").empty
    assert read_summary(folders / "out")["labels"] == {}


def test_missing_probabilities_are_an_error_of_the_case(folders):
    (folders / "prediction" / "one.npz").unlink()
    result = score_folders(request(folders, probabilities=folders / "prediction"), folders / "out")
    assert [error.case for error in result.errors] == ["one"]
    assert "save_probabilities" in result.errors[0].message


def test_only_predicted_leaves_out_the_others_and_lists_them(folders):
    (folders / "prediction" / "clear.nii.gz").unlink()
    assert main(words(folders, "--only-predicted")) == 0
    summary = read_summary(folders / "out")
    assert summary["not_predicted"] == ["clear"]
    assert summary["cases"] == 4


def test_several_processes_give_the_same(folders):
    alone = score_folders(request(folders, probabilities=folders / "prediction"), folders / "alone")
    side_by_side = score_folders(request(folders, probabilities=folders / "prediction"), folders / "out", workers=2)
    assert repr(alone.cases) == repr(side_by_side.cases)
    for name in ("cases.csv", "tumors.csv", "predictions.csv", "summary.json", "froc.csv"):
        assert (folders / "alone" / name).read_bytes() == (folders / "out" / name).read_bytes()


def test_a_process_that_dies_is_named(folders, monkeypatch):
    class Killer:
        def __reduce__(self):
            return os._exit, (1,)  # what the other process does when it unpickles this

        def __call__(self, *_, **__):
            raise AssertionError("called in this process")

    monkeypatch.setattr(scoring_run, "_run_job", Killer())
    with pytest.raises(DiffTumorError, match="--workers 1"):
        score_folders(request(folders), folders / "new" / "out", workers=2)
    assert not (folders / "new").exists()


# ---------------------------------------------------------------------------------------------------- output folder


def test_results_are_not_overwritten_without_being_asked(folders):
    assert main(words(folders)) == 0
    before = (folders / "out" / "cases.csv").read_bytes()
    with pytest.raises(OutputExistsError, match="--overwrite"):
        score_folders(request(folders), folders / "out")
    assert (folders / "out" / "cases.csv").read_bytes() == before
    (folders / "out" / "notes.txt").write_text("mine")
    (folders / "prediction" / "one.nii.gz").write_bytes(b"nothing")
    assert main(words(folders, "--overwrite")) == 1
    assert (folders / "out" / "errors.csv").is_file()
    save(folders / "prediction" / "one.nii.gz", large=LARGE)
    assert main(words(folders, "--overwrite")) == 0
    assert not (folders / "out" / "errors.csv").exists()  # of the run before
    assert (folders / "out" / "notes.txt").read_text() == "mine"


def test_nothing_is_half_written(folders, monkeypatch):
    def no_space(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("nnunet_difftumor.evaluation.scoring.summary.write_json", no_space)
    assert main(words(folders)) == 1
    assert sorted(path.name for path in folders.iterdir()) == ["dataset.json", "prediction", "reference"]


def files_of(folder):
    return {path.name for path in folder.iterdir()}


RESULTS = {"cases.csv", "tumors.csv", "predictions.csv", "specificity.csv", "summary.json"}


def test_the_output_may_be_the_folder_one_is_in(folders, monkeypatch):
    (folders / "here").mkdir()
    monkeypatch.chdir(folders / "here")
    score_folders(request(folders), Path("."))
    assert files_of(folders / "here") == RESULTS


def test_the_output_may_be_a_link_to_another_file_system(folders):
    if not SHARED_MEMORY.is_dir() or SHARED_MEMORY.stat().st_dev == folders.stat().st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as elsewhere:
        (folders / "out").symlink_to(elsewhere)
        score_folders(request(folders), folders / "out")
        assert files_of(Path(elsewhere)) == RESULTS
    assert (folders / "out").is_symlink()


@pytest.mark.parametrize("is_link", [False, True])
def test_a_folder_that_exists_is_written_from_within(folders, is_link):
    """So it may be a mount point, or lie in a folder that nothing can be written to."""
    place = folders / "place"
    place.mkdir()
    if is_link:
        (folders / "link").symlink_to(place)
    with new_output_folder(folders / "link" if is_link else place) as temporary:
        assert temporary.parent == place
        (temporary / "cases.csv").write_text("made")
    assert files_of(place) == {"cases.csv"}


def test_a_link_to_a_folder_that_does_not_exist_makes_it(folders):
    (folders / "out").symlink_to(folders / "disk" / "scores")
    score_folders(request(folders), folders / "out")
    assert files_of(folders / "disk" / "scores") == RESULTS
    assert files_of(folders / "disk") == {"scores"}


def test_an_output_that_cannot_be_written_to_is_named_before_anything_is_scored(folders, monkeypatch):
    def score(*_):
        raise AssertionError("scored")

    monkeypatch.setattr("nnunet_difftumor.evaluation.scoring.run.run_jobs", score)
    with pytest.raises(DiffTumorError, match=r"--output .*dataset\.json/out cannot be written to: Not a directory"):
        score_folders(request(folders), folders / "dataset.json" / "out")
    mkdir = Path.mkdir

    def refuse(path, *arguments, **options):
        if path.parent == folders / "readonly":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        mkdir(path, *arguments, **options)

    mkdir(folders / "readonly")
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DiffTumorError, match=r"--output .*readonly/out cannot be written to: Permission denied"):
        score_folders(request(folders), folders / "readonly" / "out")


def test_results_that_came_in_the_meantime_are_not_overwritten(folders):
    def write_beside_another():
        with new_output_folder(folders / "out") as temporary:
            (temporary / "cases.csv").write_text("ours")
            (folders / "out").mkdir()
            (folders / "out" / "cases.csv").write_text("theirs")

    with pytest.raises(OutputExistsError, match="--overwrite"):
        write_beside_another()
    assert files_of(folders / "out") == {"cases.csv"}
    assert (folders / "out" / "cases.csv").read_text() == "theirs"
    assert files_of(folders) == {"dataset.json", "prediction", "reference", "out"}


def test_folders_that_hold_nothing_are_named(folders):
    (folders / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"--prediction .*empty holds no label map"):
        score_folders(request(folders, prediction=folders / "empty"), folders / "out")
    (folders / "reference" / "one.nrrd").write_bytes(b"")
    with pytest.raises(DatasetError, match="two label maps of one"):
        score_folders(request(folders), folders / "out")


def test_probability_images_in_a_folder_of_their_own(folders):
    (folders / "p").mkdir()
    for case in ("both", "one", "missed", "clear", "false"):
        values = np.full(SHAPE, 0.25, dtype=np.float32)
        nibabel.save(nibabel.Nifti1Image(values.T, np.eye(4)), folders / "p" / f"{case}.nii.gz")
    result = score_folders(request(folders, probabilities=folders / "p"), folders / "out")
    assert not result.errors
    assert {case.of_label("tumor").patient_score for case in result.cases} == {0.25}
    same = score_folders(
        request(folders, probabilities=folders / "prediction", prediction=folders / "p"),
        folders / "out",
        overwrite=True,
    )
    assert len(same.errors) == 5  # probability maps are no label maps


def test_probability_images_beside_the_predictions_are_no_predictions(folders):
    for path in (folders / "prediction").glob("*.npz"):
        path.unlink()
    for case in ("both", "one", "missed", "clear", "false"):
        values = np.full(SHAPE, 0.25, dtype=np.float32)
        image = nibabel.Nifti1Image(values.T, np.eye(4))
        nibabel.save(image, folders / "prediction" / f"{case}_tumor.nii.gz")
    assert main(words(folders, "--probabilities", str(folders / "prediction"))) == 0
    cases = read_table(folders / "out" / "cases.csv")
    assert set(cases["case"]) == {"both", "one", "missed", "clear", "false"}
    assert set(cases.query("label == 'tumor'")["patient_score"]) == {0.25}


def test_a_case_that_is_named_like_a_probability_image_stays_a_case(folders):
    for folder in ("reference", "prediction"):
        shutil.copy(folders / folder / "clear.nii.gz", folders / folder / "both_tumor.nii.gz")
    shutil.copy(folders / "prediction" / "clear.npz", folders / "prediction" / "both_tumor.npz")
    result = score_folders(request(folders, probabilities=folders / "prediction"), folders / "out")
    assert not result.errors
    assert "both_tumor" in {case.case for case in result.cases}


# ----------------------------------------------------------------------------------------------------------- curves


def test_wilson_interval_against_the_closed_form():
    z, share, trials = 1.959963984540054, 20 / 31, 31
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    interval = wilson_interval(20, 31)
    assert (interval.value, interval.low, interval.high) == pytest.approx((share, centre - half, centre + half))
    assert math.isnan(wilson_interval(0, 0).value)


def test_free_response_curve_by_hand():
    curve = froc_curve([0.9, 0.7, 0.7], [0.8, 0.7, 0.2], tumors=4, cases=2)
    assert curve["smallest_score"].tolist() == [math.inf, 0.9, 0.8, 0.7, 0.2]
    assert curve["sensitivity"].tolist() == [0, 0.25, 0.25, 0.75, 0.75]
    assert curve["false_positives_per_case"].tolist() == [0, 0, 0.5, 1.0, 1.5]
    assert [sensitivity_at(curve, rate) for rate in (0.125, 0.5, 1.0, 8.0)] == [0.25, 0.25, 0.75, 0.75]
    assert average_precision(curve) == pytest.approx(0.25 * 1 + 0.5 * 3 / 5)


def test_free_response_curve_without_tumors_or_predictions():
    assert math.isnan(average_precision(froc_curve([], [0.5], tumors=0, cases=1)))
    nothing = froc_curve([], [], tumors=3, cases=2)
    assert (average_precision(nothing), sensitivity_at(nothing, 8.0)) == (0.0, 0.0)


def test_patient_curve_by_hand():
    curve = patient_curve([5.0, 0.0], [3.0, 0.0, 0.0], lowest=0.0)
    assert curve["threshold"].tolist() == [math.inf, 5.0, 3.0]
    assert curve["sensitivity"].tolist() == [0, 0.5, 0.5]
    assert curve["specificity"].tolist() == pytest.approx([1, 1, 2 / 3])
    assert np.isnan(patient_curve([1.0], [])["specificity"]).all()


# ---------------------------------------------------------------------------------------------------- reading again


def test_a_table_of_scores_is_read_by_the_types_of_its_records(folders):
    score_folders(request(folders), folders / "out")
    cases = read_scores(folders / "out" / "cases.csv", ["label", "case", "is_healthy", "reference_tumors", "dice"])
    assert list(cases.columns) == ["label", "case", "is_healthy", "reference_tumors", "dice"]
    cases = cases.set_index(["case", "label"])
    assert cases["is_healthy"].dtype == bool
    assert cases.loc[("both", "tumor"), "reference_tumors"] == 2.0
    assert np.isnan(cases.loc[("both", "liver"), "reference_tumors"])
    assert cases.loc[("missed", "tumor"), "dice"] == 0.0
    tumors = read_scores(folders / "out" / "tumors.csv", ["case", "tumor", "detected"])
    assert tumors["tumor"].tolist() == ["1", "2", "1", "1", "2"]  # names, not amounts
    assert tumors["detected"].sum() == 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("missed,tumor,False,0,", "missed,tumor,no,0,", "is_healthy must be True or False, got 'no'"),
        ("missed,tumor,False,0,", "missed,tumor,False,zero,", "dice must be a number, got 'zero'"),
        (",dice,", ",overlap,", "lacks the columns dice"),
    ],
)
def test_a_table_that_is_not_as_it_was_written_is_named(folders, old, new, message):
    score_folders(request(folders), folders / "out")
    path = folders / "out" / "cases.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(DatasetError, match=rf"cases\.csv.*{message}"):
        read_scores(path, ["case", "label", "is_healthy", "dice"])
