"""Scores against independent implementations on 200 random small volumes.

nnU-Net is always at hand. surface-distance, panoptica and picai-eval come with the extra `oracles`; their pins of numpy
and rich ask for an environment of their own.
"""

import json
import math
import warnings

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from nnunet_difftumor.evaluation.scoring.case import score_case, score_maps
from nnunet_difftumor.evaluation.scoring.case_maps import CaseFiles, CaseMaps, read_case_maps
from nnunet_difftumor.evaluation.scoring.curves import sensitivity_at
from nnunet_difftumor.evaluation.scoring.rules import ScoringRules
from nnunet_difftumor.evaluation.scoring.run import ScoringRequest, score_folders
from nnunet_difftumor.evaluation.scoring.scheme import read_label_scheme
from nnunet_difftumor.evaluation.scoring.summary import curve_tables, summarize
from nnunet_difftumor.evaluation.scoring.surfaces import element_areas_mm2, surface_agreement

VOLUMES = 200
LABELS = {"background": 0, "organ": [1, 2], "tumor": 2, "ignore": 3}
EVERY_COMPONENT = ScoringRules(smallest_voxels=1, smallest_mm3=0.0)  # the others know no specks
NEEDS_EXTRA = "needs the extra 'oracles' (pip install 'nnunet-difftumor[oracles]')"


def random_pair(index):
    """Reference and predicted tumours that overlap more or less, either sometimes empty, and a spacing in mm."""
    rng = np.random.default_rng(index)
    shape = tuple(rng.integers(8, 24, 3).tolist())
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), rng.uniform(0.6, 1.6))
    other = ndimage.gaussian_filter(rng.standard_normal(shape), rng.uniform(0.6, 1.6))
    noise, other = noise / noise.std(), other / other.std()
    share = rng.uniform(0.4, 1.0)
    reference = noise > rng.choice([1.0, 1.5, 2.0])
    prediction = share * noise + (1 - share) * other > rng.choice([0.8, 1.2, 1.6])
    reference &= index % 12 > 0
    prediction &= index % 15 > 0
    return reference, prediction, tuple(rng.choice([0.5, 0.7, 1.0, 1.5, 2.5, 5.0], 3).tolist())


@pytest.fixture(scope="module")
def pairs():
    made = [random_pair(index) for index in range(VOLUMES)]
    kinds = [(reference.any(), prediction.any()) for reference, prediction, _ in made]
    assert len(set(kinds)) == 4  # every combination of empty and not is there
    assert sum(ndimage.label(reference)[1] > 3 for reference, _, _ in made) > 50
    return made


