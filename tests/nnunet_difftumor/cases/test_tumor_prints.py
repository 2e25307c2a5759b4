"""Tumour prints: what they measure, what they survive, and leaks that are planted in every way."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from diffusion.generator.provenance import (
    CaseFingerprint,
    Provenance,
    ProvenanceError,
    SurroundingsPrint,
    TumorPrint,
    load_provenance,
    save_provenance,
)
from nnunet_difftumor.cases import tumor_prints
from nnunet_difftumor.cases.fold import FoldCases, PreprocessedCases, check_leaks
from nnunet_difftumor.cases.healthy import CaseGroups
from nnunet_difftumor.cases.splits import Split
from nnunet_difftumor.cases.tumor_prints import PrintTable, can_be_told, mean_same_tumor, take_tumor_prints
from nnunet_difftumor.ct.datasets import Case
from nnunet_difftumor.errors import LeakError
from nnunet_difftumor.settings.trainer_settings import DiffTumorConfig
from nnunet_difftumor.tumor.sizes import SizeClass

LARGE = SizeClass(name="large", radius_mm=(24.0, 36.0), probability=1.0)
COPIES = ("nearest", "linear")


@pytest.fixture(scope="module")
def leak_guard(load_file: Callable[[str], ModuleType]) -> ModuleType:
    return load_file("tests/benchmarks/leak_guard.py")


def ellipsoid(semi_axes_mm, spacing_mm, centre_mm=(40.0, 40.0, 40.0), side_mm=80.0):
    shape = [round(side_mm / step) for step in spacing_mm]
    grid = np.meshgrid(
        *(
            (np.arange(n) * step - c) / a
            for n, step, c, a in zip(shape, spacing_mm, centre_mm, semi_axes_mm, strict=True)
        ),
        indexing="ij",
        sparse=True,
    )
    return sum(offset**2 for offset in grid) < 1.0


def test_an_ellipsoid_has_the_volume_and_the_moments_of_geometry():
    (print_,) = take_tumor_prints(ellipsoid((20.0, 10.0, 15.0), (1.0, 0.8, 0.8)), (1.0, 0.8, 0.8))
    assert print_.volume_mm3 == pytest.approx(4 / 3 * math.pi * 20 * 10 * 15, rel=0.01)
    assert print_.axes_mm == pytest.approx([axis / math.sqrt(5) for axis in (20, 15, 10)], abs=0.06)
    assert print_.skewness == print_.asymmetry == 0


def test_flips_turns_and_shifts_change_nothing(leak_guard):
    (scan,) = leak_guard.drawn_scans(
        SizeClass(name="s", radius_mm=(9.0, 9.0), probability=1.0), 1, np.random.default_rng(0)
    )
    image = ndimage.gaussian_filter(np.random.default_rng(1).normal(0, 400, scan.tumor_mask.shape), 2)
    image = np.pad(image.astype(np.float32), 5)
    mask = np.pad(scan.tumor_mask, 5)
    expected = take_tumor_prints(mask, scan.spacing_mm, image)
    assert expected[0].surroundings
    turned_mm = (scan.spacing_mm[2], scan.spacing_mm[0], scan.spacing_mm[1])
    turned = [np.flip(array.transpose(2, 0, 1), (0, 2)) for array in (mask, image)]
    assert take_tumor_prints(turned[0], turned_mm, turned[1]) == expected
    shifted = [np.pad(array, ((3, 0), (0, 7), (1, 2))) for array in (mask, image)]
    assert take_tumor_prints(shifted[0], scan.spacing_mm, shifted[1])[0].axes_mm == expected[0].axes_mm


def test_small_tumors_are_left_out_and_healthy_masks_have_no_print():
    mask = np.zeros((9, 9, 9), dtype=bool)
    assert take_tumor_prints(mask, (1.0, 1.0, 1.0)) == ()
    mask[4, 3:6, 3:6] = True
    assert take_tumor_prints(mask, (1.0, 1.0, 1.0)) == ()


def test_a_tumor_that_lost_its_neighbour_is_recognised():
    spacing_mm = (1.0, 1.0, 1.0)
    one, other = (ellipsoid(axes, spacing_mm) for axes in ((30.0, 22.0, 25.0), (20.0, 16.0, 24.0)))
    both = np.concatenate([one, np.zeros((5, 80, 80), dtype=bool), other])
    prints = take_tumor_prints(both, spacing_mm)
    assert len(prints) == 3
    assert mean_same_tumor(prints, take_tumor_prints(one, spacing_mm))


def test_many_prints_at_once_are_compared_as_one_by_one():
    rng = np.random.default_rng(0)

    def draw() -> TumorPrint:
        scale, (third, second, first) = rng.uniform(0.97, 1.03, 5), np.sort(rng.uniform(9.0, 11.0, 3))
        return TumorPrint(
            voxel_mm=rng.uniform(0.7, 2.0),
            volume_mm3=3e4 * scale[0],
            axes_mm=(first, second, third),
            skewness=0.2 * scale[1],
            asymmetry=0.3 * scale[2],
            surroundings=(
                SurroundingsPrint(radius_mm=20.0, mean_hu=rng.uniform(60.0, 70.0), slope_hu=3.0, quadrupole_hu=1.0),
            ),
        )

    cases = [tuple(draw() for _ in range(rng.integers(0, 4))) for _ in range(30)]
    table, fresh = PrintTable(cases), [(draw(), draw()) for _ in range(30)]
    expected = np.array([[mean_same_tumor(prints, other) for other in cases] for prints in fresh])
    assert 0 < expected.sum() < expected.size
    assert np.array_equal([[PrintTable([other]).holds_same_tumor(each) for other in cases] for each in fresh], expected)
    assert [table.holds_same_tumor(each) for each in fresh] == expected.any(axis=1).tolist()
    assert not PrintTable([(), ()]).holds_same_tumor(fresh[0])
    assert not table.holds_same_tumor(())


def test_rates_of_large_drawn_tumors(leak_guard):
    rng = np.random.default_rng(5)
    (rates,) = leak_guard.measure_rates("large", leak_guard.drawn_scans(LARGE, 10, rng), rng)
    assert rates.told >= 5
    assert rates.found >= 0.8 * rates.copies
    assert leak_guard.COPIES == COPIES
    assert (rates.pairs, rates.false_alarms) == (10 * 9 // 2 * (1 + len(COPIES)), 0)
    assert f"{rates.told} of 10" in rates.to_row()


@pytest.mark.slow
def test_rates_of_phantom_patients_with_their_ct(leak_guard):
    shape_alone, with_ct = leak_guard.measure_rates(
        "phantom", leak_guard.phantom_scans(20, seed=4), np.random.default_rng(0)
    )
    assert not shape_alone.uses_image
    assert with_ct.told > shape_alone.told
    assert with_ct.found >= 0.7 * with_ct.copies
    assert with_ct.false_alarms == shape_alone.false_alarms == 0


LABELS = {"background": 0, "liver": 1, "tumor": 2}
NAMES = ("train_1", "val_large", "val_small")
CASES = FoldCases(CaseGroups(NAMES, (), ()), (), Split(("train_1",), ("val_large", "val_small")), ())


def write_scan(scan, image_path, label_path):
    affine = np.diag([*reversed(scan.spacing_mm), 1.0])
    nibabel.save(nibabel.Nifti1Image(scan.image_hu.round().astype(np.int16).T, affine), image_path)
    nibabel.save(nibabel.Nifti1Image((scan.tumor_mask * 2).astype(np.uint8).T, affine), label_path)


def make_scan(leak_guard, seed, radius_mm):
    """A tumour in a random field that is smooth over about 8 mm."""
    rng = np.random.default_rng(seed)
    size = SizeClass(name="fixed", radius_mm=(radius_mm, radius_mm), probability=1.0)
    spacing_mm = (1.5, 1.5, 1.5)
    drawn = next(scan for scan in leak_guard.drawn_scans(size, 50, rng) if scan.spacing_mm[0] == 1.5)
    mask = ndimage.zoom(drawn.tumor_mask.astype(np.float32), [1, *(drawn.spacing_mm[1] / 1.5,) * 2], order=1) > 0.5
    margins = [(max(8, (116 - side) // 2),) * 2 for side in mask.shape]
    mask = np.pad(mask, margins)
    field = ndimage.gaussian_filter(rng.normal(size=mask.shape), 4)
    image_hu = 60 + 60 * field / field.std() + rng.normal(0, 10, mask.shape) - 50 * mask
    return leak_guard.LabelledScan(mask, spacing_mm, image_hu.astype(np.float32))


@pytest.fixture(scope="module")
def scans(leak_guard):
    return {
        "train_1": make_scan(leak_guard, 1, 12.0),
        "val_large": make_scan(leak_guard, 2, 30.0),
        "val_small": make_scan(leak_guard, 3, 7.0),
    }


@pytest.fixture
def data(tmp_path, scans):
    """A data set with a large and a small tumour to validate on, as nnU-Net keeps it."""
    images, gt = tmp_path / "imagesTr", tmp_path / "pre" / "gt_segmentations"
    for folder in (images, gt):
        folder.mkdir(parents=True)
    for name, scan in scans.items():
        write_scan(scan, images / f"{name}.nii.gz", gt / f"{name}.nii.gz")
    paths = {name: images / f"{name}.nii.gz" for name in NAMES}
    return PreprocessedCases(
        folder=tmp_path / "pre", identifiers=NAMES, label_ending=".nii.gz", images=paths, labels=LABELS
    )


@pytest.fixture
def plant(fingerprint_case):
    """Fingerprint a scan as the generator's training does under a name: `plant(data, scan, name)`."""

    def fingerprint(data, scan, name):
        image, label = data.folder / "copy.nii.gz", data.folder / "copy_label.nii.gz"
        write_scan(scan, image, label)
        return fingerprint_case(Case(name, image, label), [2])

    return fingerprint


