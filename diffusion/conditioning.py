"""What the denoiser is told about a tumour: the filled image, the contrast and the mask at full resolution.

Training and inference call the same functions, so that the network meets at inference what it was trained on.

`image_hu` is CT in HU and `tumor_mask` a binary mask of any type, each of shape (B, 1, D, H, W). A ValueError names
shapes that do not fit and masks that hold other values than 0 and 1.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, find_objects
from torch import Tensor
from torch.nn import functional

from autoencoder.layers import unshuffle

CONTRAST_LIMIT_HU = 80.0
"""Contrasts beyond this are limited to it, in the fill and in the condition."""

HETEROGENEITY_LIMIT_HU = 40.0
"""Heterogeneities beyond this are limited to it in the condition."""

SMOOTHING_VOXELS = 2.0
"""Standard deviation of the Gaussian that takes the noise away before heterogeneity is measured, in voxels."""

FILL_DILATION_VOXELS = 1
RIM_OUTER_VOXELS = 4
SOFT_TISSUE_LOW_HU = -30.0
FAT_LOW_HU = -150.0
_SMALLEST_RIM_SHARE = 0.1
LATENT_STRIDE = 4
_LEAST_WEIGHT = 1e-12
"""A voxel's weight below this is left out: rounding loses it, and a CPU is slow with numbers next to zero."""


def fill_tumor_region(
    image_hu: Tensor, tumor_mask: Tensor, contrast_hu: Tensor | None, *, texture_hu: Tensor | None = None
) -> Tensor:
    """Replace the mask, dilated by one voxel, by the rim's median plus the contrast; the rest of the CT is unchanged.

    Args:
        contrast_hu: Contrast against the rim, limited to +-80 HU; NaN (or None for all) means that it
            is not given, and the fill is the rim's median. Shape (B,).
        texture_hu: Added to the fill, for instance smooth noise of zero mean. Shape (B, 1, D, H, W).
    """
    mask = _as_binary(image_hu, tumor_mask)
    level_hu = rim_median_hu(image_hu, mask)
    if contrast_hu is not None:
        level_hu = level_hu + limit_contrast(_per_sample(contrast_hu, image_hu)).nan_to_num(nan=0.0)
    fill_hu = level_hu.view(-1, 1, 1, 1, 1)
    if texture_hu is not None:
        _require_shape("texture_hu", texture_hu, image_hu)
        fill_hu = fill_hu + texture_hu
    return torch.where(dilate(mask, FILL_DILATION_VOXELS), fill_hu.to(image_hu.dtype), image_hu)


def measure_contrast(image_hu: Tensor, tumor_mask: Tensor) -> Tensor:
    """Mean inside the mask minus the median of the rim around it, in HU; NaN where the mask is empty. Shape (B,)."""
    mask = _as_binary(image_hu, tumor_mask)
    inside_hu = torch.where(mask, image_hu, 0.0).flatten(1).sum(dim=1)
    voxels = mask.flatten(1).sum(dim=1)  # (B,); 0 / 0 is NaN: no tumour, no contrast
    return inside_hu / voxels.to(image_hu.dtype) - rim_median_hu(image_hu, mask)


def measure_heterogeneity(image_hu: Tensor, tumor_mask: Tensor) -> Tensor:
    """Standard deviation inside the mask without radial profile and noise, in HU; NaN where it is empty. Shape (B,).

    The profile is that of the edge, which reaches into the mask (see `without_radial_profile` and `smooth_texture`).
    """
    mask = _as_binary(image_hu, tumor_mask)
    inside_hu = torch.where(mask, smooth_texture(without_radial_profile(image_hu, mask), mask), 0.0)
    return (inside_hu.square().flatten(1).sum(dim=1) / mask.flatten(1).sum(dim=1)).sqrt()


def smooth_texture(image_hu: Tensor, tumor_mask: Tensor) -> Tensor:
    """What is left of a tumour's texture after smoothing away the noise, with zero mean inside the mask, in HU.

    The Gaussian of two voxels is normalised by the mask, so nothing from outside it enters. The mask is dilated by one
    voxel; elsewhere the texture is 0.
    """
    mask = _as_binary(image_hu, tumor_mask)
    weight = mask.to(image_hu.dtype)
    voxels = weight.flatten(1).sum(dim=1)
    centre_hu = ((image_hu * weight).flatten(1).sum(dim=1) / voxels).nan_to_num(nan=0.0).view(-1, 1, 1, 1, 1)
    value, share = smooth(torch.cat([(image_hu - centre_hu) * weight, weight]), SMOOTHING_VOXELS).chunk(2)
    smooth_hu = value / share.clamp(min=1e-6)
    mean_hu = (smooth_hu * weight).flatten(1).sum(dim=1) / voxels
    filled = dilate(mask, FILL_DILATION_VOXELS)
    return torch.where(filled, smooth_hu - mean_hu.view(-1, 1, 1, 1, 1), 0.0)


