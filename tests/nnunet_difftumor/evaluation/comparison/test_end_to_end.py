"""`difftumor compare` from raw scans of three hospitals to the page; every number is traced back to the voxels."""

import csv
import html
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import ndimage, stats

from nnunet_difftumor.demo.settings import CONFIGURATION, demo_settings
from nnunet_difftumor.demo.settings import PLANS_NAME as PLANS
from nnunet_difftumor.trainer.discovery import ext_trainer_folder
from nnunet_difftumor.trainer.small_plans import write_small_plans

pytestmark = pytest.mark.slow

DATASET = "Dataset905_Phantom"
TUMOR = 2
ARMS = {"nnU-Net": "nnUNetTrainerScheduled", "DiffTumor": "nnUNetTrainerDiffTumor"}
HOSPITALS = {"Aachen": "standard", "Bern": "thick-smooth", "Celle": "arterial"}
TUMOR_SCANS, HEALTHY_SCANS = 5, 2  # of each hospital; two scans with a tumour are one patient's
STATISTICS = {"draws": 1000, "minimum_patients": 4, "minimum_tumors": 4}
SCHEDULE = {"num_iterations_per_epoch": 100, "num_val_iterations_per_epoch": 1}
EPOCHS = {"nnU-Net": [16, 28, 44, 64], "DiffTumor": [3]}
"""Epochs of a training, which goes on to the next number while it finds no tumour: nnU-Net draws without a seed, and
found its first tumour after 8 epochs in one training, not within 16 in another. The arm of 3 epochs may predict none;
that is compared too."""
FOUND_DICE = 0.3


def make_environment(root):
    """nnU-Net's folders under `root`, one thread, patient workers."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("nnUNet_")}
    folders = {f"nnUNet_{name}": str(root / name) for name in ("raw", "preprocessed", "results")}
    few = {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    settings = {"nnUNet_extTrainer": str(ext_trainer_folder()), "nnUNet_difftumor": str(root / "settings.json")}
    return {**inherited, **folders, **few, **settings}


def run(root, *words, expected=0):
    """Run a command in that environment; returns what it printed."""
    process = subprocess.run(
        [str(Path(sys.executable).parent / words[0]), *map(str, words[1:])],
        env=make_environment(root),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
        check=False,
    )
    assert process.returncode == expected, process.stdout[-5000:]
    return process.stdout


def crop_around_tumor(raw, case):
    """Make a case small, so that nnU-Net validates on it in seconds."""
    labels = nibabel.load(raw / "labelsTr" / f"{case}.nii.gz")
    middle = np.argwhere(np.asarray(labels.dataobj) == TUMOR).mean(axis=0)
    half = 50 / np.asarray(labels.header.get_zooms())
    low = np.maximum(middle - half, 0).astype(int)
    box = tuple(slice(start, stop) for start, stop in zip(low, (middle + half).astype(int), strict=True))
    for path in (raw / "imagesTr" / f"{case}_0000.nii.gz", raw / "labelsTr" / f"{case}.nii.gz"):
        image = nibabel.load(path)
        cropped = type(image)(np.asarray(image.dataobj)[box], image.slicer[box].affine, image.header)
        nibabel.save(cropped, path)


def train_arms(root):
    """Train both arms on one phantom with nnU-Net's own commands; the first case validates."""
    raw, preprocessed = root / "raw" / DATASET, root / "preprocessed" / DATASET
    run(root, "difftumor", "phantom", "--output", raw, "--cases", 12, "--healthy", 4)
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (raw / "labelsTr").iterdir())
    validated = next(case for case in cases if "tumor" in case)
    crop_around_tumor(raw, validated)
    words = ("-d", 905, "-c", CONFIGURATION, "-np", 1)
    spacing = ("-overwrite_target_spacing", 4, 3, 3)
    run(root, "nnUNetv2_plan_and_preprocess", *words, "-npfp", 1, "--no_pp", *spacing)
    write_small_plans(preprocessed, demo_settings("phantom").network, name=PLANS)
    run(root, "nnUNetv2_preprocess", *words, "-plans_name", PLANS)
    split = {"train": [case for case in cases if case != validated], "val": [validated]}
    (preprocessed / "splits_final.json").write_text(json.dumps([split]))
    sizes = [{"name": "any", "radius_mm": [8, 20], "probability": 1, "max_count": 1}]
    for arm, trainer in ARMS.items():
        for epochs in EPOCHS[arm]:
            settings = {"size_classes": sizes, "healthy_holdout": 0, "num_epochs": epochs, **SCHEDULE}
            (root / "settings.json").write_text(json.dumps(settings))
            words = ("-tr", trainer, "-p", PLANS, "-device", "cpu", *(["--c"] if epochs > EPOCHS[arm][0] else []))
            run(root, "nnUNetv2_train", 905, CONFIGURATION, 0, *words)
            if validation_dice(root, trainer) > FOUND_DICE:
                break
    assert validation_dice(root, ARMS["nnU-Net"]) > FOUND_DICE, f"no tumour found after {EPOCHS['nnU-Net'][-1]} epochs"


