"""Rules of scoring one case: empty maps, specks, ignored voxels, regions, organ filter, probabilities."""

import json
import math
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nnunet_difftumor.errors import CorruptImageError, DatasetError, GeometryMismatchError, MissingLabelError
from nnunet_difftumor.evaluation.scoring.case import OrganFilter, score_case, score_maps
from nnunet_difftumor.evaluation.scoring.case_maps import (
    CaseFiles,
    CaseMaps,
    ShearedGridError,
    axial_axis,
    read_case_maps,
)
from nnunet_difftumor.evaluation.scoring.rules import ScoringRules
from nnunet_difftumor.evaluation.scoring.scheme import read_label_scheme

PLAIN = {"background": 0, "liver": 1, "tumor": 2}
WITH_IGNORE = {**PLAIN, "ignore": 3}
REGIONS = {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2}
SHAPE = (12, 14, 16)
A = np.s_[2:5, 2:5, 2:5]  # 27 voxels
B = np.s_[7:10, 8:11, 9:12]
FAR = np.s_[9:12, 0:3, 13:16]


@pytest.fixture
def scheme_of(tmp_path):
    def make(labels=PLAIN, options=None, **arguments):
        content = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz", **(options or {})}
        (tmp_path / "dataset.json").write_text(json.dumps(content))
        return read_label_scheme(tmp_path / "dataset.json", **arguments)

    return make


def labels_with(**values):
    """A label map with `value_<n>=[boxes]`, drawn in the order given."""
    labels = np.zeros(SHAPE, dtype=np.int16)
    for name, boxes in values.items():
        for box in boxes:
            labels[box] = int(name.removeprefix("value_"))
    return labels


def maps_of(reference, prediction, spacing_mm=(1.0, 1.0, 1.0), **others):
    return CaseMaps(
        case="case",
        reference=reference,
        prediction=prediction,
        spacing_mm=spacing_mm,
        voxel_mm3=math.prod(spacing_mm),
        axial_axis=0,
        **others,
    )


def tumor_scores(scheme, reference, prediction, name="tumor", **arguments):
    maps = maps_of(reference, prediction, **{key: arguments.pop(key) for key in ("spacing_mm",) if key in arguments})
    return score_maps(maps, scheme, **arguments).of_label(name)


# ------------------------------------------------------------------------------------------------ empty, full, specks


@pytest.mark.parametrize(
    ("truth", "found", "dice", "quality", "counts"),
    [
        ([], [], math.nan, math.nan, (0, 0, 0, 0)),
        ([], [A], 0.0, 0.0, (0, 0, 1, 1)),
        ([A], [], 0.0, 0.0, (1, 0, 0, 0)),
        ([A], [A], 1.0, 1.0, (1, 1, 1, 0)),
        ([A], [B], 0.0, 0.0, (1, 0, 1, 1)),
        ([A, B], [A], 2 / 3, 1 / 1.5, (2, 1, 1, 0)),
    ],
)
def test_empty_and_full_maps(scheme_of, truth, found, dice, quality, counts):
    scores = tumor_scores(scheme_of(), labels_with(value_2=truth), labels_with(value_2=found))
    assert scores.dice == pytest.approx(dice, nan_ok=True)
    assert math.isnan(scores.nsd_1mm) == math.isnan(dice)
    if dice in (0.0, 1.0):
        assert (scores.nsd_1mm, scores.nsd_2mm) == (dice, dice)
    assert scores.panoptic_quality == pytest.approx(quality, nan_ok=True)
    assert (
        len(scores.tumors),
        scores.detected_tumors,
        len(scores.predictions),
        scores.false_positives,
    ) == counts


