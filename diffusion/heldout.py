"""What a generator draws into held-out tumour masks, beside what is really there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance
from torch import Tensor

from autoencoder.intensity import IntensityWindow
from diffusion.conditioning import (
    FILL_DILATION_VOXELS,
    dilate,
    measure_contrast,
    measure_heterogeneity,
)
from diffusion.pipeline import TumorDiffusionPipeline

HeldoutBatch = Mapping[str, Tensor]
"""Crops that no training batch shows: "image_hu" and "tumor_mask", each of shape (B, 1, D, H, W)."""


@dataclass(frozen=True)
class InMaskStatistics:
    """HU inside the tumour masks, limited to the HU window, all held-out crops together.

    Attributes:
        mean_hu: Mean of all voxels.
        sd_hu: Standard deviation of all voxels.
        crop_sd_hu: Standard deviation inside one crop's tumour, mean over crops.
        wasserstein_hu: Distance between this distribution and the real one.
        crop_mean_error_hu: Absolute difference between a crop's mean and the real one, mean over crops.
    """

    mean_hu: float
    sd_hu: float
    crop_sd_hu: float
    wasserstein_hu: float
    crop_mean_error_hu: float


@dataclass(frozen=True)
class HeldoutSample:
    """One held-out crop and what was made of it, all in HU and of shape (1, D, H, W).

    Attributes:
        real_hu: The crop with its real tumour.
        tumor_mask: True inside the tumour.
        filled_hu: The crop with the tumour region filled, texture included: all that the network sees.
        synthetic_hu: The pipeline's tumour, decoded.
        fill_only_hu: The filled crop after the autoencoder: the result without any diffusion.
        reconstruction_hu: The real crop after the autoencoder: the best that diffusion could do.
    """

    real_hu: Tensor
    tumor_mask: Tensor
    filled_hu: Tensor
    synthetic_hu: Tensor
    fill_only_hu: Tensor
    reconstruction_hu: Tensor


@torch.no_grad()
def synthesize_heldout(
    pipeline: TumorDiffusionPipeline, heldout: Sequence[HeldoutBatch], *, seed: int = 0
) -> list[HeldoutSample]:
    """Draw a tumour with the real one's mask, contrast and heterogeneity into every held-out crop.

    Args:
        heldout: Batches of held-out crops.
        seed: Seed of the noise; crop n of the whole sequence uses (seed, n).

    Returns:
        One sample per crop, on the CPU.
    """
    samples: list[HeldoutSample] = []
    for batch in heldout:
        device = pipeline.denoiser.device
        real_hu, mask = batch["image_hu"].to(device), batch["tumor_mask"].to(device) > 0.5
        inside_window_hu = pipeline.autoencoder.window.clip(real_hu)
        contrast_hu = measure_contrast(inside_window_hu, mask)
        heterogeneity_hu = measure_heterogeneity(inside_window_hu, mask)
        numbers = range(len(samples), len(samples) + len(real_hu))
        generators = [_generator(seed, number) for number in numbers]
        output = pipeline(
            real_hu, mask, contrast_hu=contrast_hu, heterogeneity_hu=heterogeneity_hu, generators=generators
        )
        generators = [_generator(seed, number) for number in numbers]
        filled_hu = pipeline.fill(
            real_hu, mask, contrast_hu=contrast_hu, heterogeneity_hu=heterogeneity_hu, generators=generators
        )
        fill_only_hu = pipeline.autoencoder.reconstruct(filled_hu)
        columns = (real_hu, mask, filled_hu, output.tumor_hu, fill_only_hu, output.reconstruction_hu)
        samples += [HeldoutSample(*row) for row in zip(*(column.cpu() for column in columns), strict=True)]
    return samples


def in_mask_statistics(samples: Sequence[HeldoutSample], window: IntensityWindow) -> dict[str, InMaskStatistics]:
    """Compare synthetic tumours and their yardsticks with the real ones.

    Args:
        samples: Results of `synthesize_heldout`.
        window: HU window of the generator.

    Returns:
        Statistics by kind: "real", "synthetic", "fill_only" (no diffusion: the network must beat it)
        and "reconstruction".

    Raises:
        ValueError: If there is no sample.
    """
    if not samples:
        raise ValueError("No held-out sample to measure; keep at least one tumour out of training.")
    real = [_inside(sample.real_hu, sample.tumor_mask, window) for sample in samples]
    kinds = {
        "synthetic": [_inside(sample.synthetic_hu, sample.tumor_mask, window) for sample in samples],
        "fill_only": [_inside(sample.fill_only_hu, sample.tumor_mask, window) for sample in samples],
        "reconstruction": [_inside(sample.reconstruction_hu, sample.tumor_mask, window) for sample in samples],
    }
    return {name: _statistics(values, real) for name, values in {"real": real, **kinds}.items()}


def picture_of(sample: HeldoutSample, window: IntensityWindow) -> NDArray[np.float32]:
    """Set host with the tumour's outline, filled crop, sample and real crop side by side.

    Args:
        window: HU window shown from black to white.

    Returns:
        The slice through the tumour's middle along D, in [0, 1]. Shape (H, 4 W).
    """
    occupied = sample.tumor_mask[0].flatten(1).any(dim=1).nonzero()
    middle = int(occupied[len(occupied) // 2])
    mask = sample.tumor_mask[:, middle : middle + 1]
    outline = (dilate(mask[None], FILL_DILATION_VOXELS)[0] & ~mask)[0, 0]
    images_hu = (sample.real_hu, sample.filled_hu, sample.synthetic_hu, sample.real_hu)
    tiles = [(window.to_unit(image_hu[0, middle]) + 1.0) / 2.0 for image_hu in images_hu]
    tiles[0] = torch.where(outline, torch.ones_like(tiles[0]), tiles[0])
    return torch.cat(tiles, dim=1).float().numpy()


def _statistics(values: Sequence[NDArray[np.float64]], real: Sequence[NDArray[np.float64]]) -> InMaskStatistics:
    pooled = np.concatenate(values)
    mean_errors = [abs(one.mean() - other.mean()) for one, other in zip(values, real, strict=True)]
    return InMaskStatistics(
        mean_hu=float(pooled.mean()),
        sd_hu=float(pooled.std()),
        crop_sd_hu=float(np.mean([crop.std() for crop in values])),
        wasserstein_hu=float(wasserstein_distance(pooled, np.concatenate(real))),
        crop_mean_error_hu=float(np.mean(mean_errors)),
    )


def _inside(image_hu: Tensor, mask: Tensor, window: IntensityWindow) -> NDArray[np.float64]:
    return window.clip(image_hu[mask]).double().numpy()


def _generator(seed: int, number: int) -> torch.Generator:
    state = np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
