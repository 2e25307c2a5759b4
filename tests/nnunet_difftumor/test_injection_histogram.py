"""The picture of what was drawn and what landed."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import pytest

from nnunet_difftumor.injection import InjectedTumor
from nnunet_difftumor.injection_histogram import HISTOGRAM_FILE_NAME, PICTURE_FILE_NAME, InjectionHistogram

TUMORS = [
    (0, InjectedTumor("small", 6.0, 6.0, -20.0, -20.0)),
    (0, InjectedTumor("small", 8.0, None, -30.0, None)),
]


def _picture(folder: Path) -> bytes:
    folder.mkdir()
    histogram = InjectionHistogram(folder, ("tumor",), is_continued=False)
    histogram.add(TUMORS)
    histogram.write()
    assert (folder / HISTOGRAM_FILE_NAME).is_file()
    return (folder / PICTURE_FILE_NAME).read_bytes()


def test_the_picture_does_not_take_the_text_size_that_nnunet_sets_for_its_own(tmp_path: Path) -> None:
    expected = _picture(tmp_path / "before")
    with mpl.rc_context({"font.size": 30.0, "axes.labelsize": 30.0, "xtick.labelsize": 27.5}):
        assert _picture(tmp_path / "after") == expected
        assert mpl.rcParams["font.size"] == pytest.approx(30.0)  # nnU-Net's plot keeps its own
