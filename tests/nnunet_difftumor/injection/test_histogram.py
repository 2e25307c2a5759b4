"""The picture of what was drawn and what landed."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib as mpl
import pytest

from nnunet_difftumor.injection.histogram import (
    EPOCHS_FILE_NAME,
    HISTOGRAM_FILE_NAME,
    PICTURE_FILE_NAME,
    write_histogram,
)
from nnunet_difftumor.injection.records import InjectedTumor

TUMORS = [
    (0, InjectedTumor("small", 6.0, 6.0, -20.0, -20.0)),
    (0, InjectedTumor("small", 8.0, None, -30.0, None)),
]


def _picture(folder: Path) -> bytes:
    folder.mkdir()
    write_histogram(folder, ("tumor",), 0, TUMORS)
    assert (folder / HISTOGRAM_FILE_NAME).is_file()
    return (folder / PICTURE_FILE_NAME).read_bytes()


def test_epochs_that_are_repeated_after_an_interruption_count_once(tmp_path: Path) -> None:
    for epoch in range(10):
        write_histogram(tmp_path, ("tumor",), epoch, TUMORS)
    with (tmp_path / EPOCHS_FILE_NAME).open("a") as file:
        file.write('{"epoch": 10, "bi')  # killed
    for _ in range(2):  # the checkpoint is of epoch 5; killed once more
        for epoch in range(5, 8):
            write_histogram(tmp_path, ("tumor",), epoch, TUMORS)
    rows = list(csv.DictReader((tmp_path / HISTOGRAM_FILE_NAME).open()))
    counts = {(row["quantity"], row["bin"]): (row["drawn"], row["placed"]) for row in rows}
    assert counts["size_class", "small"] == ("16", "8")
    assert counts["contrast_hu", "-30"] == ("8", "0")
    write_histogram(tmp_path, ("tumor",), 0, [])
    assert (tmp_path / EPOCHS_FILE_NAME).read_text().count("\n") == 1


def test_the_picture_does_not_take_the_text_size_that_nnunet_sets_for_its_own(tmp_path: Path) -> None:
    expected = _picture(tmp_path / "before")
    with mpl.rc_context({"font.size": 30.0, "axes.labelsize": 30.0, "xtick.labelsize": 27.5}):
        assert _picture(tmp_path / "after") == expected
        assert mpl.rcParams["font.size"] == pytest.approx(30.0)  # nnU-Net's plot keeps its own
