from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from autoencoder.intensity import ABDOMEN_WINDOW
from autoencoder.model import AutoencoderKL3D
from autoencoder.presets import AUTOENCODER_PRESETS


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _model(name: str, seed: int = 0) -> AutoencoderKL3D:
    return AUTOENCODER_PRESETS[name].build_model(ABDOMEN_WINDOW, _generator(seed)).eval()


def _volume_hu(side: int, seed: int = 0) -> Tensor:
    """Smooth anatomy with fat, soft tissue and bone, plus noise of 15 HU. Shape (1, 1, S, S, S)."""
    coarse = torch.randn(1, 1, side // 8, side // 8, side // 8, generator=_generator(seed)) * 80
    smooth = interpolate(coarse, size=(side,) * 3, mode="trilinear", align_corners=False)
    return smooth + 15 * torch.randn(1, 1, side, side, side, generator=_generator(seed + 1))


@cache
def _trained_model(name: str, steps: int) -> AutoencoderKL3D:
    model = _model(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(steps):
        unit = model.window.to_unit(torch.cat([_volume_hu(32, 10 * step), _volume_hu(32, 10 * step + 5)]))
        loss = (model(unit).reconstruction - unit).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.mark.parametrize(("name", "millions"), [("nano", 0.049), ("tiny", 0.715), ("base", 2.84)])
def test_presets_have_the_size_they_were_chosen_for(name: str, millions: float) -> None:
    parameters = sum(p.numel() for p in _model(name).parameters())
    assert parameters / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("shape", [(16, 16, 16), (20, 32, 12)])
def test_latents_have_a_quarter_of_each_side_and_decode_to_the_input_shape(shape: tuple[int, ...]) -> None:
    model = _model("nano")
    image_hu = torch.zeros(2, 1, *shape)
    with torch.no_grad():
        latents = model.encode(image_hu)
        assert latents.shape == (2, 8, *(side // 4 for side in shape))
        assert model.decode(latents).shape == image_hu.shape


@pytest.mark.parametrize("shape", [(1, 1, 16, 16, 18), (1, 2, 16, 16, 16), (1, 16, 16, 16), (1, 1, 0, 16, 16)])
def test_a_crop_that_does_not_fit_is_refused_with_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 4, got"):
        _model("nano").encode(torch.zeros(shape))


def test_latents_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(B, 8, D/4"):
        _model("nano").decode(torch.zeros(1, 4, 4, 4, 4))


@pytest.mark.parametrize(("name", "training_steps"), [("nano", 25), ("nano", 100), ("tiny", 20)])
@pytest.mark.parametrize("origin", [(16, 16, 16), (4, 20, 12)])
@torch.no_grad()
def test_a_crop_gives_the_full_pass_16_voxels_from_its_edge(
    name: str, training_steps: int, origin: tuple[int, int, int]
) -> None:
    with torch.enable_grad():
        model = _trained_model(name, training_steps)
    volume_hu = _volume_hu(80)
    box = tuple(slice(start, start + 48) for start in origin)
    full_hu = model.reconstruct(volume_hu)[(..., *box)]
    crop_hu = model.reconstruct(volume_hu[(..., *box)])
    inner = (..., *(slice(16, -16),) * 3)
    assert full_hu[inner].std() > 0
    assert (full_hu[inner] - crop_hu[inner]).abs().max() < 1.0


@torch.no_grad()
def test_latents_do_not_depend_on_what_else_is_in_the_batch() -> None:
    model = _model("nano")
    images_hu = torch.cat([_volume_hu(16, 0), _volume_hu(16, 5), torch.full((1, 1, 16, 16, 16), 3000.0)])
    together = model.reconstruct(images_hu)
    alone = torch.cat([model.reconstruct(image_hu[None]) for image_hu in images_hu])
    torch.testing.assert_close(together, alone, atol=1e-2, rtol=0)


def test_a_gradient_flows_to_a_single_small_crop() -> None:
    image_hu = _volume_hu(16).requires_grad_()
    _model("nano").reconstruct(image_hu).sum().backward()
    assert image_hu.grad is not None
    assert image_hu.grad.abs().sum() > 0


@torch.no_grad()
def test_values_beyond_the_window_look_like_its_ends() -> None:
    model = _model("nano")
    metal_hu, end_hu = torch.full((1, 1, 16, 16, 16), 3000.0), torch.full((1, 1, 16, 16, 16), 250.0)
    assert torch.equal(model.encode(metal_hu), model.encode(end_hu))


@torch.no_grad()
def test_standardised_latents_decode_to_the_same_image() -> None:
    plain, standardised = _model("nano"), _model("nano")
    standardised.set_latent_statistics([0.5] * 8, [2.0] * 8)
    image_hu = _volume_hu(16)
    torch.testing.assert_close(standardised.encode(image_hu), (plain.encode(image_hu) - 0.5) / 2)
    torch.testing.assert_close(standardised.reconstruct(image_hu), plain.reconstruct(image_hu), atol=1e-2, rtol=0)


@pytest.mark.parametrize(("mean", "std"), [([0.0] * 7, [1.0] * 7), ([0.0] * 8, [1.0] * 7 + [0.0])])
def test_wrong_latent_statistics_are_refused(mean: list[float], std: list[float]) -> None:
    with pytest.raises(ValueError, match="must both hold 8 numbers"):
        _model("nano").set_latent_statistics(mean, std)
    with pytest.raises(ValueError, match="must both hold 8 numbers"):
        AutoencoderKL3D(channels=(8, 16), blocks=1, latents_mean=mean, latents_std=std)


@torch.no_grad()
def test_saved_and_loaded_model_gives_the_same_bits(tmp_path: Path) -> None:
    model = _model("nano")
    model.set_latent_statistics([0.1 * i for i in range(8)], [1.0 + i for i in range(8)])
    model.save_pretrained(tmp_path)
    loaded = AutoencoderKL3D.from_pretrained(tmp_path)
    assert not loaded.training
    assert loaded.window == ABDOMEN_WINDOW
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()
    image_hu = _volume_hu(16)
    assert torch.equal(loaded.reconstruct(image_hu), model.reconstruct(image_hu))


def test_channels_last_memory_is_possible() -> None:
    _model("nano").to(memory_format=torch.channels_last_3d)


def test_the_same_generator_gives_the_same_start_and_leaves_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    first = _model("nano", seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    second, other = _model("nano", seed=3), _model("nano", seed=4)
    pairs = list(zip(first.parameters(), second.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)


def test_only_a_generator_makes_the_training_pass_random() -> None:
    model, unit = _model("nano"), _volume_hu(16) / 200
    fixed = model(unit).reconstruction
    assert torch.equal(fixed, model(unit).reconstruction)
    drawn = model(unit, _generator(1)).reconstruction
    assert torch.equal(drawn, model(unit, _generator(1)).reconstruction)
    assert not torch.equal(drawn, fixed)


@pytest.mark.parametrize("name", AUTOENCODER_PRESETS)
def test_every_crop_side_of_a_preset_gives_about_the_same_voxels_per_batch(name: str) -> None:
    preset = AUTOENCODER_PRESETS[name]
    for side in preset.crop_sides:
        assert 0.7 * preset.voxels_per_batch <= preset.voxels_per_batch // side**3 * side**3 <= preset.voxels_per_batch


def test_a_preset_with_probabilities_that_do_not_sum_to_one_is_refused() -> None:
    with pytest.raises(ValueError, match="summing to 1"):
        dataclasses.replace(AUTOENCODER_PRESETS["nano"], crop_probabilities=(0.5, 0.4))
