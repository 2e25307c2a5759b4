"""Threads and bfloat16 of a training on the CPU, in trainers with and without synthetic tumours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from autoencoder.engine import cpu_bfloat16
from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.trainer.schedule import CPU_THREADS_VARIABLE, limit_cpu_threads
from nnunet_difftumor.trainer.trainers import nnUNetTrainerDiffTumor, nnUNetTrainerScheduled

TRAINERS = [nnUNetTrainerDiffTumor, nnUNetTrainerScheduled]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_trainer(make_nnunet_project: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    project = make_nnunet_project()
    for key, value in project.environment().items():
        if key.startswith("nnUNet_"):
            monkeypatch.setenv(key, value)

    def make(trainer_class: type, **settings: Any) -> Any:
        path = project.root / "settings.json"
        path.write_text(json.dumps(settings))
        monkeypatch.setenv("nnUNet_difftumor", str(path))
        plans = json.loads((project.preprocessed / "nnUNetPlans.json").read_text())
        dataset_json = json.loads((project.preprocessed / "dataset.json").read_text())
        plans = {**plans, "continue_training": False}
        trainer = trainer_class(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
        trainer.initialize()
        return trainer

    return make


def train_once(trainer: Any) -> tuple[float, torch.dtype]:
    """Loss of one step on a made-up batch, and the type of number of the network's first convolution."""
    patch = trainer.configuration_manager.patch_size
    rng = torch.Generator().manual_seed(0)
    scales = trainer._get_deep_supervision_scales() or [[1.0] * len(patch)]
    shapes = [[round(side * scale) for side, scale in zip(patch, each, strict=True)] for each in scales]
    targets = [torch.randint(0, 3, (2, 1, *shape), generator=rng).float() for shape in shapes]
    batch = {
        "data": torch.randn(2, 1, *patch, generator=rng),
        "target": targets if trainer.enable_deep_supervision else targets[0],
    }
    types: list[torch.dtype] = []
    convolution = next(each for each in trainer.network.modules() if isinstance(each, torch.nn.Conv3d))
    convolution.register_forward_hook(lambda _module, _inputs, output: types.append(output.dtype))
    trainer.network.train()
    return float(trainer.train_step(batch)["loss"]), types[0]


@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_the_environment_says_how_many_threads_a_training_takes(
    make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, trainer_class: type
) -> None:
    torch.set_num_threads(3)  # as nnUNetv2_train takes all cores
    monkeypatch.setenv(CPU_THREADS_VARIABLE, "2")
    make_trainer(trainer_class)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(3)
    monkeypatch.delenv(CPU_THREADS_VARIABLE)
    make_trainer(trainer_class)
    assert torch.get_num_threads() == 3


def test_trainings_on_other_devices_keep_their_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(3)
    monkeypatch.setenv(CPU_THREADS_VARIABLE, "2")
    limit_cpu_threads(torch.device("cuda"))
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "two", "\u0662"])
def test_a_wrong_number_of_threads_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(CPU_THREADS_VARIABLE, value)
    with pytest.raises(ConfigurationError, match=f"{CPU_THREADS_VARIABLE} must be a whole number"):
        limit_cpu_threads(torch.device("cpu"))


@pytest.mark.parametrize("trainer_class", TRAINERS)
@pytest.mark.parametrize("is_sound", [True, False])
def test_a_cpu_with_wrong_gradients_trains_in_float32(
    make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, trainer_class: type, is_sound: bool
) -> None:
    monkeypatch.setattr(cpu_bfloat16, "is_sound", lambda: is_sound)
    trainer = make_trainer(trainer_class, cpu_bfloat16=True)
    assert train_once(trainer)[1] == (torch.bfloat16 if is_sound else torch.float32)
    assert (cpu_bfloat16.UNSOUND in Path(trainer.log_file).read_text()) != is_sound


@pytest.mark.parametrize("trainer_class", TRAINERS)
def test_bfloat16_is_used_where_the_settings_ask_for_it(
    make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, trainer_class: type
) -> None:
    monkeypatch.setattr(cpu_bfloat16, "is_sound", lambda: True)
    full = make_trainer(trainer_class)
    weights = {name: value.clone() for name, value in full.network.state_dict().items()}
    full_loss, full_type = train_once(full)
    half = make_trainer(trainer_class, cpu_bfloat16=True)
    half.network.load_state_dict(weights)
    half_loss, half_type = train_once(half)
    assert (full_type, half_type) == (torch.float32, torch.bfloat16)
    assert half_loss == pytest.approx(full_loss, abs=0.02)
    assert half_loss != full_loss
    assert {value.dtype for value in half.network.state_dict().values()} == {torch.float32}
    moved = [float((half.network.state_dict()[name] - weights[name]).abs().max()) for name in weights]
    assert np.isfinite(moved).all()
    assert max(moved) > 0


def test_validation_cases_are_predicted_in_the_same_precision(
    make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(cpu_bfloat16, "is_sound", lambda: True)
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda *_: seen.append(_is_in_bfloat16()))
    for wanted in (True, False):
        make_trainer(nnUNetTrainerScheduled, cpu_bfloat16=wanted).perform_actual_validation()
    assert seen == [True, False]


def _is_in_bfloat16() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
