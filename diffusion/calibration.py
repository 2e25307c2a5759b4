"""What is measured of trained networks so that a request in HU is met."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor
from torch.utils.data import Dataset

from autoencoder.engine.run_folder import ResumeError
from autoencoder.model import AutoencoderKL3D
from diffusion.conditioning import (
    fill_tumor_region,
    latent_mask_share,
    measure_contrast,
    measure_heterogeneity,
    smooth_texture,
)
from diffusion.pipeline import TumorDiffusionPipeline
from diffusion.texture import LARGEST_SHARE, draw_texture

DIFFERENCES_FILE = "differences.json"
_REQUESTS_HU = (6.0, 12.0, 18.0)
_SMALLEST_TUMOR_VOXELS = 500  # about five voxels in radius: less has no room for texture
_MEASURED_LOOKS = (measure_contrast, measure_heterogeneity)
_SMALLEST_DIFFERENCE = 1e-3
_TYPICAL_HETEROGENEITY_HU = 5.0


@torch.no_grad()
def calibrate_texture(
    pipeline: TumorDiffusionPipeline, batches: Dataset[dict[str, Tensor]], count: int, seed: int
) -> float:
    """Measure how much smooth noise the fill needs so that requested heterogeneities are achieved.

    Variances add: with noise of share t in the fill, the achieved variance is n^2 + (k t h)^2. The first `count`
    training batches give masks and surroundings, of tumours of 500 voxels and more. The share is 0 to 2, and 0 where
    no tumour is large enough.
    """
    missing, gained = 0.0, 0.0
    for index in range(count):
        image_hu, mask = (batches[index][name].to(pipeline.device) for name in ("image_hu", "tumor_mask"))
        large = mask.flatten(1).sum(dim=1) >= _SMALLEST_TUMOR_VOXELS
        image_hu, mask = pipeline.autoencoder.window.clip(image_hu[large]), mask[large]
        for request_hu in _REQUESTS_HU if len(mask) else ():
            flat, textured = (_achieved_hu(pipeline, image_hu, mask, request_hu, share, seed) for share in (0.0, 1.0))
            missing += float((request_hu**2 - flat.square()).sum())
            gained += float((textured.square() - flat.square()).sum())
    if gained <= 0:
        return 0.0
    return min(math.sqrt(max(0.0, missing / gained)), LARGEST_SHARE)


def _achieved_hu(
    pipeline: TumorDiffusionPipeline, image_hu: Tensor, mask: Tensor, request_hu: float, share: float, seed: int
) -> Tensor:
    generators = [torch.Generator().manual_seed(seed + number) for number in range(len(mask))]
    requested = torch.full((len(mask),), request_hu, device=image_hu.device)
    output = pipeline(
        image_hu,
        mask,
        contrast_hu=measure_contrast(image_hu, mask),
        heterogeneity_hu=requested,
        generators=generators,
        texture_hu=draw_texture(mask, share * requested, generators, profiles=pipeline.denoiser.texture_profiles),
    )
    return measure_heterogeneity(output.tumor_hu, mask)


class Differences(NamedTuple):
    """How far latents inside tumours lie from those of the filled image, one number a latent channel.

    Attributes:
        std: Root mean square over the tumours.
        floor, per_hu: What of it does not depend on the heterogeneity h, and its increase with it, per HU:
            sqrt(floor^2 + (per_hu h)^2).
    """

    std: tuple[float, ...]
    floor: tuple[float, ...]
    per_hu: tuple[float, ...]


@torch.no_grad()
def measure_differences(autoencoder: AutoencoderKL3D, batches: Dataset[dict[str, Tensor]], count: int) -> Differences:
    """Measure the differences of the first `count` batches, every tumour counted alike.

    The two parts come from a least-squares fit with no negative part.
    """
    squares, heterogeneities = [], []
    for index in range(count):
        batch = {name: value.to(autoencoder.device) for name, value in batches[index].items()}
        image_hu, tumor_mask = autoencoder.window.clip(batch["image_hu"]), batch["tumor_mask"]
        contrast_hu, heterogeneity_hu = (measure(image_hu, tumor_mask) for measure in _MEASURED_LOOKS)
        condition, latents = encode_pair(autoencoder, image_hu, tumor_mask, contrast_hu, heterogeneity_hu)
        share = latent_mask_share(tumor_mask)
        share = share / share.flatten(1).sum(dim=1).clamp(min=1e-6).view(-1, 1, 1, 1, 1)
        squares.append(((latents - condition).square() * share).sum(dim=(2, 3, 4)).double().cpu())
        heterogeneities.append(heterogeneity_hu.double().cpu())
    square, heterogeneity = torch.cat(squares).numpy(), torch.cat(heterogeneities).nan_to_num(nan=0.0).numpy()
    weight = 1.0 / (_TYPICAL_HETEROGENEITY_HU**2 + heterogeneity**2)  # errors count relative to the variance
    terms = np.stack([np.ones_like(heterogeneity), heterogeneity**2], axis=1) * weight[:, None]
    fitted = np.stack([nnls(terms, channel * weight)[0] for channel in square.T])  # (C, 2)
    floor, per_hu = np.sqrt(fitted).T
    std = np.sqrt(square.mean(axis=0))
    return Differences(
        tuple(np.maximum(std, _SMALLEST_DIFFERENCE).tolist()),
        tuple(np.maximum(floor, np.maximum(0.2 * std, _SMALLEST_DIFFERENCE)).tolist()),
        tuple(per_hu.tolist()),
    )


def read_differences(output_folder: Path, *, is_started: bool) -> Differences | None:
    """What a run measured when it started; None for one that starts."""
    path = output_folder / DIFFERENCES_FILE
    if not is_started and not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return Differences(**{name: tuple(map(float, stored[name])) for name in Differences._fields})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResumeError(
            f"{path} must hold the lists {', '.join(Differences._fields)} that the run was started with ({error!r}). "
            "Restore the file, or choose another output folder."
        ) from error


@torch.no_grad()
def encode_pair(
    autoencoder: AutoencoderKL3D, image_hu: Tensor, tumor_mask: Tensor, contrast_hu: Tensor, heterogeneity_hu: Tensor
) -> tuple[Tensor, Tensor]:
    """Latents of the image with the tumour region filled, and of the image itself.

    The fill holds the tumour's own smooth texture, unless its heterogeneity is not given (NaN): the network learns
    to keep what the fill shows, and adds what smoothing took away.
    """
    is_given = heterogeneity_hu.isfinite().view(-1, 1, 1, 1, 1)
    texture_hu = smooth_texture(image_hu, tumor_mask) * is_given
    filled_hu = fill_tumor_region(image_hu, tumor_mask, contrast_hu, texture_hu=texture_hu)
    condition, latents = autoencoder.encode(torch.cat([filled_hu, image_hu])).chunk(2)
    return condition, latents
