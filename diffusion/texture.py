"""Smooth noise in the fill: where a generated tumour is a little darker, and where brighter.

In training the fill holds the smoothed texture of the real tumour, which the network learns to keep and to refine.
In use smooth noise stands in for it. Texture inside real tumours is no symmetric noise of one scale: most of it reaches
over 4 voxels and more, as whole parts of a tumour are darker, and its values have a longer tail on the dark side. Both
are measured on the training tumours as a few numbers each, from which other textures can be drawn that show no
patient's; each tumour's numbers are drawn towards the median of all, as one tumour says little. Texture is what is left
of a tumour beside its radial profile, and a plane through it, a dark and a bright half, explains no more than in real
tumours. How wide the noise must be for a requested heterogeneity is measured after the training
(`diffusion.calibration`), so that smoothing by autoencoder and network is made up for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import ndtr
from torch import Tensor
from torch.utils.data import Dataset

from autoencoder.intensity import IntensityWindow
from autoencoder.layers import draw_noise
from diffusion.conditioning import (
    SMOOTHING_VOXELS,
    SOFT_TISSUE_LOW_HU,
    smooth,
    smooth_texture,
    smoothing_matrix,
    without_radial_profile,
)

TEXTURE_SCALES_VOXELS = (SMOOTHING_VOXELS, 2 * SMOOTHING_VOXELS, 4 * SMOOTHING_VOXELS)
"""Standard deviations of the Gaussians whose smoothed noises make up a texture, in voxels."""

NORMAL_SCORES = tuple(-2.5 + 0.5 * step for step in range(11))
"""Values of a standard normal variable at which a texture's values are listed."""

LARGEST_SHARE = 2.0

LARGEST_PLANE_SHARE = 0.42
"""Share of a texture's variance that a plane may explain: the median of 28 sarcomas (quartiles 0.27 and 0.61), smoothed
by two voxels on the grids that they are generated on. In three patients' liver tumours it is 0.14 to 0.57."""

_LARGEST_DEVIATION = 2.5
_LARGEST_SCALE = 2.0  # times SMOOTHING_VOXELS
_LARGEST_LAG_VOXELS = 16
_SMALLEST_TUMOR_VOXELS = 1000
_FEWEST_PAIRS = 50
_REPEATS = 4
_MOST_PROFILES = 48
_FATTY_SHARE = 0.1
_SMALLEST_PART = 0.25
_LEAST_REST = 1e-3
_SHRINKAGE = 0.6  # of the spread of measured profiles, 0.77 (scales) and 0.44 (values) are error of the measurement


@dataclass(frozen=True, kw_only=True)
class TextureProfile:
    """Texture of one real tumour.

    Attributes:
        heterogeneity_hu: Its standard deviation in HU.
        scale_shares: Share of its variance at each of `TEXTURE_SCALES_VOXELS`; they add up to 1.
        quantiles: Its values at `NORMAL_SCORES`, in standard deviations; they rise.
    """

    heterogeneity_hu: float
    scale_shares: tuple[float, ...]
    quantiles: tuple[float, ...]

    def __post_init__(self) -> None:
        shares, quantiles = self.scale_shares, self.quantiles
        if len(shares) != len(TEXTURE_SCALES_VOXELS) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-3:
            raise ValueError(
                f"scale_shares must be {len(TEXTURE_SCALES_VOXELS)} shares that add up to 1, got {shares}."
            )
        if len(quantiles) != len(NORMAL_SCORES) or any(np.diff(quantiles) < 0) or not quantiles[0] < quantiles[-1]:
            raise ValueError(f"quantiles must be {len(NORMAL_SCORES)} rising numbers, got {quantiles}.")
        if not self.heterogeneity_hu > 0:
            raise ValueError(f"heterogeneity_hu must be above 0, got {self.heterogeneity_hu}.")


