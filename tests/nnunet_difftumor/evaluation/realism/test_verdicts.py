"""Aims in words, and ranges of plausible means, on figures that can be counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from nnunet_difftumor.evaluation.realism import plausible, verdicts
from nnunet_difftumor.evaluation.statistics.intervals import NOT_MEASURED, Estimate

AUC, SPREAD, SHARE = (
    next(aim for aim in verdicts.AIMS if aim.key == key)
    for key in ("two_sample_auc", "mean_spread_ratio", "transplant_plausible_share")
)


def means(**by_patient: list[float]) -> pd.DataFrame:
    rows = [(patient, hu) for patient, own in by_patient.items() for hu in own]
    return pd.DataFrame(rows, columns=["patient", "mean_hu"])


def of_patients(count: int) -> pd.DataFrame:
    return means(**{f"p{index}": [10.0 * index] for index in range(count)})


@pytest.mark.parametrize(
    ("aim", "ends", "expected"),
    [
        (AUC, (0.55, 0.70), verdicts.REACHED),
        (AUC, (0.55, 0.71), verdicts.NOT_DECIDABLE),
        (AUC, (0.71, 0.90), verdicts.NOT_REACHED),
        (SHARE, (0.90, 1.00), verdicts.REACHED),
        (SHARE, (0.50, 0.89), verdicts.NOT_REACHED),
        (SHARE, (0.50, 0.95), verdicts.NOT_DECIDABLE),
        (SPREAD, (0.85, 1.20), verdicts.REACHED),
        (SPREAD, (0.70, 1.20), verdicts.NOT_DECIDABLE),
        (SPREAD, (0.10, 0.70), verdicts.NOT_REACHED),
        (SPREAD, (1.30, 1.90), verdicts.NOT_REACHED),
        (AUC, (math.nan, math.nan), verdicts.NOT_DECIDABLE),
    ],
)
def test_the_interval_decides_whether_an_aim_is_reached(aim, ends, expected):
    assert aim.verdict(Estimate(float(np.mean(ends)) if ends[0] == ends[0] else 0.5, *ends, "")) == expected


def test_sentences_have_figure_aim_and_verdict():
    figures = {aim.key: Estimate(0.78, 0.72, 0.89, "") for aim in verdicts.AIMS}
    figures |= dict.fromkeys(("transplant_plausible_share", "mean_spread_ratio"), NOT_MEASURED)
    said = {each["key"]: each["sentence"] for each in verdicts.judge({**figures, "plausible_range_patients": 3})}
    assert said["two_sample_auc"].endswith("0.78 (0.72 to 0.89); aim at most 0.70: not reached.")
    assert said["transplant_plausible_share"].endswith("not measured: 3 patients, 8 needed. Aim: at least 0.90.")


def test_a_range_needs_eight_patients_and_not_eight_tumours():
    assert plausible.range_of(of_patients(7)) is None
    assert plausible.range_of(means(a=list(range(20)), b=list(range(20)))) is None
    assert plausible.range_of(of_patients(8)) == pytest.approx(np.percentile(10.0 * np.arange(8), [2.5, 97.5]))
    assert plausible.share_of_real(of_patients(7), 100) is NOT_MEASURED
    assert plausible.spread_ratio(of_patients(8), of_patients(7)) is NOT_MEASURED


def test_a_patient_with_many_tumours_weighs_as_one_of_many():
    """Forty dark tumours of one patient are one patient in ten and do not narrow the range to theirs."""
    few = means(**{f"p{index}": [10.0 * index] for index in range(1, 10)}, dark=[-200.0])
    many = means(**{f"p{index}": [10.0 * index] for index in range(1, 10)}, dark=[-200.0] * 40)
    low, high = plausible.range_of(many)
    assert high == pytest.approx(plausible.range_of(few)[1], abs=3.0)
    assert low < -150.0
    assert plausible.spread_ratio(many, few).value == pytest.approx(1.0)


def test_the_share_of_real_tumours_is_that_in_the_range_of_the_others():
    found = plausible.share_of_real(of_patients(10), 100)
    assert found.value == pytest.approx(0.8)  # the first and the last lie outside


def test_twice_the_spread_is_found_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    real = means(**{f"p{index:02d}": [rng.normal(0.0, 10.0)] for index in range(20)})
    made = means(**{f"p{index:02d}": rng.normal(0.0, 20.0, 6).tolist() for index in range(20)})
    found = plausible.spread_ratio(made, real)
    assert found.low < 2.0 < found.high
    assert found.low > 1.0
