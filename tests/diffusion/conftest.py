from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from autoencoder.layers import draw_initial_weights_
from autoencoder.model import AutoencoderKL3D
from diffusion.pipeline import TumorDiffusionPipeline, make_pipeline
from diffusion.unet import DenoisingUNet3D


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def autoencoder() -> AutoencoderKL3D:
    """Untrained and small, with latent statistics that make its random latents about standard."""
    model = AutoencoderKL3D(channels=(8, 16), blocks=1)
    draw_initial_weights_(model, _generator(0))
    image = torch.rand(2, 1, 32, 32, 32, generator=_generator(1)) * 2 - 1
    with torch.no_grad():
        mean = model.encode_moments(image)[0].transpose(0, 1).flatten(1)
    model.set_latent_statistics(mean.mean(dim=1).tolist(), mean.std(dim=1).tolist())
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def denoiser() -> DenoisingUNet3D:
    """Untrained and small, but with every layer at work: the zero layers hold small random weights."""
    model = DenoisingUNet3D(channels=(16, 32))
    draw_initial_weights_(model, _generator(2))
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05, generator=_generator(3))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def pipeline(autoencoder: AutoencoderKL3D, denoiser: DenoisingUNet3D) -> TumorDiffusionPipeline:
    return make_pipeline(autoencoder, denoiser)


@pytest.fixture(scope="session")
def make_crops() -> Callable[..., tuple[Tensor, Tensor]]:
    """Noisy soft tissue in HU with a brighter ball, and the ball's mask."""

    def make(count: int, side: int = 16, *, seed: int = 0, radius: float = 3.0) -> tuple[Tensor, Tensor]:
        axis = torch.arange(side) - (side - 1) / 2
        distance = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
        mask = (distance <= radius).expand(count, 1, -1, -1, -1).clone()
        tissue_hu = 50.0 + 15.0 * torch.randn(count, 1, side, side, side, generator=_generator(seed))
        return tissue_hu + 40.0 * mask, mask

    return make


@pytest.fixture(scope="session")
def generators() -> Callable[[int], list[torch.Generator]]:
    return lambda count: [_generator(100 + number) for number in range(count)]