def draw_texture(
    tumor_mask: Tensor, sd_hu: Tensor, generators: Sequence[torch.Generator], *, profiles: Sequence[TextureProfile] = ()
) -> Tensor:
    """Draw smooth noise with zero mean and a given deviation in the mask, in HU, 0 away from it. Shape (B, 1, D, H, W).

    Each crop follows one profile, most often of a tumour that is about as heterogeneous. Without profiles the noise
    is symmetric, and smoothed by 2 to 4 voxels.

    Args:
        tumor_mask: Binary mask, not empty. Shape (B, 1, D, H, W).
        sd_hu: Standard deviation inside the mask in HU; a crop with 0 draws nothing. Shape (B,).
    """
    textures = []
    for mask, deviation, generator in zip(tumor_mask > 0, sd_hu, generators, strict=True):
        texture_hu = torch.zeros(mask.shape, dtype=sd_hu.dtype, device=sd_hu.device)
        if deviation > 0:
            box = _box_around(mask)
            like = torch.empty_like(texture_hu[box])[None]
            texture_hu[box] = deviation * _draw_unit(like, mask[box], float(deviation), generator, profiles)
        textures.append(texture_hu)
    return torch.stack(textures)


def _box_around(mask: Tensor) -> tuple[slice, ...]:
    """The part of a mask (1, D, H, W) that a fill covers, dilated by one voxel."""
    (found,) = ndimage.find_objects(mask[0].cpu().numpy().astype(np.uint8))
    return (slice(None), *(slice(max(0, side.start - 1), side.stop + 1) for side in found))


def _draw_unit(
    like: Tensor, mask: Tensor, heterogeneity_hu: float, generator: torch.Generator, profiles: Sequence[TextureProfile]
) -> Tensor:
    """Draw a texture of unit deviation. Shape of the mask, (1, D, H, W)."""
    if profiles:
        profile = choose_profile(profiles, heterogeneity_hu, generator)
        return _draw_like(_shrunk(profile, profiles), like, mask, generator)
    share = torch.rand((), generator=generator, device=generator.device).item()
    scale = SMOOTHING_VOXELS * _LARGEST_SCALE**share
    field = _as_texture(smooth_unit_noise(like, scale, generator)[0], mask)
    return field.clamp(-_LARGEST_DEVIATION, _LARGEST_DEVIATION)


def choose_profile(
    profiles: Sequence[TextureProfile], heterogeneity_hu: float, generator: torch.Generator
) -> TextureProfile:
    """Choose one of the profiles at random, those of tumours about as heterogeneous as asked (in HU) most often."""
    distance = np.log([profile.heterogeneity_hu for profile in profiles]) - np.log(heterogeneity_hu)
    nearness = np.exp(-0.5 * (distance**2 - np.min(distance**2)) / np.log(1.5) ** 2)
    position = torch.rand((), generator=generator, device=generator.device).item()
    chosen = int(np.searchsorted(np.cumsum(nearness) / nearness.sum(), position))
    return profiles[min(chosen, len(profiles) - 1)]


