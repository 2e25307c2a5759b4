"""What a case is, who is one patient: by labels, a table or a rule, and the same for every command and the trainer."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.generator.provenance import CaseFingerprint, Provenance, hash_identifier, save_provenance
from nnunet_difftumor.cases.fold import PreprocessedCases, check_leaks, choose_cases
from nnunet_difftumor.cases.healthy import CaseGroups, choose_holdout, group_cases
from nnunet_difftumor.cases.known_cases import (
    KnownCases,
    cases_with_tumor,
    one_value_each,
    patients_by_pattern,
    read_known_cases,
)
from nnunet_difftumor.cases.splits import Split, arrange_split, cross_validation, read_holdout, read_splits
from nnunet_difftumor.cli import main
from nnunet_difftumor.ct.datasets import load_raw_dataset
from nnunet_difftumor.ct.label_roles import LabelRoles, kind_of_case, resolve_label_roles
from nnunet_difftumor.errors import ConfigurationError, DatasetError, DiffTumorError, LeakError
from nnunet_difftumor.settings.trainer_settings import DiffTumorConfig

NAME = "Dataset901_Roles"
LIVER = {"background": 0, "liver": 1, "tumor": 2}
SHAPE = (10, 10, 10)
SCRIPTS = next(
    (each / "shared" / "cases" for each in Path(__file__).parents if (each / "shared" / "cases").is_dir()), None
)


def a_map(*values):
    """A label map with a block of each value."""
    labels = np.zeros(SHAPE, np.int16)
    for number, value in enumerate(values):
        labels[1:9, 1:9, 1 + 2 * (number % 4) : 3 + 2 * (number % 4)] = value
    return labels


def write_dataset(root, labels, maps):
    """nnU-Net's folders with a raw data set of one label map a case."""
    raw = root / "raw" / NAME
    for name, volume in maps.items():
        image = np.random.default_rng(list(name.encode())).normal(40, 10, volume.shape)
        image[0] = -1000
        for folder, array, end in (("imagesTr", image.astype(np.int16), "_0000"), ("labelsTr", volume, "")):
            (raw / folder).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), raw / folder / f"{name}{end}.nii.gz")
    content = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": len(maps), "file_ending": ".nii.gz"}
    if any(isinstance(value, list) for value in labels.values()):
        content["regions_class_order"] = [1] * len(labels)
    (raw / "dataset.json").write_text(json.dumps(content))
    return raw


@pytest.fixture
def folders(tmp_path, monkeypatch):
    for key in ("raw", "preprocessed", "results"):
        (tmp_path / key).mkdir()
        monkeypatch.setenv(f"nnUNet_{key}", str(tmp_path / key))
    monkeypatch.delenv("nnUNet_difftumor", raising=False)
    return tmp_path


def preprocessed(root, labels, maps):
    folder = root / "preprocessed" / NAME
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "gt_segmentations").exists():
        (folder / "gt_segmentations").symlink_to(root / "raw" / NAME / "labelsTr")
    return PreprocessedCases(
        folder=folder, identifiers=tuple(sorted(maps)), label_ending=".nii.gz", images={}, labels=labels
    )


def run_script(name, folder):
    if SCRIPTS is None:
        pytest.skip("needs ../shared/cases")
    subprocess.run([sys.executable, str(SCRIPTS / f"{name}.py"), str(folder)], check=True)


# ---- what a case is


TWO = {"background": 0, "liver": 1, "hcc_tumor": 2, "metastasis": 3, "ignore": 4}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ((0, 1), "healthy"),
        ((0, 1, 2), "tumor"),
        ((0, 1, 3), "other"),
        ((1, 2, 3), "tumor"),
        ((0,), "other"),
        ((0, 1, 4), "other"),
        ((0, 3), "other"),
        ((2,), "tumor"),
    ],
)
def test_another_label_named_like_a_tumor_is_no_health(values, kind):
    roles = LabelRoles.of_dataset(TWO, 1, 2)
    assert kind_of_case(values, [roles]) == kind
    assert kind_of_case((0, 1, 4), [roles], is_confirmed=True) == "healthy"
    assert kind_of_case((0, 1, 3), [roles], is_confirmed=True) == "other"


@pytest.mark.parametrize("name", ["HCC", "lymphoma", "hepatoblastoma", "adenoma", "PDACs", "malignant_node"])
def test_names_of_special_tumors_are_no_health(name):
    assert LabelRoles.of_dataset({**LIVER, name: 3}, 1, 2).other_tumors == (3,)
    assert resolve_label_roles({**LIVER, name: 3}) == (1, 2)  # but no role is inferred from them