def test_volumes_and_sizes_are_in_physical_units(scheme_of):
    scores = tumor_scores(
        scheme_of(), labels_with(value_2=[A]), labels_with(value_2=[A, B]), spacing_mm=(5.0, 0.8, 0.5)
    )
    assert scores.reference_ml == pytest.approx(27 * 5 * 0.8 * 0.5 / 1000)
    assert scores.predicted_ml == pytest.approx(2 * scores.reference_ml)
    (tumor,) = scores.tumors
    assert tumor.volume_mm3 == pytest.approx(54.0)
    assert tumor.axial_diameter_mm == pytest.approx(math.hypot(3 * 0.8, 2 * 0.5))
    assert tumor.size_bin == "<10 mm"
    assert tumor.iou == tumor.dice == 1.0


def test_a_speck_in_the_reference_is_neither_missed_nor_found(scheme_of):
    speck = np.s_[7, 8, 9:12]
    reference = labels_with(value_2=[A, speck])
    on_it = tumor_scores(scheme_of(), reference, labels_with(value_2=[A, B]))
    assert len(on_it.tumors) == 1
    assert len(on_it.predictions) == 1  # the prediction on the speck counts for nothing
    assert on_it.false_positives == 0
    assert on_it.dice < 1.0  # Dice is of voxels, specks included, as nnU-Net's
    missed = tumor_scores(scheme_of(), reference, labels_with(value_2=[A]))
    assert (missed.detected_tumors, missed.panoptic_quality) == (1, 1.0)


def test_a_predicted_speck_is_neither_hit_nor_false_alarm(scheme_of):
    inside, outside = np.s_[3, 3, 2:5], np.s_[9, 9, 9:12]
    scores = tumor_scores(scheme_of(), labels_with(value_2=[A]), labels_with(value_2=[inside, outside]))
    assert (len(scores.predictions), scores.touched_tumors, scores.detected_tumors) == (0, 0, 0)
    assert scores.predicted_ml == pytest.approx(6 / 1000)


def test_a_case_with_a_speck_only_is_not_healthy(scheme_of):
    maps = maps_of(labels_with(value_2=[np.s_[3, 3, 3]]), labels_with())
    scores = score_maps(maps, scheme_of())
    assert not scores.is_healthy
    assert scores.of_label("tumor").tumors == ()


def test_detected_needs_overlap_and_touched_a_voxel(scheme_of):
    corner = np.s_[4:7, 4:7, 4:7]  # shares 1 of 53 voxels with A
    scores = tumor_scores(scheme_of(), labels_with(value_2=[A]), labels_with(value_2=[corner]))
    assert (scores.detected_tumors, scores.touched_tumors, scores.false_positives) == (0, 1, 1)
    assert scores.tumors[0].iou == pytest.approx(1 / 53)
    assert scores.tumors[0].dice == pytest.approx(2 / 54)
    assert scores.predictions[0].touches_tumor
    assert scores.predictions[0].matched_tumor is None


# ------------------------------------------------------------------------------------------------------ ignore label


def test_ignored_voxels_are_left_out_of_everything(scheme_of):
    reference = labels_with(value_2=[A], value_3=[B])
    scores = score_maps(maps_of(reference, labels_with(value_2=[A, B])), scheme_of(WITH_IGNORE)).of_label("tumor")
    assert (scores.dice, scores.nsd_1mm, scores.false_positives) == (1.0, 1.0, 0)
    assert scores.predicted_ml == scores.reference_ml


@pytest.mark.parametrize(("ignored_rows", "false_positives"), [(1, 1), (2, 0)])
def test_a_prediction_that_is_half_ignored_is_no_false_alarm(scheme_of, ignored_rows, false_positives):
    found = np.s_[2:6, 2:6, 2:6]
    reference = labels_with(value_3=[np.s_[2 : 2 + ignored_rows, 2:6, 2:6]])
    scores = score_maps(maps_of(reference, labels_with(value_2=[found])), scheme_of(WITH_IGNORE))
    assert scores.of_label("tumor").false_positives == false_positives
    assert not scores.is_healthy  # nobody looked everywhere


# ----------------------------------------------------------------------------------------------------------- labels


