import json

import nibabel
import numpy as np
import pytest
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunet_difftumor.cases.fold import PreprocessedCases, choose_cases
from nnunet_difftumor.cases.healthy import CaseGroups
from nnunet_difftumor.cases.splits import (
    Split,
    arrange_split,
    cross_validation,
    read_holdout,
    read_splits,
    write_splits,
)
from nnunet_difftumor.cli import main
from nnunet_difftumor.errors import DatasetError, OutputExistsError
from nnunet_difftumor.settings.trainer_settings import DiffTumorConfig

TUMOR = tuple(f"t{number:02d}" for number in range(12))
HEALTHY = tuple(f"h{number}" for number in range(5))
LABELS = {"background": 0, "liver": 1, "tumor": 2}
GROUPS = CaseGroups(tumor=TUMOR, healthy=HEALTHY, other=("o0",))


def test_tumor_cases_are_each_validated_once_and_all_others_always_train():
    folds = cross_validation(GROUPS, holdout=("h3",))
    assert sorted(case for fold in folds for case in fold.val) == list(TUMOR)
    for fold in folds:
        assert set(fold.train) == {*TUMOR, "h0", "h1", "h2", "h4", "o0"} - set(fold.val)


def test_without_healthy_cases_the_split_is_nnunets_own():
    expected = generate_crossval_split(list(TUMOR), seed=12345, n_splits=5)
    folds = cross_validation(CaseGroups(TUMOR, (), ()), holdout=())
    assert [(list(fold.train), list(fold.val)) for fold in folds] == [
        (sorted(fold["train"]), sorted(fold["val"])) for fold in expected
    ]


def test_without_any_tumor_the_healthy_cases_are_split():
    folds = cross_validation(CaseGroups((), HEALTHY, ()), holdout=("h3",))
    assert sorted(case for fold in folds for case in fold.val) == ["h0", "h1", "h2", "h4"]
    assert len(folds) == 4


def test_one_tumor_case_cannot_be_split():
    with pytest.raises(DatasetError, match="'all'"):
        cross_validation(CaseGroups(("t0",), HEALTHY, ()), holdout=())


def test_healthy_validation_cases_and_the_holdout_leave_the_fold():
    split = Split(train=("h0", "h3", "t00", "t01"), val=("h1", "t02"))
    arranged = arrange_split(split, GROUPS, holdout=("h3",))
    assert arranged == Split(train=("h0", "t00", "t01"), val=("t02",))
    assert split.val == ("h1", "t02")  # the given lists are not touched


def test_a_fold_that_validates_on_healthy_cases_only_is_refused():
    with pytest.raises(DatasetError, match="difftumor splits"):
        arrange_split(Split(train=("t00",), val=("h0", "h1")), GROUPS, holdout=())


def test_unknown_cases_in_a_split_are_refused():
    with pytest.raises(DatasetError, match="stranger"):
        arrange_split(Split(train=("t00", "stranger"), val=("t01",)), GROUPS, holdout=())


def test_without_any_tumor_healthy_cases_stay_in_validation():
    groups = CaseGroups((), HEALTHY, ())
    arranged = arrange_split(Split(train=("h0", "h1", "h2"), val=("h3", "h4")), groups, holdout=("h2",))
    assert arranged == Split(train=("h0", "h1"), val=("h3", "h4"))


def test_a_case_that_would_train_and_validate_is_refused_and_named():
    split = Split(train=("h0", "t00", "t02"), val=("h0", "t01", "t02"))
    with pytest.raises(DatasetError, match=r'Fold 1 of x\.json has 1 case in both "train" and "val" \(t02\)'):
        arrange_split(split, GROUPS, holdout=(), origin="Fold 1 of x.json")
    healthy_twice = Split(train=("h0", "t00"), val=("h0", "t01"))  # it trains, and validates nowhere
    assert arrange_split(healthy_twice, GROUPS, holdout=()) == Split(train=("h0", "t00"), val=("t01",))


def test_written_splits_are_read_back_and_not_replaced_by_others(tmp_path):
    folds = cross_validation(GROUPS, holdout=("h3",))
    assert write_splits(tmp_path, folds, {"holdout": ["h3"]})
    assert read_splits(tmp_path / "splits_final.json") == folds
    assert read_holdout(tmp_path / "healthy_holdout.json") == ("h3",)
    assert not write_splits(tmp_path, folds, {"holdout": ["h3"]})
    with pytest.raises(OutputExistsError, match="--overwrite"):
        write_splits(tmp_path, folds[:3], {"holdout": ["h3"]})
    assert write_splits(tmp_path, folds[:3], {"holdout": []}, overwrite=True)
    assert read_splits(tmp_path / "splits_final.json") == folds[:3]


@pytest.mark.parametrize("content", ["{", "[]x", '[{"train": ["a"]}]', '[{"train": "a", "val": ["b"]}]', "[3]"])
def test_a_malformed_splits_file_is_named(tmp_path, content):
    (tmp_path / "splits_final.json").write_text(content)
    with pytest.raises(DatasetError, match=r"splits_final\.json"):
        read_splits(tmp_path / "splits_final.json")