def test_a_region_named_like_a_tumor_that_holds_the_organ_says_nothing():
    labels = {"background": 0, "liver_and_tumor": [1, 2], "tumor": 2, "cyst": 3}
    assert LabelRoles.of_dataset(labels, 1, 2).other_tumors == ()


def test_a_list_of_healthy_cases_does_not_overrule_another_tumor_or_a_known_one():
    voxels = {"t": {1: 5, 2: 1}, "m": {1: 5, 3: 1}, "h": {1: 5}, "k": {1: 5}}
    roles, known = LabelRoles.of_dataset(TWO, 1, 2), KnownCases(("k",))
    assert group_cases(voxels, roles, known=known) == CaseGroups(("t",), ("h",), ("k", "m"))
    for listed in ("m", "k"):
        with pytest.raises(ConfigurationError, match=rf"tumour label 2 or 3, a tumour by the metadata.*: {listed}\."):
            group_cases(voxels, roles, healthy_cases=["h", listed], known=known)


def an_image(maximum=1200):
    return np.random.default_rng(0).integers(-1000, maximum, SHAPE).astype(np.int16)


UNDECLARED = [
    (a_map(1, 7), "does not name: bad, worse ([7])"),
    (an_image(), "look like a CT"),
    (a_map(1, -1), "([-1])"),
]


@pytest.mark.parametrize(("wrong", "message"), UNDECLARED)
def test_undeclared_values_are_refused_everywhere(folders, capsys, wrong, message):
    maps = {"a": a_map(1, 2), "b": a_map(1, 2), "bad": wrong, "h": a_map(1), "worse": wrong}
    raw = write_dataset(folders, LIVER, maps)
    assert main(["splits", "-d", "901"]) == 1
    printed = capsys.readouterr().err
    assert message in printed
    assert "bad, worse" in printed
    with pytest.raises(DatasetError, match="bad"):
        choose_cases(preprocessed(folders, LIVER, maps), DiffTumorConfig(organ_label=1, tumor_label=2), 0)
    with pytest.raises(DatasetError, match="bad"):
        trained_cases(raw, None, folders / "cache")


def trained_cases(raw, tumor_label, cache):
    """The cases that stage two takes."""
    from nnunet_difftumor.generator_training.case_selection import labelled_folder, read_hold_out
    from nnunet_difftumor.generator_training.runs import prepare_cases  # imports torch

    data, rule = labelled_folder(load_raw_dataset(raw), tumor_label), read_hold_out(None, None, None)
    options = Namespace(cache=cache, workers=0, skip_bad=False)
    selected = prepare_cases(options, [data], rule, needs_tumors=True)
    return {case.identifier for case in (*selected.training, *selected.heldout)}


# ---- tables and rules


def test_a_table_says_who_has_a_tumor(tmp_path):
    table = tmp_path / "cases.csv"
    rows = ["Case,Lesions", "a.nii.gz,2", "b,0", "c,yes", "d,", "e,No", "f,0", "f,1.5", "zz,3", "001,false"]
    table.write_text("\ufeff" + "\n".join(rows) + "\n", encoding="utf-8")
    cases = ["a", "b", "c", "d", "e", "f", "001"]
    assert cases_with_tumor(table, "lesions", cases) == ("a", "c", "f")
    with pytest.raises(DatasetError, match="no row for 1 cases: g"):
        cases_with_tumor(table, "lesions", [*cases, "g"])
    with pytest.raises(DatasetError, match="no column 'size'"):
        cases_with_tumor(table, "size", cases)
    table.write_text("case,lesions\na,perhaps\n")
    with pytest.raises(DatasetError, match="neither yes nor no"):
        cases_with_tumor(table, "lesions", ["a"])


def test_a_table_names_patients_and_a_case_has_one(tmp_path):
    table = tmp_path / "cases.tsv"
    table.write_text("case\tpatient\na\tP1\nb\tP1\nc\t\na\tP1\n")
    assert one_value_each(table, "Patient", ["a", "b", "c"]) == {"a": "P1", "b": "P1"}
    table.write_text("case\tpatient\na\tP1\na\tP2\n")
    with pytest.raises(DatasetError, match="a has P1 and P2"):
        one_value_each(table, "patient", ["a"])


