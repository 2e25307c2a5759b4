from __future__ import annotations

import contextlib
import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from diffusion.generator.provenance import CaseFingerprint, Provenance, hash_identifier
from diffusion.generator_folder import read_generator_info, save_generator
from diffusion.pipeline import TumorDiffusionPipeline
from nnunet_difftumor.cli import main
from nnunet_difftumor.commands.evaluation.evaluate_generator import _other_organs
from nnunet_difftumor.ct.datasets import Case
from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.evaluation.realism.generator import evaluate_generator
from nnunet_difftumor.evaluation.realism.settings import quick_settings
from nnunet_difftumor.synthesis.tissue.diffusion import synthesis_precision

NAMES = ("a", "b", "healthy")


LARGE, SMALL = ((12, 20, 13), 12.0), ((40, 8, 6), 4.5)  # centre in voxels, radius in mm


def write_case(folder: Path, identifier: str, tumors: Sequence[tuple[tuple[int, int, int], float]], seed: int) -> None:
    """Soft tissue of 60 HU with a fat border; tumours of 30 HU."""
    rng = np.random.default_rng(seed)
    shape = (48, 40, 28)  # (X, Y, Z), 2 x 2 x 3 mm
    hu = rng.normal(60.0, 10.0, shape)
    labels = np.ones(shape, dtype=np.uint8)
    hu[:2] = -100.0
    labels[:2] = 0
    for centre, radius_mm in tumors:
        offset_mm = (np.moveaxis(np.indices(shape), 0, -1) - centre) * (2.0, 2.0, 3.0)
        inside = np.linalg.norm(offset_mm, axis=-1) <= radius_mm
        hu[inside] = rng.normal(30.0, 10.0, int(inside.sum()))
        labels[inside] = 2
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    for kind, array, name in (("imagesTr", hu, f"{identifier}_0000"), ("labelsTr", labels, identifier)):
        path = folder / kind / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(np.round(array).astype(np.int16), affine), path)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "Dataset801_Test"
    for seed, (name, tumors) in enumerate(zip(NAMES, ((LARGE,), (LARGE, SMALL), ()), strict=True)):
        write_case(folder, name, tumors, seed)
    options = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "tumor": 2}}
    (folder / "dataset.json").write_text(json.dumps({**options, "numTraining": 3, "file_ending": ".nii.gz"}))
    return folder


def words(dataset: Path, generator: Path, output: Path) -> list[str]:
    fixed = ["evaluate-generator", "-d", str(dataset), "--quick"]
    return [*fixed, "--output", str(output), "--generator", str(generator)]


def trained_on(case: CaseFingerprint, nano_generator_folder: Path, folder: Path) -> Path:
    """The smallest generator as if it had been trained on a case."""
    pipeline = TumorDiffusionPipeline.from_pretrained(nano_generator_folder)
    save_generator(
        folder, pipeline, read_generator_info(nano_generator_folder), Provenance(diffusion=(case,), autoencoder=())
    )
    return folder


def known_by_name(identifier: str) -> CaseFingerprint:
    return CaseFingerprint(identifier_hash=hash_identifier(identifier), image_hash="0" * 64, tumor_mask_hash=None)


def write_splits(path: Path, *validation: list[str]) -> Path:
    path.write_text(json.dumps([{"train": sorted({*NAMES} - {*each}), "val": each} for each in validation]))
    return path