def _draw_like(profile: TextureProfile, like: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of the profile's scales, its values changed to the profile's. Shape (1, D, H, W)."""
    field = torch.zeros_like(like)
    for share, scale in zip(profile.scale_shares, TEXTURE_SCALES_VOXELS, strict=True):
        if share > 0:
            field = field + share**0.5 * smooth_unit_noise(like, scale, generator)
    field = _limit_plane(field[0], mask).clamp(NORMAL_SCORES[0], NORMAL_SCORES[-1])
    place = (field - NORMAL_SCORES[0]) / (NORMAL_SCORES[1] - NORMAL_SCORES[0])
    below = place.floor().clamp(max=len(NORMAL_SCORES) - 2)
    quantiles = torch.tensor(profile.quantiles, dtype=field.dtype, device=field.device)
    lower, upper = quantiles[below.long()], quantiles[below.long() + 1]
    return _as_texture(lower + (place - below) * (upper - lower), mask)


def _shrunk(profile: TextureProfile, profiles: Sequence[TextureProfile]) -> TextureProfile:
    """Draw the scales and values of a profile towards the median of all; its heterogeneity stays."""
    shares, quantiles = (
        (1.0 - _SHRINKAGE) * np.array(getattr(profile, name))
        + _SHRINKAGE * np.median([getattr(each, name) for each in profiles], axis=0)
        for name in ("scale_shares", "quantiles")
    )
    return replace(profile, scale_shares=tuple((shares / shares.sum()).tolist()), quantiles=tuple(quantiles.tolist()))


def _as_texture(field: Tensor, mask: Tensor) -> Tensor:
    """Take the mean of each shell of depth and most of a plane out of a field (1, D, H, W), and standardise it."""
    return _limit_plane(without_radial_profile(field[None], mask[None])[0], mask)


def _limit_plane(field: Tensor, mask: Tensor) -> Tensor:
    """Standardise a field (1, D, H, W) in which a plane explains no more than `LARGEST_PLANE_SHARE` in the mask.

    A field of which hardly anything else would be left, as in a mask of a few voxels, stays as it is.
    """
    axes = [torch.arange(size, dtype=field.dtype, device=field.device) for size in mask.shape[1:]]
    position = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # (3, D, H, W)
    inside = position[:, mask[0]]  # (3, N)
    centre = inside.mean(dim=1, keepdim=True)
    slope = torch.linalg.pinv((inside - centre).T) @ (field[mask] - field[mask].mean())
    plane = torch.tensordot(slope, position - centre.view(3, 1, 1, 1), dims=1)[None]
    rest = field - plane
    plane_variance, rest_variance = (part[mask].var(correction=0) for part in (plane, rest))
    if rest_variance > _LEAST_REST * plane_variance:
        allowed = LARGEST_PLANE_SHARE / (1.0 - LARGEST_PLANE_SHARE) * rest_variance
        field = rest + (allowed / plane_variance).sqrt().clamp(max=1.0) * plane
    return _standardise(field, mask)


def _standardise(field: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale a field to zero mean and unit deviation inside the mask. Same shape."""
    inside = field[mask]
    return (field - inside.mean()) / inside.std(correction=0).clamp(min=1e-6)


@torch.no_grad()
def measure_texture_profiles(
    batches: Dataset[dict[str, Tensor]], count: int, window: IntensityWindow, seed: int
) -> tuple[TextureProfile, ...]:
    """Measure the textures of the tumours in the first `count` batches, as far as they have room for one (1000 voxels).

    Fat and air under the edge of a label do not enter (see `solid_part`), nor does the radial profile, and values are
    limited to the window. The autocovariance inside the mask is fitted by those of smoothed white noise in the same
    mask, weights not negative: so what the mask does to it (it takes away the profile) is the same on both sides. At
    most 48 are measured.
    """
    profiles: list[TextureProfile] = []
    for index in range(count):
        batch = batches[index]
        image_hu, tumor_mask = window.clip(batch["image_hu"]), batch["tumor_mask"]
        pairs = zip(image_hu[:, 0], tumor_mask[:, 0] > 0, strict=True)
        solid = torch.stack([torch.from_numpy(solid_part(each_hu.numpy(), mask.numpy())) for each_hu, mask in pairs])
        textures_hu = smooth_texture(without_radial_profile(image_hu, solid[:, None]), solid[:, None])[:, 0]
        for texture_hu, mask in zip(textures_hu, solid, strict=True):
            if int(mask.sum()) >= _SMALLEST_TUMOR_VOXELS and len(profiles) < _MOST_PROFILES:
                profile = _measure(texture_hu, mask, torch.Generator().manual_seed(seed + len(profiles)))
                profiles += [] if profile is None else [profile]
    return tuple(profiles)


def solid_part(image_hu: NDArray[np.floating], mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A tumour without the fat or air that its outline reaches over.

    What is below -30 HU after a Gaussian of one voxel, normalised by the mask, is left out with the voxels beside it,
    which show a share of it. A tumour whose inner half is fat or air by more than a tenth is such itself, and stays
    whole; so does one of which less than a quarter would be left.

    Args:
        image_hu: CT in HU. Shape (D, H, W), as the mask's and the result's.
    """
    if not mask.any():
        return mask
    weight = ndimage.gaussian_filter(mask.astype(np.float32), 1.0)
    smoothed = ndimage.gaussian_filter(np.where(mask, image_hu, 0.0).astype(np.float32), 1.0)
    low = mask & (smoothed < SOFT_TISSUE_LOW_HU * weight)
    if not low.any():
        return mask
    depth: Any = ndimage.distance_transform_edt(mask)
    inner = mask & (depth >= np.median(depth[mask]))
    grown: Any = ndimage.binary_dilation(low, structure=np.ones((3, 3, 3)))
    solid = mask & ~grown
    if low[inner].mean() > _FATTY_SHARE or solid.sum() < _SMALLEST_PART * mask.sum():
        return mask
    return solid


def _measure(texture_hu: Tensor, mask: Tensor, generator: torch.Generator) -> TextureProfile | None:
    from scipy.optimize import nnls  # takes half a second, and synthesis measures nothing

    inside = texture_hu[mask]
    sd_hu = float(inside.std(correction=0))
    if not sd_hu > 0:
        return None
    standard = (texture_hu - inside.mean()) / sd_hu
    measured = _autocovariance(standard, mask)  # (L,)
    noises = [_noise_autocovariance(mask, scale, generator) for scale in TEXTURE_SCALES_VOXELS]
    basis = np.stack(noises, axis=1)  # (L, scales)
    usable = np.isfinite(measured) & np.isfinite(basis).all(axis=1)
    weights, _ = nnls(basis[usable], measured[usable])
    if not weights.sum() > 0:
        return None
    quantiles = np.quantile(standard[mask].double().numpy(), ndtr(NORMAL_SCORES))
    return TextureProfile(
        heterogeneity_hu=sd_hu,
        scale_shares=tuple((weights / weights.sum()).tolist()),
        quantiles=tuple(quantiles.tolist()),
    )


def _noise_autocovariance(mask: Tensor, scale_voxels: float, generator: torch.Generator) -> NDArray[np.float64]:
    """Autocovariance in a mask of noise smoothed to unit variance, its radial profile taken away. Shape (L,)."""
    like = torch.empty((_REPEATS, 1, *mask.shape))
    masks = mask.expand(like.shape)
    noises = without_radial_profile(smooth_unit_noise(like, scale_voxels, generator), masks)[:, 0]
    return np.mean([_autocovariance(noise - noise[mask].mean(), mask) for noise in noises], axis=0)


def smooth_unit_noise(like: Tensor, scale_voxels: float, generator: torch.Generator) -> Tensor:
    """Draw white noise like a tensor (B, C, D, H, W), smoothed by a Gaussian to unit variance everywhere."""
    noise = smooth(draw_noise(like, generator), scale_voxels)
    for axis in (2, 3, 4):
        deviation = smoothing_matrix(like, axis, scale_voxels).square().sum(dim=0).sqrt()
        noise = noise / deviation.view(-1, *[1] * (4 - axis))
    return noise


def _autocovariance(values: Tensor, mask: Tensor) -> NDArray[np.float64]:
    """Mean product of voxels in the mask that lie 0, 1, ... 16 voxels apart along an axis; NaN where few do."""
    weight = mask.to(values.dtype)
    values = values * weight
    lags = []
    for lag in range(_LARGEST_LAG_VOXELS + 1):
        product, pairs = 0.0, 0.0
        for axis, size in enumerate(mask.shape):
            length = max(0, size - lag)
            before = (slice(None),) * axis
            near, far = (*before, slice(0, length)), (*before, slice(size - length, size))
            product += float((values[near] * values[far]).sum())
            pairs += float((weight[near] * weight[far]).sum())
        lags.append(product / pairs if pairs >= _FEWEST_PAIRS else np.nan)
    return np.array(lags)
