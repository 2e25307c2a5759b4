from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from autoencoder.intensity import IntensityWindow
from diffusion.calibration import calibrate_texture
from diffusion.conditioning import measure_heterogeneity
from diffusion.pipeline import TumorDiffusionPipeline, make_pipeline
from diffusion.texture import (
    LARGEST_PLANE_SHARE,
    LARGEST_SHARE,
    TextureProfile,
    choose_profile,
    draw_texture,
    measure_texture_profiles,
    smooth_unit_noise,
)
from diffusion.unet import DenoisingUNet3D

_TISSUE = Path(__file__).parents[2] / "nnunet_difftumor/synthesis/tissue"
_CONFIG = json.loads((_TISSUE / "builtin_generators/soft-tissue-tiny/denoiser/config.json").read_text(encoding="utf-8"))
BUILTIN = tuple(
    TextureProfile(
        heterogeneity_hu=each["heterogeneity_hu"],
        scale_shares=tuple(each["scale_shares"]),
        quantiles=tuple(each["quantiles"]),
    )
    for each in _CONFIG["texture_profiles"]
)


def ball(radius: float, side: int = 32) -> torch.Tensor:
    axis = torch.arange(side) - (side - 1) / 2
    distance = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    return (distance <= radius).expand(2, 1, -1, -1, -1).clone()


def rngs() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in (1, 2)]


def test_texture_has_the_mean_and_deviation_that_were_asked_for():
    mask = ball(9.0)
    texture_hu = draw_texture(mask, torch.tensor([12.0, 0.0]), rngs())
    inside = texture_hu[0][mask[0]]
    assert inside.mean().abs() < 0.5
    assert inside.std().item() == pytest.approx(12.0, rel=0.05)
    assert texture_hu[0].abs().max() <= 2.5 * 12.0 + 1e-3
    assert not texture_hu[1].any()


def test_texture_is_smooth_and_comes_from_its_generator():
    mask = ball(9.0)
    asked = torch.tensor([10.0, 10.0])
    texture_hu = draw_texture(mask, asked, rngs())
    assert torch.equal(texture_hu, draw_texture(mask, asked, rngs()))
    assert not torch.equal(texture_hu[0], texture_hu[1])
    assert measure_heterogeneity(texture_hu, mask).min() > 4.0  # white noise of 10 HU would leave about 1


LOPSIDED = TextureProfile(
    heterogeneity_hu=10.0,
    scale_shares=(0.0, 0.0, 1.0),
    quantiles=(-3.2, -2.6, -1.9, -1.2, -0.4, 0.2, 0.5, 0.7, 0.8, 0.9, 1.0),
)


def test_texture_follows_its_profile():
    """Wider than noise of two voxels, with a longer tail on the dark side."""
    mask, asked = ball(11.0), torch.tensor([10.0, 10.0])
    fine = dataclasses.replace(LOPSIDED, scale_shares=(1.0, 0.0, 0.0))
    plain, wide = (draw_texture(mask, asked, rngs(), profiles=[profile]) for profile in (fine, LOPSIDED))
    inside = wide[mask].view(2, -1)
    assert inside.mean(dim=1).abs().max() < 1e-3
    assert inside.std(dim=1, correction=0).tolist() == pytest.approx([10.0, 10.0], rel=1e-3)
    assert ((inside / 10.0) ** 3).mean() < -0.5
    steps = [(field[..., 1:] - field[..., :-1])[mask[..., 1:] & mask[..., :-1]].std() for field in (plain, wide)]
    assert steps[1] < 0.8 * steps[0]


HALVES = TextureProfile(
    heterogeneity_hu=35.0,
    scale_shares=(0.0, 0.0, 1.0),
    quantiles=(-1.8, -1.6, -1.4, -1.1, -0.7, 0.0, 0.7, 1.1, 1.4, 1.6, 1.8),
)


@pytest.mark.parametrize("profiles", [(), (HALVES,), BUILTIN], ids=["none", "halves", "builtin"])
def test_no_tumour_has_a_dark_and_a_bright_half(profiles):
    """In tumours of 24 mm on voxels of 1.5 mm a plane explains no more than in real ones, and depth nothing."""
    mask = ball(8.0)[:1]
    position = torch.nonzero(mask[0, 0]).double()
    position = torch.cat([position - position.mean(dim=0), torch.ones(len(position), 1)], dim=1)
    depth = torch.from_numpy(distance_transform_edt(mask[0, 0].numpy())).long()[mask[0, 0]]
    differences = []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        inside = draw_texture(mask, torch.ones(1), [generator], profiles=profiles)[mask].double()
        plane = position @ torch.linalg.lstsq(position, inside[:, None]).solution[:, 0]
        assert plane.var() < (LARGEST_PLANE_SHARE + 0.02) * inside.var()
        shells = [inside[depth == shell].mean().abs() for shell in depth.unique()[:4]]
        assert max(shells) < 0.25
        is_bright = plane > inside.mean()
        differences.append((inside[is_bright].mean() - inside[~is_bright].mean()).item())
    assert np.quantile(differences, 0.9) < 1.3  # in standard deviations; two halves have 2


def test_each_profile_is_drawn_towards_the_median_of_all():
    """One tumour of two halves among others leaves no more than a trace."""
    mask, asked = ball(8.0), torch.tensor([10.0, 10.0])
    others = [dataclasses.replace(LOPSIDED, heterogeneity_hu=1.0, scale_shares=(1.0, 0.0, 0.0))] * 4
    odd = dataclasses.replace(HALVES, heterogeneity_hu=10.0)
    among, alone = (draw_texture(mask, asked, rngs(), profiles=each)[mask] for each in ([odd, *others], [odd]))
    assert (among**3).mean() < (alone**3).mean() - 100.0


