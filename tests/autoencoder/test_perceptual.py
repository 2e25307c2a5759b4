from __future__ import annotations

import builtins
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from autoencoder.engine.settings import RunSettings
from autoencoder.perceptual import PerceptualLoss
from autoencoder.presets import AUTOENCODER_PRESETS
from autoencoder.training import train_autoencoder

torchvision = pytest.importorskip("torchvision", reason="the perceptual term needs torchvision (extra: perceptual)")


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the right shapes: they tell equal from unequal as well."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet1_1.safetensors"
    save_file(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    return path


def crops(seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_equal_crops_have_no_distance_and_blurred_ones_less_than_others(weights_file):
    loss = PerceptualLoss(weights_file)
    blurred = torch.nn.functional.avg_pool3d(crops(), 3, stride=1, padding=1)
    assert loss(crops(), crops(), rng()).item() == 0.0
    slightly = 0.9 * crops() + 0.1 * blurred
    assert 0 < loss(slightly, crops(), rng()) < loss(blurred, crops(), rng())


def test_the_gradient_reaches_the_crop_and_not_the_weights(weights_file):
    loss = PerceptualLoss(weights_file)
    decoded = crops(1).requires_grad_(True)
    loss(decoded, crops(), rng()).backward()
    assert decoded.grad is not None
    assert decoded.grad.any()
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_a_training_takes_the_term_with_its_weight(tmp_path, weights_file):
    class Batches(torch.utils.data.Dataset):
        def __getitem__(self, index):
            return {"image_hu": 60.0 * torch.randn(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(index))}

    nano = replace(AUTOENCODER_PRESETS["nano"], crop_sides=(32,), crop_probabilities=(1.0,))
    loss = PerceptualLoss(weights_file)
    run = RunSettings(steps=2, evaluate_every=2)
    train_autoencoder(Batches(), [Batches()[9]["image_hu"]], nano, tmp_path / "run", run, perceptual=loss)
    header, first, *_ = (tmp_path / "run" / "history.csv").read_text().splitlines()
    values = dict(zip(header.split(","), map(float, first.split(",")), strict=True))
    assert values["perceptual"] > 0
    assert values["total"] == pytest.approx(values["l1"] + 0.1 * values["perceptual"], rel=1e-4)


def test_other_files_are_named(tmp_path, weights_file):
    (tmp_path / "text.safetensors").write_text("no weights")
    save_file({"features.0.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    for name in ("text.safetensors", "other.safetensors", "missing.safetensors"):
        with pytest.raises(ValueError, match=rf"{name} must hold the weights of torchvision's squeezenet1_1"):
            PerceptualLoss(tmp_path / name)


def test_without_torchvision_the_extra_is_named(weights_file, monkeypatch):
    original = builtins.__import__

    def refuse(name, *arguments, **options):
        if name.startswith("torchvision"):
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"nnunet-difftumor\[perceptual\]"):
        PerceptualLoss(weights_file)
