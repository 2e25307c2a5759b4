"""How well the autoencoder reconstructs crops it has not seen, in HU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, interpolate

from autoencoder.network import AutoencoderNetwork

_SAMPLES_AT_ONCE = 4


@dataclass(frozen=True)
class ReconstructionErrors:
    """Mean absolute errors in HU inside the window over so many voxels, beside two yardsticks that need no training.

    These are 2x average pooling with trilinear upsampling, which keeps as many numbers as the latents of 8 channels do,
    and 4x average pooling.
    """

    mae_hu: float
    mae_pool2_hu: float
    mae_pool4_hu: float
    voxels: int


@torch.no_grad()
def reconstruction_errors(
    model: AutoencoderNetwork, crops_hu: Sequence[Tensor], masks: Sequence[Tensor] | None = None
) -> ReconstructionErrors:
    """Compare reconstructions with crops in HU, all limited to the window of the model, which is in evaluation mode.

    Crops have shapes (B, 1, D, H, W) that may differ between them; masks are of their shapes, None counts all.

    Raises:
        ValueError: If masks and crops do not pair up, or no voxel counts.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    voxels = 0
    for crop_hu, mask in _chunks(crops_hu, masks):
        target_hu = model.window.clip(crop_hu.to(model.device))
        mask = mask.to(target_hu.device)
        reconstruction_hu = model.window.clip(model.reconstruct(target_hu))
        estimates_hu = (reconstruction_hu, _pool(target_hu, 2), _pool(target_hu, 4))
        errors = [(estimate - target_hu)[mask].abs().sum(dtype=torch.float64) for estimate in estimates_hu]
        sums += torch.stack(errors).cpu()
        voxels += int(mask.sum())
    if voxels == 0:
        raise ValueError("No voxel to measure the reconstruction error on. Give at least one non-empty mask.")
    model_hu, pool2_hu, pool4_hu = (sums / voxels).tolist()
    return ReconstructionErrors(model_hu, pool2_hu, pool4_hu, voxels)


def body_masks(model: AutoencoderNetwork, crops_hu: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Mark what is denser than the window's lower end, tissue and not air or lung: one boolean mask per crop in HU."""
    return tuple(crop_hu > model.window.low_hu for crop_hu in crops_hu)


def _pool(image_hu: Tensor, factor: int) -> Tensor:
    return interpolate(avg_pool3d(image_hu, factor), size=image_hu.shape[2:], mode="trilinear", align_corners=False)


def _chunks(crops_hu: Sequence[Tensor], masks: Sequence[Tensor] | None) -> Iterator[tuple[Tensor, Tensor]]:
    if masks is None:
        masks = [torch.ones_like(crop_hu, dtype=torch.bool) for crop_hu in crops_hu]
    shapes = [tuple(crop_hu.shape) for crop_hu in crops_hu]
    mask_shapes = [tuple(mask.shape) for mask in masks]
    if shapes != mask_shapes:
        raise ValueError(f"Each crop needs a mask of its shape; crops are {shapes}, masks {mask_shapes}.")
    for crop_hu, mask in zip(crops_hu, masks, strict=True):
        yield from zip(crop_hu.split(_SAMPLES_AT_ONCE), mask.bool().split(_SAMPLES_AT_ONCE), strict=True)