def test_a_rule_finds_patients_in_identifiers():
    cases = ["genius_0800", "genius_0801", "genius_0900"]
    expected = dict(zip(cases, ("08", "08", "09"), strict=True))
    assert patients_by_pattern(cases, r"genius_(\d\d)") == expected
    assert set(patients_by_pattern(cases, r"^genius_\d\d").values()) == {"genius_08", "genius_09"}
    for pattern, message in (("(", "no regular expression"), ("x", "finds no patient in genius_0800")):
        with pytest.raises(ConfigurationError, match=message):
            patients_by_pattern(cases, pattern)


# ---- folds of patients

TUMOR = tuple(f"p{number // 2}_{number % 2}" for number in range(10))
GROUPS = CaseGroups(TUMOR, ("h1", "h2", "h3", "h4", "h5", "p0_healthy"), ("p1_other",))
KNOWN = KnownCases(patients={**{case: case[:2] for case in (*TUMOR, "p0_healthy", "p1_other")}, "h1": "H", "h2": "H"})


def test_scans_of_a_patient_are_on_one_side_of_every_fold():
    folds = cross_validation(GROUPS, (), folds=5, known=KNOWN)
    assert sorted(case for fold in folds for case in fold.val) == sorted(TUMOR)
    for fold in folds:
        assert not {*map(KNOWN.patient_of, fold.train)} & {*map(KNOWN.patient_of, fold.val)}
        validated = {*map(KNOWN.patient_of, fold.val)}
        everyone = {*TUMOR, *GROUPS.healthy, *GROUPS.other}
        assert set(fold.train) == {case for case in everyone if KNOWN.patient_of(case) not in validated}
    assert len(cross_validation(GROUPS, (), folds=9, known=KNOWN)) == 5


def test_patients_are_held_out_whole_and_none_that_trains():
    for seed in range(20):
        held = choose_holdout(GROUPS.healthy, 0.5, seed, others=(*TUMOR, "p1_other"), known=KNOWN)
        assert "p0_healthy" not in held
        assert ("h1" in held) == ("h2" in held)
        assert len(held) in (2, 3)


def test_one_hospital_is_left_out_of_each_fold():
    sites = {case: "north" if case < "p2" else "south" for case in (*TUMOR, *GROUPS.healthy, *GROUPS.other)}
    folds = cross_validation(GROUPS, (), known=KnownCases(patients=sites))
    assert all(len({sites[case] for case in fold.val}) == 1 for fold in folds)
    assert sorted(sites[fold.val[0]] for fold in folds) == ["north", "south"]
    for fold in folds:
        assert not {sites[case] for case in fold.val} & {sites[case] for case in fold.train}
    with pytest.raises(DatasetError, match="1 patients"):
        cross_validation(GROUPS, (), known=KnownCases(patients=dict.fromkeys(sites, "north")))


def test_a_healthy_validation_case_of_a_file_made_by_hand_does_not_train():
    by_hand = Split(train=("h3", "p1_0", "p1_1"), val=("p0_0", "p0_1", "p0_healthy"))
    for known in (KnownCases(), KNOWN):
        assert arrange_split(by_hand, GROUPS, (), known=known) == Split(("h3", "p1_0", "p1_1"), ("p0_0", "p0_1"))


def test_a_file_made_by_hand_that_tears_a_known_patient_apart_is_refused():
    torn = Split(train=("h3", "p0_1"), val=("p0_0",))
    assert arrange_split(torn, GROUPS, ()) == torn
    with pytest.raises(DatasetError, match=r"further scans of its validation patients \(p0_1\)"):
        arrange_split(torn, GROUPS, (), known=KNOWN)


def test_a_generator_that_saw_another_scan_of_a_validation_patient_is_refused(folders):
    maps = {name: a_map(1, 2) for name in ("p0_0", "p0_1", "p1_0", "p2_0")} | {"h": a_map(1), "p0_h": a_map(1)}
    write_dataset(folders, LIVER, maps)
    data, config = preprocessed(folders, LIVER, maps), DiffTumorConfig(organ_label=1, tumor_label=2)
    assert main(["splits", "-d", "901", "--group-pattern", "^p.|h", "--holdout", "0"]) == 0
    fold = next(n for n in range(3) if "p0_0" in choose_cases(data, config, n).split.val)
    cases, folder = choose_cases(data, config, fold), folders / "generator"
    assert set(cases.split.val) == {"p0_0", "p0_1"}
    assert set(cases.split.train) == {"p1_0", "p2_0", "h"}
    folder.mkdir()

    def trained_on(name):
        one = CaseFingerprint(identifier_hash=hash_identifier(name), image_hash="0" * 64)
        save_provenance(folder / "provenance.json", Provenance(diffusion=(one,), autoencoder=(one,)))

    trained_on("p1_0")
    assert any("p0_h" in note for note in check_leaks(folder, data, cases, config, fold).notes)
    trained_on("p0_h")
    with pytest.raises(LeakError, match="p0_h"):
        check_leaks(folder, data, cases, config, fold)