def validation_dice(root, trainer):
    """Dice of the tumour in the case that nnU-Net validated on."""
    folder = root / "results" / DATASET / f"{trainer}__{PLANS}__{CONFIGURATION}" / "fold_0" / "validation"
    return json.loads((folder / "summary.json").read_text())["mean"][str(TUMOR)]["Dice"]


def make_hospitals(root):
    """Three hospitals with their own scanners, and what is known of their patients."""
    rows = [["hospital", "case", "patient", "age", "sex"]]
    for number, (hospital, style) in enumerate(HOSPITALS.items()):
        counts = ("--cases", TUMOR_SCANS, "--healthy", HEALTHY_SCANS, "--seed", 100 + number)
        run(root, "difftumor", "phantom", "--output", root / hospital, "--hospital", style, *counts)
        for index, case in enumerate(sorted(path.name for path in (root / hospital / "labelsTr").iterdir())):
            patient = index - (index > HEALTHY_SCANS)  # the first two scans with a tumour are of one patient
            age, sex = 38 + 11 * number + 4 * patient, "fm"[patient % 2]
            rows.append([hospital, f"{hospital}_{case.removesuffix('.nii.gz')}", f"P{patient}", age, sex])
    with (root / "patients.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_experiment(root):
    models = [
        {"arm": arm, "trained": f"results/{DATASET}/{trainer}__{PLANS}__{CONFIGURATION}", "folds": [0]}
        for arm, trainer in ARMS.items()
    ]
    hospitals = [{"name": name, "images": f"{name}/imagesTr", "labels": f"{name}/labelsTr"} for name in HOSPITALS]
    prediction = {"device": "cpu", "processes": 1, "mirroring": False, "step_size": 0.75, "probabilities": True}
    content = {"title": "Phantom", "metadata": "patients.csv", "hospitals": hospitals, "models": models}
    path = root / "experiment.yaml"
    path.write_text(yaml.safe_dump({**content, "prediction": prediction, "statistics": STATISTICS}))
    return path


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two trainings compared in three hospitals. Returns the folder with all of it; results are in `out`."""
    root = tmp_path_factory.mktemp("end_to_end")
    for name in ("raw", "preprocessed", "results"):
        (root / name).mkdir()
    make_hospitals(root)
    train_arms(root)
    words = ("difftumor", "compare", write_experiment(root), "--output", root / "out")
    refused = run(root, *words, expected=1)  # scans of hospitals are still named like training cases
    assert "nnU-Net was trained on cases of these names: Aachen: phantom_healthy_000" in refused
    assert not (root / "out").exists()
    for hospital in HOSPITALS:
        for path in [*(root / hospital / "imagesTr").iterdir(), *(root / hospital / "labelsTr").iterdir()]:
            path.rename(path.with_name(f"{hospital}_{path.name}"))
    printed = run(root, *words)
    for arm, hospital in itertools.product(ARMS, HOSPITALS):
        assert f"{arm}, {hospital}: {TUMOR_SCANS + HEALTHY_SCANS} scans predicted" in printed
    return root


def predicted_files(root):
    """Arm, hospital, case, reference, prediction of every scan that has to be predicted."""
    for arm, hospital in itertools.product(ARMS, HOSPITALS):
        for reference in sorted((root / hospital / "labelsTr").glob("*.nii.gz")):
            prediction = root / "out" / "predictions" / arm / hospital / reference.name
            yield arm, hospital, reference.name.removesuffix(".nii.gz"), reference, prediction


def find_tumors(mask, voxel_mm3):
    """Masks of the 26-connected tumours that count, and the mask of the specks."""
    numbers, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    tumors = [numbers == number for number in range(1, count + 1)]
    is_large = [each.sum() >= 8 and each.sum() * voxel_mm3 >= 14 for each in tumors]
    specks = [each for each, large in zip(tumors, is_large, strict=True) if not large]
    return [each for each, large in zip(tumors, is_large, strict=True) if large], sum(specks, np.zeros_like(mask))


def pair_up(overlaps):
    """Pairs of row and column with the largest sum of overlaps, by trying all; pairs below 0.1 do not exist."""
    if not overlaps:
        return 0.0, ()
    best, found = pair_up(overlaps[1:])
    pairs = tuple((row + 1, column) for row, column in found)
    for column, overlap in enumerate(overlaps[0]):
        if overlap >= 0.1:
            others = [[0.0 if i == column else value for i, value in enumerate(row)] for row in overlaps[1:]]
            rest, found = pair_up(others)
            if overlap + rest > best:
                best, pairs = overlap + rest, ((0, column), *((row + 1, other) for row, other in found))
    return best, pairs


def recompute(reference, prediction):
    """Scores of a scan straight from its two files."""
    image = nibabel.load(reference)
    voxel_mm3 = float(np.prod(image.header.get_zooms()[:3]))
    true, found = (np.asarray(nibabel.load(path).dataobj) == TUMOR for path in (reference, prediction))
    true_tumors, true_specks = find_tumors(true, voxel_mm3)
    found_tumors, _ = find_tumors(found, voxel_mm3)
    found_tumors = [each for each in found_tumors if (each & true).any() or not (each & true_specks).any()]
    overlaps = [[(a & b).sum() / (a | b).sum() for b in found_tumors] for a in true_tumors]
    _, pairs = pair_up(overlaps)
    probabilities = np.load(prediction.with_name(prediction.name.replace(".nii.gz", ".npz")))["probabilities"]
    return {
        "is_healthy": not true.any(),
        "dice": 2 * (true & found).sum() / (true.sum() + found.sum()) if true.any() or found.any() else math.nan,
        "reference_ml": true.sum() * voxel_mm3 / 1000,
        "predicted_ml": found.sum() * voxel_mm3 / 1000,
        "reference_tumors": len(true_tumors),
        "detected_tumors": len(pairs),
        "touched_tumors": sum((each & sum(found_tumors, np.zeros_like(found))).any() for each in true_tumors),
        "predicted_tumors": len(found_tumors),
        "false_positives": len(found_tumors) - len(pairs),
        "patient_score": float(probabilities[TUMOR].max()),
        "found_ml": sorted(true_tumors[row].sum() * voxel_mm3 / 1000 for row, _ in pairs),
    }


def check_scores(root, output):
    """Raise AssertionError unless cases.csv and tumors.csv hold what the predictions say. Returns what was found."""
    cases = pd.read_csv(output / "cases.csv").set_index(["arm", "hospital", "case"])
    tumors = pd.read_csv(output / "tumors.csv")
    found = []
    for arm, hospital, case, reference, prediction in predicted_files(root):
        expected = recompute(reference, prediction)
        row = cases.loc[(arm, hospital, case)]
        for key in expected.keys() - {"found_ml"}:
            tolerance = 2e-3 if key == "patient_score" else 1e-5
            assert float(row[key]) == pytest.approx(float(expected[key]), abs=tolerance, nan_ok=True), (case, arm, key)
        own = tumors[(tumors["arm"] == arm) & (tumors["hospital"] == hospital) & (tumors["case"] == case)]
        assert len(own) == expected["reference_tumors"]
        assert sorted(own[own["detected"]]["volume_mm3"] / 1000) == pytest.approx(expected["found_ml"], abs=1e-3)
        found.append({"arm": arm, **expected})
    assert len(found) == len(cases)
    return pd.DataFrame(found)


COLUMNS = {
    "dice": "dice",
    "nsd_2mm": "nsd_2mm",
    "nsd_1mm": "nsd_1mm",
    "panoptic_quality": "panoptic_quality",
    "sensitivity": "detected",
    "touched": "touched",
    "tumor_dice": "dice",
    "false_positives": "false_positives",
    "specificity": "is_clean",
}
TITLES = {
    "Dice": "dice",
    "Surface Dice at 2 mm": "nsd_2mm",
    "Surface Dice at 1 mm": "nsd_1mm",
    "Panoptic quality": "panoptic_quality",
    "Sensitivity": "sensitivity",
    "Tumours touched": "touched",
    "Dice per tumour": "tumor_dice",
    "False positives per scan": "false_positives",
    "Specificity": "specificity",
    "AUROC": "auroc",
}


def value_of(tables, measure, arm, kind, group):
    """A figure from the two tables: value, patients, number of scans or tumours."""
    cases, tumors = tables
    rows = tumors if measure in ("sensitivity", "touched", "tumor_dice") else cases
    rows = rows[(rows["arm"] == arm) & in_group(rows, kind, group)]
    if measure in ("dice", "nsd_2mm", "nsd_1mm", "panoptic_quality"):
        rows = rows[rows["reference_ml"] > 0]
    if measure == "specificity":
        rows = rows[rows["is_healthy"]]
    names, count = (rows["hospital"] + rows["patient"]).to_numpy(), len(rows)
    patients = len(set(names))
    if not count:
        return math.nan, 0, 0
    if measure == "auroc":
        ill, well = (rows[rows["is_healthy"] == healthy]["patient_score"] for healthy in (False, True))
        value = stats.mannwhitneyu(ill, well).statistic / len(ill) / len(well) if len(ill) and len(well) else math.nan
        return value, patients, count
    values = rows[COLUMNS[measure]].to_numpy(dtype=float)
    if measure in ("dice", "nsd_2mm", "nsd_1mm", "panoptic_quality"):  # every patient counts the same
        return float(np.mean([values[names == name].mean() for name in sorted(set(names))])), patients, count
    return float(values.mean()), patients, count


def in_group(rows, kind, group):
    if kind == "all":
        return rows["case"] == rows["case"]
    if kind != "size":
        return rows[kind] == group
    numbers = [float(number) for number in re.findall(r"\d+", group)]
    low, high = {"<": (0, numbers[0]), ">": (numbers[0], np.inf)}.get(group[0], numbers)
    return (rows["equivalent_diameter_mm"] >= low) & (rows["equivalent_diameter_mm"] < high)


class Page(HTMLParser):
    """Tables of a page by id: rows of cells as text, a small second line in brackets."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.rows, self.cell = {}, None, None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self.rows = self.tables.setdefault(dict(attributes).get("id"), [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.cell = []
        elif tag == "small":
            self.cell.append(" (")

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append("".join(self.cell).strip())
            self.cell = None
        elif tag == "small":
            self.cell.append(")")

    def handle_data(self, data):
        if self.cell is not None:
            self.cell.append(data)


def read_latex(text):
    """Rows of a table as text."""
    body = re.search(r"\\toprule\n(.*)\\bottomrule", text, re.DOTALL).group(1).replace("\\midrule\n", "")
    body = re.sub(r"\\multicolumn\{\d+\}\{l\}\{([^{}]*)\}", r"\1", body)
    for written, meant in (("$-$", "-"), ("$<$", "<"), ("$>$", ">"), (r"\_", "_")):
        body = body.replace(written, meant)
    return [[cell.strip() for cell in row.split("&")] for row in body.split(r"\\") if row.strip()]


def rows_shown(output):
    """Rows of every table by name; they must be the same in the page, as CSV and as LaTeX."""
    page = Page((output / "report.html").read_text(encoding="utf-8"))
    copied = html.unescape((output / "report.html").read_text(encoding="utf-8"))
    shown = {}
    for path in sorted((output / "tables").glob("*.csv")):
        text, latex = path.read_text(encoding="utf-8"), path.with_suffix(".tex").read_text(encoding="utf-8")
        rows = [[cell for cell in row if cell] for row in csv.reader(text.splitlines())]
        on_page = [[cell for cell in row if cell] for row in page.tables[path.stem]]
        assert on_page == rows, path.stem
        assert [[cell for cell in row if cell] for row in read_latex(latex)] == rows, path.stem
        assert text in copied, path.stem
        assert latex in copied, path.stem
        shown[path.stem] = rows
    return shown


def is_too_few(measure, patients, items, value):
    if measure == "auroc":
        return math.isnan(value)
    of_tumors = measure in ("sensitivity", "touched", "tumor_dice")
    return patients < STATISTICS["minimum_patients"] or (of_tumors and items < STATISTICS["minimum_tumors"])


def check_report(output):
    """Raise AssertionError unless page and tables show what cases.csv and tumors.csv say. Returns numbers checked."""
    tables = pd.read_csv(output / "cases.csv"), pd.read_csv(output / "tumors.csv")
    baseline, (arm,) = next(iter(ARMS)), [*ARMS][1:]
    shown = rows_shown(output)
    assert set(shown) == {f"tumor_{kind}" for kind in ("arms", "differences", "size", "hospital", "age", "sex")} | {
        "cohort"
    }
    checked = 0

    def check_cell(cell, value, sign=""):
        nonlocal checked
        text = f"{value:{sign}.3f}"
        assert cell.split(" ")[0] == (text.lstrip("+-") if sign and not float(text) else text)
        checked += 1

    for title, patients, n, *cells in shown["tumor_arms"][1:]:
        for name, cell in zip(ARMS, cells, strict=True):
            value, *counts = value_of(tables, TITLES[title], name, "all", "all patients")
            assert [int(patients), int(n.split(" ")[0])] == counts, title
            check_cell(cell, value)
    for name, title, patients, cell, *_ in shown["tumor_differences"][1:]:
        assert name == arm
        (value, count, _), (of_baseline, *_) = (
            value_of(tables, TITLES[title], each, "all", "all patients") for each in (arm, baseline)
        )
        assert int(patients) == count
        check_cell(cell, value - of_baseline, sign="+")
    for kind in ("size", "hospital", "age", "sex"):
        for title, group, patients, n, *cells in shown[f"tumor_{kind}"][1:]:
            found = [value_of(tables, TITLES[title], each, kind, group) for each in (baseline, arm)]
            assert [int(patients), int(n.split(" ")[0])] == list(found[0][1:]) == list(found[1][1:]), (title, group)
            if is_too_few(TITLES[title], *found[0][1:], found[0][0]):
                assert cells[0] == "empty" or cells[0].startswith("too few: "), (title, group)
                assert len(cells) == 1
                continue
            for cell, (value, *_) in zip(cells, found, strict=False):
                check_cell(cell, value)
            check_cell(cells[2], found[1][0] - found[0][0], sign="+")
    for file, is_difference in (("arms.csv", False), ("differences.csv", True)):
        for row in pd.read_csv(output / file).dropna(subset=["value"]).itertuples():
            value, *counts = value_of(tables, row.measure, row.arm, row.group_kind, row.group)
            if is_difference:
                value -= value_of(tables, row.measure, row.baseline, row.group_kind, row.group)[0]
            assert row.value == pytest.approx(value, abs=1e-9), row
            assert [row.patients, row.items] == counts
            checked += 1
    first = tables[0][tables[0]["arm"] == baseline]
    scans = next(row for row in shown["cohort"] if row[0] == "scans")
    assert [int(cell) for cell in scans[1:]] == [*(sum(first["hospital"] == name) for name in HOSPITALS), len(first)]
    return checked


def test_every_hospital_is_predicted_by_both_models_and_scored_as_the_files_say(compared):
    for *_, reference, prediction in predicted_files(compared):
        assert prediction.is_file()
        assert nibabel.load(prediction).shape == nibabel.load(reference).shape
    found = check_scores(compared, compared / "out")
    assert len(found) == 2 * 3 * (TUMOR_SCANS + HEALTHY_SCANS)
    assert found["is_healthy"].sum() == 2 * 3 * HEALTHY_SCANS
    assert (found["predicted_ml"] > 0).any()
    assert found[found["arm"] == "nnU-Net"]["detected_tumors"].sum() > 0
    assert found[~found["is_healthy"]].groupby("arm")["dice"].mean().nunique() == 2  # two models, not one twice


def test_page_and_tables_show_what_the_scores_say(compared):
    assert check_report(compared / "out") > 150
    assert {path.name for path in (compared / "out" / "figures").iterdir()} == {
        "tumor_dice_DiffTumor.png",
        "tumor_sensitivity_DiffTumor.png",
        "tumor_sizes.png",
    }


def test_paired_statistics_are_those_of_the_patients(compared):
    """12 patients: below 30, so Student's t of the paired differences and a test by permutation."""
    cases = pd.read_csv(compared / "out" / "cases.csv").query("reference_ml > 0")
    patients = cases.groupby(["hospital", "patient", "arm"])["dice"].mean().unstack()
    assert len(patients) == 3 * (TUMOR_SCANS - 1)
    differences = patients["DiffTumor"] - patients["nnU-Net"]
    row = (
        pd.read_csv(compared / "out" / "differences.csv").set_index(["measure", "group"]).loc[("dice", "all patients")]
    )
    ends = stats.ttest_1samp(differences, 0).confidence_interval()
    assert (row["low"], row["high"]) == pytest.approx((ends.low, ends.high))
    assert (row["patients"], row["test"]) == (len(patients), "permutation")
    assert pd.isna(row["low_over_hospitals"])  # three hospitals are not resampled
    signs = np.random.default_rng(0).choice([-1, 1], size=(20_000, len(differences)))
    flipped, observed = np.abs(signs @ differences.to_numpy()), abs(differences.sum())
    is_as_extreme = np.abs(flipped - observed) < 1e-9
    expected = ((flipped > observed) & ~is_as_extreme).mean() + is_as_extreme.mean() / 2
    assert row["p"] == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("column", "change"),
    [("dice", 0.05), ("detected_tumors", 1), ("false_positives", 1), ("patient_score", 0.05)],
)
def test_a_wrong_score_is_noticed(compared, tmp_path, column, change):
    output = copy_report(compared, tmp_path)
    check_scores(compared, output)
    plant(output / "cases.csv", column, change)
    with pytest.raises(AssertionError):
        check_scores(compared, output)