def without_radial_profile(image_hu: Tensor, tumor_mask: Tensor) -> Tensor:
    """Bring each shell of depth in the mask, one voxel wide, to the mask's mean; outside counts as the outermost."""
    mask = _as_binary(image_hu, tumor_mask)
    flat = []
    for image, own in zip(image_hu, mask, strict=True):
        shell = torch.from_numpy(_shells(own[0].cpu().numpy())).to(image.device)[None]
        voxels = torch.bincount(shell[own]).to(image.dtype)
        mean_hu = torch.zeros_like(voxels).index_add_(0, shell[own], image[own]) / voxels.clamp(min=1)
        flat.append(image - mean_hu[shell] + image[own].mean() if bool(own.any()) else image)
    return torch.stack(flat)


def smooth(volumes: Tensor, sigma_voxels: float) -> Tensor:
    """Smooth (B, C, D, H, W) with a Gaussian, one small matrix for each axis; nothing comes from beyond the edge."""
    for axis in (2, 3, 4):
        volumes = torch.matmul(volumes.transpose(axis, 4), smoothing_matrix(volumes, axis, sigma_voxels))
        volumes = volumes.transpose(axis, 4)
    return volumes


def smoothing_matrix(volumes: Tensor, axis: int, sigma_voxels: float) -> Tensor:
    """The symmetric matrix by which `smooth` smooths volumes along an axis; its middle row adds up to 1."""
    return _smoothing_matrix(volumes.shape[axis], sigma_voxels, volumes.dtype, volumes.device)


