"""Measures of one tumour in a scan; pure functions of image, masks and spacing.

Images are in HU; images, masks and distances to a label's surface (in mm, negative inside) share a shape (D, H, W);
spacings are in mm in array order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FloatArray = NDArray[np.floating]
BoolArray = NDArray[np.bool_]

SMOOTHING_SIGMA_MM = 3.0
PROFILE_EDGES_MM = tuple(float(edge) for edge in range(-8, 9, 2))
BAND_EDGES_PER_MM = (0.0, 0.05, 0.1, 0.15, 0.2, np.inf)


def smooth_within(image_hu: FloatArray, mask: BoolArray, spacing_mm: Sequence[float]) -> NDArray[np.float32]:
    """Smooth an image inside a mask with a Gaussian of 3 mm; nothing from outside the mask enters.

    Returns:
        Smoothed values of the mask's voxels in HU, in array order. Shape (voxels in the mask,).
    """
    sigma = SMOOTHING_SIGMA_MM / np.asarray(spacing_mm)
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma, mode="constant")
    value = ndimage.gaussian_filter(np.where(mask, image_hu, 0.0).astype(np.float32), sigma, mode="constant")
    return (value[mask] / weight[mask]).astype(np.float32)


def split_texture(image_hu: FloatArray, mask: BoolArray, spacing_mm: Sequence[float]) -> tuple[float, float]:
    """Standard deviations inside a mask of the smoothed image and of what smoothing takes away.

    Returns:
        Low-pass and high-pass standard deviation in HU; NaN for an empty mask.
    """
    if not mask.any():
        return float("nan"), float("nan")
    low_hu = smooth_within(image_hu, mask, spacing_mm)
    return float(low_hu.std()), float((image_hu[mask] - low_hu).std())


def ring_profile(values_hu: FloatArray, counted: BoolArray, distance_mm: FloatArray) -> tuple[float, ...]:
    """Mean of the voxels that count in shells of 2 mm from 8 mm inside a label's surface to 8 mm outside.

    Returns:
        Eight means in HU, innermost shell first; NaN where a shell has no voxel.
    """
    shells = [counted & (distance_mm > low) & (distance_mm <= high) for low, high in pairwise(PROFILE_EDGES_MM)]
    return tuple(float(values_hu[shell].mean()) if shell.any() else float("nan") for shell in shells)


def centre_level_hu(image_hu: FloatArray, distance_mm: FloatArray) -> float:
    """Mean of a tumour's core, deeper than 6 mm; NaN if fewer than 8 voxels are as deep."""
    core = distance_mm < -6.0
    return float(image_hu[core].mean()) if int(core.sum()) >= 8 else float("nan")


def band_variances(image_hu: FloatArray, mask: BoolArray, spacing_mm: Sequence[float]) -> tuple[float, ...]:
    """Split the variance inside a mask by spatial frequency: the radial power spectrum in five bands.

    The image minus its mean inside the mask is set to zero outside, transformed, and its power summed over
    0-0.05, 0.05-0.1, 0.1-0.15, 0.15-0.2 and above 0.2 cycles per mm. The mask's own shape blurs the bands,
    so compare masks of one shape.

    Returns:
        Five variances in HU^2 that add up to the variance inside the mask.
    """
    if not mask.any():
        return (float("nan"),) * (len(BAND_EDGES_PER_MM) - 1)
    windowed = np.where(mask, image_hu - image_hu[mask].mean(), 0.0)
    power = np.abs(np.fft.fftn(windowed)) ** 2 / (windowed.size * int(mask.sum()))
    axes = [np.fft.fftfreq(size, step) for size, step in zip(mask.shape, spacing_mm, strict=True)]
    radial = np.sqrt(sum(grid**2 for grid in np.meshgrid(*axes, indexing="ij", sparse=True)))
    band = np.searchsorted(np.asarray(BAND_EDGES_PER_MM[1:]), radial, side="left")
    sums = np.bincount(band.ravel(), weights=power.ravel(), minlength=len(BAND_EDGES_PER_MM) - 1)
    return tuple(float(value) for value in sums[: len(BAND_EDGES_PER_MM) - 1])


def seed_diversity_hu(images_hu: Sequence[FloatArray], mask: BoolArray, spacing_mm: Sequence[float]) -> float:
    """How much tumours of one request differ between seeds in the same mask, noise aside.

    Returns:
        Mean over the pairs of the standard deviation of their smoothed difference inside the mask, in HU;
        NaN with fewer than two images.
    """
    smooth = [smooth_within(image, mask, spacing_mm) for image in images_hu]
    pairs = [float((first - second).std()) for i, first in enumerate(smooth) for second in smooth[i + 1 :]]
    return float(np.mean(pairs)) if pairs else float("nan")
