"""What `difftumor compare` says about wrong experiments, metadata and score folders."""

import csv
import json
import shutil

import pandas as pd
import pytest
import yaml

from nnunet_difftumor.cli import main
from nnunet_difftumor.errors import ConfigurationError, DatasetError
from nnunet_difftumor.evaluation.comparison.inputs.metadata import read_metadata
from nnunet_difftumor.evaluation.comparison.inputs.plan import read_experiment
from nnunet_difftumor.evaluation.comparison.inputs.scores import load_study
from nnunet_difftumor.evaluation.scoring.rules import bins_of
from nnunet_difftumor.support.files.entries import read_yaml

COLUMNS = {
    "cases.csv": "case,label,is_healthy,dice,nsd_1mm,nsd_2mm,reference_ml,predicted_ml,reference_tumors,"
    "detected_tumors,touched_tumors,predicted_tumors,false_positives,panoptic_quality,patient_score",
    "tumors.csv": "case,label,tumor,volume_mm3,equivalent_diameter_mm,axial_diameter_mm,size_bin,detected,touched,"
    "iou,dice,score",
}
ROWS = {
    "cases.csv": ["c1,tumor,False,0.8,0.7,0.9,1.5,1.2,1,1,1,1,0,0.6,", "c2,tumor,True,,,,0,0.1,0,0,0,1,1,0.0,"],
    "tumors.csv": ["c1,tumor,1,1500,14.2,15.0,10-20 mm,True,True,0.67,0.8,"],
}


@pytest.fixture
def experiment(tmp_path):
    """An experiment as a mapping, in a folder that has everything that it names; `write` makes it a file."""
    for folder in ("scores/a/X", "scores/b/X", "images", "labels", "trained/fold_0", "trained/fold_1"):
        (tmp_path / folder).mkdir(parents=True)
    for arm in "ab":
        for name, rows in ROWS.items():
            (tmp_path / "scores" / arm / "X" / name).write_text("\n".join([COLUMNS[name], *rows]) + "\n")
        (tmp_path / "scores" / arm / "X" / "summary.json").write_text('{"rules": {"match_iou": 0.1}}')
    for fold in (0, 1):
        (tmp_path / "trained" / f"fold_{fold}" / "checkpoint_final.pth").touch()
    content = {
        "hospitals": [{"name": "X"}],
        "models": [{"arm": "a", "scores": "scores/a/{hospital}"}, {"arm": "b", "scores": "scores/b/{hospital}"}],
    }
    return tmp_path, content


def write(experiment):
    folder, content = experiment
    path = folder / "experiment.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def read_study(experiment):
    read = read_experiment(write(experiment))
    folders = {
        (model.name, hospital.name): model.folder_of(hospital) for model in read.models for hospital in read.hospitals
    }
    return load_study(read, folders)


def test_an_experiment_is_read_with_its_defaults(experiment):
    read = read_experiment(write(experiment))
    assert read.arms == ("a", "b")
    assert (read.baseline, read.primary, read.title) == ("a", "dice", "experiment")
    assert read.models[0].folder_of(read.hospitals[0]) == experiment[0] / "scores" / "a" / "X"
    assert read.statistics.minimum_patients == 10


def test_the_baseline_comes_first_and_seeds_are_in_order(experiment):
    folder, content = experiment
    models = [{"arm": "a", "seed": seed, "scores": "scores/a/{hospital}"} for seed in (2, 0, 1)]
    read = read_experiment(write((folder, {**content, "models": [*models, content["models"][1]], "baseline": "b"})))
    assert read.arms == ("b", "a")
    assert [model.seed for model in read.models_of("a")] == [0, 1, 2]


