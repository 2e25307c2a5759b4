"""What scoring costs: 500 cases of 128 voxels cubed within 5 minutes on two cores and 2 GB."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType

import pytest

from nnunet_difftumor.errors import DiffTumorError


@pytest.fixture
def scoring(load_file: Callable[[str], ModuleType]) -> ModuleType:
    return load_file("tests/benchmarks/scoring.py")


def test_the_benchmark_scores_every_kind_of_error(scoring, tmp_path):
    scoring.write_benchmark_folders(tmp_path / "data", 24, 40, with_probabilities=True)
    cost = scoring.measure_scoring(tmp_path / "data", tmp_path / "scores", workers=1)
    assert (cost.cases, cost.side_voxels, cost.with_probabilities) == (24, 40, True)
    assert cost.cpu_seconds_per_case > 0
    tumor = json.loads((tmp_path / "scores" / "summary.json").read_text())["labels"]["tumor"]
    assert 0 < tumor["detected"] < tumor["tumors"]
    assert tumor["false_positives"] > 0
    assert tumor["healthy"]["scans"] > 0


def test_a_failing_command_is_named(scoring, tmp_path):
    scoring.write_benchmark_folders(tmp_path / "data", 1, 16, with_probabilities=False)
    (tmp_path / "data" / "dataset.json").write_text("{}")
    with pytest.raises(DiffTumorError, match=r"dataset\.json"):
        scoring.measure_scoring(tmp_path / "data", tmp_path / "scores", workers=1)


@pytest.mark.slow
@pytest.mark.parametrize("with_probabilities", [False, True])
def test_500_cases_within_5_minutes_on_two_cores(scoring, tmp_path, with_probabilities):
    scoring.write_benchmark_folders(tmp_path / "data", 500, 128, with_probabilities=with_probabilities)
    cost = scoring.measure_scoring(tmp_path / "data", tmp_path / "scores", workers=2)
    assert cost.cases == 500
    two_cores_seconds = cost.cpu_seconds_per_case * cost.cases / 2  # whoever else uses the cores
    assert two_cores_seconds < 300
    assert cost.peak_memory_mb < 2000
