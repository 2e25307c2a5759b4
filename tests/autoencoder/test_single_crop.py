"""A single crop against the same crop beside a copy of itself, which takes torch's usual way."""

import pytest
import torch

from autoencoder.intensity import ABDOMEN_WINDOW
from autoencoder.layers import Conv3d, Linear
from autoencoder.presets import AUTOENCODER_PRESETS
from diffusion.presets import DIFFUSION_PRESETS


def awake(model: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter values, so that no branch stays at its zero start."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=rng))
    return model.eval()


@pytest.mark.parametrize("side", [8, 11, 12, 16])
@pytest.mark.parametrize("preset", ["nano", "tiny"])
def test_the_denoiser_treats_one_crop_as_one_of_two(preset, side):
    rng = torch.Generator().manual_seed(1)
    denoiser = awake(DIFFUSION_PRESETS[preset].build_model(8, rng))
    latents, condition = (torch.randn(1, 8, side, side, side, generator=rng) for _ in range(2))
    mask = (torch.rand(1, 64, side, side, side, generator=rng) < 0.2).float()
    inputs = (latents, condition, mask, torch.tensor([-30.0]), torch.tensor([8.0]), torch.tensor([0.7]))
    with torch.inference_mode():
        single = denoiser(*inputs)
        pair = denoiser(*(value.repeat(2, *[1] * (value.ndim - 1)) for value in inputs))
    torch.testing.assert_close(single, pair[:1], rtol=0.0, atol=1e-5 * float(pair.abs().max()))
    assert float(single.std()) > 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=["plain", "channels last"])
@pytest.mark.parametrize("side", [16, 32, 64])
def test_the_autoencoder_gives_one_crop_the_bits_of_one_of_two(side, layout):
    rng = torch.Generator().manual_seed(1)
    model = awake(AUTOENCODER_PRESETS["nano"].build_model(ABDOMEN_WINDOW, rng)).to(memory_format=layout)
    crop_hu = 60.0 * torch.randn(1, 1, side, side, side, generator=rng)
    with torch.inference_mode():
        single, pair = model.reconstruct(crop_hu), model.reconstruct(crop_hu.repeat(2, 1, 1, 1, 1))
    assert float((single - crop_hu).abs().max()) > 1.0
    assert torch.equal(single, pair[:1])


@pytest.mark.parametrize(
    "options",
    [{"kernel_size": 3, "padding": 1}, {"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 1}],
    ids=["same", "halving", "pointwise"],
)
def test_the_convolution_is_torchs(options):
    rng = torch.Generator().manual_seed(2)
    ours = awake(Conv3d(8, 16, **options))
    stock = torch.nn.Conv3d(8, 16, **options)
    stock.load_state_dict(ours.state_dict())
    image = torch.randn(1, 8, 9, 10, 11, generator=rng).transpose(2, 4)  # not contiguous
    with torch.no_grad():
        torch.testing.assert_close(ours(image), stock(image), rtol=0.0, atol=1e-5)
    ours(image).sum().backward()
    assert ours.weight.grad is not None


def test_the_row_is_torchs():
    ours = awake(Linear(5, 3))
    row = torch.randn(1, 5, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(ours(row), torch.nn.functional.linear(row, ours.weight, ours.bias))
        assert ours(row).shape == (1, 3)