def test_labels_and_regions_are_scored_by_their_values(scheme_of):
    scheme = scheme_of(REGIONS)
    reference = labels_with(value_1=[np.s_[0:6, 0:6, 0:6]], value_2=[A], value_3=[B])
    prediction = labels_with(value_1=[np.s_[0:6, 0:6, 0:6]], value_3=[A, B])
    scores = score_maps(maps_of(reference, prediction), scheme)
    assert scores.of_label("kidney").dice == 1.0
    assert scores.of_label("masses").dice == 1.0
    assert scores.of_label("tumor").dice == 0.0
    assert [label.label for label in scores.labels if label.reference_tumors is not None] == ["tumor"]
    with pytest.raises(KeyError, match="spleen"):
        scores.of_label("spleen")


def test_tumor_labels_can_be_named_by_name_or_value(scheme_of):
    assert [label.name for label in scheme_of(REGIONS, tumor_labels=["masses"]).tumors] == ["masses"]
    assert [label.name for label in scheme_of(REGIONS, tumor_labels=["2", "masses"]).tumors] == ["masses", "tumor"]
    with pytest.raises(MissingLabelError, match="--tumor-label 7"):
        scheme_of(REGIONS, tumor_labels=["7"])
    with pytest.raises(MissingLabelError, match="--tumor-label"):
        scheme_of({"background": 0, "liver": 1, "spot": 2})


def test_a_scan_with_a_tumor_of_another_label_is_not_healthy(scheme_of):
    labels = {"background": 0, "liver": 1, "liver_tumor": 2, "kidney": 3, "kidney_tumor": 4}
    scheme = scheme_of(labels, tumor_labels=["liver_tumor"])
    assert not score_maps(maps_of(labels_with(value_4=[A]), labels_with()), scheme).is_healthy
    assert score_maps(maps_of(labels_with(value_3=[A]), labels_with()), scheme).is_healthy


# ----------------------------------------------------------------------------------------------------- organ filter


def test_the_organ_filter_drops_predictions_away_from_the_organ_as_a_whole(scheme_of):
    scheme = scheme_of(needs_organ=True)
    organ = np.s_[1:7, 1:7, 1:7]
    sticking_out = np.s_[5:9, 3:6, 3:6]
    reference = labels_with(value_1=[organ], value_2=[A])
    prediction = labels_with(value_1=[organ], value_2=[sticking_out, FAR])
    for source in ("reference", "prediction"):
        kept = tumor_scores(scheme, reference, prediction, organ_filter=OrganFilter(source))
        assert len(kept.predictions) == 1, source
        assert kept.predicted_ml == pytest.approx(36 / 1000)  # what sticks out of the organ stays
    assert len(tumor_scores(scheme, reference, prediction).predictions) == 2
    filtered = score_maps(maps_of(reference, prediction), scheme, organ_filter=OrganFilter("reference"))
    plain = score_maps(maps_of(reference, prediction), scheme)
    assert repr(filtered.of_label("liver")) == repr(plain.of_label("liver"))  # not-a-number equals none


def test_a_prediction_next_to_the_organ_is_kept_and_one_voxel_farther_dropped(scheme_of):
    scheme = scheme_of(needs_organ=True)
    reference = labels_with(value_1=[np.s_[0:3]])
    for gap, count in ((0, 1), (1, 0)):
        prediction = labels_with(value_2=[np.s_[3 + gap : 6 + gap, 2:5, 2:5]])
        kept = tumor_scores(scheme, reference, prediction, organ_filter=OrganFilter("reference"))
        assert len(kept.predictions) == count


def test_an_organ_mask_from_a_file_filters(scheme_of, tmp_path):
    organ = labels_with(value_1=[np.s_[0:6]])
    maps = maps_of(labels_with(), labels_with(value_2=[A, FAR]), organ_mask=organ > 0)
    scores = score_maps(maps, scheme_of(), organ_filter=OrganFilter(str(tmp_path)))
    assert len(scores.of_label("tumor").predictions) == 1