def check(data, *trained_on, fold=0, **settings):
    folder = data.folder / "generator"
    folder.mkdir(exist_ok=True)
    save_provenance(folder / "provenance.json", Provenance(diffusion=trained_on, autoencoder=()))
    config = DiffTumorConfig(generator=None, organ_label=1, tumor_label=2, **settings)
    return check_leaks(folder, data, CASES, config, fold)


def test_other_tumors_are_not_warned_of(leak_guard, data, scans, plant):
    findings = check(data, plant(data, make_scan(leak_guard, 8, 30.0), "a"), plant(data, scans["train_1"], "b"))
    assert findings.warnings == findings.acknowledged == findings.notes == ()


def test_the_same_identifier_and_a_renamed_copy_are_refused(data, scans, plant):
    with pytest.raises(LeakError, match="diffusion model"):
        check(data, plant(data, scans["val_small"], "val_small"))
    with pytest.raises(LeakError, match="under another identifier"):
        check(data, plant(data, scans["val_small"], "patient_9"))


@pytest.mark.parametrize("how", COPIES)
def test_another_resampling_of_the_mask_alone_is_warned_of(leak_guard, data, scans, how, plant):
    copy = leak_guard.resample_copy(scans["val_large"], how, np.random.default_rng(2))
    unrelated = np.random.default_rng(0).normal(40, 30, copy.tumor_mask.shape).astype(np.float32)
    leak = plant(data, replace(copy, image_hu=unrelated), "patient_9")
    without_ct = replace(data, images={})
    findings = check(without_ct, leak)
    assert findings.acknowledged == ()
    assert len(findings.warnings) == 1
    assert "val_large" in findings.warnings[0]
    assert "nearly the same shape" in findings.warnings[0]
    assert f"WARNING: {findings.warnings[0]}" in findings.notes


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", ["val_large", "val_small"])
def test_another_resampling_of_mask_and_ct_is_warned_of(leak_guard, data, scans, name, how, plant):
    leak = plant(data, leak_guard.resample_copy(scans[name], how, np.random.default_rng(4)), "patient_9")
    findings = check(data, leak)
    assert len(findings.warnings) == 1
    assert name in findings.warnings[0]
    assert check(data, leak, fold="all").warnings == findings.warnings
    assert check(data, leak).warnings == findings.warnings  # prints that were kept in the case facts


