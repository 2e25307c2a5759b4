from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_difftumor.cli import _build_parser
from nnunet_difftumor.commands.dataset_arguments import find_dataset, raw_folder
from nnunet_difftumor.errors import ConfigurationError, DatasetError


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """nnU-Net's raw and preprocessed folders, with data set 905."""
    for part in ("raw", "preprocessed", "results"):
        (tmp_path / part / "Dataset905_Liver").mkdir(parents=True)
        monkeypatch.setenv(f"nnUNet_{part}", str(tmp_path / part))
    return tmp_path


def options_of(*words):
    return _build_parser(["train-autoencoder"]).parse_args(
        ["train-autoencoder", *words, "--preset", "nano", "--output", "ae"]
    )


def test_a_data_set_is_a_number_a_name_or_a_folder(folders, monkeypatch):
    raw = folders / "raw" / "Dataset905_Liver"
    assert raw_folder("905") == raw_folder("Dataset905_Liver") == raw_folder(str(raw)) == raw
    monkeypatch.chdir(folders / "raw")
    assert raw_folder("Dataset905_Liver") == Path("Dataset905_Liver")
    assert raw_folder("elsewhere/scans") == Path("elsewhere/scans")  # whoever reads it says that there is nothing
    with pytest.raises(DatasetError, match="no data set '906'"):
        raw_folder("906")


def test_a_number_needs_the_folders_of_nnunet_and_a_path_does_not(tmp_path, monkeypatch):
    for part in ("raw", "preprocessed", "results"):
        monkeypatch.delenv(f"nnUNet_{part}", raising=False)
    with pytest.raises(ConfigurationError, match="nnUNet_raw and nnUNet_preprocessed must be set"):
        raw_folder("905")
    assert raw_folder(str(tmp_path)) == tmp_path


def test_a_fold_is_that_of_the_first_data_set_unless_splits_are_given(folders):
    splits = folders / "preprocessed" / "Dataset905_Liver" / "splits_final.json"
    options = options_of("-d", "905", "-f", "1")
    with pytest.raises(DatasetError, match=r"splits_final.json does not exist.*difftumor splits -d 905, or give"):
        find_dataset(options, needs_splits=True)
    splits.write_text("[]")
    options = options_of("-d", "905", str(folders), "-f", "1")
    find_dataset(options, needs_splits=True)
    assert options.splits == splits
    assert options.data == [folders / "raw" / "Dataset905_Liver", folders]
    given = options_of("-d", "905", "-f", "1", "--splits", "mine.json")
    find_dataset(given, needs_splits=True)
    assert given.splits == Path("mine.json")
    without = options_of("-d", "905")
    find_dataset(without, needs_splits=False)
    assert without.splits is None