def test_smoothed_noise_has_unit_variance_at_the_edge_too():
    like = torch.empty(300, 1, 12, 16, 20)
    for scale in (2.0, 8.0):
        variance = smooth_unit_noise(like, scale, torch.Generator().manual_seed(0))[:, 0].square().mean(dim=0)
        for place in ((0, 0, 0), (6, 8, 10), (11, 8, 0)):
            assert variance[place].item() == pytest.approx(1.0, abs=0.3)


def test_a_mask_of_one_voxel_and_one_of_a_line_have_finite_texture():
    mask = torch.zeros(2, 1, 12, 12, 12, dtype=torch.bool)
    mask[0, 0, 6, 6, 6] = mask[1, 0, 6, 6, 3:9] = True
    for profiles in ((), (LOPSIDED,)):
        texture_hu = draw_texture(mask, torch.tensor([10.0, 10.0]), rngs(), profiles=profiles)
        assert texture_hu.isfinite().all()
        assert texture_hu[mask].abs().max() < 40.0


def test_a_textures_profile_is_found_again():
    """Fields drawn with one profile are measured to have about its reach and lopsidedness."""

    class Drawn:
        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            mask = ball(13.0)
            generators = [torch.Generator().manual_seed(10 * index + number) for number in range(2)]
            texture_hu = draw_texture(mask, torch.tensor([10.0, 10.0]), generators, profiles=[LOPSIDED])
            return {"image_hu": 40.0 + texture_hu, "tumor_mask": mask.float()}

    profiles = measure_texture_profiles(Drawn(), 8, IntensityWindow(-175.0, 250.0), seed=0)
    assert len(profiles) == 16
    assert torch.tensor([profile.scale_shares[2] for profile in profiles]).mean() > 0.6
    middle, low, high = (sum(profile.quantiles[index] for profile in profiles) / 16 for index in (5, 1, 9))
    assert middle > 0.1
    assert -low > 1.5 * high


def test_fat_under_the_edge_of_a_label_is_no_texture():
    """A symmetric texture stays one although a slice of fat lies in the mask."""

    class Sloppy:
        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            mask = ball(13.0)
            generators = [torch.Generator().manual_seed(10 * index + number) for number in range(2)]
            image_hu = 40.0 + draw_texture(mask, torch.tensor([6.0, 6.0]), generators)
            image_hu[..., 26:] = -100.0
            return {"image_hu": image_hu, "tumor_mask": mask.float()}

    profiles = measure_texture_profiles(Sloppy(), 4, IntensityWindow(-175.0, 250.0), seed=0)
    assert len(profiles) == 8
    assert max(profile.heterogeneity_hu for profile in profiles) < 8.0  # 17 with the fat
    assert -sum(profile.quantiles[0] for profile in profiles) / 8 < 3.2  # 5.4 with the fat


def test_a_profile_is_most_often_of_a_tumour_as_heterogeneous_as_asked():
    others = [dataclasses.replace(LOPSIDED, heterogeneity_hu=value) for value in (2.0, 11.0, 60.0)]
    generator = torch.Generator().manual_seed(0)
    chosen = [choose_profile(others, 10.0, generator).heterogeneity_hu for _ in range(50)]
    assert chosen.count(11.0) > 45


def test_profiles_are_kept_with_the_network(tmp_path):
    denoiser = DenoisingUNet3D(channels=(16, 32))
    denoiser.set_texture_profiles([LOPSIDED])
    denoiser.save_pretrained(tmp_path)
    assert DenoisingUNet3D.from_pretrained(tmp_path).texture_profiles == (LOPSIDED,)


@pytest.mark.parametrize(
    "change",
    [{"scale_shares": (0.5, 0.5, 0.5)}, {"quantiles": (0.0,) * 11}, {"heterogeneity_hu": 0.0}],
)
def test_a_profile_that_makes_no_sense_is_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(LOPSIDED, **change)


class Balls:
    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        mask = ball(6.0)
        noise_hu = 5.0 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(index))
        return {"image_hu": 50.0 + noise_hu - 20.0 * mask, "tumor_mask": mask.float()}


@pytest.fixture
def untrained(autoencoder) -> TumorDiffusionPipeline:
    denoiser = DenoisingUNet3D(channels=(16, 32))
    denoiser.set_differences([1e-3] * 8, [1e-3] * 8, [0.0] * 8)
    return make_pipeline(autoencoder, denoiser)


def test_calibration_makes_up_for_what_is_missing(untrained):
    """An untrained network passes the fill on; the autoencoder's own loss decides how much noise it takes."""
    share = calibrate_texture(untrained, Balls(), 2, seed=0)
    assert 0.0 < share <= LARGEST_SHARE


def test_nothing_is_calibrated_on_tumours_without_room(untrained):
    class Small(Balls):
        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {**super().__getitem__(index), "tumor_mask": ball(2.0).float()}

    assert calibrate_texture(untrained, Small(), 2, seed=0) == 0.0


def test_a_generator_uses_its_share_of_texture(untrained, make_crops, generators):
    image_hu, mask = make_crops(2)
    asked = torch.tensor([20.0, 20.0])
    flat = untrained(image_hu, mask, heterogeneity_hu=asked, generators=generators(2))
    untrained.denoiser.set_texture_share(1.0)
    textured = untrained(image_hu, mask, heterogeneity_hu=asked, generators=generators(2))
    assert (textured.tumor_hu - flat.tumor_hu).abs().max() > 0.5
    not_asked = untrained(image_hu, mask, generators=generators(2))
    assert (not_asked.tumor_hu - flat.tumor_hu).abs().max() < 0.5
    with pytest.raises(ValueError, match="texture_share"):
        untrained.denoiser.set_texture_share(-1.0)