def test_a_small_tumor_without_its_ct_is_told_to_be_a_blind_spot(leak_guard, data, scans, plant):
    leak = plant(data, leak_guard.resample_copy(scans["val_small"], "linear", np.random.default_rng(4)), "patient_9")
    findings = check(replace(data, images={}), leak)
    assert findings.warnings == ()
    assert "1 validation case (val_small) cannot be recognised" in findings.notes[0]


def test_a_resampled_copy_under_the_same_identifier_is_refused_and_called_the_same_patient(
    leak_guard, data, scans, plant
):
    leak = plant(data, leak_guard.resample_copy(scans["val_small"], "linear", np.random.default_rng(4)), "val_small")
    with pytest.raises(LeakError, match="same patient"):
        check(data, leak)
    findings = check(data, leak, acknowledge_identifier_matches=True)
    assert len(findings.acknowledged) == len(findings.warnings) == 1


def test_a_label_file_on_another_grid_is_printed_without_surroundings(data, scans, fingerprint_case):
    image, label = data.folder / "copy.nii.gz", data.folder / "copy_label.nii.gz"
    write_scan(scans["val_large"], image, label)
    stored = nibabel.load(label)
    nibabel.save(nibabel.Nifti1Image(np.asarray(stored.dataobj)[1:], stored.affine), label)
    prints = fingerprint_case(Case("case", image, label), [2]).tumor_prints
    assert prints
    assert prints[0].surroundings == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda case: case.pop("tumor_prints"), "tumor_prints"),
        (lambda case: case["tumor_prints"][0].update(extra=1), r"tumor_prints\[0\].*unknown: \['extra'\]"),
        (
            lambda case: case["tumor_prints"][0].update(volume_mm3="9"),
            r"tumor_prints\[0\].*volume_mm3 must be a finite number",
        ),
        (lambda case: case["tumor_prints"][0].update(axes_mm=[1, 2]), r"tumor_prints\[0\].*three numbers"),
        (lambda case: case["tumor_prints"][0].update(voxel_mm=0), "above 0"),
        (lambda case: case["tumor_prints"][0]["surroundings"][0].pop("mean_hu"), r"surroundings\[0\].*mean_hu"),
        (lambda case: case.update(tumor_prints={}), "tumor_prints must be a JSON list"),
    ],
)
def test_malformed_prints_are_named(data, scans, change, message, plant, tmp_path):
    case = plant(data, scans["val_small"], "a")
    assert len(case.tumor_prints[0].surroundings) == 3
    content = json.loads(json.dumps(asdict(Provenance(diffusion=(case,), autoencoder=()))))
    change(content["diffusion"][0])
    (tmp_path / "provenance.json").write_text(json.dumps(content))
    with pytest.raises(ProvenanceError, match=message):
        load_provenance(tmp_path / "provenance.json")


