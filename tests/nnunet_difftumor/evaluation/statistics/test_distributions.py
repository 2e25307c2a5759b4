from __future__ import annotations

import math

import numpy as np
import pytest

from nnunet_difftumor.evaluation.statistics import distributions as st

WINDOW = (-175.0, 250.0)


def distribution(**patients: list[float]) -> st.HuDistribution:
    return st.measure_distribution({name: [np.array(values)] for name, values in patients.items()}, WINDOW)


def test_a_shift_is_the_wasserstein_distance():
    real = distribution(a=[10.0, 20.0, 30.0], b=[40.0])
    moved = distribution(a=[17.0, 27.0, 37.0], b=[47.0])
    found = st.distance_to_real(moved, real, 100, np.random.default_rng(0))
    assert found.value == pytest.approx(7.0)
    assert found.low == pytest.approx(7.0)
    assert found.high == pytest.approx(7.0)


def test_every_patient_weighs_the_same_however_many_voxels():
    real = distribution(a=[0.0] * 1000, b=[10.0])
    other = distribution(a=[0.0], b=[10.0] * 3)
    assert st.distance_to_real(real, other, 10, np.random.default_rng(0)).value == pytest.approx(0.0)


def test_halves_of_two_patients_differ_by_their_distance():
    real = distribution(a=[10.0], b=[30.0])
    assert st.split_half_distance(real, 20, np.random.default_rng(0)).value == pytest.approx(20.0)
    assert math.isnan(st.split_half_distance(distribution(a=[1.0]), 20, np.random.default_rng(0)).value)


def test_the_bootstrap_resamples_patients_not_tumours():
    """Two patients with means 0 and 10: the mean of a draw is 0, 5 or 10, however many tumours each has."""
    groups = {"a": np.zeros(500), "b": np.full(500, 10.0)}
    found = st.bootstrap(groups, lambda values: float(values.mean()), 400, np.random.default_rng(0))
    assert (found.value, found.low, found.high) == (5.0, 0.0, 10.0)
    one = st.bootstrap({"a": np.zeros(3)}, lambda values: float(values.mean()), 10, np.random.default_rng(0))
    assert one.value == 0.0
    assert math.isnan(one.low)
    assert one.to_json() == {"value": 0.0, "low": None, "high": None}


def test_share_inside_the_percentiles():
    reference = np.arange(101.0)  # 2.5 to 97.5
    assert st.share_inside(np.array([2.0, 3.0, 97.0, 98.0]), reference) == 0.5
    assert math.isnan(st.share_inside(np.array([]), reference))


def test_requests_that_are_met_in_part():
    requested = np.array([-40.0, -20.0, 0.0, 20.0])
    pairs = np.stack([requested, 0.5 * requested - 3.0], axis=1)
    assert st.slope(pairs) == pytest.approx(0.5)
    assert st.spearman(pairs) == pytest.approx(1.0)
    assert st.median_error(pairs) == pytest.approx(np.median([17.0, 7.0, 3.0, 13.0]))
    assert math.isnan(st.slope(np.array([[1.0, 2.0], [1.0, 3.0]])))
    assert math.isnan(st.spearman(np.array([[1.0, 2.0], [1.0, 3.0]])))


def test_area_under_the_curve_by_hand():
    """Of the four pairs of 1, 3 against 2, 3: two right, one wrong, one tie."""
    scores = np.array([1.0, 3.0, 2.0, 3.0])
    assert st.area_under_curve(scores, np.array([False, False, True, True])) == pytest.approx(2.5 / 4)
    assert math.isnan(st.area_under_curve(scores, np.zeros(4, dtype=bool)))