def test_all_folds_with_the_checkpoint_are_taken(experiment):
    folder, content = experiment
    hospitals = [{"name": "X", "images": "images", "labels": "labels"}]
    content = {**content, "hospitals": hospitals, "models": [{"arm": "a", "trained": "trained"}]}
    assert read_experiment(write((folder, content))).models[0].folds == (0, 1)
    content["models"][0]["folds"] = [1]
    assert read_experiment(write((folder, content))).models[0].folds == (1,)


def test_environment_variables_in_paths_are_replaced(experiment, monkeypatch):
    folder, content = experiment
    monkeypatch.setenv("SCORES_OF_A", str(folder / "scores" / "a"))
    content["models"][0]["scores"] = "$SCORES_OF_A/{hospital}"
    read = read_experiment(write((folder, content)))
    assert read.models[0].folder_of(read.hospitals[0]).is_dir()


def change(path, value):
    """A function that changes one entry of an experiment: `change("models.0.arm", 3)`; ... removes it."""

    def apply(content):
        *before, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in before:
            content = content[part]
        if value is ...:
            del content[last]
        else:
            content[last] = value

    return apply


TRAINED = {"arm": "a", "trained": "trained"}
WRONG = [
    ("hospital", [], "Unknown setting 'hospital'.*Did you mean 'hospitals'"),
    ("models.0.prediction", "p", r"Unknown setting 'prediction' in .*models\[0\].*Did you mean 'predictions'"),
    ("hospitals.0.label", "labels", r"hospitals\[0\].*Did you mean 'labels'"),
    ("statistics", {"minimum_patient": 5}, "Did you mean 'minimum_patients'"),
    ("statistics", {"draws": 10}, "draws must be a whole number of 1000 or more, got 10"),
    ("statistics", {"size_bins_mm": [20, 10]}, "size_bins_mm must be a rising list"),
    ("statistics", {"size_diameter": "longest"}, "size_diameter must be one of equivalent, axial, got 'longest'"),
    ("statistics", [1], "statistics must hold keys and values"),
    ("prediction", {"device": "gpu"}, "device must be one of cuda, cpu, mps, got 'gpu'"),
    ("prediction", {"mirroring": "no way"}, "mirroring must be true or false"),
    ("prediction", {"step_size": 2}, "step_size must be a number from 0.01 to 1"),
    ("baseline", "c", "baseline must be one of the arms a, b, got 'c'"),
    ("primary", "jaccard", "primary must be one of dice, .*got 'jaccard'"),
    ("hospitals", ..., "hospitals must be a list, got None"),
    ("hospitals", [], "hospitals must list at least one"),
    ("models", "a", "models must be a list, got 'a'"),
    ("models.0", "a", r"models\[0\] must hold keys and values, got 'a'"),
    ("models.0.arm", ..., r"models\[0\]: arm must be a text, got None"),
    ("models.0.predictions", "p", "exactly one of trained, predictions, scores, got predictions, scores"),
    ("models.0.scores", ..., "exactly one of trained, predictions, scores, got none"),
    ("models.0.folds", [0], "folds and checkpoint go with trained, not with scores"),
    ("models.0.scores", "elsewhere/{hospital}", "elsewhere/X, where 'a' should have its scores of 'X', is no folder"),
    ("models.0.scores", "$NOT_SET_AT_ALL/x", "an environment variable that is not set"),
    ("models.1.arm", "a", "has 2 models with the seeds .*Give each a seed"),
    ("models.1.name", "A", "two models are named 'a' and 'A'"),
    ("models.1", {"arm": "a", "name": "a2", "scores": "scores/b/X"}, "has 2 models with the seeds .*Give each a seed"),
    ("hospitals", [{"name": "X"}, {"name": "x"}], "two hospitals are named 'X' and 'x'"),
    ("hospitals", [{"name": "A"}, {"name": "A"}], "two hospitals are named 'A' and 'A'"),
    ("hospitals", [{"name": "Bern"}, {"name": "Bern"}], "two hospitals are named 'Bern' and 'Bern'"),
    ("models.0", {"arm": "a", "trained": "nowhere"}, "trained should be a folder"),
    ("models.0", {**TRAINED, "folds": [7]}, "fold_7/checkpoint_final.pth does not exist.*with that checkpoint: 0, 1"),
    ("models.0", {**TRAINED, "checkpoint": "checkpoint_best.pth"}, "no fold of .* has checkpoint_best.pth"),
    ("models.0", TRAINED, "the hospital 'X' needs images, because 'a' has to predict"),
    ("models.0", {"arm": "a", "predictions": "images"}, "the hospital 'X' needs labels"),
    ("metadata", "nothing.csv", "metadata should be a file"),
    ("labels", "tumor", r"labels must be a list like \[tumor\]"),
    ("acknowledge_identifier_matches", 1, "must be true or false, got 1"),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG, ids=[path for path, _, _ in WRONG])
