from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture
def synthesis(load_file: Callable[[str], ModuleType]) -> ModuleType:
    return load_file("tests/benchmarks/synthesis.py")


def test_the_benchmark_writes_every_key(synthesis, tmp_path, monkeypatch):
    path = tmp_path / "cost.json"
    words = ["--json", str(path), "--presets", "tiny", "--radii-mm", "4", "--repetitions", "1"]
    monkeypatch.setattr(sys, "argv", ["synthesis.py", *words])
    assert synthesis.main() == 0
    figures = json.loads(path.read_text())
    assert {"rows", "full_patch_cpu_seconds", "peak_rss_mb"} <= set(figures)
    keys = {"preset", "radius_mm", "batch", "threads", "cpu_seconds_per_tumor"}
    assert all(keys <= set(row) and row["cpu_seconds_per_tumor"] > 0 for row in figures["rows"])
    assert {row["batch"] for row in figures["rows"]} == {1, 4}
    assert figures["full_patch_cpu_seconds"]["tiny"] > max(row["cpu_seconds_per_tumor"] for row in figures["rows"])
    assert 200 < figures["peak_rss_mb"] < 1500


@pytest.mark.slow
def test_a_region_of_interest_bounds_the_cost(synthesis):
    """Base preset: a fifth of the full patch at 8 mm, and at most four times that at 40 mm."""
    small = synthesis.measure_cost("base", 8.0, 1, repetitions=3).cpu_seconds_per_tumor
    large = synthesis.measure_cost("base", 40.0, 1, repetitions=3).cpu_seconds_per_tumor
    whole = synthesis.measure_cost("base", 8.0, 1, repetitions=2, sides=(96,)).cpu_seconds_per_tumor
    assert small <= whole / 5.0
    assert large <= 4.0 * small