@pytest.fixture(scope="module")
def scheme(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "dataset.json"
    path.write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz"}))
    return read_label_scheme(path)


def score_pair(pair, scheme, rules=EVERY_COMPONENT, probabilities=None, case="case"):
    reference, prediction, spacing_mm = pair
    maps = CaseMaps(
        case=case,
        reference=np.where(reference, 2, 0).astype(np.int16),
        prediction=np.where(prediction, 2, 0).astype(np.int16),
        spacing_mm=spacing_mm,
        voxel_mm3=float(np.prod(spacing_mm)),
        axial_axis=0,
        probabilities={} if probabilities is None else {"tumor": probabilities},
        largest_probability={} if probabilities is None else {"tumor": float(probabilities.max())},
    )
    return score_maps(maps, scheme, rules=rules)


# ---------------------------------------------------------------------------------------------------- nnU-Net's Dice


def test_dice_is_that_of_nnunet(pairs, tmp_path):
    """Regions and the ignore label included, case by case and the mean."""
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    for name in ("reference", "prediction"):
        (tmp_path / name).mkdir()
    for index, (reference, prediction, spacing_mm) in enumerate(pairs):
        rng = np.random.default_rng(index)
        organ = ndimage.binary_dilation(reference, iterations=2)
        true = np.select([reference, organ], [2, 1], 0)
        if index % 3 == 0:
            true[rng.random(true.shape) < 0.1] = 3
        found = np.select([prediction, rng.random(true.shape) < 0.3], [2, 1], 0)
        for name, labels in (("reference", true), ("prediction", found)):
            image = nibabel.Nifti1Image(labels.T.astype(np.uint8), np.diag([*spacing_mm[::-1], 1.0]))
            nibabel.save(image, tmp_path / name / f"case_{index:03d}.nii.gz")
    (tmp_path / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz"})
    )
    folders = {name: tmp_path / name for name in ("reference", "prediction")}
    scores = score_folders(ScoringRequest(**folders, labels=tmp_path / "dataset.json"), tmp_path / "out")
    assert not scores.errors
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # 0/0
        expected = compute_metrics_on_folder(
            *(str(tmp_path / name) for name in ("reference", "prediction")),
            None,
            SimpleITKIO(),
            ".nii.gz",
            [(1, 2), 2],
            ignore_label=3,
            num_processes=1,
        )
    for case, theirs in zip(scores.cases, expected["metric_per_case"], strict=True):
        for name, key in (("organ", (1, 2)), ("tumor", 2)):
            mine, voxel_mm3 = case.of_label(name), float(np.prod(pairs[int(case.case[-3:])][2]))
            assert mine.dice == pytest.approx(theirs["metrics"][key]["Dice"], abs=1e-12, nan_ok=True)
            assert mine.predicted_ml * 1000 / voxel_mm3 == pytest.approx(theirs["metrics"][key]["n_pred"], rel=1e-6)
            assert mine.reference_ml * 1000 / voxel_mm3 == pytest.approx(theirs["metrics"][key]["n_ref"], rel=1e-6)
    for name, key in (("organ", (1, 2)), ("tumor", 2)):
        assert scores.summary["labels"][name]["dice_mean"] == pytest.approx(expected["mean"][key]["Dice"])


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIOWithReorient"])
def test_probabilities_that_nnunet_exports_are_read_in_place(make_nnunet_project, tmp_path, reader):
    """From logits through nnU-Net's own resampling, axes swapped in the plans, flipped and permuted in the file."""
    from nnunetv2.inference.export_prediction import export_prediction_from_logits
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    project = make_nnunet_project(tumor_cases=1, healthy_cases=0)
    affine = np.array([[0, -2.0, 0, 30], [0, 0, 1.5, -5], [-3.0, 0, 0, 7], [0, 0, 0, 1]])
    for path in (*project.raw.glob("imagesTr/*.gz"), *project.raw.glob("labelsTr/*.gz")):
        values = np.asarray(nibabel.load(path).dataobj)[2:, :, :37]
        nibabel.save(nibabel.Nifti1Image(values, affine), path)
    options = json.loads((project.raw / "dataset.json").read_text())
    options["overwrite_image_reader_writer"] = reader
    (tmp_path / "dataset.json").write_text(json.dumps(options))
    plans = json.loads((project.preprocessed / "nnUNetPlans.json").read_text())
    swapped = {"transpose_forward": [1, 2, 0], "transpose_backward": [2, 0, 1]}
    manager = PlansManager({**plans, **swapped, "image_reader_writer": reader})
    configuration = manager.get_configuration("3d_fullres")
    (image,), (label,) = (sorted(project.raw.glob(f"{name}/*.gz")) for name in ("imagesTr", "labelsTr"))
    _, labels, properties = DefaultPreprocessor(verbose=False).run_case(
        [str(image)], str(label), manager, configuration, options
    )
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 0.3, (3, *labels.shape[1:])) + 3.0 * (labels == np.arange(3)[:, None, None, None])
    export_prediction_from_logits(
        logits.astype(np.float32), properties, configuration, manager, options, str(tmp_path / label.name[:-7]), True, 1
    )
    prediction, npz = tmp_path / label.name, tmp_path / f"{label.name[:-7]}.npz"
    scheme = read_label_scheme(tmp_path / "dataset.json")
    scores = score_case(label, prediction, scheme, probabilities={"tumor": npz}).of_label("tumor")
    assert scores.dice > 0.9
    assert scores.tumors[0].score == scores.patient_score == np.load(npz)["probabilities"][2].max() > 0.8
    maps = read_case_maps(
        CaseFiles(case="case", reference=label, prediction=prediction, probabilities={"tumor": npz}), scheme
    )
    values = maps.probabilities["tumor"]
    assert values[maps.prediction == 2].min() >= 1 / 3  # argmax over three labels
    assert values[maps.prediction != 2].max() <= 0.5


# ------------------------------------------------------------------------------------------------- surface-distance


@pytest.fixture
def surface_distance(monkeypatch):
    package = pytest.importorskip("surface_distance", reason=NEEDS_EXTRA)
    for name, value in (("Inf", np.inf), ("NaN", np.nan)):  # names that numpy 2 has taken away
        monkeypatch.setattr(np, name, value, raising=False)
    return package


