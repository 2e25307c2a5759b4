from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from diffusion.generator_folder import load_generator, save_generator
from diffusion.provenance import CaseFingerprint, Provenance, hash_identifier
from nnunet_difftumor.cases import Case
from nnunet_difftumor.cli import main
from nnunet_difftumor.generators import DiffusionTissue
from nnunet_difftumor.inplace_evaluation import FillTissue, evaluate_case, summarize

WINDOW_HU = (-175.0, 250.0)


def write_case(folder: Path, identifier: str, *, tumor_hu: float = 30.0, has_tumor: bool = True) -> Case:
    rng = np.random.default_rng(0)
    shape = (40, 40, 24)  # (X, Y, Z)
    hu = rng.normal(60.0, 10.0, shape)
    labels = np.ones(shape, dtype=np.uint8)
    hu[:3] = -1000.0
    labels[:3] = 0
    x, y, z = np.indices(shape)
    inside = ((x - 20) * 2.0) ** 2 + ((y - 20) * 2.0) ** 2 + ((z - 12) * 3.0) ** 2 <= 12.0**2
    if has_tumor:
        hu[inside] = rng.normal(tumor_hu, 10.0, int(inside.sum()))
        labels[inside] = 2
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    image_path = folder / "imagesTr" / f"{identifier}_0000.nii.gz"
    label_path = folder / "labelsTr" / f"{identifier}.nii.gz"
    for path in (image_path, label_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.round(hu).astype(np.int16), affine), image_path)
    nibabel.save(nibabel.Nifti1Image(labels, affine), label_path)
    return Case(identifier, image_path, label_path)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "Dataset801_Test"
    write_case(folder, "a")
    write_case(folder, "b", has_tumor=False)
    options = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "tumor": 2}}
    (folder / "dataset.json").write_text(json.dumps({**options, "numTraining": 2, "file_ending": ".nii.gz"}))
    return folder


def evaluate(case: Case, generator_folder: Path):
    loaded = load_generator(generator_folder)
    fill = FillTissue(loaded.pipeline.autoencoder)
    return evaluate_case(case, 1, 2, DiffusionTissue(loaded), fill, np.random.default_rng(0))


def test_the_real_tumour_does_not_reach_the_generated_one(tmp_path, nano_generator_folder):
    """150 HU more inside the real tumour move the generated one by less than 1 HU."""
    faint = evaluate(write_case(tmp_path / "faint", "a"), nano_generator_folder)
    bright = evaluate(write_case(tmp_path / "bright", "a", tumor_hu=180.0), nano_generator_folder)
    inside = faint.mask
    assert np.array_equal(inside, bright.mask)
    assert bright.real_hu[inside].mean() - faint.real_hu[inside].mean() > 100.0
    difference = bright.synthetic_hu[:, inside] - faint.synthetic_hu[:, inside]
    assert np.abs(difference.mean()) < 1.0
    assert np.abs(difference).mean() < 2.0
    outside = ~inside
    assert np.array_equal(faint.synthetic_hu[0][outside], faint.real_hu[outside])


def test_the_table_holds_for_tumours_that_equal_the_real_ones(tmp_path, nano_generator_folder):
    case = evaluate(write_case(tmp_path, "a"), nano_generator_folder)
    copies = np.repeat(case.real_hu[None], 4, axis=0)
    summary = summarize([replace(case, synthetic_hu=copies)], WINDOW_HU)
    real, synthetic = summary["rows"]["real"], summary["rows"]["synthetic"]
    assert synthetic["wasserstein_hu"] == pytest.approx(0.0, abs=1e-3)
    assert synthetic["mean_hu"] == pytest.approx(real["mean_hu"], abs=1e-3)
    shifted = summarize([replace(case, synthetic_hu=copies + 7.0)], WINDOW_HU)
    assert shifted["rows"]["synthetic"]["wasserstein_hu"] == pytest.approx(7.0, abs=1e-2)
    constant = summary["rows"]["constant at the real mean"]
    values = case.real_hu[case.mask]
    assert constant["wasserstein_hu"] == pytest.approx(float(np.abs(values - values.mean()).mean()), rel=1e-3)


def test_the_command_writes_table_and_picture_and_skips_healthy_cases(dataset, nano_generator_folder, tmp_path):
    output = tmp_path / "out"
    words = ["evaluate-generator", "--generator", str(nano_generator_folder), "--data", str(dataset)]
    assert main([*words, "--output", str(output)]) == 0
    summary = json.loads((output / "inplace.json").read_text())
    assert [case["identifier"] for case in summary["cases"]] == ["a"]
    assert summary["without_tumor"] == ["b"]
    assert (output / "inplace.png").stat().st_size > 1000
    assert main([*words, "--output", str(output)]) == 1, "results are not overwritten unless asked"


def test_a_case_that_trained_the_generator_is_refused(dataset, nano_generator_folder, tmp_path, capsys):
    loaded = load_generator(nano_generator_folder)
    known = CaseFingerprint(identifier_hash=hash_identifier("a"), image_hash="0" * 64, tumor_mask_hash=None)
    generator = tmp_path / "generator"
    save_generator(generator, loaded.pipeline, loaded.info, Provenance(diffusion=(known,), autoencoder=()))
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps([{"train": ["b"], "val": ["a"]}]))
    words = ["evaluate-generator", "--generator", str(generator), "--data", str(dataset)]
    assert main([*words, "--splits", str(splits), "--fold", "0", "--output", str(tmp_path / "out")]) == 1
    assert "trained this generator (a)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
