import json

import numpy as np
import pytest
import torch

from nnunet_difftumor.appearance import Appearance, AppearanceRule
from nnunet_difftumor.builtin import DEFAULT_GENERATOR
from nnunet_difftumor.curriculum import (
    CURRICULUM_FILE_NAME,
    NO_EMPHASIS,
    Emphasis,
    EmphasisReader,
    Trial,
    describe_emphasis,
    emphasise,
    write_emphasis,
)
from nnunet_difftumor.placement import TumorPlan, draw_sample
from nnunet_difftumor.sizes import SizeClass
from nnunet_difftumor.trainer import nnUNetTrainerDiffTumor


def trials(found_by_class, contrast_hu=-30.0):
    return [
        Trial(0, name, contrast_hu, is_found)
        for name, (found, missed) in found_by_class.items()
        for is_found in [True] * found + [False] * missed
    ]


def test_missed_sizes_are_drawn_more_often_and_within_bounds():
    emphasis = emphasise(trials({"tiny": (0, 10), "small": (5, 5), "large": (10, 0)}))[0]
    assert emphasis.factors["tiny"] == pytest.approx(2.0)
    assert emphasis.factors["small"] == pytest.approx(1.0)
    assert emphasis.factors["large"] == pytest.approx(1 / 3)
    classes = [SizeClass(name=name, radius_mm=(3.0, 5.0), probability=0.5) for name in ("tiny", "other")]
    assert [size.probability for size in emphasis.apply_to(classes)] == pytest.approx([1.0, 0.5])


def test_a_network_that_finds_all_or_nothing_changes_nothing():
    for found in (True, False):
        round_of = [Trial(0, name, contrast, found) for name in "ab" for contrast in (-10.0, -40.0)]
        emphasis = emphasise(round_of)[0]
        assert set(emphasis.factors.values()) == {1.0}
        assert emphasis.faint_share == 0.0


def test_missed_faint_tumours_make_faint_looks_more_frequent():
    round_of = [Trial(0, "a", contrast, contrast < -30) for contrast in (-10.0, -12.0, -14.0, -40.0, -42.0, -44.0)]
    emphasis = emphasise(round_of)[0]
    assert emphasis.faint_share == 0.5
    rule = AppearanceRule(examples=tuple(Appearance(contrast_hu=value) for value in (-10.0, -40.0)))

    def faint(share):
        plan = TumorPlan(appearances=rule, faint_share=share)
        looks = [
            draw_sample(plan, 50.0, np.random.default_rng(seed), count=1).specs[0].contrast_hu for seed in range(400)
        ]
        return np.mean(np.array(looks) == -10.0)

    assert faint(0.0) == pytest.approx(0.5, abs=0.08)
    assert faint(0.5) == pytest.approx(0.5 * 0.5 + 0.5 * 0.75, abs=0.08)


def test_workers_read_the_newest_round(tmp_path):
    reader = EmphasisReader(tmp_path)
    assert reader.current(0) is NO_EMPHASIS
    first = trials({"tiny": (0, 4), "small": (4, 0)})
    write_emphasis(tmp_path, 2, first, emphasise(first))
    assert reader.current(0) == emphasise(first)[0]
    assert reader.current(1) is NO_EMPHASIS
    write_emphasis(tmp_path, 4, first, {0: Emphasis({"tiny": 3.0}, 0.1)})
    assert reader.current(0) == Emphasis({"tiny": 3.0}, 0.1)
    assert [entry["epoch"] for entry in json.loads((tmp_path / CURRICULUM_FILE_NAME).read_text())["rounds"]] == [2, 4]
    assert "4 of 8" in describe_emphasis(first, emphasise(first))


@pytest.mark.parametrize("labelling", ["plain", "regions"])
def test_a_training_holds_its_rounds(make_nnunet_project, monkeypatch, labelling):
    project = make_nnunet_project(labelling=labelling)
    sizes = [{"name": name, "radius_mm": radii, "probability": 1} for name, radii in {"a": [4, 5], "b": [7, 8]}.items()]
    project.configure(
        generator=DEFAULT_GENERATOR,
        contrast_hu=[-60, -40],
        size_classes=sizes,
        num_epochs=2,
        num_iterations_per_epoch=2,
        curriculum_every=1,
        curriculum_samples=4,
    )
    for key, value in project.environment().items():
        if key.startswith("nnUNet_"):
            monkeypatch.setenv(key, value)
    plans = json.loads((project.preprocessed / "nnUNetPlans.json").read_text())
    dataset_json = json.loads((project.preprocessed / "dataset.json").read_text())
    plans["continue_training"] = False
    trainer = nnUNetTrainerDiffTumor(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
    write_emphasis(project.output(), 9, [], {0: Emphasis({"a": 3.0}, 0.5)})  # left by an earlier training
    trainer.run_training()
    rounds = json.loads((project.output() / CURRICULUM_FILE_NAME).read_text())["rounds"]
    assert [entry["epoch"] for entry in rounds] == [1, 2]
    tried = [[(trial["size_class"], trial["contrast_hu"]) for trial in entry["trials"]] for entry in rounds]
    assert tried[0] == tried[1]  # the same set every time
    assert len(tried[0]) == 4
    assert trainer.network.training
