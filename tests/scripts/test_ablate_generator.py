from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from nnunet_difftumor.errors import ConfigurationError


@pytest.fixture
def ablation(load_file: Callable[[str], ModuleType]) -> ModuleType:
    return load_file("scripts/ablate_generator.py")


@pytest.fixture
def data(ablation: ModuleType, tmp_path: Path) -> Any:
    return ablation.AblationData(
        dataset=tmp_path / "raw",
        autoencoder=tmp_path / "ae",
        splits=tmp_path / "splits_final.json",
        fold=0,
        preset="nano",
        training_steps=7,
    )


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that were called instead of being run; each leaves what the real one leaves."""
    from nnunet_difftumor import cli
    from nnunet_difftumor.evaluation.realism import generator as generator_evaluation

    called: list[list[str]] = []

    def train(words: list[str]) -> int:
        called.append(words)
        (Path(words[words.index("--output") + 1]) / "generator").mkdir(parents=True)
        return 0

    def evaluate(generators, dataset, output, settings, **split):
        (generator,) = generators
        called.append(["evaluate", str(settings.steps), generator.parent.name])
        summary = {"in_mask_w1_hu": {"value": 5.0, "low": 4.0, "high": 6.5}, "contrast_spearman": 0.9}
        output.mkdir(parents=True)
        (output / "summary.json").write_text(json.dumps(summary))
        return summary

    monkeypatch.setattr(cli, "main", train)
    monkeypatch.setattr(generator_evaluation, "evaluate_generator", evaluate)
    return called


def test_rows_differ_in_one_thing(ablation, data, commands, tmp_path):
    table = ablation.run_ablation(data, tmp_path / "out")
    trained = {
        words[words.index("--output") + 1].rsplit("/", 1)[1]: words for words in commands if "evaluate" not in words
    }
    assert set(trained) == {training.name for training in ablation.TRAININGS}
    shared = [word for word in trained["flow"] if "flow" not in word]
    for name, words in trained.items():
        extra = [word for word in words if word not in shared and not word.endswith(f"/{name}")]
        assert extra == list(next(training.options for training in ablation.TRAININGS if training.name == name))
    assert set(table[table.training == "flow"]["T"]) == {1, 2, 4, 10}
    assert table[table.training == "epsilon"]["T"].tolist() == [4]


def test_a_second_run_does_nothing_again(ablation, data, commands, tmp_path):
    first = ablation.run_ablation(data, tmp_path / "out", names=["flow"])
    done = len(commands)
    second = ablation.run_ablation(data, tmp_path / "out", names=["flow"])
    assert len(commands) == done
    pd.testing.assert_frame_equal(first, second)


def test_figures_are_shown_with_their_interval(ablation, data, commands, tmp_path):
    table = ablation.run_ablation(data, tmp_path / "out", names=["epsilon"])
    assert table.in_mask_w1_hu.tolist() == ["5.00 (4.00 to 6.50)"]
    assert table.contrast_spearman.tolist() == ["0.90"]
    assert table.lowpass_ratio.tolist() == ["-"]
    assert "5.00 (4.00 to 6.50)" in (tmp_path / "out" / "ablation.md").read_text()
    assert pd.read_csv(tmp_path / "out" / "ablation.csv").training.tolist() == ["epsilon"]


def test_an_unknown_row_is_named(ablation, data, tmp_path):
    with pytest.raises(ConfigurationError, match="flow-plain-latents"):
        ablation.run_ablation(data, tmp_path / "out", names=["gan"])
    assert not (tmp_path / "out").exists()


def test_a_failed_training_stops_the_ablation(ablation, data, commands, tmp_path, monkeypatch):
    from nnunet_difftumor import cli

    monkeypatch.setattr(cli, "main", lambda words: 1)
    with pytest.raises(ConfigurationError, match="'flow' failed"):
        ablation.run_ablation(data, tmp_path / "out", names=["flow"])
    assert ablation.COLUMNS[0] == "in_mask_w1_hu"