def test_surface_distance_is_that_of_surface_distance(surface_distance, pairs):
    compared = 0
    for reference, prediction, spacing_mm in pairs:
        distances = surface_distance.compute_surface_distances(reference, prediction, spacing_mm)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # 0/0
            theirs = [surface_distance.compute_surface_dice_at_tolerance(distances, limit) for limit in (1.0, 2.0)]
        mine = surface_agreement(reference, prediction, spacing_mm, (1.0, 2.0))
        assert mine == pytest.approx(theirs, abs=1e-9, nan_ok=True)
        compared += 0.0 < mine[0] < 1.0
    assert compared > 100  # not only trivial values


def test_a_surface_exactly_at_the_tolerance_differs_on_purpose(surface_distance):
    stored = float(np.float32(0.4))  # as a NIfTI header gives it
    longer, shorter = along_a_line((0, 50)), along_a_line((0, 45))
    spacing_mm = (100.0, 100.0, stored)
    distances = surface_distance.compute_surface_distances(longer, shorter, spacing_mm)
    assert surface_distance.compute_surface_dice_at_tolerance(distances, 2.0) < 1.0
    assert surface_agreement(longer, shorter, spacing_mm, (2.0,)) == (1.0,)


def test_dice_is_that_of_surface_distance(surface_distance, pairs, scheme):
    for pair in pairs:
        theirs = surface_distance.compute_dice_coefficient(pair[0], pair[1])
        assert score_pair(pair, scheme).of_label("tumor").dice == pytest.approx(theirs, abs=1e-12, nan_ok=True)


def test_element_areas_are_those_of_surface_distance(surface_distance):
    from surface_distance import lookup_tables

    kernel = np.asarray(lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL)  # bit of each corner
    own_bits = 2 ** np.arange(8).reshape(2, 2, 2)
    for spacing_mm in ((1.0, 1.0, 1.0), (5.0, 0.7, 0.8), (0.3, 2.0, 1.0)):
        theirs = np.asarray(lookup_tables.create_table_neighbour_code_to_surface_area(spacing_mm))
        mine = element_areas_mm2(spacing_mm)
        for code in range(256):
            block = (own_bits & code) > 0
            assert mine[code] == pytest.approx(theirs[int(kernel[block].sum())], abs=1e-6)


# -------------------------------------------------------------------------------------------------------- panoptica


def test_pairs_and_panoptic_quality_are_those_of_panoptica(pairs, scheme):
    panoptica = pytest.importorskip("panoptica", reason=NEEDS_EXTRA)
    evaluator = panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.SEMANTIC,
        instance_approximator=panoptica.ConnectedComponentsInstanceApproximator(),
        instance_matcher=panoptica.instance_matcher.MaxBipartiteMatching(matching_threshold=0.1),
        instance_metrics=[panoptica.metrics.Metric.IOU, panoptica.metrics.Metric.DSC],
        global_metrics=[panoptica.metrics.Metric.DSC],
    )
    compared = 0
    for pair in pairs:
        mine = score_pair(pair, scheme).of_label("tumor")
        if not (pair[0].any() and pair[1].any()):
            continue  # what an empty side means is a rule of its own (see test_scoring_case.py)
        (theirs,) = evaluator.evaluate(pair[1].astype(np.uint8), pair[0].astype(np.uint8)).values()
        assert (len(mine.tumors), len(mine.predictions)) == (theirs.n_ref_instances, theirs.n_pred_instances)
        assert (mine.detected_tumors, mine.false_positives) == (theirs.tp, theirs.fp)
        assert len(mine.tumors) - mine.detected_tumors == theirs.fn
        assert mine.dice == pytest.approx(theirs.global_bin_dsc)
        if theirs.tp:
            detected = [tumor for tumor in mine.tumors if tumor.detected]
            assert np.mean([tumor.iou for tumor in detected]) == pytest.approx(theirs.sq)
            assert np.mean([tumor.dice for tumor in detected]) == pytest.approx(theirs.sq_dsc)
            assert mine.panoptic_quality == pytest.approx(theirs.pq)
            compared += 1
    assert compared > 100


# ------------------------------------------------------------------------------------------------------- picai-eval


def detection_map(prediction, rng):
    """Predicted components filled with a score each, a few equal; 0 elsewhere. What picai-eval takes."""
    numbers, count = ndimage.label(prediction, structure=np.ones((3, 3, 3)))
    scores = np.concatenate([[0.0], rng.integers(1, 100, count) / 100.0])
    return scores[numbers].astype(np.float32)


@pytest.fixture(scope="module")
def detections(pairs):
    rng = np.random.default_rng(7)
    return [detection_map(prediction, rng) for _, prediction, _ in pairs]


@pytest.fixture
def scored(pairs, detections, scheme):
    return [
        score_pair(pair, scheme, probabilities=values, case=f"{index:03d}")
        for index, (pair, values) in enumerate(zip(pairs, detections, strict=True))
    ]