def test_the_organ_of_each_tumor_is_inferred_or_named(scheme_of):
    labels = {"background": 0, "liver": 1, "liver_tumor": 2, "kidney": 3, "kidney_tumor": 4}
    scheme = scheme_of(labels, needs_organ=True)
    assert {label.name: label.organ_values for label in scheme.tumors} == {"liver_tumor": (1,), "kidney_tumor": (3,)}
    assert scheme_of(REGIONS, needs_organ=True).tumors[0].organ_values == (1, 3)
    unclear = {"background": 0, "left": 1, "right": 3, "tumor": 2}
    with pytest.raises(MissingLabelError, match="--organ-label"):
        scheme_of(unclear, needs_organ=True)
    assert scheme_of(unclear, needs_organ=True, organ_label="right").tumors[0].organ_values == (3,)
    assert scheme_of(unclear).tumors[0].organ_values == ()  # not asked for, not needed


# ----------------------------------------------------------------------------------------------------- probabilities


def probability_maps(prediction, **values):
    probabilities = np.full(SHAPE, 0.1, dtype=np.float32)
    for place, value in values.values():
        probabilities[place] = value
    return maps_of(
        labels_with(value_2=[A]),
        prediction,
        probabilities={"tumor": probabilities},
        largest_probability={"tumor": float(probabilities.max())},
    )


@pytest.mark.parametrize(("confidence", "expected"), [("max", 0.9), ("mean", (26 * 0.6 + 0.9) / 27)])
def test_a_predicted_tumor_scores_its_largest_or_mean_probability(scheme_of, confidence, expected):
    maps = probability_maps(labels_with(value_2=[A, B]), a=(A, 0.6), peak=(np.s_[3, 3, 3], 0.9), b=(B, 0.7))
    scores = score_maps(maps, scheme_of(), rules=ScoringRules(confidence=confidence)).of_label("tumor")
    assert [each.score for each in scores.predictions] == pytest.approx([expected, 0.7])
    assert scores.tumors[0].score == pytest.approx(expected)
    assert scores.patient_score == pytest.approx(0.9)


def test_the_patient_score_needs_no_prediction(scheme_of):
    scores = score_maps(probability_maps(labels_with(), b=(B, 0.3)), scheme_of()).of_label("tumor")
    assert scores.patient_score == pytest.approx(0.3)
    assert math.isnan(scores.tumors[0].score)


def test_the_organ_filter_limits_the_patient_score_to_the_organ(scheme_of):
    maps = probability_maps(labels_with(), near=(np.s_[3, 3, 3], 0.4), far=(FAR, 0.45))
    maps = replace(maps, reference=labels_with(value_1=[np.s_[1:7, 1:7, 1:7]], value_2=[A]))
    scores = score_maps(maps, scheme_of(needs_organ=True), organ_filter=OrganFilter("reference"))
    assert scores.of_label("tumor").patient_score == pytest.approx(0.4)


# ------------------------------------------------------------------------------------------------------------ files


def save(path, array, affine=None):
    """Write a (D, H, W) array as NIfTI."""
    nibabel.save(nibabel.Nifti1Image(array.T, np.diag([0.8, 0.8, 2.5, 1]) if affine is None else affine), path)
    return path


@pytest.fixture
def files(tmp_path):
    reference = labels_with(value_1=[np.s_[1:8, 1:8, 1:8]], value_2=[A])
    prediction = labels_with(value_1=[np.s_[1:8, 1:8, 1:8]], value_2=[A, B])
    return save(tmp_path / "c1.nii.gz", reference), save(tmp_path / "c1_predicted.nii.gz", prediction)


def npz(path, prediction, dtype=np.float32, regions=False):
    """nnU-Net's probabilities: 0.8 where a label is predicted, 0.1 for every other."""
    values = (1, 2) if regions else (0, 1, 2)
    channels = [np.where(prediction == value, 0.8, 0.1) for value in values]
    np.savez_compressed(path, probabilities=np.stack(channels).astype(dtype))
    return path