def test_a_wrong_entry_is_named(experiment, path, value, message):
    change(path, value)(experiment[1])
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_experiment(write(experiment))
    assert "experiment.yaml" in str(caught.value)


def test_a_path_without_the_placeholder_is_not_taken_for_two_hospitals(experiment):
    folder, content = experiment
    content["hospitals"].append({"name": "Y"})
    content["models"][0]["scores"] = "scores/a/X"
    with pytest.raises(ConfigurationError, match="would take all 2 hospitals from"):
        read_experiment(write((folder, content)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [\n", "no valid YAML"),
        ("title: a\ntitle: b\n", "the key 'title' is given twice"),
        ("just words\n", "must hold keys and values"),
        ("", "must hold keys and values"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(experiment, text, message):
    with pytest.raises(ConfigurationError, match=message):
        read_experiment(write((experiment[0], text)))


MERGED = """
hospitals: [{name: X}]
statistics: &few {minimum_patients: 5, draws: 2000}
models:
  - &first {arm: a, scores: "scores/a/{hospital}"}
  - {<<: *first, arm: b}
"""


def test_keys_can_be_merged_in_and_overridden(experiment):
    read = read_experiment(write((experiment[0], MERGED)))
    assert [(model.arm, model.scores) for model in read.models] == [
        ("a", str(experiment[0] / "scores/a/{hospital}")),
        ("b", str(experiment[0] / "scores/a/{hospital}")),
    ]


def test_a_merged_mapping_can_be_merged_again(tmp_path):
    text = "outer: {inner: {deep: &two {<<: &one {arm: a, seed: 1}, arm: b}}}\nlast: {<<: *two, seed: 3}\n"
    (tmp_path / "e.yaml").write_text(text)
    assert read_yaml(tmp_path / "e.yaml", "experiment")["last"] == {"arm": "b", "seed": 3}


@pytest.mark.parametrize(
    ("models", "key"),
    [("[&a {arm: a, arm: b}, {<<: *a}]", "arm"), ("[&a {arm: a}, {<<: *a, <<: *a}]", "<<")],
)
def test_a_key_that_is_written_twice_is_refused_beside_merged_ones(experiment, models, key):
    with pytest.raises(ConfigurationError, match=f"the key '{key}' is given twice"):
        read_experiment(write((experiment[0], f"hospitals: [{{name: X}}]\nmodels: {models}\n")))


def test_a_missing_file_is_named_by_the_command(tmp_path, capsys):
    assert main(["compare", str(tmp_path / "none.yaml"), "--output", str(tmp_path / "out")]) == 1
    assert "none.yaml cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


SCANS = [("X", "c1"), ("X", "c2"), ("Y", "c1")]


def test_metadata_give_patients_and_groups(tmp_path):
    header = ["Case", " patient", "HOSPITAL", "age", "sex", "reader"]
    rows = [["c1", "p", "X", "49.9", "f", "1"], ["c2", "p", "X", "50", "", "1"], ["c1", "p", "Y", "", "m", "1"]]
    facts, notes = read_metadata(write_csv(tmp_path / "m.csv", [header, *rows]), SCANS, (50, 65))
    assert list(facts.index) == SCANS
    assert list(facts.columns) == ["patient", "age", "sex"]
    assert facts["patient"].tolist() == ["X/p", "X/p", "Y/p"]
    assert facts["age"].tolist() == ["<50 years", "50-65 years", "not recorded"]
    assert facts["sex"].tolist() == ["f", "not recorded", "m"]
    assert notes == ["Columns of the metadata that are not used: reader."]


def test_without_metadata_every_scan_is_a_patient_and_the_report_says_so():
    facts, notes = read_metadata(None, SCANS, (50,))
    assert facts["patient"].nunique() == 3
    assert "every scan counts as a patient of its own" in notes[0]


def test_a_scan_without_a_patient_is_a_patient_of_its_own_whatever_it_is_named(tmp_path):
    rows = [["case", "patient"], ["c1", "c2"], ["c2", ""], ["c2*", ""], ["c3", "p"], ["c4", "p"]]
    scans = [("X", case) for case, _ in rows[1:]]
    facts, notes = read_metadata(write_csv(tmp_path / "m.csv", rows), scans, (50,))
    patients = facts["patient"].tolist()
    assert len(set(patients)) == 4
    assert patients[3] == patients[4] == "X/p"
    assert notes == ["The metadata name no patient for 2 of 5 scans: each of these counts as a patient of its own."]


def test_a_patient_column_without_patients_is_noted(tmp_path):
    rows = [["case", "patient"], ["c1", ""], ["c2", " "]]
    facts, notes = read_metadata(write_csv(tmp_path / "m.csv", rows), [("X", "c1"), ("X", "c2")], (50,))
    assert set(facts["patient"]) == {"X/c1", "X/c2"}
    assert "no patient for 2 of 2 scans" in notes[0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["patient"], ["p"]], "needs a column case"),
        ([["case"], ["c1"], ["c2"]], "needs a column hospital"),
        ([["case", "hospital"], ["c1", "X"], ["c1", "Y"]], "no row for 1 of 3 cases: X/c2"),
        ([["case", "hospital"], *([case, name] for name, case in SCANS), ["c1", "Y"]], "two rows for Y/c1"),
        (
            [["case", "hospital", "age"], *([case, name, "old"] for name, case in SCANS)],
            "row 2: age must be a number of years, got 'old'",
        ),
        ([["case", "hospital", "age"], *([case, name, "650"] for name, case in SCANS)], "got '650'"),
        (
            [["case", "hospital", "patient", "sex"], *([c, h, "p", s] for (h, c), s in zip(SCANS, "fmf", strict=True))],
            "the patient X/p has scans with the sex 'f' and 'm'",
        ),
    ],
)
def test_wrong_metadata_are_named(tmp_path, rows, message):
    with pytest.raises(DatasetError, match=message):
        read_metadata(write_csv(tmp_path / "m.csv", rows), SCANS, (50,))


def test_bins_touch_and_cover_everything():
    bins = bins_of((10.0, 20.0), "mm")
    assert [name for name, _, _ in bins] == ["<10 mm", "10-20 mm", ">=20 mm"]
    assert [(low, high) for _, low, high in bins] == [(0, 10), (10, 20), (20, float("inf"))]
    assert bins_of((), "mm")[0][0] == "any mm"


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_scores_are_read_as_written(experiment):
    study = read_study(experiment)
    first = study.cases[study.cases["model"] == "a"].set_index("case")
    assert first.loc["c1", "dice"] == 0.8
    assert list(first["is_healthy"]) == [False, True]
    assert pd.isna(first.loc["c2", "dice"])
    assert study.tumors["detected"].tolist() == [True, True]
    assert dict(study.rules) == {"match_iou": 0.1}


def test_organs_are_not_taken_for_tumors(experiment):
    for arm in "ab":
        with (experiment[0] / "scores" / arm / "X" / "cases.csv").open("a") as file:
            file.write("c1,liver,False,0.9,0.9,0.9,1500,1500,,,,,,,\n")
    assert read_study(experiment).labels == ("tumor",)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("cases.csv", "false_positives", "wrong", "lacks the columns false_positives"),
        ("cases.csv", "False,0.8", "perhaps,0.8", "row 2: is_healthy must be True or False, got 'perhaps'"),
        ("cases.csv", ",0.8,", ",good,", "row 2: dice must be a number, got 'good'"),
        ("cases.csv", ",0.8,", ",,", "dice of c1 is empty, but it has a tumour"),
        ("cases.csv", "c2,", "c3,", "not scored on the same scans and tumours: 2 differ, e.g. X/c2/tumor"),
        ("cases.csv", "c2,tumor,True", "c1,tumor,True", "b was scored twice on X/c1/tumor"),
        ("cases.csv", ",1.5,", ",1.7,", "scored with other references of X/c1/tumor"),
        ("tumors.csv", "c1,tumor,1,", "c1,tumor,2,", "not scored on the same scans and tumours"),
        ("tumors.csv", ",1500,", ",1600,", "scored with other references of X/c1/tumor/1"),
        ("summary.json", "0.1", "0.5", "scored by different rules"),
        ("summary.json", "{", "", "summary.json cannot be read"),
    ],
)
def test_wrong_scores_are_named(experiment, file, old, new, message):
    edit(experiment[0] / "scores" / "b" / "X" / file, old, new)
    with pytest.raises(DatasetError, match=message):
        read_study(experiment)


