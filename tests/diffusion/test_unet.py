from __future__ import annotations

import pytest
import torch

from diffusion import network
from diffusion.presets import DIFFUSION_PRESETS
from diffusion.unet import DenoisingUNet3D


def inputs(count: int = 2, side: int = 4, *, contrast: float = 20.0, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "latents_noisy": torch.randn(count, 8, side, side, side, generator=generator),
        "condition_latents": torch.randn(count, 8, side, side, side, generator=generator),
        "mask_unshuffled": (torch.rand(count, 64, side, side, side, generator=generator) > 0.8).float(),
        "contrast_hu": torch.full((count,), contrast),
        "heterogeneity_hu": torch.full((count,), 9.0),
        "timestep": torch.linspace(0.2, 0.9, count),
    }


@pytest.mark.parametrize(("preset", "millions"), [("nano", 0.5), ("tiny", 1.8), ("base", 16.0)])
def test_presets_have_the_specified_size(preset, millions):
    model = DIFFUSION_PRESETS[preset].build_model(8, torch.Generator().manual_seed(0))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == pytest.approx(millions * 1e6, rel=0.1)


def test_same_seed_same_initial_weights():
    preset = DIFFUSION_PRESETS["nano"]
    first, second, other = (preset.build_model(8, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    pairs = list(zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.entry.weight, other.entry.weight)


def test_untrained_network_points_at_the_condition():
    """x_t - s v is the network's estimate of x_0; before training that is the filled image itself."""
    model = DIFFUSION_PRESETS["nano"].build_model(8, torch.Generator().manual_seed(0))
    given = inputs()
    level = given["timestep"].view(-1, 1, 1, 1, 1)
    estimate = given["latents_noisy"] - level * model(**given)
    torch.testing.assert_close(estimate, given["condition_latents"])


PARTS = {
    "std": [0.1 * (channel + 1) for channel in range(8)],
    "floor": [0.03] * 8,
    "per_hu": [0.01, *[0.0] * 7],
}


def test_untrained_network_in_differences_points_at_no_difference():
    model = DIFFUSION_PRESETS["nano"].build_model(8, torch.Generator().manual_seed(0))
    model.set_differences(**PARTS)
    given = inputs()
    level = given["timestep"].view(-1, 1, 1, 1, 1)
    estimate = given["latents_noisy"] - level * model(**given)
    torch.testing.assert_close(estimate, torch.zeros_like(estimate), atol=1e-5, rtol=0.0)


def test_frame_of_differences_is_as_wide_as_what_is_asked_for():
    model = DenoisingUNet3D(channels=(16, 32))
    model.set_differences(**PARTS)
    latents, condition = inputs()["latents_noisy"], inputs()["condition_latents"]
    asked = torch.tensor([4.0, torch.nan])
    framed = model.to_frame(latents, condition, asked)
    torch.testing.assert_close(framed[0, 0], (latents - condition)[0, 0] / 0.05)  # 3, 4, 5
    torch.testing.assert_close(framed[0, 1], (latents - condition)[0, 1] / 0.03)
    torch.testing.assert_close(framed[1, 1], (latents - condition)[1, 1] / 0.2)
    torch.testing.assert_close(model.from_frame(framed, condition, asked), latents)


def test_plain_frame_changes_nothing():
    model = DenoisingUNet3D(channels=(16, 32))
    latents, condition = inputs()["latents_noisy"], inputs()["condition_latents"]
    assert model.to_frame(latents, condition, inputs()["heterogeneity_hu"]) is latents
    assert model.from_frame(latents, condition, inputs()["heterogeneity_hu"]) is latents


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("std", [0.1] * 7), ("floor", [0.1] * 7 + [0.0]), ("per_hu", [-0.1] * 8), ("floor", None)],
)
def test_wrong_deviations_are_named(name, wrong):
    parts = {**PARTS, name: wrong}
    with pytest.raises(ValueError, match=f"difference_{name} must hold 8 positive"):
        DenoisingUNet3D(channels=(16, 32), **{f"difference_{part}": values for part, values in parts.items()})
    with pytest.raises(ValueError, match=f"difference_{name} must hold 8 positive"):
        DenoisingUNet3D(channels=(16, 32)).set_differences(**parts)


@pytest.mark.parametrize("shape", [(4, 4, 4), (5, 7, 4), (3, 3, 3), (12, 8, 9)])
def test_any_latent_size_keeps_its_shape(denoiser, shape):
    given = inputs(1)
    for name in ("latents_noisy", "condition_latents", "mask_unshuffled"):
        given[name] = torch.zeros(1, given[name].shape[1], *shape)
    assert denoiser(**given).shape == (1, 8, *shape)


@pytest.mark.parametrize("name", sorted(inputs()))
def test_every_input_matters(denoiser, name):
    given = inputs()
    changed = {**given, name: given[name] * 0.5}
    assert (denoiser(**given) - denoiser(**changed)).abs().max() > 1e-4


def test_missing_contrast_is_not_a_contrast_of_zero(denoiser):
    absent, zero = denoiser(**inputs(contrast=float("nan"))), denoiser(**inputs(contrast=0.0))
    assert absent.isfinite().all()
    assert (absent - zero).abs().max() > 1e-4


def test_contrast_is_limited(denoiser):
    assert torch.equal(denoiser(**inputs(contrast=80.0)), denoiser(**inputs(contrast=500.0)))


def test_samples_of_a_batch_do_not_mix(denoiser):
    given = inputs(3)
    together = denoiser(**given)
    for i in range(3):
        alone = denoiser(**{name: value[i : i + 1] for name, value in given.items()})
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-4, rtol=1e-4)


def test_attention_is_left_out_of_large_crops(denoiser, monkeypatch):
    crops = [inputs(1, 4), inputs(1, 6)]
    small, large = (denoiser(**crop) for crop in crops)
    monkeypatch.setattr(network, "ATTENTION_MAX_TOKENS", 8)
    local_small, local_large = (denoiser(**crop) for crop in crops)
    torch.testing.assert_close(local_small, small)
    assert (local_large - large).abs().max() > 1e-5


def test_every_parameter_gets_a_gradient(denoiser):
    model = DenoisingUNet3D(channels=(16, 32))
    model.load_state_dict(denoiser.state_dict())
    model(**inputs()).square().mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_bfloat16_runs_and_stays_close(denoiser):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = denoiser(**inputs())
    full = denoiser(**inputs())
    assert (half.float() - full).abs().max() < 0.1 * full.abs().max()


def test_memory_format_for_gpus_is_accepted(denoiser):
    model = DenoisingUNet3D(channels=(16, 32)).to(memory_format=torch.channels_last_3d)
    model.load_state_dict(denoiser.state_dict())
    torch.testing.assert_close(model(**inputs()), denoiser(**inputs()), atol=1e-4, rtol=1e-4)


def test_unknown_condition_and_odd_width_are_named():
    with pytest.raises(ValueError, match="scalar_conditions"):
        DenoisingUNet3D.from_config({"channels": [16, 32], "scalar_conditions": ["contrast_hu", "organ"]})
    with pytest.raises(ValueError, match="multiples of norm_groups=8"):
        DenoisingUNet3D(channels=(12, 32))