def test_a_flipped_prediction_is_turned_back(files, scheme_of, tmp_path):
    reference, prediction = files
    straight = score_case(reference, prediction, scheme_of())
    image = nibabel.load(prediction)
    turned = image.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    nibabel.save(turned, tmp_path / "turned.nii.gz")
    turned_back = score_case(reference, tmp_path / "turned.nii.gz", scheme_of())
    assert repr(turned_back) == repr(straight)  # repr: NaN is not equal to itself


def test_a_prediction_on_another_grid_is_refused(files, scheme_of, tmp_path):
    reference, _ = files
    shifted = np.diag([0.8, 0.8, 2.5, 1])
    shifted[2, 3] = 2.0
    moved = save(tmp_path / "moved.nii.gz", labels_with(value_2=[A]), shifted)
    with pytest.raises(GeometryMismatchError, match=r"moved\.nii\.gz and its reference must lie on the same grid"):
        score_case(reference, moved, scheme_of())
    smaller = save(tmp_path / "smaller.nii.gz", labels_with(value_2=[A])[1:])
    with pytest.raises(GeometryMismatchError, match="shape"):
        score_case(reference, smaller, scheme_of())


def sheared(degrees):
    """A grid of 1 x 1 x 5 mm whose slices slide along an axis, so that the volume of a voxel stays 5 mm3."""
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    affine[1, 2] = 5.0 * math.tan(math.radians(degrees))
    return affine


def test_a_sheared_grid_is_refused(scheme_of, tmp_path):
    path = save(tmp_path / "tilted.nii.gz", labels_with(value_2=[A]), sheared(20.0))
    with pytest.raises(ShearedGridError, match=r"tilted\.nii\.gz lies on a sheared grid.* meet at 70\.0 degrees"):
        score_case(path, path, scheme_of())


def test_a_small_shear_changes_no_volume(scheme_of, tmp_path):
    path = save(tmp_path / "c1.nii.gz", labels_with(value_2=[A]), sheared(0.9))
    scores = score_case(path, path, scheme_of()).of_label("tumor")
    assert scores.reference_ml == scores.predicted_ml == pytest.approx(27 * 5 / 1000, rel=1e-6)
    assert scores.tumors[0].volume_mm3 == scores.predictions[0].volume_mm3 == pytest.approx(27 * 5, rel=1e-6)


def test_a_rotated_grid_is_not_sheared(scheme_of, tmp_path):
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix()
    path = save(tmp_path / "c1.nii.gz", labels_with(value_2=[A]), turn @ np.diag([0.8, 0.8, 2.5, 1.0]))
    assert score_case(path, path, scheme_of()).of_label("tumor").reference_ml == pytest.approx(27 * 1.6 / 1000)


def test_values_that_are_not_declared_are_refused(files, scheme_of, tmp_path):
    reference, _ = files
    wrong = save(tmp_path / "wrong.nii.gz", labels_with(value_2=[A], value_7=[B]))
    with pytest.raises(DatasetError, match=r"wrong\.nii\.gz holds the values 7, which dataset\.json does not declare"):
        score_case(reference, wrong, scheme_of())


def test_cropping_to_the_content_changes_no_score(files, scheme_of):
    reference, prediction = files
    scheme = scheme_of()
    maps = read_case_maps(CaseFiles(case="c1", reference=reference, prediction=prediction), scheme)
    assert maps.reference.shape < SHAPE
    whole = maps_of(*(np.asarray(nibabel.load(path).dataobj).T for path in files), spacing_mm=maps.spacing_mm)
    whole = replace(whole, case="c1", voxel_mm3=maps.voxel_mm3)
    assert repr(score_maps(whole, scheme)) == repr(score_maps(maps, scheme))