@pytest.fixture
def raw_dataset(tmp_path, monkeypatch):
    """6 cases with tumour and 5 healthy ones in nnUNet_raw, not preprocessed."""
    raw = tmp_path / "raw" / "Dataset907_Test"
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    for identifier in (*TUMOR[:6], *HEALTHY):
        labels = np.zeros((6, 6, 6), dtype=np.int16)
        labels[2:4] = 1
        labels[3, 3, 3] = 2 if identifier in TUMOR else 1
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), raw / "labelsTr" / f"{identifier}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels * 100, np.eye(4)), raw / "imagesTr" / f"{identifier}_0000.nii.gz")
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "tumor": 2},
        "numTraining": 11,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(content))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.delenv("nnUNet_difftumor", raising=False)
    return raw


def test_command_writes_splits_before_preprocessing(raw_dataset, tmp_path, capsys):
    assert main(["splits", "-d", "907", "--folds", "3"]) == 0
    folder = tmp_path / "preprocessed" / "Dataset907_Test"
    folds = read_splits(folder / "splits_final.json")
    holdout = read_holdout(folder / "healthy_holdout.json")
    assert len(folds) == 3
    assert holdout is not None
    assert len(holdout) == 1
    for fold in folds:
        assert set(fold.val) <= set(TUMOR)
        assert set(HEALTHY) - set(holdout) <= set(fold.train)
        assert not set(holdout) & {*fold.train, *fold.val}
    assert "splits_final.json" in capsys.readouterr().out


def test_command_says_that_healthy_cases_and_folds_are_missing(raw_dataset, capsys):
    for identifier in HEALTHY:
        (raw_dataset / "labelsTr" / f"{identifier}.nii.gz").unlink()
        (raw_dataset / "imagesTr" / f"{identifier}_0000.nii.gz").unlink()
    content = json.loads((raw_dataset / "dataset.json").read_text())
    (raw_dataset / "dataset.json").write_text(json.dumps({**content, "numTraining": 6}))
    assert main(["splits", "-d", "907", "--folds", "9"]) == 0
    printed = capsys.readouterr().out
    assert "difftumor add-healthy" in printed
    assert "6 folds, not 9" in printed


def test_a_missing_splits_file_is_not_called_malformed(tmp_path):
    with pytest.raises(DatasetError, match="does not exist") as error:
        read_splits(tmp_path / "splits.json")
    assert "--overwrite" not in str(error.value)


def test_command_refuses_other_splits_unless_asked(raw_dataset, capsys):
    assert main(["splits", "-d", "907", "--folds", "3"]) == 0
    assert main(["splits", "-d", "907", "--folds", "3"]) == 0
    assert "Unchanged" in capsys.readouterr().out
    assert main(["splits", "-d", "907", "--folds", "2"]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main(["splits", "-d", "907", "--folds", "2", "--overwrite"]) == 0


def test_command_names_an_unknown_dataset(raw_dataset, capsys):
    assert main(["splits", "-d", "555"]) == 1
    assert "555" in capsys.readouterr().err


def open_cases(raw_dataset, tmp_path):
    folder = tmp_path / "preprocessed" / raw_dataset.name
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "gt_segmentations").exists():
        (folder / "gt_segmentations").symlink_to(raw_dataset / "labelsTr")
    return PreprocessedCases(
        folder=folder,
        identifiers=tuple(sorted((*TUMOR[:6], *HEALTHY))),
        label_ending=".nii.gz",
        images={},
        labels=LABELS,
    )


CONFIG = DiffTumorConfig(generator=None, organ_label=1, tumor_label=2)


def test_trainer_and_command_agree_on_folds_and_holdout(raw_dataset, tmp_path):
    cases = open_cases(raw_dataset, tmp_path)
    unwritten = [choose_cases(cases, CONFIG, fold) for fold in range(5)]
    assert not (cases.folder / "splits_final.json").exists()
    assert any("difftumor splits" in note for note in unwritten[0].notes)
    assert main(["splits", "-d", "907"]) == 0
    written = [choose_cases(cases, CONFIG, fold) for fold in range(5)]
    assert [fold.split for fold in written] == [fold.split for fold in unwritten]
    assert {fold.holdout for fold in written} == {unwritten[0].holdout}


def test_fold_all_trains_on_everything_but_the_holdout(raw_dataset, tmp_path):
    chosen = choose_cases(open_cases(raw_dataset, tmp_path), CONFIG, "all")
    assert set(chosen.split.train) == {*TUMOR[:6], *HEALTHY} - set(chosen.holdout)
    assert chosen.split.val == TUMOR[:6]
    assert set(chosen.healthy_train) == set(HEALTHY) - set(chosen.holdout)


def test_a_fold_that_does_not_exist_is_refused(raw_dataset, tmp_path):
    with pytest.raises(DatasetError, match="folds 0 to 4"):
        choose_cases(open_cases(raw_dataset, tmp_path), CONFIG, 5)


def test_data_set_without_annotated_tumor_warns_what_validation_can_say(raw_dataset, tmp_path):
    cases = open_cases(raw_dataset, tmp_path)
    cases = PreprocessedCases(
        folder=cases.folder, identifiers=HEALTHY, label_ending=".nii.gz", images={}, labels=LABELS
    )
    config = DiffTumorConfig(generator=None, organ_label=1, tumor_label=2, confirmed_healthy=True)
    chosen = choose_cases(cases, config, 0)
    assert set(chosen.split.val) <= set(HEALTHY)
    assert any("synthetic tumours only" in note for note in chosen.notes)