def picai(detections, references, **rules):
    package = pytest.importorskip("picai_eval.eval", reason=NEEDS_EXTRA)
    return package.evaluate(
        y_det=detections,
        y_true=[reference.astype(np.int32) for reference in references],
        subject_list=[f"{index:03d}" for index in range(len(references))],
        num_parallel_calls=1,
        **rules,
    )


def test_patient_auroc_is_that_of_picai_eval(pairs, detections, scored):
    theirs = picai(detections, [reference for reference, _, _ in pairs])
    mine = summarize(scored)["tumor"]["patient"]
    assert mine["auroc"]["value"] == pytest.approx(theirs.auroc, abs=1e-9)
    assert (mine["with_tumor"], mine["with_tumor"] + mine["healthy"]) == (sum(theirs.case_target.values()), VOLUMES)


def test_average_precision_and_froc_are_those_of_picai_eval(pairs, detections, scored):
    """With the same pairs: picai-eval takes most pairs first (see below), and on request counts every spare one."""
    same_pairs = [index for index in range(VOLUMES) if has_same_pairs(pairs[index], detections[index], scored[index])]
    assert len(same_pairs) > 0.7 * VOLUMES
    theirs = picai(
        [detections[index] for index in same_pairs],
        [pairs[index][0] for index in same_pairs],
        allow_unmatched_candidates_with_minimal_overlap=False,
    )
    mine = [scored[index] for index in same_pairs]
    summary = summarize(mine)["tumor"]
    assert summary["tumors"] == theirs.num_lesions
    assert summary["average_precision"] == pytest.approx(theirs.AP, abs=1e-9)
    curve = curve_tables(mine)["froc.csv"]
    for rate in (0.5, 1.0, 2.0):
        assert sensitivity_at(curve, rate) == pytest.approx(theirs.lesion_TPR_at_FPR(rate), abs=1e-6)


def has_same_pairs(pair, detection, scores):
    """Where the pairs differ, picai-eval has more of them and ours overlap more in sum: it is the rules alone."""
    package = pytest.importorskip("picai_eval.eval", reason=NEEDS_EXTRA)
    results, *_ = package.evaluate_case(detection, pair[0].astype(np.int32))
    theirs = sorted((round(overlap, 6), score) for is_lesion, score, overlap in results if is_lesion and overlap > 0)
    mine = sorted((round(tumor.iou, 6), tumor.score) for tumor in scores.of_label("tumor").tumors if tumor.detected)
    if len(theirs) == len(mine):
        assert np.allclose(theirs, mine, atol=1e-6)
        return True
    assert len(theirs) > len(mine)
    assert sum(overlap for overlap, _ in theirs) < sum(overlap for overlap, _ in mine)
    return False


def along_a_line(*parts):
    mask = np.zeros((1, 1, 100), dtype=bool)
    for first, last in parts:
        mask[0, 0, first:last] = True
    return mask


def test_rules_that_differ_from_picai_eval_on_purpose(scheme):
    """The differences that docs/how-to/score.md lists."""
    package = pytest.importorskip("picai_eval.eval", reason=NEEDS_EXTRA)

    def theirs(reference, prediction, **rules):
        results, *_ = package.evaluate_case(prediction.astype(np.float32), reference.astype(np.int32), **rules)
        found = sum(is_lesion and score > 0 for is_lesion, score, _ in results)
        return found, sum(not is_lesion for is_lesion, _, _ in results)

    def mine(reference, prediction, rules=EVERY_COMPONENT):
        scores = score_pair((reference, prediction, (1.0, 1.0, 1.0)), scheme, rules).of_label("tumor")
        return scores.detected_tumors, scores.false_positives

    crowded = along_a_line((0, 60), (70, 80)), along_a_line((0, 12), (20, 80))
    assert (mine(*crowded), theirs(*crowded)) == ((1, 1), (2, 0))  # largest overlap in sum; most pairs first
    spare = along_a_line((0, 30)), along_a_line((0, 10), (12, 30))
    assert (mine(*spare), theirs(*spare)) == ((1, 1), (1, 0))  # a second prediction in one tumour
    speck = along_a_line((0, 5)), along_a_line((0, 20))
    assert (mine(*speck, ScoringRules()), theirs(*speck)) == ((0, 0), (1, 0))  # no specks there
    assert math.isnan(score_pair((*speck, (1.0, 1.0, 1.0)), scheme, ScoringRules()).of_label("tumor").panoptic_quality)