# ---- the command


def test_the_command_says_what_it_assumes_and_writes_what_it_is_told(folders, capsys):
    maps = {f"t{n}": a_map(1, 2) for n in range(4)} | {f"h{n}": a_map(1) for n in range(6)}
    write_dataset(folders, LIVER, maps)
    table = folders / "cases.csv"
    rows = [f"{name},{'1' if name == 'h1' else ''},P{name[1]},{int(name[1]) % 2}" for name in maps]
    table.write_text("\n".join(["case,known,patient,hospital", *rows]))
    assert main(["splits", "-d", "901"]) == 0
    printed = capsys.readouterr().out
    assert "healthy: h0, h1, h2, h3, h4, h5" in printed
    assert "read off the label maps alone" in printed
    assert "a patient of its own" in printed
    columns = ["--metadata", str(table), "--tumor-column", "known", "--group-column", "patient"]
    assert main(["splits", "-d", "901", *columns]) == 1  # other splits are there
    assert main(["splits", "-d", "901", *columns, "--overwrite"]) == 0
    printed = capsys.readouterr().out
    assert "alone" not in printed
    assert "of its own" not in printed
    folder = folders / "preprocessed" / NAME
    known = read_known_cases(folder / "healthy_holdout.json")
    assert known == KnownCases(("h1",), {name: f"P{name[1]}" for name in maps})
    for number, fold in enumerate(read_splits(folder / "splits_final.json")):
        cases = choose_cases(preprocessed(folders, LIVER, maps), DiffTumorConfig(organ_label=1, tumor_label=2), number)
        assert cases.split == fold
        assert "h1" not in cases.groups.healthy
        assert not {name[1] for name in fold.train} & {name[1] for name in fold.val}
    assert main(["splits", "-d", "901", *columns[:2], "--leave-out", "hospital", "--overwrite"]) == 0
    assert "hospital 1: training" in capsys.readouterr().out
    for wrong in (columns[:2], columns[2:], ["--leave-out", "hospital"]):
        assert main(["splits", "-d", "901", *wrong]) == 1


def test_script_patient_with_two_scans(folders, monkeypatch, capsys):
    run_script("patient_with_two_scans", folders)
    monkeypatch.setenv("nnUNet_raw", str(folders))
    assert main(["splits", "-d", "901"]) == 0
    assert "--group-pattern" in capsys.readouterr().out
    assert main(["splits", "-d", "901", "--group-pattern", r"genius_\d\d", "--overwrite"]) == 0
    folds = read_splits(folders / "preprocessed" / "Dataset901_Patients" / "splits_final.json")
    assert len(folds) == 3
    for fold in folds:
        assert not {name[:9] for name in fold.train} & {name[:9] for name in fold.val}


def test_script_tumour_case_empty_mask(folders, monkeypatch, capsys):
    run_script("tumour_case_empty_mask", folders)
    monkeypatch.setenv("nnUNet_raw", str(folders))
    (folders / "t.csv").write_text("case,tumor\n" + "".join(f"case_{n},{int(n < 4)}\n" for n in range(8)))
    assert main(["splits", "-d", "901"]) == 0
    assert "healthy: case_2, case_3, case_4, case_5, case_6, case_7" in capsys.readouterr().out
    options = ["--metadata", str(folders / "t.csv"), "--tumor-column", "tumor", "--overwrite"]
    assert main(["splits", "-d", "901", *options]) == 0
    assert "neither: case_2, case_3" in capsys.readouterr().out


def test_script_two_tumour_labels(folders, capsys):
    run_script("two_tumour_labels", folders)
    assert main(["splits", "-d", "901"]) == 0
    printed = capsys.readouterr().out
    assert "4 cases with tumour, 2 healthy, 2 neither" in printed
    assert "healthy: case_4, case_7" in printed


# ---- the commands and the trainer agree

