from __future__ import annotations

import dataclasses

import pytest
import torch

from autoencoder.intensity import IntensityWindow
from diffusion.calibration import calibrate_texture
from diffusion.conditioning import measure_heterogeneity
from diffusion.pipeline import TumorDiffusionPipeline, make_pipeline
from diffusion.texture import LARGEST_SHARE, TextureProfile, choose_profile, draw_texture, measure_texture_profiles
from diffusion.unet import DenoisingUNet3D


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
    plain, wide = draw_texture(mask, asked, rngs()), draw_texture(mask, asked, rngs(), profiles=[LOPSIDED])
    inside = wide[mask].view(2, -1)
    assert inside.mean(dim=1).abs().max() < 1e-3
    assert inside.std(dim=1, correction=0).tolist() == pytest.approx([10.0, 10.0], rel=1e-3)
    assert ((inside / 10.0) ** 3).mean() < -0.5
    steps = [(field[..., 1:] - field[..., :-1])[mask[..., 1:] & mask[..., :-1]].std() for field in (plain, wide)]
    assert steps[1] < 0.8 * steps[0]


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
