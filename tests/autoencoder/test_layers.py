from __future__ import annotations

import pytest
import torch
from torch.nn.functional import avg_pool3d, interpolate

from autoencoder.layers import PixelShuffle3D, PooledShortcut
from autoencoder.model import AutoencoderKL3D


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_the_shortcut_is_2x_average_pooling_and_trilinear_upsampling():
    unit = noise(2, 1, 16, 24, 32)
    shortcut = PooledShortcut(8)
    expected = interpolate(avg_pool3d(unit, 2), scale_factor=2, mode="trilinear", align_corners=False)
    torch.testing.assert_close(shortcut.decode(shortcut.encode(unit)), expected)


def test_its_first_channel_is_the_mean_of_a_block_and_the_others_are_differences():
    unit = torch.full((1, 1, 8, 8, 8), 0.5)
    latents = PooledShortcut(8).encode(unit)
    torch.testing.assert_close(latents[:, 0], torch.full((1, 2, 2, 2), 0.5 * 8**0.5))
    assert latents[:, 1:].abs().max() < 1e-6


@pytest.mark.parametrize("latent_channels", [1, 4, 8, 12])
def test_fewer_or_more_latent_channels_keep_the_coarse_values(latent_channels: int):
    unit = noise(1, 1, 16, 16, 16)
    shortcut = PooledShortcut(latent_channels)
    decoded = shortcut.decode(shortcut.encode(unit))
    assert decoded.shape == unit.shape
    torch.testing.assert_close(avg_pool3d(decoded, 16), avg_pool3d(unit, 16), atol=0.02, rtol=0.0)


def test_an_untrained_model_reconstructs_as_well_as_2x_pooling():
    unit = (0.2 * noise(2, 1, 32, 32, 32)).clamp(-1, 1)
    output = AutoencoderKL3D(channels=(8, 16), blocks=1)(unit)
    torch.testing.assert_close(output.reconstruction, PooledShortcut(8).decode(PooledShortcut(8).encode(unit)))


def test_pixel_shuffle_keeps_every_value():
    features = noise(2, 8, 3, 4, 5)
    shuffled = PixelShuffle3D()(features)
    assert shuffled.shape == (2, 1, 6, 8, 10)
    assert torch.equal(shuffled.flatten().sort().values, features.flatten().sort().values)
    assert torch.equal(shuffled[:, 0, ::2, ::2, ::2], features[:, 0])