def change_summaries(experiment, **entries):
    for arm in "ab":
        path = experiment[0] / "scores" / arm / "X" / "summary.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_a_case_that_failed_in_every_model_is_not_left_out(experiment):
    change_summaries(experiment, failed=["c3", "stranger"], without_reference=["stranger"])
    with pytest.raises(DatasetError, match=r"scores/a/X: 1 cases could not be scored: c3; see errors\.csv there"):
        read_study(experiment)


def test_predictions_without_a_reference_do_not_count_as_failed(experiment):
    change_summaries(experiment, failed=["stranger"], without_reference=["stranger"])
    assert set(read_study(experiment).cases["case"]) == {"c1", "c2"}


def test_cases_that_only_predicted_left_out_are_noted(experiment):
    change_summaries(experiment, failed=[], not_predicted=["c8", "c9"])
    assert main(["compare", str(write(experiment)), "--output", str(experiment[0] / "out")]) == 0
    page = (experiment[0] / "out" / "report.html").read_text()
    assert "X: 2 cases are not in this comparison, because scores were made with --only-predicted" in page
    assert "c8, c9" in page


def test_a_missing_score_table_is_named(experiment):
    (experiment[0] / "scores" / "b" / "X" / "tumors.csv").unlink()
    with pytest.raises(DatasetError, match=r"tumors.csv cannot be read.*difftumor score"):
        read_study(experiment)


def test_an_unknown_label_is_named(experiment):
    experiment[1]["labels"] = ["lesion"]
    with pytest.raises(DatasetError, match="no tumour label lesion; it has tumor"):
        read_study(experiment)


def test_a_wrong_experiment_writes_nothing(experiment, capsys):
    folder, content = experiment
    shutil.rmtree(folder / "scores" / "b")
    assert main(["compare", str(write((folder, content))), "--output", str(folder / "out")]) == 1
    assert "scores/b/X" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_a_report_of_two_scans_says_that_they_are_too_few(experiment):
    path = write(experiment)
    assert main(["compare", str(path), "--output", str(experiment[0] / "out")]) == 0
    assert json.loads((experiment[0] / "out" / "summary.json").read_text())["rules"] == {"match_iou": 0.1}
    assert "too few: 1 patient; 10 patients needed" in (experiment[0] / "out" / "report.html").read_text()