def test_prints_of_unlabelled_and_of_healthy_cases(data, scans, fingerprint_case):
    image = data.images["val_small"]
    assert fingerprint_case(Case("scan", image)).tumor_prints is None
    assert fingerprint_case(Case("scan", image, data.label_file("val_small")), [7]).tumor_prints == ()


def test_a_warning_is_logged_and_recorded(
    make_nnunet_project, monkeypatch, tmp_path, generator_with_provenance, fingerprint_case
):
    import shutil

    import torch

    from nnunet_difftumor.trainer.trainers import nnUNetTrainerDiffTumor

    project = make_nnunet_project()
    for key, value in project.environment().items():
        if key.startswith("nnUNet_"):
            monkeypatch.setenv(key, value)
    monkeypatch.setattr(tumor_prints, "RAREST_CHANCE", 1.0)  # its tumours are equal balls, which tell nothing apart
    folder = Path(shutil.copytree(generator_with_provenance, tmp_path / "generator"))
    image, label = project.raw / "imagesTr" / "tumor_0_0000.nii.gz", project.raw / "labelsTr" / "tumor_0.nii.gz"
    seen = replace(fingerprint_case(Case("x", image, label), [2]), image_hash="0" * 64, tumor_mask_hash="1" * 64)
    seen = replace(
        seen, content_hash=None, tumor_prints=tuple(replace(each, surroundings=()) for each in seen.tumor_prints or ())
    )
    save_provenance(folder / "provenance.json", Provenance(diffusion=(seen,), autoencoder=()))
    project.configure(generator=str(folder))
    plans = {**json.loads((project.preprocessed / "nnUNetPlans.json").read_text()), "continue_training": False}
    dataset_json = json.loads((project.preprocessed / "dataset.json").read_text())
    trainer = nnUNetTrainerDiffTumor(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
    trainer._prepare_training()
    recorded = json.loads((project.output() / "difftumor_config.json").read_text())["leak_warnings"]
    assert len(recorded) == 1
    assert "tumor_" in recorded[0]
    assert f"WARNING: {recorded[0]}" in Path(trainer.log_file).read_text()


def test_the_record_discloses_rounded_numbers_only(data, scans, plant):
    case = plant(data, scans["val_large"], "a")
    assert isinstance(case, CaseFingerprint)
    text = json.dumps(asdict(Provenance(diffusion=(case,), autoencoder=())))
    numbers = json.loads(text)["diffusion"][0]["tumor_prints"]
    assert can_be_told(case.tumor_prints)
    assert all(float(f"{part['volume_mm3']:.3g}") == part["volume_mm3"] for part in numbers)
    assert all(round(around["mean_hu"]) == around["mean_hu"] for part in numbers for around in part["surroundings"])
    assert len(json.dumps(numbers)) < 700
