"""`difftumor compare` from score folders written by hand or drawn by chance: figures, tables, report."""

import csv
import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from nnunet_difftumor.cli import main
from nnunet_difftumor.evaluation.comparison.run import compare

CASE_COLUMNS = (
    "case label is_healthy dice nsd_1mm nsd_2mm reference_ml predicted_ml reference_tumors detected_tumors "
    "touched_tumors predicted_tumors false_positives panoptic_quality patient_score"
).split()
TUMOR_COLUMNS = (
    "case label tumor volume_mm3 equivalent_diameter_mm axial_diameter_mm size_bin detected touched iou dice score"
).split()


def write_scores(folder, cases, tumors, rules=None):
    """Write a score folder; what a row leaves out is filled with plain values."""
    folder.mkdir(parents=True)
    for name, columns, rows in (("cases.csv", CASE_COLUMNS, cases), ("tumors.csv", TUMOR_COLUMNS, tumors)):
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
    (folder / "summary.json").write_text(json.dumps({} if rules is None else {"rules": rules}))


def case_row(case, tumors=(), false_positives=0, label="tumor", **more):
    """A row of cases.csv for a scan whose tumours are given as rows of tumors.csv."""
    dice = float(np.mean([tumor["dice"] for tumor in tumors])) if tumors else ""
    found = sum(tumor["detected"] for tumor in tumors)
    row = {
        "case": case,
        "label": label,
        "is_healthy": not tumors,
        **dict.fromkeys(("dice", "nsd_1mm", "nsd_2mm", "panoptic_quality"), dice),
        "reference_ml": sum(tumor["volume_mm3"] for tumor in tumors) / 1000,
        "predicted_ml": 0.0,
        "reference_tumors": len(tumors),
        "detected_tumors": found,
        "touched_tumors": sum(tumor["touched"] for tumor in tumors),
        "predicted_tumors": found + false_positives,
        "false_positives": false_positives,
    }
    return {**row, **more}


def tumor_row(case, number, diameter_mm, dice, label="tumor"):
    """A row of tumors.csv; found if its Dice is above 0.2."""
    row = {"case": case, "label": label, "tumor": number, "volume_mm3": round(np.pi / 6 * diameter_mm**3, 3)}
    row |= dict.fromkeys(("equivalent_diameter_mm", "axial_diameter_mm"), diameter_mm)
    return row | {
        "size_bin": "any",
        "detected": dice > 0.2,
        "touched": dice > 0,
        "iou": dice / (2 - dice),
        "dice": dice,
    }


def draw_scores(references, outcomes, patients, ease, gain):
    """Scans of some patients of one hospital: tumours of one patient are alike. Returns rows of both tables."""
    cases, tumors = [], []
    for number in range(patients):
        case = f"p{number:03d}"
        own = references.normal(ease, 0.8)
        diameters = references.uniform(5, 48, references.integers(1, 4)) if number % 4 else []
        rows = [
            tumor_row(case, index + 1, round(float(diameter), 2), _draw_dice(own + gain + diameter / 30 - 1, outcomes))
            for index, diameter in enumerate(diameters)
        ]
        tumors += rows
        score = 1 / (1 + np.exp(-(own + gain + 2 * bool(rows) + outcomes.normal())))
        cases.append(case_row(case, rows, int(outcomes.poisson(0.5)), patient_score=round(float(score), 4)))
    return cases, tumors


def _draw_dice(ease, rng):
    if ease + rng.normal() < 0:
        return 0.0
    return round(float(np.clip(0.75 + 0.08 * ease + 0.1 * rng.normal(), 0.25, 0.98)), 4)


