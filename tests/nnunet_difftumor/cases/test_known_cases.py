"""What a case is, who is one patient: by labels, a table or a rule, and the same for every command and the trainer."""

import json
import re
import shutil
from argparse import Namespace
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.generator.provenance import CaseFingerprint, Provenance, hash_identifier, save_provenance
from nnunet_difftumor.cases.extra.requirements import ExtraDataset, TargetDataset
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
from nnunet_difftumor.study.data_views import open_data
from nnunet_difftumor.study.planning import _has_healthy

NAME = "Dataset901_Roles"
LIVER = {"background": 0, "liver": 1, "tumor": 2}
SHAPE = (10, 10, 10)


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


def preprocessed(root, labels, maps):
    folder = root / "preprocessed" / NAME
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "gt_segmentations").exists():
        (folder / "gt_segmentations").symlink_to(root / "raw" / NAME / "labelsTr")
    return PreprocessedCases(
        folder=folder, identifiers=tuple(sorted(maps)), label_ending=".nii.gz", images={}, labels=labels
    )


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


def is_healthy_with(name):
    """Whether a liver with a voxel of a third label of this name is healthy."""
    voxels = {"t": {1: 5, 2: 1}, "x": {1: 5, 3: 1}}
    return "x" in group_cases(voxels, LabelRoles.of_dataset({**LIVER, name: 3}, 1, 2)).healthy


SPECIAL = "HCC lymphoma hepatoblastoma adenoma PDACs malignant_node GTVp GTV-1 ICC IPMN mass mets CRLM Lymphom Adénome"


@pytest.mark.parametrize("name", [*SPECIAL.split(), "Raumforderung links", "Hämangiom"])
def test_names_of_special_tumors_are_no_health(name):
    assert not is_healthy_with(name)
    assert resolve_label_roles({**LIVER, name: 3}) == (1, 2)  # but no role is inferred from them


@pytest.mark.parametrize(
    "name", ["Karzinom", "Läsion", "Tumeur", "carcinome", "lésion", "métastase", "Sarkom", "Krebs"]
)
def test_german_and_french_tumors_are_tumors(name):
    assert resolve_label_roles({"background": 0, "Leber": 1, name: 2, "Zyste": 3}) == (1, 2)
    assert not is_healthy_with(name)


@pytest.mark.parametrize("name", ["cyst", "Zyste", "kyste", "portal vein", "masses", "Metal", "metric", "tube"])
def test_names_of_what_is_no_tumor_are_healthy(name):
    assert is_healthy_with(name)


@pytest.mark.parametrize("name", ["GTVp", "HCC", "necrosis", "Zyste", "edema"])
def test_what_is_left_beside_a_tumor_is_no_organ_by_its_name(name):
    with pytest.raises(ConfigurationError, match="organ_label cannot be inferred"):
        resolve_label_roles({"background": 0, name: 1, "metastasis": 2})