@pytest.mark.parametrize("rows", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_axial_slices_are_found_in_any_orientation(files, rows):
    from nnunet_difftumor.ct.reading import read_labels

    _, grid = read_labels(files[0])
    turned = replace(grid, affine=grid.affine[:, [*rows, 3]])
    assert axial_axis(turned) == rows.index(0)  # the file's slowest axis runs along the patient


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_probabilities_of_nnunet_are_read(files, scheme_of, tmp_path, dtype):
    reference, prediction = files
    path = npz(tmp_path / "c1.npz", labels_with(value_1=[np.s_[1:8, 1:8, 1:8]], value_2=[A, B]), dtype)
    scores = score_case(reference, prediction, scheme_of(), probabilities={"tumor": path}).of_label("tumor")
    assert [each.score for each in scores.predictions] == pytest.approx([0.8, 0.8], abs=1e-3)


def test_probabilities_of_regions_are_in_the_order_of_dataset_json(files, scheme_of, tmp_path):
    reference, prediction = files
    labels = {"background": 0, "liver": [1, 2], "tumor": 2}
    path = npz(tmp_path / "c1.npz", labels_with(value_1=[np.s_[1:8, 1:8, 1:8]], value_2=[A, B]), regions=True)
    scores = score_case(reference, prediction, scheme_of(labels), probabilities={"tumor": path}).of_label("tumor")
    assert [each.score for each in scores.predictions] == pytest.approx([0.8, 0.8])


@pytest.mark.parametrize(
    "turn",
    [np.array([[0, 1], [1, 1], [2, 1]]), np.array([[0, -1], [1, -1], [2, 1]]), np.array([[2, -1], [0, 1], [1, -1]])],
)
def test_probabilities_of_the_reorienting_reader_are_turned_back(files, scheme_of, tmp_path, turn):
    """nnU-Net's NibabelIOWithReorient keeps probabilities in right-anterior-superior order."""
    nnunet_io = pytest.importorskip("nnunetv2.imageio.nibabel_reader_writer")
    paths = []
    for path in files:
        nibabel.save(nibabel.load(path).as_reoriented(turn), tmp_path / f"turned_{path.name}")
        paths.append(tmp_path / f"turned_{path.name}")
    as_nnunet_sees_it, _ = nnunet_io.NibabelIOWithReorient().read_seg(str(paths[1]))
    path = npz(tmp_path / "c1.npz", as_nnunet_sees_it[0])
    scheme = scheme_of(options={"overwrite_image_reader_writer": "NibabelIOWithReorient"})
    scores = score_case(*paths, scheme, probabilities={"tumor": path}).of_label("tumor")
    assert [each.score for each in scores.predictions] == pytest.approx([0.8, 0.8])


def test_probabilities_are_read_from_images(files, scheme_of, tmp_path):
    reference, prediction = files
    values = np.where(labels_with(value_2=[A]) > 0, 0.75, 0.2).astype(np.float32)
    path = save(tmp_path / "p.nii.gz", values)
    scores = score_case(reference, prediction, scheme_of(), probabilities={"tumor": path}).of_label("tumor")
    assert [each.score for each in scores.predictions] == pytest.approx([0.75, 0.2])


def test_probabilities_that_cannot_be_right_are_refused(files, scheme_of, tmp_path):
    reference, prediction = files
    scheme = scheme_of()

    def score(path):
        score_case(reference, prediction, scheme, probabilities={"tumor": path})

    with pytest.raises(CorruptImageError, match="probabilities from 0 to 1"):
        score(save(tmp_path / "logits.nii.gz", np.linspace(-5, 5, math.prod(SHAPE), dtype=np.float32).reshape(SHAPE)))
    with pytest.raises(CorruptImageError, match="3 channels"):
        score(npz(tmp_path / "regions.npz", labels_with(value_2=[A, B]), regions=True))
    with pytest.raises(GeometryMismatchError, match="does not belong"):
        score(npz(tmp_path / "other.npz", labels_with(value_2=[FAR])))
    with pytest.raises(GeometryMismatchError, match="Both must come from one prediction"):
        score(npz(tmp_path / "small.npz", labels_with(value_2=[A, B])[1:]))
    whole = npz(tmp_path / "whole.npz", labels_with(value_2=[A, B])).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptImageError, match="save_probabilities"):
        score(tmp_path / "cut.npz")