@pytest.mark.parametrize(
    ("file", "column", "change"),
    [("cases.csv", "dice", 0.05), ("cases.csv", "false_positives", 1), ("arms.csv", "value", 1e-3)],
)
def test_a_wrong_number_in_a_table_is_noticed(compared, tmp_path, file, column, change):
    output = copy_report(compared, tmp_path)
    check_report(output)
    plant(output / file, column, change)
    with pytest.raises(AssertionError):
        check_report(output)


def test_a_wrong_number_on_the_page_is_noticed(compared, tmp_path):
    output = copy_report(compared, tmp_path)
    check_report(output)
    path = output / "report.html"
    page = path.read_text(encoding="utf-8")
    cell = re.search(r'id="tumor_arms".*?<td>(\d\.\d{3})<small>', page, re.DOTALL)
    path.write_text(f"{page[: cell.start(1)]}9.999{page[cell.end(1) :]}", encoding="utf-8")
    with pytest.raises(AssertionError):
        check_report(output)


def copy_report(root, folder):
    """Copy the results without predictions and scores."""
    ignored = shutil.ignore_patterns("predictions", "scores")
    return Path(shutil.copytree(root / "out", folder / "out", ignore=ignored))


def plant(path, column, change):
    """Change the first number of a column, of a scan with a tumour where the rows are scans."""
    table = pd.read_csv(path)
    rows = table.index[table["reference_ml"] > 0] if "reference_ml" in table else table.index[table[column].notna()]
    table[column] = table[column].astype(float)
    table.loc[rows[0], column] += change
    table.to_csv(path, index=False)
