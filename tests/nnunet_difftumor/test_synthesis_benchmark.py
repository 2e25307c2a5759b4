from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_synthesis.py"


def run_script(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    spec = importlib.util.spec_from_file_location("benchmark_synthesis", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    return module.main()


def test_the_script_writes_every_key(tmp_path, monkeypatch):
    path = tmp_path / "cost.json"
    words = ["--json", str(path), "--presets", "tiny", "--radii-mm", "4", "--repetitions", "1"]
    assert run_script(words, monkeypatch) == 0
    figures = json.loads(path.read_text())
    assert {"rows", "full_patch_cpu_seconds", "peak_rss_mb"} <= set(figures)
    keys = {"preset", "radius_mm", "batch", "threads", "cpu_seconds_per_tumor"}
    assert all(keys <= set(row) and row["cpu_seconds_per_tumor"] > 0 for row in figures["rows"])
    assert {row["batch"] for row in figures["rows"]} == {1, 4}
    assert figures["full_patch_cpu_seconds"]["tiny"] > max(row["cpu_seconds_per_tumor"] for row in figures["rows"])
    assert 200 < figures["peak_rss_mb"] < 1500


@pytest.mark.slow
def test_a_region_of_interest_bounds_the_cost():
    """Base preset: a fifth of the full patch at 8 mm, and at most four times that at 40 mm."""
    from nnunet_difftumor.synthesis_benchmark import measure_cost

    small = measure_cost("base", 8.0, 1, repetitions=3).cpu_seconds_per_tumor
    large = measure_cost("base", 40.0, 1, repetitions=3).cpu_seconds_per_tumor
    whole = measure_cost("base", 8.0, 1, repetitions=2, sides=(96,)).cpu_seconds_per_tumor
    assert small <= whole / 5.0
    assert large <= 4.0 * small