@pytest.fixture(scope="module")
def run(dataset, nano_generator_folder, tmp_path_factory) -> tuple[Path, str]:
    """The folder of a finished evaluation of two generators with a second organ, and what was printed."""
    root = tmp_path_factory.mktemp("evaluation")
    second = trained_on(known_by_name("a"), nano_generator_folder, root / "second")
    image, label = dataset / "imagesTr" / "healthy_0000.nii.gz", dataset / "labelsTr" / "healthy.nii.gz"
    command = [*words(dataset, nano_generator_folder, root / "out"), str(second)]
    command += ["--splits", str(write_splits(root / "splits.json", ["a", "healthy"], ["b"]))]
    command += ["--other-organ", str(image), str(label), "1"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(command) == 0
    return root / "out", printed.getvalue()


@pytest.fixture(scope="module")
def finished(run) -> Path:
    return run[0]


def test_the_summary_holds_every_headline_figure_and_no_nan(finished):
    text = (finished / "summary.json").read_text()
    assert "NaN" not in text
    summary = json.loads(text)
    numbers = ("reconstruction_mae_ratio_2x_body", "reconstruction_mae_ratio_2x_tumor", "beyond_rim_hu")
    intervals = (
        "in_mask_w1_hu in_mask_w1_hu_in_place real_to_real_w1_hu transplant_plausible_share highpass_ratio "
        "mean_spread_ratio depth_reached sham_two_sample_auc sham_rim_probe_auc redrawn_sham_two_sample_auc "
        "highpass_ratio_no_residual lowpass_ratio contrast_median_error_hu contrast_spearman contrast_slope "
        "rim_probe_auc two_sample_auc ring_depth_hu"
    ).split()
    assert all(isinstance(summary[name], float) for name in numbers)
    assert all(set(summary[name]) == {"value", "low", "high"} for name in intervals)
    assert sorted(summary["cases"]) == list(NAMES)
    assert [each["cases"] for each in summary["generators"]] == [["a", "healthy"], ["b"]]
    assert summary["cases_without_tumor"] == ["healthy"]
    assert summary["beyond_rim_hu"] == 0.0
    assert summary["precision"] == synthesis_precision(torch.device("cpu"))
    assert list(summary["other_organ"]) == ["healthy, label 1"]


def test_every_table_has_the_rows_to_compare_with(finished):
    methods = json.loads((finished / "summary.json").read_text())["methods"]
    assert set(methods) >= {"real", "generated", "copy-paste", "no diffusion", "autoencoder"}
    for name in ("real", "generated", "copy-paste", "no diffusion"):
        assert methods[name]["in_place"]["tumors"] > 0
        assert methods[name]["transplant"]["tumors"] > 0
    bins = methods["generated"]["in_place"]["bins"]
    assert bins["20-50 mm"]["patients"] == 2
    assert bins["<10 mm"]["patients"] == 1
    assert bins["10-20 mm"] == bins[">=50 mm"] == "empty"


def test_every_tumour_of_a_case_is_compared(finished):
    with (finished / "tumors.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    real = [row for row in rows if row["method"] == "real"]
    assert [(row["patient"], row["place"]) for row in real] == [("a", "tumour 1"), ("b", "tumour 1"), ("b", "tumour 2")]
    generated = [row for row in rows if (row["experiment"], row["method"]) == ("in place", "generated")]
    looks = Counter((row["patient"], row["place"]) for row in generated)
    assert looks == {("a", "tumour 1"): 5, ("b", "tumour 1"): 3, ("b", "tumour 2"): 3}, "four for a case, and its own"
    methods = json.loads((finished / "summary.json").read_text())["methods"]
    assert (methods["real"]["in_place"]["tumors"], methods["real"]["in_place"]["patients"]) == (3, 2)


def test_a_range_of_plausible_means_from_two_patients_is_refused(run):
    output, printed = run
    summary = json.loads((output / "summary.json").read_text())
    assert summary["plausible_range_hu"] is None
    assert summary["transplant_plausible_share"]["value"] is None
    assert printed.count("not measured: 2 patients, 8 needed") == 2
    assert "not measured: 2 patients, 8 needed" in (output / "report.html").read_text()


def test_fills_diffusion_and_copies_stand_side_by_side(run):
    output, printed = run
    with (output / "worth.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    every = [row for row in rows if (row["size"], row["measure"]) == ("all", "W1 of HU, in place, HU")]
    assert [row["method"] for row in every] == [
        *("flat fill", "textured fill", "diffusion", "copy-paste", "real to real"),
        "diffusion against textured fill",
    ]
    assert {row["size"] for row in rows if "in place" in row["measure"]} == {"all", "<10 mm", ">=20 mm"}
    text = (output / "worth.md").read_text()
    assert text.startswith("The diffusion is better than the textured fill in")
    assert text.splitlines()[0] in printed


def test_the_table_of_tumours_has_one_row_each(finished):
    with (finished / "tumors.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    real = [row for row in rows if row["method"] == "real"]
    assert float(real[0]["diameter_mm"]) == pytest.approx(24.0, rel=0.05)
    assert float(real[0]["contrast_hu"]) == pytest.approx(-30.0, abs=4.0)


def test_the_page_and_the_picture_of_the_demo_are_written(finished):
    page = (finished / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 8
    assert 'src="http' not in page
    assert (finished / "inplace.png").stat().st_size > 1000


def test_results_are_not_overwritten_unless_asked(finished, dataset, nano_generator_folder, capsys):
    assert main(words(dataset, nano_generator_folder, finished)) == 1
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize("renamed", [False, True])
def test_a_case_that_trained_the_generator_is_refused(
    dataset, nano_generator_folder, tmp_path, capsys, renamed, fingerprint_case
):
    known = known_by_name("a")
    if renamed:
        known = fingerprint_case(Case("other", dataset / "imagesTr" / "a_0000.nii.gz"))
    generator = trained_on(known, nano_generator_folder, tmp_path / "generator")
    splits, output = write_splits(tmp_path / "splits.json", ["a"], ["b"]), tmp_path / "out"
    assert main([*words(dataset, generator, output), "--splits", str(splits), "-f", "0"]) == 1
    assert "trained this generator (a)" in capsys.readouterr().err
    reversed_splits = write_splits(tmp_path / "reversed.json", ["b"], ["a"])
    several = [*words(dataset, nano_generator_folder, output), str(generator), "--splits", str(reversed_splits)]
    assert main(several) == 1
    assert "trained this generator (a)" in capsys.readouterr().err
    assert not output.exists()


def test_wrong_arguments_are_named(dataset, nano_generator_folder, tmp_path, capsys):
    fixed = words(dataset, nano_generator_folder, tmp_path / "out")
    assert main([*fixed, "--transplants", "0"]) == 1
    assert "--transplants must be 1 or more" in capsys.readouterr().err
    assert main([*fixed, "--other-organ", "ct.nii.gz", "label.nii.gz", "liver"]) == 1
    assert "ORGAN_LABEL" in capsys.readouterr().err
    assert main([*fixed, "--tumor-label", "nodule"]) == 1
    assert "tumor_label is 'nodule'" in capsys.readouterr().err
    assert main([*fixed, "--organ-label", "2", "--tumor-label", "2"]) == 1
    assert "organ" in capsys.readouterr().err


def test_a_generator_can_be_named_and_its_looks_chosen(dataset, nano_generator_folder, tmp_path, capsys):
    command = words(dataset, nano_generator_folder, tmp_path / "out")
    command[command.index("--generator") + 1] = "builtin:liver-huge"
    assert main(command) == 1
    assert "builtin:soft-tissue-tiny" in capsys.readouterr().err
    settings = quick_settings()
    settings = replace(settings, classifier=replace(settings.classifier, steps=0))
    summary = evaluate_generator([nano_generator_folder], dataset, tmp_path / "liver", settings, target="liver")
    assert summary["target"] == "liver"
    assert summary["two_sample_auc"]["value"] is None  # no classifier was trained
    with (tmp_path / "liver" / "tumors.csv").open() as file:
        asked = {
            float(row["requested_contrast_hu"])
            for row in csv.DictReader(file)
            if row["setting"] == "transplant" and row["requested_contrast_hu"]
        }
    assert asked
    assert len(asked) > 4  # drawn from the published distribution, not from the two training tumours


def test_scans_of_other_organs_need_names_of_their_own():
    words = [["a/ct.nii.gz", "a/mask.nii.gz", "1"], ["b/ct.nii.gz", "b/mask.nii.gz", "1"]]
    with pytest.raises(ConfigurationError, match="two scans are named 'ct'"):
        _other_organs(words)
    (first, second) = _other_organs([["scan.1_ct.nii.gz", "m.nii.gz", "1"], ["scan.2_ct.nii.gz", "m.nii.gz", "1"]])
    assert (first[0].identifier, second[0].identifier) == ("scan.1", "scan.2")
    assert len(_other_organs([words[0], ["b/ct.nii.gz", "b/mask.nii.gz", "2"]])) == 2