def write_experiment(folder, hospitals, arms, **settings):
    """Draw scores of arms (name: gain, or list of gains for several seeds) in hospitals (name: patients)."""
    models = []
    for arm, gains in arms.items():
        for seed, gain in enumerate(gains if isinstance(gains, list) else [gains]):
            name = f"{arm}-{seed}"
            for number, (hospital, patients) in enumerate(hospitals.items()):
                references = np.random.default_rng([7, number])  # the same scans for every arm
                outcomes = np.random.default_rng([8, number, len(models)])
                cases, tumors = draw_scores(references, outcomes, patients, 0.4 + 0.1 * number, gain)
                rules = {"match_iou": 0.1, "smallest_voxels": 8, "smallest_mm3": 14.0, "confidence": "max"}
                write_scores(folder / "scores" / name / hospital, cases, tumors, rules)
            entry = {"name": name, "arm": arm, "scores": f"scores/{name}/{{hospital}}"}
            models.append({**entry, "seed": seed} if isinstance(gains, list) else entry)
    content = {"hospitals": [{"name": name} for name in hospitals], "models": models, **settings}
    content.setdefault("statistics", {}).setdefault("draws", 1000)
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Three arms in two hospitals with metadata. Returns the folder of the experiment and that of the results."""
    folder = tmp_path_factory.mktemp("compared")
    hospitals = {"Aachen": 40, "Bern": 16}
    rng = np.random.default_rng(1)
    with (folder / "patients.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "patient", "hospital", "age", "sex", "reader"])
        for hospital, patients in hospitals.items():
            for number in range(patients):  # two scans a patient in Bern
                patient = number // 2 if hospital == "Bern" else number
                age = "" if number == 3 else int(rng.integers(35, 85))
                writer.writerow([f"p{number:03d}", f"P{patient}", hospital, age, "fm"[patient % 2], "A"])
    path = write_experiment(folder, hospitals, {"stock": 0.0, "pasted": 0.1, "diffusion": 0.6}, metadata="patients.csv")
    compare(path, folder / "out")
    return folder, folder / "out"


class Tables(HTMLParser):
    """Tables of a page by id: rows of cells as text, a small second line after a space."""

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
            self.cell.append(" ")

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append("".join(self.cell).strip())
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell.append(data)


def read_raw(folder, table):
    """A raw table of all models and hospitals, with patients from the metadata."""
    frames = []
    for path in sorted((folder / "scores").glob(f"*/*/{table}.csv")):
        frame = pd.read_csv(path).assign(arm=path.parts[-3].removesuffix("-0"), hospital=path.parts[-2])
        frames.append(frame)
    rows = pd.concat(frames).merge(pd.read_csv(folder / "patients.csv"), on=["hospital", "case"])
    return rows.assign(patient=rows["hospital"] + "/" + rows["patient"])


def expected_value(folder, key, arm, keep=lambda rows: rows["case"] == rows["case"]):
    """A figure straight from the raw tables, by other means than the package."""
    table = "tumors" if key in ("sensitivity", "touched", "tumor_dice") else "cases"
    rows = read_raw(folder, table)
    rows = rows[(rows["arm"] == arm) & keep(rows)]
    if key in ("dice", "nsd_2mm", "nsd_1mm", "panoptic_quality"):
        return rows[~rows["is_healthy"]].groupby("patient")[key].mean().mean()
    if key == "auroc":
        sick, well = (rows[rows["is_healthy"] == healthy]["patient_score"].to_numpy() for healthy in (False, True))
        return stats.mannwhitneyu(sick, well).statistic / len(sick) / len(well)
    if key == "false_positives":
        return rows["false_positives"].mean()
    if key == "specificity":
        return (rows[rows["is_healthy"]]["false_positives"] == 0).mean()
    return rows[{"sensitivity": "detected", "touched": "touched", "tumor_dice": "dice"}[key]].mean()


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
ARMS = ("stock", "pasted", "diffusion")


def is_cell_of(cell, value, low=None, high=None, *, sign=""):
    """Say whether a cell shows a figure, and its interval if that is given."""

    def write(number):
        text = f"{number:{sign}.3f}"
        return text.lstrip("+-") if sign and not float(text) else text

    return cell == (write(value) if low is None else f"{write(value)} {write(low)} to {write(high)}")


def test_every_figure_of_the_arms_is_that_of_the_raw_tables(compared):
    folder, output = compared
    header, *rows = Tables((output / "report.html").read_text()).tables["tumor_arms"]
    written = pd.read_csv(output / "arms.csv").query("group_kind == 'all'").set_index(["measure", "arm"])
    assert header[3:] == list(ARMS)
    assert {row[0] for row in rows} == set(TITLES)
    for title, patients, _, *cells in rows:
        for arm, cell in zip(ARMS, cells, strict=True):
            figure = written.loc[(TITLES[title], arm)]
            assert figure["value"] == pytest.approx(expected_value(folder, TITLES[title], arm)), (title, arm)
            assert is_cell_of(cell, figure["value"], figure["low"], figure["high"]), (title, arm)
            assert int(patients) == figure["patients"]
            assert figure["low"] < figure["value"] < figure["high"]


def test_every_difference_is_that_of_the_raw_tables(compared):
    folder, output = compared
    header, *rows = Tables((output / "report.html").read_text()).tables["tumor_differences"]
    assert header == ["arm", "measure", "patients", "difference", "test", "p", "p (Holm)"]  # no column without figures
    written = pd.read_csv(output / "differences.csv").query("group_kind == 'all'").set_index(["measure", "arm"])
    assert len(rows) == 2 * len(TITLES)
    for arm, title, _, cell, test, p_value, p_holm in rows:
        figure = written.loc[(TITLES[title], arm)]
        difference = expected_value(folder, TITLES[title], arm) - expected_value(folder, TITLES[title], "stock")
        assert figure["value"] == pytest.approx(difference)
        assert is_cell_of(cell, figure["value"], figure["low"], figure["high"], sign="+")
        assert test == figure["test"]
        for text, value in ((p_value, figure["p"]), (p_holm, figure["p_holm"])):
            assert text == ("<0.001" if value < 0.001 else f"{value:.3f}")


def test_p_values_and_small_intervals_are_scipys(compared):
    folder, output = compared
    rows = read_raw(folder, "cases").query("~is_healthy")
    of_patients = rows.groupby(["patient", "arm"])["dice"].mean().unstack()
    written = pd.read_csv(output / "differences.csv").set_index(["measure", "group", "arm"])
    for arm in ("pasted", "diffusion"):
        expected = stats.wilcoxon(of_patients[arm] - of_patients["stock"], zero_method="pratt", method="approx")
        assert written.loc[("dice", "all patients", arm), "p"] == pytest.approx(expected.pvalue)
    old = rows[rows["age"] < 50].groupby(["patient", "arm"])["dice"].mean().unstack()
    assert 10 <= len(old) < 30
    ends = stats.ttest_1samp(old["diffusion"] - old["stock"], 0).confidence_interval()
    figure = written.loc[("dice", "<50 years", "diffusion")]
    assert (figure["low"], figure["high"]) == pytest.approx((ends.low, ends.high))
    assert figure["interval"] == "Student's t over patients"


def test_holm_covers_arms_and_size_bins_but_no_subgroup(compared):
    _, output = compared
    written = pd.read_csv(output / "differences.csv").query("measure == 'sensitivity'")
    assert set(written[written["p"].notna()]["group_kind"]) == {"all", "size"}
    tested = written[written["p"].notna()].sort_values("p")
    factors = np.arange(len(tested), 0, -1)
    expected = np.minimum(np.maximum.accumulate(tested["p"].to_numpy() * factors), 1)
    assert len(tested) > 4
    assert tested["p_holm"].to_numpy() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["size", "hospital", "age", "sex"])
def test_every_figure_of_a_group_is_that_of_the_raw_tables(compared, kind):
    folder, output = compared
    header, *rows = Tables((output / "report.html").read_text()).tables[f"tumor_{kind}"]
    shown = 0
    for title, group, patients, _, *cells in rows:
        if len(cells) == 1:
            assert cells[0].startswith(("too few", "empty"))
            continue
        assert int(patients) >= 10
        for column, cell in zip(header[4:], cells, strict=True):
            if column.startswith("p (Holm)"):
                continue
            arm, _, baseline = column.partition(" minus ")
            value = expected_value(folder, TITLES[title], arm, lambda rows, group=group: in_group(rows, kind, group))
            if baseline:
                value -= expected_value(
                    folder, TITLES[title], baseline, lambda rows, group=group: in_group(rows, kind, group)
                )
            assert is_cell_of(cell.split(" ")[0], value, sign="+" if baseline else ""), (title, group, column)
            shown += 1
    assert shown >= 20


def in_group(rows, kind, group):
    if kind not in ("size", "age"):
        return rows[kind] == group
    values = rows["equivalent_diameter_mm" if kind == "size" else "age"]
    if group == "not recorded":
        return values.isna()
    low, high = {"<": (0, None), ">": (None, np.inf)}.get(group[0], (None, None))
    numbers = [float(number) for number in re.findall(r"\d+", group)]
    low, high = (0, numbers[0]) if low == 0 else (numbers[0], high if high else numbers[1])
    return (values >= low) & (values < high)


def test_empty_and_too_small_bins_say_so_and_show_no_figure(compared):
    _, output = compared
    rows = Tables((output / "report.html").read_text()).tables["tumor_size"]
    by_bin = {row[1]: row[4:] for row in rows[1:] if row[0] == "Sensitivity"}
    assert by_bin[">=50 mm"] == ["empty"]
    raw = read_raw(compared[0], "tumors").query("arm == 'stock' and equivalent_diameter_mm < 10")
    assert len(raw) < 10
    counted = f"too few: {len(raw)} tumours in {raw['patient'].nunique()} patients"
    assert by_bin["<10 mm"] == [f"{counted}; 10 tumours and 10 patients needed"]
    written = pd.read_csv(output / "arms.csv").query("group in ('<10 mm', '>=50 mm')")
    assert len(written) == 2 * 3 * 3
    assert written["value"].isna().all()


def test_two_hospitals_are_shown_side_by_side_and_not_resampled(compared):
    _, output = compared
    assert pd.read_csv(output / "differences.csv")["low_over_hospitals"].isna().all()
    assert "2 hospitals are too few to be resampled" in (output / "report.html").read_text()
    assert {path.name for path in (output / "figures").iterdir()} >= {
        "tumor_dice_pasted.png",
        "tumor_dice_diffusion.png",
        "tumor_sensitivity_diffusion.png",
        "tumor_sizes.png",
    }


def test_scans_of_one_patient_are_one_patient(compared):
    _, output = compared
    figure = pd.read_csv(output / "arms.csv").query("measure == 'false_positives' and group == 'Bern'").iloc[0]
    assert (figure["patients"], figure["items"]) == (8, 16)
    assert figure["interval"] == "too few: 8 patients; 10 patients needed"


def test_the_page_needs_nothing_beside_it(compared):
    page = (compared[1] / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert page.count("data:image/png;base64,") == 5


def test_the_methods_paragraph_states_the_facts_of_the_run(compared):
    folder, output = compared
    text = (output / "methods.txt").read_text()
    assert text.strip() in html.unescape((output / "report.html").read_text())
    cases = read_raw(folder, "cases").query("arm == 'stock'")
    assert f"on {len(cases)} CT scans of {cases['patient'].nunique()} patients from 2 hospitals" in text
    aachen = read_raw(folder, "tumors").query("arm == 'stock' and hospital == 'Aachen'")
    assert f"Aachen: 40 patients, {len(aachen)} tumours, 10 healthy scans" in text
    assert "at least 8 voxels and 14 mm3" in text
    assert "intersection over union of at least 0.1" in text
    assert "1000 resamplings" in text
    assert "Wilcoxon signed-rank for Dice" in text
    assert "hospitals were not resampled" in text
    assert "each arm was trained once" in text
    assert "Holm" in text


def test_tables_can_be_copied_as_csv_and_latex(compared):
    _, output = compared
    csv_text = (output / "tables" / "tumor_size.csv").read_text()
    rows = list(csv.reader(csv_text.splitlines()))
    assert rows[0][:2] == ["measure", "diameter"]
    assert all(len(row) == len(rows[0]) for row in rows)
    latex = (output / "tables" / "tumor_size.tex").read_text()
    assert latex.count(r"\\") == len(rows)
    assert "$<$10 mm" in latex
    assert "<10" not in latex
    page = html.unescape((output / "report.html").read_text())
    assert csv_text in page
    assert latex in page


def test_latex_has_true_minus_signs_and_reasons_over_all_columns(compared):
    _, output = compared
    latex = (output / "tables" / "tumor_hospital.tex").read_text()
    assert re.search(r"& \$-\$0\.\d{3} \(\$-\$0\.\d{3} to", latex)
    assert not re.search(r"[ (]-\d", latex)
    assert latex.count(r"\multicolumn{5}{l}{too few: ") >= 2
    names = [line.split(" & ")[0] for line in latex.splitlines() if line.endswith(r"\\")]
    assert "University" not in names
    assert r"\begin{tabular}{llrlrrrrr}" in latex


def test_cases_and_tumors_are_written_as_they_were_scored(compared):
    folder, output = compared
    for table in ("cases", "tumors"):
        written, raw = pd.read_csv(output / f"{table}.csv"), read_raw(folder, table)
        assert len(written) == len(raw)
        key = ["arm", "hospital", "case", *(["tumor"] if table == "tumors" else [])]
        both = written.merge(raw, on=key, suffixes=("", "_raw"), validate="one_to_one")
        assert len(both) == len(raw)
        assert both["dice"].to_numpy() == pytest.approx(both["dice_raw"].to_numpy(), nan_ok=True)
        assert (both["hospital"] + "/" + both["patient_raw"].str.partition("/")[2] == both["patient"]).all()
        assert set(both["sex"]) == {"f", "m"}


def test_the_cohort_is_counted_hospital_by_hospital(compared):
    folder, output = compared
    header, *rows = Tables((output / "report.html").read_text()).tables["cohort"]
    assert header == ["", "Aachen", "Bern", "all"]
    shown = {name: [int(cell) for cell in cells] for name, *cells in rows}
    cases, tumors = (read_raw(folder, table).query("arm == 'stock'") for table in ("cases", "tumors"))

    def count(rows, of_patients=False):
        own = [rows[rows["hospital"] == name] for name in ("Aachen", "Bern")]
        return [each["patient"].nunique() if of_patients else len(each) for each in (*own, rows)]

    assert shown["patients"] == count(cases, of_patients=True) == [40, 8, 48]
    assert shown["healthy scans"] == count(cases[cases["is_healthy"]])
    assert shown["patients, sex: f"] == count(cases[cases["sex"] == "f"], of_patients=True)
    assert shown["patients, age: >=65 years"] == count(cases[cases["age"] >= 65], of_patients=True)
    assert shown["tumours"] == count(tumors)
    size = tumors["equivalent_diameter_mm"]
    assert shown["tumours, 10-20 mm"] == count(tumors[(size >= 10) & (size < 20)])


@pytest.mark.parametrize(("primary", "title"), [("panoptic_quality", "Panoptic quality"), ("auroc", "AUROC")])
def test_the_primary_measure_is_shown_by_hospital_whatever_it_is(tmp_path, primary, title):
    path = write_experiment(tmp_path, {"Aachen": 60, "Bern": 60}, {"a": 0.0, "b": 0.5}, primary=primary)
    compare(path, tmp_path / "out")
    header, *rows = Tables((tmp_path / "out" / "report.html").read_text()).tables["tumor_hospital"]
    shown = {row[1]: dict(zip(header, row, strict=True)) for row in rows if row[0] == title}
    for hospital in ("Aachen", "Bern"):
        for arm in ("a", "b"):
            raw = pd.read_csv(tmp_path / "scores" / f"{arm}-0" / hospital / "cases.csv")
            expected = raw[primary].mean() if primary != "auroc" else _area(raw)
            assert shown[hospital][arm].startswith(f"{expected:.3f} ")
    assert (tmp_path / "out" / "figures" / f"tumor_{primary}_b.png").is_file()


def _area(raw):
    ill, well = (raw[raw["is_healthy"] == healthy]["patient_score"] for healthy in (False, True))
    return stats.mannwhitneyu(ill, well).statistic / len(ill) / len(well)


def test_the_same_experiment_gives_the_same_figures(compared, tmp_path):
    folder, output = compared
    compare(folder / "experiment.yaml", tmp_path / "again")
    for name in ("arms.csv", "differences.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (output / name).read_bytes()


def test_results_are_replaced_only_if_asked(compared, capsys):
    folder, output = compared
    words = ["compare", str(folder / "experiment.yaml"), "--output", str(output)]
    assert main(words) == 1
    assert "--overwrite" in capsys.readouterr().err
    (output / "tables" / "of_an_arm_that_is_gone.csv").touch()
    assert main([*words, "--overwrite"]) == 0
    assert not (output / "tables" / "of_an_arm_that_is_gone.csv").exists()
    assert "diffusion minus stock: +" in capsys.readouterr().out


def test_six_hospitals_are_resampled_and_three_seeds_enter(tmp_path):
    hospitals = {f"H{number}": 12 for number in range(6)}
    path = write_experiment(tmp_path, hospitals, {"a": [0.0, 0.1, 0.2], "b": [0.4, 0.5, 0.6]})
    compare(path, tmp_path / "out")
    written = pd.read_csv(tmp_path / "out" / "differences.csv").set_index(["measure", "group"])
    figure = written.loc[("dice", "all patients")]
    for unit in ("hospitals", "seeds"):
        assert figure[f"low_over_{unit}"] < figure["value"] < figure[f"high_over_{unit}"]
    seeds = pd.read_csv(tmp_path / "out" / "seeds.csv").query("measure == 'sensitivity'")
    assert len(seeds) == 6
    for _, row in seeds.iterrows():
        tables = [pd.read_csv(each) for each in (tmp_path / "scores" / row["model"]).glob("*/tumors.csv")]
        assert row["value"] == pytest.approx(pd.concat(tables)["detected"].mean())
    rows = Tables((tmp_path / "out" / "report.html").read_text()).tables["tumor_seeds"]
    own = seeds[seeds["arm"] == "b"]["value"]
    (shown,) = [row for row in rows if row[:2] == ["Sensitivity", "b"]]
    assert shown[2:5] == [f"{own.mean():.3f}", f"{own.std(ddof=1):.3f}", f"{own.max() - own.min():.3f}"]
    text = (tmp_path / "out" / "methods.txt").read_text()
    assert "whole hospitals were resampled" in text
    assert "trained 3 times with different seeds" in text


def test_a_scan_that_holds_only_specks_is_not_one_with_a_tumor(tmp_path):
    tumors = [tumor_row(f"c{number:02d}", 1, 15.0, 0.5 + 0.01 * number) for number in range(12)]
    overlaps = dict.fromkeys(("dice", "nsd_1mm", "nsd_2mm"), 0.0)
    speck = case_row("speck", false_positives=1, is_healthy=False, reference_ml=0.01, **overlaps)
    cases = [*(case_row(tumor["case"], [tumor]) for tumor in tumors), speck]
    for arm in "ab":
        write_scores(tmp_path / arm, cases, tumors)
    path = tmp_path / "experiment.yaml"
    models = [{"arm": arm, "scores": arm} for arm in "ab"]
    path.write_text(yaml.safe_dump({"hospitals": [{"name": "X"}], "models": models, "statistics": {"draws": 1000}}))
    compare(path, tmp_path / "out")
    arms = pd.read_csv(tmp_path / "out" / "arms.csv").query("arm == 'a' and group_kind == 'all'").set_index("measure")
    for measure in ("dice", "nsd_1mm", "nsd_2mm", "panoptic_quality"):
        assert (arms.loc[measure, "items"], arms.loc[measure, "value"]) == (12, pytest.approx(0.555)), measure
    assert arms.loc["specificity", "items"] == 0
    assert (arms.loc["false_positives", "items"], arms.loc["false_positives", "value"]) == (13, pytest.approx(1 / 13))


def test_one_arm_alone_is_described(tmp_path):
    path = write_experiment(tmp_path, {"Aachen": 14}, {"only": 0.2})
    compare(path, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "tumor_differences" not in page
    assert (tmp_path / "out" / "figures" / "tumor_dice_only.png").is_file()
    assert pd.read_csv(tmp_path / "out" / "differences.csv").empty


def test_few_patients_give_values_without_intervals(tmp_path):
    path = write_experiment(tmp_path, {"Aachen": 6}, {"a": 0.0, "b": 0.5})
    compare(path, tmp_path / "out")
    figure = (
        pd.read_csv(tmp_path / "out" / "differences.csv").query("measure == 'dice' and group_kind == 'all'").iloc[0]
    )
    assert np.isfinite(figure["value"])
    assert np.isnan([figure["low"], figure["p"]]).all()
    assert "too few" in figure["interval"]


def test_two_organs_are_separate_and_share_one_family(tmp_path):
    models = []
    for arm, dice in (("a", 0.5), ("b", 0.7)):
        cases, tumors = [], []
        for number in range(12):
            for label, gain in (("liver tumour", 0.02), ("kidney <cyst> & tumour", 0.1)):
                case, spread = f"c{number}", 0.01 * (number % 5)
                tumors.append(tumor_row(case, 1, 15.0, dice + gain * (arm == "b") + spread * (arm == "b"), label))
                cases.append(case_row(case, tumors[-1:], label=label))
        cases += [case_row(case["case"], label="liver", reference_tumors="") for case in cases[::2]]
        write_scores(tmp_path / arm, cases, tumors)
        models.append({"arm": arm, "scores": arm})
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump({"hospitals": [{"name": "X"}], "models": models, "statistics": {"draws": 1000}}))
    compare(path, tmp_path / "out")
    written = pd.read_csv(tmp_path / "out" / "differences.csv").query("measure == 'dice' and group_kind == 'all'")
    assert list(written["label"]) == ["liver tumour", "kidney <cyst> & tumour"]
    smaller, larger = sorted(written["p"])
    assert sorted(written["p_holm"]) == pytest.approx([2 * smaller, max(2 * smaller, larger)])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "kidney &lt;cyst&gt; &amp; tumour" in page
    assert "kidney <cyst>" not in page
    latex = next((tmp_path / "out" / "tables").glob("kidney*_arms.tex")).read_text()
    assert r"kidney $<$cyst$>$ \& tumour" in latex


def test_hospitals_without_a_tumor_have_only_the_measures_that_need_none(tmp_path):
    for arm, false_positives in (("a", 0), ("n", 1)):
        cases = [case_row(f"c{number:02d}", false_positives=false_positives * (number % 2)) for number in range(12)]
        write_scores(tmp_path / arm, cases, [])
    path = tmp_path / "experiment.yaml"
    models = [{"arm": arm, "scores": arm} for arm in "an"]
    path.write_text(yaml.safe_dump({"hospitals": [{"name": "X"}], "models": models, "statistics": {"draws": 1000}}))
    compare(path, tmp_path / "out")
    tables = {file.stem: list(csv.reader(file.open())) for file in (tmp_path / "out" / "tables").glob("*.csv")}
    assert tables["tumor_arms"][0] == ["measure", "patients", "n", "a", "n"]
    assert [row[:3] for row in tables["tumor_arms"][1:]] == [
        ["False positives per scan", "12", "12 scans"],
        ["Specificity", "12", "12 healthy scans"],
    ]
    assert [row[:4] for row in tables["tumor_differences"][1:]] == [
        ["n", "False positives per scan", "12", "+0.500 (+0.168 to +0.832)"],
        ["n", "Specificity", "12", "-0.500 (-0.815 to -0.145)"],
    ]
    assert len(tables["tumor_size"]) == 1