@lru_cache(maxsize=64)
def _smoothing_matrix(side: int, sigma_voxels: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    position = torch.arange(side, dtype=dtype, device=device)
    matrix = torch.exp(-0.5 * ((position[:, None] - position) / sigma_voxels).square())
    matrix = matrix / matrix[len(position) // 2].sum()
    return torch.where(matrix < _LEAST_WEIGHT, 0.0, matrix)


def rim_median_hu(image_hu: Tensor, tumor_mask: Tensor) -> Tensor:
    """Median of the tissue around a tumour, the shell 2 to 4 voxels outside its mask, in HU. Shape (B,).

    Soft tissue (above -30 HU) counts if it is a tenth of the shell, else tissue and fat (above -150 HU), else
    the whole shell: a tumour beside fat contrasts with its organ, not with the fat. Where the mask leaves no
    shell in the crop, all voxels outside it count. Of an even number of voxels the lower median is taken.
    """
    mask = _as_binary(image_hu, tumor_mask)
    shell = rim_shell(mask)
    has_shell = shell.flatten(1).any(dim=1).view(-1, 1, 1, 1, 1)
    shell = torch.where(has_shell, shell, ~mask)
    rim = shell
    for lowest_hu in (FAT_LOW_HU, SOFT_TISSUE_LOW_HU):  # the last one with enough voxels counts
        tissue = shell & (image_hu > lowest_hu)
        share = tissue.flatten(1).sum(dim=1) / shell.flatten(1).sum(dim=1).clamp(min=1)
        rim = torch.where((share >= _SMALLEST_RIM_SHARE).view(-1, 1, 1, 1, 1), tissue, rim)
    if image_hu.device.type == "cpu":  # three times faster; a GPU would have to wait for each sample
        return torch.stack([image[chosen].median() for image, chosen in zip(image_hu, rim, strict=True)])
    return torch.where(rim, image_hu, torch.nan).flatten(1).nanmedian(dim=1).values


def limit_contrast(contrast_hu: Tensor) -> Tensor:
    """Limit contrasts in HU, of any shape, to +-80 HU; NaN stays NaN."""
    return contrast_hu.clamp(-CONTRAST_LIMIT_HU, CONTRAST_LIMIT_HU)


def limit_heterogeneity(heterogeneity_hu: Tensor) -> Tensor:
    """Limit heterogeneities in HU, of any shape, to 0 to 40 HU; NaN stays NaN."""
    return heterogeneity_hu.clamp(0.0, HETEROGENEITY_LIMIT_HU)


def unshuffle_mask(tumor_mask: Tensor) -> Tensor:
    """Move each 4x4x4 block of a mask into 64 channels, (d % 4) * 16 + (h % 4) * 4 + w % 4: no voxel is lost.

    Shape (B, 64, D/4, H/4, W/4), float32 where the mask was boolean or integer. The sides must be multiples of 4.
    """
    _require_latent_sides(tumor_mask)
    unshuffled = unshuffle(tumor_mask, LATENT_STRIDE)
    return unshuffled if unshuffled.is_floating_point() else unshuffled.to(torch.float32)


def latent_mask_share(tumor_mask: Tensor) -> Tensor:
    """Share of each latent voxel that lies inside the mask, 0 to 1. Shape (B, 1, D/4, H/4, W/4)."""
    _require_latent_sides(tumor_mask)
    return functional.avg_pool3d(tumor_mask.to(torch.float32), LATENT_STRIDE)


def dilate(mask: Tensor, voxels: int) -> Tensor:
    """Grow a boolean mask (B, 1, D, H, W) by a number of voxels along every axis (a cube as structuring element)."""
    for axis in (2, 3, 4):  # axis by axis, with shifted copies: 15 to 100 times faster than max pooling
        size = mask.shape[axis]
        grown = mask.clone()
        for shift in range(1, min(voxels, size - 1) + 1):
            kept = size - shift
            grown.narrow(axis, shift, kept).logical_or_(mask.narrow(axis, 0, kept))
            grown.narrow(axis, 0, kept).logical_or_(mask.narrow(axis, shift, kept))
        mask = grown
    return mask


def rim_shell(mask: Tensor) -> Tensor:
    """The shell 2 to 4 voxels outside a boolean mask (B, 1, D, H, W)."""
    return dilate(mask, RIM_OUTER_VOXELS) & ~dilate(mask, FILL_DILATION_VOXELS)


def _shells(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Depth of each voxel in a mask in whole voxels, 1 and more; 1 outside. Shape (D, H, W), as the mask's."""
    shells = np.ones(mask.shape, dtype=np.int64)
    for found in find_objects(mask.astype(np.uint8)):
        box = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in found)
        depth: Any = distance_transform_edt(mask[box])
        shells[box] = np.maximum(depth, 1).astype(np.int64)
    return shells


def _as_binary(image_hu: Tensor, tumor_mask: Tensor) -> Tensor:
    if image_hu.ndim != 5 or image_hu.shape[1] != 1:
        raise ValueError(
            f"image_hu must have shape (B, 1, D, H, W), got {tuple(image_hu.shape)}. "
            f"Add the axes of batch and channel with image_hu[None, None]."
        )
    _require_shape("tumor_mask", tumor_mask, image_hu)
    mask = tumor_mask > 0.5 if tumor_mask.is_floating_point() else tumor_mask != 0
    if tumor_mask.dtype != torch.bool and not bool((mask.to(tumor_mask.dtype) == tumor_mask).all()):
        raise ValueError(
            "tumor_mask must hold 0 and 1 only, got other values. Threshold a soft mask at 0.5, or take one "
            "label of a label map (label == tumor_label)."
        )
    return mask


def _per_sample(values: Tensor, image_hu: Tensor) -> Tensor:
    if values.shape != image_hu.shape[:1]:
        raise ValueError(
            f"contrast_hu must hold one value per crop, shape ({image_hu.shape[0]},), got {tuple(values.shape)}. "
            f"Use NaN for a crop without a requested contrast."
        )
    return values.to(device=image_hu.device, dtype=image_hu.dtype)


def _require_shape(name: str, tensor: Tensor, image_hu: Tensor) -> None:
    if tensor.shape != image_hu.shape:
        raise ValueError(
            f"{name} {tuple(tensor.shape)} and image_hu {tuple(image_hu.shape)} must share one shape. "
            f"Crop both with the same box."
        )


def _require_latent_sides(tumor_mask: Tensor) -> None:
    shape = tuple(tumor_mask.shape)
    if len(shape) != 5 or shape[1] != 1 or any(side % LATENT_STRIDE or not side for side in shape[2:]):
        raise ValueError(
            f"tumor_mask must have shape (B, 1, D, H, W) with sides that are multiples of {LATENT_STRIDE}, "
            f"got {shape}. Crop or pad it to such a size."
        )