PUBLIC = {  # labels of public data sets, with what their names tell; None: a named error
    "MSD03": ({"liver": 1, "cancer": 2}, (1, 2)),
    "MSD07": ({"pancreas": 1, "cancer": 2}, (1, 2)),
    "MSD06": ({"cancer": 1}, None),
    "MSD08": ({"Vessel": 1, "Tumour": 2}, None),
    "MSD10": ({"colon cancer primaries": 1}, None),
    "KiTS19": ({"kidney": 1, "tumor": 2}, (1, 2)),
    "KiTS21": ({"kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2}, (1, 2)),
    "KiTS23": ({"kidney": 1, "tumor": 2, "cyst": 3}, (1, 2)),
    "PANORAMA": ({"PDAC lesion": 1, "veins": 2, "arteries": 3, "pancreas parenchyma": 4, "pancreatic duct": 5}, (4, 1)),
    "PANTHER": ({"tumor": 1, "pancreas": 2}, (2, 1)),
    "FLARE22": ({"liver": 1, "right kidney": 2, "spleen": 3, "pancreas": 4}, None),
    "FLARE23": ({"liver": 1, "right kidney": 2, "spleen": 3, "pancreas": 4, "tumor": 14}, None),
    "AbdomenAtlas": ({"liver": 1, "liver_lesion": 2, "pancreas": 5, "pancreatic_lesion": 6}, None),
    "PanTS": ({"pancreas": 1, "pancreas_head": 2, "pancreas_body": 3, "pancreatic_lesion": 5}, None),
    "3D-IRCADb": ({"liver": 1, "livertumor": 2, "livercyst": 3, "venoussystem": 4}, (1, 2)),
    "HCC-TACE": ({"liver": 1, "tumor": 2, "portal vein": 3, "abdominal aorta": 4}, (1, 2)),
    "CRLM": ({"liver": 1, "liver_remnant": 2, "hepatic_vein": 3, "portal_vein": 4, "tumor": 5}, None),
    "HECKTOR": ({"GTVp": 1, "GTVn": 2}, None),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_labels_of_public_data_sets_are_understood_or_named(name):
    labels, roles = PUBLIC[name]
    if roles is None:
        with pytest.raises(ConfigurationError, match="cannot be inferred"):
            resolve_label_roles({"background": 0, **labels})
    else:
        assert resolve_label_roles({"background": 0, **labels}) == roles


def test_a_region_named_like_a_tumor_that_holds_the_organ_says_nothing():
    labels = {"background": 0, "liver_and_tumor": [1, 2], "tumor": 2, "cyst": 3}
    assert LabelRoles.of_dataset(labels, 1, 2).other_tumors == ()


def test_a_list_of_healthy_cases_does_not_overrule_another_tumor_or_a_known_one():
    voxels = {"t": {1: 5, 2: 1}, "m": {1: 5, 3: 1}, "h": {1: 5}, "k": {1: 5}}
    roles, known = LabelRoles.of_dataset(TWO, 1, 2), KnownCases(("k",))
    assert group_cases(voxels, roles, known=known) == CaseGroups(("t",), ("h",), ("k", "m"))
    for listed in ("m", "k"):
        with pytest.raises(ConfigurationError, match=rf"a tumour label, a tumour by the metadata.*: {listed}\."):
            group_cases(voxels, roles, healthy_cases=["h", listed], known=known)


def an_image(maximum=1200):
    return np.random.default_rng(0).integers(-1000, maximum, SHAPE).astype(np.int16)


UNDECLARED = [
    (a_map(1, 7), "does not name: bad, worse ([7])"),
    (an_image(), "look like a CT"),
    ((np.arange(1000) % 256).reshape(SHAPE).astype(np.int16), "look like a CT"),
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


def trained_cases(raw, tumor_label, cache, *, needs_tumors=True):
    """The cases that stage two takes, or stage one."""
    from nnunet_difftumor.generator_training.case_selection import labelled_folder, read_hold_out
    from nnunet_difftumor.generator_training.runs import prepare_cases  # imports torch

    data, rule = labelled_folder(load_raw_dataset(raw), tumor_label), read_hold_out(None, None, None)
    selected = prepare_cases(Namespace(cache=cache, workers=0, skip_bad=False), [data], rule, needs_tumors=needs_tumors)
    return {case.identifier for case in (*selected.training, *selected.heldout)}


# ---- tables and rules


def test_a_table_says_who_has_a_tumor(tmp_path):
    table = tmp_path / "cases.csv"
    rows = ["Case,Lesions", "a.nii.gz,2", "b,0", "c,yes", "d,", "e,No", "f,0", "f,1.5", "zz,3", "001,false"]
    table.write_text("\ufeff" + "\n".join(rows) + "\n", encoding="utf-8")
    cases = ["a", "b", "c", "d", "e", "f", "001"]
    assert cases_with_tumor(table, "lesions", cases) == ("a", "c", "f", "zz")
    with pytest.raises(DatasetError, match="no row for 1 cases: g"):
        cases_with_tumor(table, "lesions", [*cases, "g"])
    with pytest.raises(DatasetError, match="no column 'size'"):
        cases_with_tumor(table, "size", cases)
    table.write_text("case,lesions\na,perhaps\n")
    with pytest.raises(DatasetError, match="neither yes nor no"):
        cases_with_tumor(table, "lesions", ["a"])


FORMS = {
    "mark": "\ufeffcase,lesions\n001,1\n002,0\n003,\n",
    "semicolons": "case;lesions\n001;1,5\n002;0\n003;\n",
    "tabs": "case\tlesions\n001\t1\n002\t0\n003\t\n",
    "images": "case,lesions\nimagesTr/001_0000.nii.gz,1\n002_0000,0\n003.NII.GZ,\n",
    "commas behind": "case,lesions\n001,TRUE,\n002,FALSE,\n003,,\n",
    "blank lines": "\n\nCase , Lesions \n\n 001 , yes \n002,n/a\n\n003,NaN\n\n",
    "short rows": "case,lesions\n002\n001,1\n003\n",
    "old Mac": "case,lesions\r001,1\r002,-\r003,null\r",
    "quotes": 'case,name,lesions\n"001","Miller, A",1\n002,"B\nC",0\n003,,\n',
    "several rows": "case,lesions\n001,0\n001,1\n002,0\n003,\n",
    "more cases": "case,lesions\n001,1\n002,0\n003,\n999,weird\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_tables_of_every_common_form_are_read(tmp_path, form):
    table = tmp_path / "cases.csv"
    table.write_bytes(FORMS[form].encode())
    assert cases_with_tumor(table, " Lesions", ["001", "002", "003"]) == ("001",)


WRONG = {
    "excel": (b"PK\x03\x04\x14\x00\x06\x00\x00\x00!\x00\xff\xfe", "cannot be read.*Save the table as CSV in UTF-8"),
    "latin": ("case,lesions,note\n001,1,\xe4\n".encode("latin1"), "cannot be read"),
    "empty": (b"", "needs a column case"),
    "zeros": (b"case,lesions\n1,1\n2,0\n", "no row for 2 cases: 001, 002. Rows of no case: 1, 2"),
    "two columns": (b"case,lesions,Lesions\n001,1,0\n002,0,0\n", "or two"),
    "two case columns": (b"Case,case,lesions\n001,001,1\n002,002,0\n", "needs a column case, and one"),
    "comma in a name": (b"case,name,lesions\n001,Miller, A,1\n002,B, C,0\n", "more cells than the head"),
    "words": (b"case,lesions\n001,12 mm\n002,0\n", "001 has 12 mm, which says neither yes nor no"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_tables_that_cannot_be_understood_are_named(folders, capsys, wrong):
    write_dataset(folders, LIVER, {"001": a_map(1, 2), "002": a_map(1)})
    table = folders / "cases.csv"
    table.write_bytes(WRONG[wrong][0])
    assert main(["splits", "-d", "901", "--metadata", str(table), "--tumor-column", "lesions"]) == 1
    assert re.search(WRONG[wrong][1], capsys.readouterr().err)


def test_what_stands_for_nothing_is_no_patient(tmp_path):
    table = tmp_path / "cases.csv"
    table.write_text("case,patient\na,nan\nb,NaN\nc,None\nd,-\ne,unknown\nf,P\ng,P\n")
    assert one_value_each(table, "patient", list("abcdefg")) == {"f": "P", "g": "P"}
    with pytest.raises(DatasetError, match="empty for 5 cases: a, b, c, d, e"):
        one_value_each(table, "patient", list("abcdefg"), is_needed=True)


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
    kept = Split(("h3", "p1_0", "p1_1"), ("p0_0", "p0_1"))
    assert arrange_split(by_hand, GROUPS, ()) == kept
    assert arrange_split(by_hand, GROUPS, (), known=KNOWN) == kept


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


def test_patients_stay_together_where_the_splits_file_is_gone(folders):
    maps = {name: a_map(1, 2) for name in ("p0_0", "p0_1", "p1_0", "p1_1", "p2_0")} | {"p0_h": a_map(1)}
    write_dataset(folders, LIVER, maps)
    assert main(["splits", "-d", "901", "--group-pattern", "^p."]) == 0
    (folders / "preprocessed" / NAME / "splits_final.json").unlink()
    config = DiffTumorConfig(organ_label=1, tumor_label=2)
    for fold in range(3):
        cases = choose_cases(preprocessed(folders, LIVER, maps), config, fold)
        assert not {name[:2] for name in cases.split.train} & {name[:2] for name in cases.split.val}


def test_a_holdout_file_of_earlier_times_is_read_and_a_damaged_one_named(tmp_path):
    path = tmp_path / "healthy_holdout.json"
    assert read_known_cases(path) == KnownCases()
    path.write_text('{"holdout": ["h"], "share": 0.2, "healthy_cases": 5, "seed": 12345}')
    assert read_known_cases(path) == KnownCases()
    for wrong in ('{"known_tumor": "h"}', '{"patients": ["h"]}', "[]", "{"):
        path.write_text(wrong)
        with pytest.raises(DatasetError, match="is damaged"):
            read_known_cases(path)


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
    table.write_text(table.read_text().replace("P2,0", "P2,").replace("t3,,P3", "t3,,"))
    capsys.readouterr()
    assert main(["splits", "-d", "901", *columns[:2], "--leave-out", "hospital", "--overwrite"]) == 1
    assert "column hospital, is empty for 2 cases: h2, t2. Fill it" in capsys.readouterr().err
    assert main(["splits", "-d", "901", *columns, "--overwrite"]) == 0
    assert "Each of t3 counts as a patient of its own" in capsys.readouterr().out
    table.write_text("case,hospital,patient\n" + "".join(f"{name},{name[1] > '1'},{name[0]}\n" for name in maps))
    apart = ["--leave-out", "hospital", "--group-column", "patient", "--holdout", "0", "--overwrite"]
    assert main(["splits", "-d", "901", *columns[:2], *apart]) == 0
    table.write_text("case,hospital,patient\n" + "".join(f"{name},{name[1] > '1'},one\n" for name in maps))
    assert main(["splits", "-d", "901", *columns[:2], *apart]) == 1
    assert "every patient has a scan in the hospital" in capsys.readouterr().err


TRAINERS = ("DiffTumor", "HealthyOnly", "CopyPaste", "Handcrafted")


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_trainer_takes_the_same_cases_for_healthy(make_nnunet_project, monkeypatch, trainer):
    from nnunet_difftumor.trainer import trainers  # imports nnU-Net

    project = make_nnunet_project()
    project.activate(monkeypatch)
    path = project.preprocessed / "gt_segmentations" / "healthy_1.nii.gz"
    stored = nibabel.load(path)
    labels = np.array(stored.dataobj)
    labels[20, 20, 20] = 3
    nibabel.save(nibabel.Nifti1Image(labels, stored.affine), path)
    (project.preprocessed / "healthy_holdout.json").write_text(
        '{"holdout": ["healthy_0"], "known_tumor": ["healthy_2"]}'
    )
    with pytest.raises(DatasetError, match="does not name: healthy_1"):
        project.make_trainer(getattr(trainers, f"nnUNetTrainer{trainer}"))._prepare_training()
    for file in (project.preprocessed, project.raw):
        content = json.loads((file / "dataset.json").read_text())
        content["labels"]["metastasis"] = 3
        (file / "dataset.json").write_text(json.dumps(content))
    project.configure(tumor_label="tumor")
    made = project.make_trainer(getattr(trainers, f"nnUNetTrainer{trainer}"))
    made._prepare_training()
    assert made._fold_cases.groups.other == ("healthy_1", "healthy_2")
    assert made._fold_cases.healthy_train == tuple(f"healthy_{number}" for number in range(3, 8))


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
    labelled = "liver_tumor", root / "cache"
    assert trained_cases(raw, *labelled, needs_tumors=False) == set(values)  # stage one needs no labels
    calls = [
        lambda: choose_cases(preprocessed(root, labels, maps), config, 0),
        lambda: trained_cases(raw, *labelled),
        lambda: studied(root, labels, maps),
    ]
    healthy = {name: healthy_elsewhere(root, labels, {name: file}, config) for name, file in label_files.items()}
    assert {name for name, found in healthy.items() if found == "undeclared"} == bad
    if bad:
        assert main(["splits", "-d", "901"]) == 1
        for call in calls:
            with pytest.raises(DatasetError, match=r"declare|name"):
                call()
        return
    assert main(["splits", "-d", "901", "--holdout", "0.4"]) == 0
    groups = choose_cases(preprocessed(root, labels, maps), config, 0).groups
    study, data = studied(root, labels, maps)
    assert data.groups == groups
    holdout = read_holdout(root / "preprocessed" / NAME / "healthy_holdout.json")
    folds = read_splits(root / "preprocessed" / NAME / "splits_final.json")
    assert set(groups.tumor) == {case for fold in folds for case in fold.val}
    assert set(holdout) <= set(groups.healthy)
    assert trained_cases(raw, *labelled) == set(groups.tumor)
    roles = LabelRoles.of_dataset(labels, organ, tumor)
    for name, each in values.items():
        kind = kind_of_case(each, [roles])
        assert name in {"tumor": groups.tumor, "healthy": groups.healthy, "other": groups.other}[kind]
        assert scored[name] == (
            kind == "healthy" or (kind == "other" and kind_of_case((1, *each), [roles]) == "healthy")
        )
        assert _has_healthy(study, data, [name]) == scored[name]
        confirmed = kind_of_case(each, [roles], is_confirmed=True)
        free = kind_of_case((1, *each), [roles], is_confirmed=True) == "healthy"
        assert healthy[name] == ([name] * (confirmed == "healthy") if free else "tumour")


def healthy_elsewhere(root, labels, files, config):
    """What add-healthy says of cases."""
    target = TargetDataset(
        name=NAME,
        folder=root / "preprocessed" / NAME,
        plans={},
        configuration="",
        dataset_json={"labels": labels},
        identifiers=(),
    )
    roles = [LabelRoles.of_dataset(labels, config.organ_label, config.tumor_label)]
    try:
        return list(ExtraDataset("Dataset902_Other", target).check_healthy(files, roles, labels))
    except ConfigurationError:
        return "tumour"
    except DatasetError:
        return "undeclared"


def studied(root, labels, maps):
    """What `difftumor experiment` and its comparison see."""
    folder = preprocessed(root, labels, maps).folder
    (folder / "data").mkdir(exist_ok=True)
    for name in maps:
        (folder / "data" / f"{name}.npz").touch()
    shutil.copy(root / "raw" / NAME / "dataset.json", folder)
    plans = {"configurations": {"3d_fullres": {"data_identifier": "data", "batch_size": 2, "architecture": {}}}}
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    study = SimpleNamespace(
        dataset="901",
        plans="nnUNetPlans",
        configuration="3d_fullres",
        path=root / "study.yaml",
        folds=(0,),
        arms=[SimpleNamespace(name="a", settings={})],
        seed_of_cases=0,
        compare=SimpleNamespace(labels=["liver_tumor"]),
    )
    return study, open_data(study)


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
