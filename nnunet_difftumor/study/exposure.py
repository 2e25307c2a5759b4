"""How many training samples are of annotated cases, and the epochs that give every arm of a study the same number."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

ITERATIONS, EQUAL = "iterations", "equal"
EXPOSURES = (ITERATIONS, EQUAL)
_TOLERANCE = 0.01 + 1e-9  # 1 %, whatever the last digit of a division


@dataclass(frozen=True, kw_only=True)
class SampleShares:
    """What the training samples of a run are drawn from; nnU-Net draws each of them independently of the others.

    Attributes:
        annotated: Expected share of the samples that are of annotated cases, from 0 to 1.
        stretch: How many times as long the run is trained so that healthy samples take no annotated ones away.
    """

    annotated_cases: tuple[str, ...]
    annotated: float
    stretch: float

    def epochs(self, epochs: int) -> int:
        """Epochs of the run in a study with equal exposure, where a run without healthy samples has `epochs`."""
        return max(1, round(epochs * self.stretch))

    def fits(self, epochs: int) -> bool:
        """Whether whole epochs give the number of annotated samples to 1 %; where there are none, they always do."""
        return self.annotated == 0 or abs(self.epochs(epochs) / (epochs * self.stretch) - 1) <= _TOLERANCE

    def margin(self, samples: int) -> float:
        """Three standard deviations of the number of annotated samples."""
        return 3 * math.sqrt(samples * self.annotated * (1 - self.annotated))


def shares_of(
    train: Sequence[str], annotated: Collection[str], healthy: Collection[str], healthy_share: float | None
) -> SampleShares:
    """Tell what the samples of a run are drawn from.

    A run without annotated cases has nothing to match. It is as long as runs of its arm that have some where
    `healthy_share` says how long that is, and otherwise as long as the study says. So is a run of healthy samples
    alone.

    Args:
        annotated: Cases with annotated tumour, also such as do not train.
        healthy: Healthy cases, also such as do not train.
        healthy_share: Share of the samples that are of healthy cases; None: every case is drawn alike.
    """
    cases = tuple(case for case in train if case in annotated)
    count = sum(case in healthy for case in train)
    share = count / len(train) if healthy_share is None else healthy_share
    is_matched = share < 1 and (bool(cases) or healthy_share is not None)
    return SampleShares(
        annotated_cases=cases,
        annotated=(1 - share) * len(cases) / (len(train) - count) if cases else 0.0,
        stretch=1 / (1 - share) if is_matched else 1.0,
    )


def fitting_epochs(epochs: int, shares: Collection[SampleShares]) -> tuple[int, ...]:
    """Find the next smaller number of epochs, where there is one, and the next larger one that fit all runs."""

    def fit_all(number: int) -> bool:
        return all(each.fits(number) for each in shares)

    smaller = next((number for number in range(epochs - 1, 0, -1) if fit_all(number)), None)
    larger = next(number for number in itertools.count(epochs + 1) if fit_all(number))  # 50 and more always fit
    return (larger,) if smaller is None else (smaller, larger)