NAMES = ["tumor", "metastasis", "cyst", "vessel", "spleen", "lesion", "HCC", "necrosis"]


@st.composite
def datasets(draw):
    """Labels with liver 1 and tumours 2, perhaps as regions, and label maps, some of which hold other values."""
    names = draw(st.lists(st.sampled_from(NAMES[1:]), unique=True, max_size=3))
    labels = {"background": 0, "liver": 1, "liver_tumor": 2} | {name: 3 + n for n, name in enumerate(names)}
    if draw(st.booleans()):
        labels["liver"] = [1, *(value for value in range(2, 3 + len(names)) if draw(st.booleans()))]
        if draw(st.booleans()) and "necrosis" in labels:
            labels["liver_tumor"] = [2, labels["necrosis"]]
    if draw(st.booleans()):
        labels["ignore"] = 3 + len(names)
    most = 2 + len(names) + ("ignore" in labels) + draw(st.sampled_from([0, 0, 0, 1]))
    some = st.lists(st.integers(1, most), unique=True, max_size=4)
    maps = {f"c{n}": tuple(values) for n, values in enumerate(draw(st.lists(some, min_size=2, max_size=4)))}
    return labels, {**maps, "sure_a": (1, 2), "sure_b": (1, 2), "well": (1,)}


def agree(root, labels, values):
    from nnunet_difftumor.evaluation.scoring.case import score_case
    from nnunet_difftumor.evaluation.scoring.scheme import read_label_scheme

    maps = {name: np.roll(a_map(*each), n, axis=0) for n, (name, each) in enumerate(values.items())}  # no two alike
    raw = write_dataset(root, labels, maps)
    (root / "preprocessed" / NAME).mkdir(parents=True)
    (root / "preprocessed" / NAME / "difftumor.json").write_text('{"organ_label": 1, "tumor_label": 2}')
    organ, tumor = resolve_label_roles(labels, 1, 2)
    config = DiffTumorConfig(organ_label=organ, tumor_label=tumor)
    scheme = read_label_scheme(raw / "dataset.json", ["liver_tumor"])
    declared = {0} | {v for each in labels.values() for v in (each if isinstance(each, list) else [each])}
    bad = {name for name, each in values.items() if not set(each) <= declared}
    label_files = {case.identifier: case.label_path for case in load_raw_dataset(raw).cases}
    scored = {}
    for name, file in label_files.items():
        if name in bad:
            with pytest.raises(DiffTumorError, match=r"declare|name"):
                score_case(file, file, scheme)
        else:
            scored[name] = score_case(file, file, scheme).is_healthy
    if bad:
        assert main(["splits", "-d", "901"]) == 1
        for call in (
            lambda: choose_cases(preprocessed(root, labels, maps), config, 0),
            lambda: trained_cases(raw, "liver_tumor", root / "cache"),
        ):
            with pytest.raises(DatasetError, match=r"declare|name"):
                call()
        return
    assert main(["splits", "-d", "901", "--holdout", "0.4"]) == 0
    groups = choose_cases(preprocessed(root, labels, maps), config, 0).groups
    holdout = read_holdout(root / "preprocessed" / NAME / "healthy_holdout.json")
    folds = read_splits(root / "preprocessed" / NAME / "splits_final.json")
    assert set(groups.tumor) == {case for fold in folds for case in fold.val}
    assert set(holdout) <= set(groups.healthy)
    assert trained_cases(raw, "liver_tumor", root / "cache") == set(groups.tumor)
    roles = LabelRoles.of_dataset(labels, organ, tumor)
    for name, each in values.items():
        kind = kind_of_case(each, [roles])
        assert name in {"tumor": groups.tumor, "healthy": groups.healthy, "other": groups.other}[kind]
        assert scored[name] == (
            kind == "healthy" or (kind == "other" and kind_of_case((1, *each), [roles]) == "healthy")
        )


@pytest.mark.parametrize("draws", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_commands_and_trainer_agree_on_what_a_case_is(draws, tmp_path_factory, monkeypatch):
    monkeypatch.delenv("nnUNet_difftumor", raising=False)

    @settings(max_examples=draws, deadline=None, derandomize=True, database=None)
    @given(datasets())
    def check(drawn):
        root = tmp_path_factory.mktemp("roles")
        with pytest.MonkeyPatch.context() as patch:
            for key in ("raw", "preprocessed", "results"):
                patch.setenv(f"nnUNet_{key}", str(root / key))
            agree(root, *drawn)

    check()
