"""How often the 95% intervals of few patients hold the truth, in simulated studies."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
from scipy import stats

from nnunet_difftumor.evaluation.statistics.distributions import distance_to_real, measure_distribution
from nnunet_difftumor.evaluation.statistics.intervals import Estimate, mean_interval, median_interval
from nnunet_difftumor.evaluation.statistics.roc import clustered_auc
from nnunet_difftumor.evaluation.statistics.scales import DIFFERENCE, HIT_SHARE

TUMORS = 10
"""Tumours, or patches of either kind, of each patient."""

_WINDOW_HU = (-175.0, 250.0)
_PERCENTILE_DRAWS = 400

Study = tuple[Estimate, float, Estimate | None]
"""An interval, the truth, and the plain percentile interval of the same data where there is one."""


def percentile_interval(values: np.ndarray, statistic: Callable[..., np.ndarray], rng: np.random.Generator) -> Estimate:
    """Plain percentile bootstrap over patients, which the intervals here replace.

    Args:
        values: Values of each patient. Shape (P, N).
        statistic: `np.mean` or `np.median`.
    """
    patients = len(values)
    drawn = values[rng.integers(patients, size=(_PERCENTILE_DRAWS, patients))].reshape(_PERCENTILE_DRAWS, -1)
    low, high = np.percentile(statistic(drawn, axis=1), [2.5, 97.5])
    return Estimate(float(statistic(values)), float(low), float(high), "percentile bootstrap")


def draw_mean(patients: int, rng: np.random.Generator) -> Study:
    """Mean HU: tumours of a patient are alike, and patients have a tail on one side (gamma)."""
    of_patients = 10.0 * (rng.gamma(4.0, size=(patients, 1)) - 4.0) / 2.0
    values = of_patients + rng.normal(0.0, 5.0, (patients, TUMORS))
    found = mean_interval(values.ravel(), np.repeat(np.arange(patients), TUMORS), DIFFERENCE)
    return found, 0.0, percentile_interval(values, np.mean, rng)


def draw_share(patients: int, rng: np.random.Generator) -> Study:
    """Share of tumours that can be seen: 0.8, by patient beta-distributed."""
    seen = rng.random((patients, TUMORS)) < rng.beta(4.0, 1.0, (patients, 1))
    found = mean_interval(seen.ravel(), np.repeat(np.arange(patients), TUMORS), HIT_SHARE)
    return found, 0.8, percentile_interval(seen, np.mean, rng)


def draw_median(patients: int, rng: np.random.Generator) -> Study:
    """Median of patients' medians of a lopsided measure (log-normal)."""
    of_patients = rng.normal(0.0, 0.5, (patients, 1))
    values = np.exp(of_patients + rng.normal(0.0, 0.1, (patients, TUMORS)))
    return median_interval(np.median(values, axis=1)), 1.0, percentile_interval(values, np.median, rng)


def draw_auc(patients: int, rng: np.random.Generator) -> Study:
    """Area under the curve of 0.76: each patient has patches of both kinds, and how far these are apart varies.

    The truth follows from the difference of two patches of different patients, which is normal.
    """
    level, distance = rng.normal(0.0, 0.5, (patients, 1)), rng.normal(1.1, 0.5, (patients, 1))
    real, synthetic = (level + rng.normal(size=(patients, TUMORS)) for _ in range(2))
    scores = np.concatenate([real.ravel(), (synthetic + distance).ravel()])
    patient = np.tile(np.repeat(np.arange(patients), TUMORS), 2)
    truth = float(stats.norm.cdf(1.1 / np.sqrt(2 * 0.5**2 + 0.5**2 + 2.0)))
    return clustered_auc(scores, np.repeat([False, True], patients * TUMORS), patient), truth, None


def draw_distance(patients: int, rng: np.random.Generator, *, shift_hu: float) -> Study:
    """Wasserstein distance between made and real tumours of the same patients, whose means vary by 17 HU."""
    means_hu = rng.normal(40.0, 15.0, patients) + rng.normal(0.0, 8.0, (2, patients))
    real, made = (
        measure_distribution({str(i): [rng.normal(mean, 12.0, 400)] for i, mean in enumerate(each)}, _WINDOW_HU)
        for each in (means_hu[0], means_hu[1] + shift_hu)
    )
    return distance_to_real(made, real), shift_hu, None


KINDS: dict[str, Callable[[int, np.random.Generator], Study]] = {
    "mean": draw_mean,
    "share": draw_share,
    "median": draw_median,
    "area under the curve": draw_auc,
    "Wasserstein distance of 10 HU": partial(draw_distance, shift_hu=10.0),
    "Wasserstein distance of 3 HU": partial(draw_distance, shift_hu=3.0),
}


def measure_coverage(kind: str, patients: int, studies: int, seed: int = 0) -> dict[str, float]:
    """Simulate studies of one kind of figure.

    Returns:
        Shares of the studies in which the interval held the truth, and in which the percentile interval did; NaN
        without one.
    """
    rng = np.random.default_rng(seed)
    held, plain = [], []
    for _ in range(studies):
        found, truth, percentile = KINDS[kind](patients, rng)
        held.append(found.low <= truth <= found.high)
        if percentile:
            plain.append(percentile.low <= truth <= percentile.high)
    return {"interval": float(np.mean(held)), "percentile": float(np.mean(plain)) if plain else float("nan")}


def main() -> int:
    """Run the simulation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, nargs="+", default=[8])
    parser.add_argument("--studies", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = [
        {"figure": kind, "patients": patients, **measure_coverage(kind, patients, options.studies, options.seed)}
        for kind in KINDS
        for patients in options.patients
    ]
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3f}".format))
    return 0


if __name__ == "__main__":
    sys.exit(main())
