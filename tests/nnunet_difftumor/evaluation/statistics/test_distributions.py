from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from nnunet_difftumor.evaluation.statistics import distributions as st
from nnunet_difftumor.evaluation.statistics.intervals import (
    NOT_MEASURED,
    mean_interval,
    median_interval,
    patient_mean_interval,
)
from nnunet_difftumor.evaluation.statistics.roc import auc, clustered_auc
from nnunet_difftumor.evaluation.statistics.scales import DIFFERENCE, SHARE

WINDOW = (-175.0, 250.0)


def distribution(**patients: list[float]) -> st.HuDistribution:
    return st.measure_distribution({name: [np.array(values)] for name, values in patients.items()}, WINDOW)


def test_a_shift_is_the_wasserstein_distance():
    real = distribution(a=[10.0, 20.0, 30.0], b=[40.0])
    moved = distribution(a=[17.0, 27.0, 37.0], b=[47.0])
    found = st.distance_to_real(moved, real)
    assert found.value == pytest.approx(7.0)
    assert math.isnan(found.low), "patients that all differ by the same say nothing of others"


def test_the_interval_of_a_distance_is_that_of_the_patients_shifts():
    """Shifts of 4, 6 and 8 HU: a mean of 6 with Student's t of two degrees of freedom."""
    names = dict(zip("abc", ([0.0], [20.0], [40.0]), strict=True))
    moved = {name: [values[0] + shift] for (name, values), shift in zip(names.items(), (4.0, 6.0, 8.0), strict=True)}
    found = st.distance_to_real(distribution(**moved), distribution(**names))
    half = stats.t.ppf(0.975, 2) * 2.0 / np.sqrt(3)
    assert (found.value, found.low, found.high) == pytest.approx((6.0, 6.0 - half, 6.0 + half))
    one = st.distance_to_real(distribution(d=[10.0]), distribution(**names))
    assert one.value > 0
    assert math.isnan(one.low), "one scan has no interval"


def test_two_distances_are_compared_within_patients():
    """Patients differ by tens of HU, and the second is farther by 1, 2 and 3 HU: the interval is that of these."""
    names = dict(zip("abc", (0.0, 40.0, 90.0), strict=True))
    real, near, far = (
        distribution(**{name: [hu + shift + added] for (name, hu), added in zip(names.items(), own, strict=True)})
        for shift, own in ((0.0, (0.0, 0.0, 0.0)), (5.0, (0.0, 0.0, 0.0)), (5.0, (1.0, 2.0, 3.0)))
    )
    found = st.distance_difference(far, near, real)
    half = stats.t.ppf(0.975, 2) / np.sqrt(3)
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half))
    assert st.distance_difference(near, far, real).value == pytest.approx(-2.0)
    assert st.distance_difference(near, distribution(a=[0.0]), real) == NOT_MEASURED


def test_every_patient_weighs_the_same_however_many_voxels():
    real = distribution(a=[0.0] * 1000, b=[10.0])
    other = distribution(a=[0.0], b=[10.0] * 3)
    assert st.distance_to_real(real, other).value == pytest.approx(0.0)


def test_halves_of_two_patients_differ_by_their_distance():
    real = distribution(a=[10.0], b=[30.0])
    assert st.split_half_distance(real, 20, np.random.default_rng(0)).value == pytest.approx(20.0)
    assert math.isnan(st.split_half_distance(distribution(a=[1.0]), 20, np.random.default_rng(0)).value)


def test_the_mean_takes_patients_not_tumours_as_its_unit():
    """Two patients with means 0 and 10 give Student's interval of two values, however many tumours each has."""
    found = mean_interval([0.0] * 500 + [10.0] * 500 + [math.nan], ["a"] * 500 + ["b"] * 501, DIFFERENCE)
    half = stats.t.ppf(0.975, 1) * 5.0
    assert (found.value, found.low, found.high) == pytest.approx((5.0, 5.0 - half, 5.0 + half))
    one = mean_interval([0.0, 0.0], ["a", "a"], DIFFERENCE)
    assert one.to_json() == {"value": 0.0, "low": None, "high": None}
    assert mean_interval([], [], DIFFERENCE) == NOT_MEASURED


def test_a_share_that_is_the_same_in_all_patients_knows_no_more_than_they_do():
    """All of 200 tumours of ten patients says as much of other patients as one each."""
    often, once = (patient_mean_interval([1.0] * 10 * n, [*range(10)] * n, SHARE) for n in (20, 1))
    assert (often.value, often.low, often.high) == pytest.approx((once.value, once.low, once.high))
    assert 0.5 < often.low < 0.75
    uneven = patient_mean_interval([1.0] * 9 + [0.0, math.nan], [*("a" * 9), "b", "b"], SHARE)
    assert uneven.value == pytest.approx(0.5)
    assert patient_mean_interval([], [], SHARE) == NOT_MEASURED


def test_the_median_of_eight_patients_lies_between_the_smallest_and_the_largest():
    """Both on one side of it has a chance of 2 / 2^8; the next pair would hold it in 93% only."""
    found = median_interval([3.0, 1.0, 8.0, 2.0, 7.0, 4.0, 6.0, 5.0, math.nan])
    assert (found.value, found.low, found.high) == (4.5, 1.0, 8.0)
    nine = median_interval(np.arange(9.0))
    assert (nine.low, nine.high) == (1.0, 7.0)
    assert math.isnan(median_interval(np.arange(5.0)).low)


def test_area_under_the_curve_by_hand():
    """Of the four pairs of 1, 3 against 2, 3: two right, one wrong, one tie."""
    scores, is_positive = np.array([1.0, 3.0, 2.0, 3.0]), np.array([False, False, True, True])
    assert auc(scores[is_positive], scores[~is_positive]) == pytest.approx(2.5 / 4)
    found = clustered_auc(scores, is_positive, np.arange(4))
    assert found.value == pytest.approx(2.5 / 4)
    assert found.low < found.value < found.high
    one = clustered_auc(scores, is_positive, np.zeros(4, dtype=int))
    assert one.value == pytest.approx(2.5 / 4)
    assert math.isnan(one.low)
    assert math.isnan(clustered_auc(scores, np.zeros(4, dtype=bool), np.arange(4)).value)
