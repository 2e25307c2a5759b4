"""What a generator draws into held-out tumour masks, beside what is really there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance
from torch import Tensor

from autoencoder.intensity import IntensityWindow
from diffusion.conditioning import FILL_DILATION_VOXELS, dilate, measure_contrast, measure_heterogeneity
from diffusion.pipeline import TumorDiffusionPipeline

HeldoutBatch = Mapping[str, Tensor]
"""Crops that no training batch shows: "image_hu" and "tumor_mask", each of shape (B, 1, D, H, W)."""


@dataclass(frozen=True)
class HeldoutSample:
    """One held-out crop and what was made of it, all in HU and of shape (1, D, H, W).

    Attributes:
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

    The noise of crop n of the whole sequence is drawn with the seed (seed, n). Samples are on the CPU.
    """
    samples: list[HeldoutSample] = []
    for batch in heldout:
        device = pipeline.denoiser.device
        real_hu, mask = batch["image_hu"].to(device), batch["tumor_mask"].to(device) > 0.5
        inside_window_hu = pipeline.autoencoder.window.clip(real_hu)
        looks: dict[str, Any] = {
            "contrast_hu": measure_contrast(inside_window_hu, mask),
            "heterogeneity_hu": measure_heterogeneity(inside_window_hu, mask),
        }
        numbers = range(len(samples), len(samples) + len(real_hu))
        output = pipeline(real_hu, mask, **looks, generators=_generators(seed, numbers))
        filled_hu = pipeline.fill(real_hu, mask, **looks, generators=_generators(seed, numbers))
        fill_only_hu = pipeline.autoencoder.reconstruct(filled_hu)
        columns = (real_hu, mask, filled_hu, output.tumor_hu, fill_only_hu, output.reconstruction_hu)
        samples += [HeldoutSample(*row) for row in zip(*(column.cpu() for column in columns), strict=True)]
    return samples


def in_mask_statistics(samples: Sequence[HeldoutSample], window: IntensityWindow) -> dict[str, dict[str, float]]:
    """Compare synthetic tumours and their yardsticks with the real ones: HU inside the masks, limited to the window.

    Returns:
        Statistics by kind: "real", "synthetic", "fill_only" (no diffusion: the network must beat it)
        and "reconstruction". "mean_hu" and "sd_hu" are of all voxels together, "crop_sd_hu" is the mean over crops of
        the standard deviation inside one tumour, "wasserstein_hu" the distance from the real distribution and
        "crop_mean_error_hu" the mean over crops of the absolute difference from the real mean.

    Raises:
        ValueError: If there is no sample.
    """
    if not samples:
        raise ValueError("No held-out sample to measure; keep at least one tumour out of training.")
    inside = {
        kind: [window.clip(getattr(sample, f"{kind}_hu")[sample.tumor_mask]).double().numpy() for sample in samples]
        for kind in ("real", "synthetic", "fill_only", "reconstruction")
    }
    return {kind: _statistics(values, inside["real"]) for kind, values in inside.items()}


def picture_of(sample: HeldoutSample, window: IntensityWindow) -> NDArray[np.float32]:
    """Set host with the tumour's outline, filled crop, sample and real crop side by side, the window from 0 to 1.

    The slice goes through the tumour's middle along D. Shape (H, 4 W).
    """
    occupied = sample.tumor_mask[0].flatten(1).any(dim=1).nonzero()
    middle = int(occupied[len(occupied) // 2])
    mask = sample.tumor_mask[:, middle : middle + 1]
    outline = (dilate(mask[None], FILL_DILATION_VOXELS)[0] & ~mask)[0, 0]
    images_hu = (sample.real_hu, sample.filled_hu, sample.synthetic_hu, sample.real_hu)
    tiles = [(window.to_unit(image_hu[0, middle]) + 1.0) / 2.0 for image_hu in images_hu]
    tiles[0] = torch.where(outline, torch.ones_like(tiles[0]), tiles[0])
    return torch.cat(tiles, dim=1).float().numpy()


def _statistics(values: Sequence[NDArray[np.float64]], real: Sequence[NDArray[np.float64]]) -> dict[str, float]:
    pooled = np.concatenate(values)
    mean_errors = [abs(one.mean() - other.mean()) for one, other in zip(values, real, strict=True)]
    return {
        "mean_hu": float(pooled.mean()),
        "sd_hu": float(pooled.std()),
        "crop_sd_hu": float(np.mean([crop.std() for crop in values])),
        "wasserstein_hu": float(wasserstein_distance(pooled, np.concatenate(real))),
        "crop_mean_error_hu": float(np.mean(mean_errors)),
    }


def _generators(seed: int, numbers: range) -> list[torch.Generator]:
    states = [np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0] for number in numbers]
    return [torch.Generator().manual_seed(int(state >> np.uint64(1))) for state in states]
