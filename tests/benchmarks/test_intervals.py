"""The intervals of eight patients hold the truth about as often as they say, and the plain percentiles do not."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture
def simulation(load_file: Callable[[str], ModuleType]) -> ModuleType:
    return load_file("tests/benchmarks/intervals.py")


@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [
        ("mean", 0.91, 0.97),
        ("share", 0.91, 0.97),
        ("median", 0.975, 1.0),
        ("area under the curve", 0.92, 0.98),
        ("Wasserstein distance of 10 HU", 0.90, 0.97),
        ("Wasserstein distance of 3 HU", 0.93, 0.99),
    ],
)
def test_intervals_of_eight_patients_hold_the_truth(simulation, kind, least, most):
    found = simulation.measure_coverage(kind, patients=8, studies=500)
    assert least <= found["interval"] <= most
    assert not found["percentile"] > 0.93
