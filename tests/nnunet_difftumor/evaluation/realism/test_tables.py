"""Figures of a table of tumours that can be counted by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from nnunet_difftumor.evaluation.realism import tables
from nnunet_difftumor.evaluation.realism.measures.tumors import FILE_COLUMNS, PROFILE_COLUMNS

WINDOW = (-175.0, 250.0)


def rows(**columns: list) -> pd.DataFrame:
    """Rows with the given columns; others are missing."""
    return pd.DataFrame(columns).reindex(columns=[*FILE_COLUMNS, "radius_mm", "of", "made"])


def reference(**lowpass_hu: float) -> tables.Reference:
    real = rows(patient=list(lowpass_hu), made=[made(40.0)] * len(lowpass_hu))
    return tables.Reference(tables.distribution_of(real), pd.Series(lowpass_hu), 100)


def made(level_hu: float) -> SimpleNamespace:
    scan = SimpleNamespace(window_hu=WINDOW)
    return SimpleNamespace(scan=scan, image_hu=np.full((2, 2, 2), level_hu), label=np.ones((2, 2, 2), dtype=bool))


def test_what_could_not_be_seen_counts_as_a_tumour_and_in_no_measure():
    tumors = rows(
        patient=["a", "a", "b"],
        is_visible=[1.0, 0.0, 1.0],
        mean_hu=[30.0, math.nan, 40.0],
        made=[made(30.0), None, made(40.0)],
    )
    table = tables.summarize_method(tumors, reference(a=10.0, b=10.0))
    assert isinstance(table, dict)
    assert (table["tumors"], table["patients"]) == (3, 2)
    assert table["is_visible"].value == pytest.approx(0.75)  # half of the one's, all of the other's
    assert table["mean_hu"].value == pytest.approx(35.0)
    assert table["in_mask_w1_hu"].value == pytest.approx(5.0)
    assert tables.summarize_method(tumors[:0], reference(a=10.0)) == tables.EMPTY


def test_a_ratio_is_to_the_patients_own_real_tumour():
    tumors = rows(patient=["a", "a", "b", "c"], lowpass_sd_hu=[4.0, 6.0, 30.0, 1.0])
    assert tables.ratio_to_real(tumors, pd.Series({"a": 10.0, "b": 20.0})).value == pytest.approx(1.0)  # 0.5 and 1.5
    elsewhere = tables.ratio_to_real(tumors, pd.Series({"d": 10.0}))
    assert elsewhere.value == pytest.approx(0.5)
    assert math.isnan(elsewhere.low)


def test_requests_that_are_met_in_part():
    """Half of what is asked, minus 3 HU, in either patient; one of them has a tumour that could not be seen."""
    asked = np.array([-40.0, -20.0, 0.0, 20.0] * 2)
    achieved = 0.5 * asked - 3.0
    achieved[2] = math.nan
    tumors = rows(patient=["a"] * 4 + ["b"] * 4, radius_mm=[6.0] * 8, requested_contrast_hu=asked, depth_hu=achieved)
    table = tables.summarize_control(tumors, "depth_hu", 100)
    assert table["tumors"] == 7
    assert table["slope"].value == pytest.approx(0.5)
    assert table["spearman"].value == pytest.approx(1.0)
    assert table["median_error_hu"].value == pytest.approx(np.median([13.0, (7.0 + 13.0) / 2]))
    assert table["achieved_hu_by_radius"] == {"6 mm": {"-40 HU": -23.0, "-20 HU": -13.0, "0 HU": -3.0, "20 HU": 7.0}}


def test_a_request_that_nobody_met_gives_no_figure():
    tumors = rows(patient=["a"], radius_mm=[6.0], requested_contrast_hu=[0.0], depth_hu=[math.nan])
    table = tables.plain(tables.summarize_control(tumors, "depth_hu", 100))
    assert table["slope"] == {"value": None, "low": None, "high": None}
    assert table["achieved_hu_by_radius"] == {"6 mm": {"0 HU": None}}


def test_the_ring_is_the_lowest_shell_of_dark_tumours_with_a_core():
    levels_hu = {1: (-30.0, -32.0, -90.0), 2: (-36.0, -38.0, -90.0), 3: (-33.0, -33.0, -90.0)}
    shells = {name: levels_hu.get(index, (0.0, 0.0, -90.0)) for index, name in enumerate(PROFILE_COLUMNS)}
    tumors = rows(
        patient=["a", "b", "b"], contrast_hu=[-30.0, -30.0, 20.0], centre_minus_ring_hu=[-30.0, -30.0, -30.0], **shells
    )
    assert tables.edge_depth(tumors, 100).value == pytest.approx(-7.0)


def test_a_tumour_is_in_the_bin_that_starts_with_its_diameter():
    tumors = rows(patient=["a", "b", "c"], diameter_mm=[9.9, 10.0, 50.0])
    bins = tables.summarize_sizes(tumors[:1], tumors, reference(a=10.0))["bins"]
    counts = {name: table if table == tables.EMPTY else table["tumors"] for name, table in bins.items()}
    assert counts == {"<10 mm": 1, "10-20 mm": 1, "20-50 mm": tables.EMPTY, ">=50 mm": 1}
