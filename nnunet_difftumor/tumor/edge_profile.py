"""The edge of one annotated tumour in a CT: how its contrast fades with the signed distance to the label's outline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from nnunet_difftumor.ct.components import equivalent_diameter_mm
from nnunet_difftumor.tumor.edge import Edge
from nnunet_difftumor.tumor.outline import OutlineDistance, outline_distance
from nnunet_difftumor.tumor.spec import Triple

PROFILE_EDGES_MM = tuple(range(-8, 7))
"""Borders of the profile's bins: signed distance to the outline in mm, negative inside."""
REACH_MM = 10.0
"""How far from the label's voxels the measurement looks."""

_DEEPEST_MM = -10.0
_CLEARANCE_MM = 2.0
_HOST_FROM_MM = 3.0
_FEWEST_HOST_VOXELS = 30
_MOST_VOXELS = 20_000
_LAYER_MM = 0.8
_BIN_MM = 0.25
_BINS_MM = np.arange(-24.0, 14.0 + _BIN_MM, _BIN_MM)
_OFFSETS_MM = np.arange(-6.0, 5.01, 0.25)
_WIDTHS_MM = np.arange(0.5, 8.01, 0.5)
_OUTLIER_SD = 3.5
_ROUNDS = 3
_DEPTH_LOG_RATIO = 0.2
_DEPTH_LOG_SD = 1.0
"""Of the depth against what the deepest quarter of the label shows: small tumours are domes that show no full depth."""
_MOST_LOSS = 12.0
_CLEAR_HU = 5.0
_CLEAR_ERRORS = 5.0


@dataclass(frozen=True, kw_only=True)
class TumorEdge:
    """The edge of one annotated tumour.

    Attributes:
        diameter_mm: Of the sphere of equal volume.
        depth_hu: Difference to the host in the middle, where all of it is tumour.
        depth_error_hu: Its standard error; large in a small dome, of which the middle is all edge.
        clarity: How many standard errors the contrast with the host is away from none.
        offset_mm: Signed distance to the outline at which half of the depth is reached; negative inside the label.
        offset_error_mm: Its standard error; large in a tumour that hardly differs from its host.
        width_mm: Distance over which the depth falls from three quarters to a quarter.
        width_error_mm: Its standard error.
        profile_hu: Mean difference to the host in each bin of `PROFILE_EDGES_MM`; None where there is no voxel.
        losses: Minus the logarithm of how well each of `tried_edges` explains the voxels, from 0 for the best.
    """

    diameter_mm: float
    depth_hu: float
    depth_error_hu: float
    clarity: float
    offset_mm: float
    offset_error_mm: float
    width_mm: float
    width_error_mm: float
    profile_hu: tuple[float | None, ...]
    losses: tuple[float, ...]

    @property
    def is_clear(self) -> bool:
        """Whether the tumour differs enough from its host to tell where its edge lies."""
        return abs(self.depth_hu) >= _CLEAR_HU and self.clarity >= _CLEAR_ERRORS


def measure_edge(
    image_hu: NDArray[np.floating], tumor: NDArray[np.bool_], host: NDArray[np.bool_], spacing_mm: Triple
) -> TumorEdge | None:
    """Measure where the visible edge of a tumour lies against its outline, and how wide it is.

    The model is the one by which tumours are synthesised: host tissue, and tumour tissue by `Edge.share` of the
    distance to the outline, averaged over the thickness of the slice. So the width holds the blur within a slice, and
    not the slice's thickness. Voxels count whose nearest outline borders on host tissue: no fat, air or neighbouring
    organ next to them, and in value between tumour and host as far as the noise allows.

    Args:
        image_hu: CT around the tumour, with at least 10 mm beside it where the scan goes so far. Shape (D, H, W).
        tumor: The one tumour. Shape (D, H, W).
        host: Tissue that it may be compared with; no other tumour. Shape (D, H, W).

    Returns:
        None where nothing can be measured: hardly any host tissue is near, or the label is thinner than a voxel.
    """
    axes = sorted(range(3), key=lambda axis: (-round(spacing_mm[axis], 3), axis))  # the thickest first
    axes = (axes[0], *sorted(axes[1:]))
    image_hu = np.transpose(image_hu, axes)
    tumor, host = np.transpose(tumor, axes), np.transpose(host, axes)
    thickness_mm, height_mm, width_mm = (float(spacing_mm[axis]) for axis in axes)
    turned_mm = (thickness_mm, height_mm, width_mm)
    distance = outline_distance(tumor, turned_mm, REACH_MM)
    if distance is None:
        return None
    voxels = _choose_voxels(image_hu, tumor, host & ~tumor, turned_mm, distance)
    if voxels is None:
        return None
    return _fit(voxels, equivalent_diameter_mm(float(tumor.sum()) * thickness_mm * height_mm * width_mm))


class _Voxels(NamedTuple):
    """What a tumour's edge is measured on."""

    values_hu: NDArray[np.float32]  # (N,)
    distances_mm: NDArray[np.float32]  # of their centres, (N,)
    layers_mm: NDArray[np.float32]  # of points through their thickness, (L, N)
    blocks: NDArray[np.int64]  # which part of the tumour's surroundings they lie in, (N,)
    deep_hu: float  # difference of the deepest quarter of the label to the host, in the median


def _choose_voxels(
    image_hu: NDArray[np.floating],
    tumor: NDArray[np.bool_],
    host: NDArray[np.bool_],
    spacing_mm: Triple,
    distance: OutlineDistance,
) -> _Voxels | None:
    clear_mm = distance_transform_edt(np.pad(tumor | host, 1, constant_values=True), sampling=spacing_mm)
    places = np.argwhere(tumor | host)  # (N, 3)
    clear_mm = np.asarray(clear_mm)[1:-1, 1:-1, 1:-1][tuple(places.T)]
    points_mm = (places * spacing_mm).T  # (3, N)
    distances_mm = distance.at(points_mm)
    is_clear = clear_mm >= _CLEARANCE_MM + np.maximum(-distances_mm, 0.0)
    kept = np.flatnonzero(is_clear & (distances_mm > _DEEPEST_MM) & (distances_mm < REACH_MM))
    kept = kept[:: 1 + len(kept) // _MOST_VOXELS]
    values_hu = image_hu[tuple(places[kept].T)].astype(np.float32)
    is_label = tumor[tuple(places[kept].T)]
    is_host = ~is_label & (distances_mm[kept] > _HOST_FROM_MM)
    if is_host.sum() < _FEWEST_HOST_VOXELS or not is_label.any():
        return None
    deepest_mm = np.quantile(distances_mm[kept][is_label], 0.25)
    is_deep = is_label & (distances_mm[kept] <= deepest_mm)
    ranges = [_range_of(values_hu[part]) for part in (is_host, is_deep)]
    low_hu, high_hu = min(low for low, _ in ranges), max(high for _, high in ranges)
    kept = kept[(values_hu >= low_hu) & (values_hu <= high_hu)]
    points_mm = points_mm[:, kept]
    layers = max(1, math.ceil(spacing_mm[0] / _LAYER_MM))
    steps_mm = ((np.arange(layers) + 0.5) / layers - 0.5) * spacing_mm[0]
    layers_mm = np.stack([distance.at(points_mm + np.array([[step], [0.0], [0.0]])) for step in steps_mm])
    middle_mm = (np.argwhere(tumor).mean(axis=0) * spacing_mm)[:, None]
    octants = np.array([4, 2, 1]) @ (points_mm > middle_mm)
    shells = np.floor((distances_mm[kept] - _DEEPEST_MM) / 2.0).astype(np.int64)
    return _Voxels(
        image_hu[tuple(places[kept].T)].astype(np.float32),
        distances_mm[kept],
        layers_mm,
        octants + 8 * shells,
        float(np.median(values_hu[is_deep]) - np.median(values_hu[is_host])),
    )


def _range_of(values_hu: NDArray[np.floating]) -> tuple[float, float]:
    middle = float(np.median(values_hu))
    reach = _OUTLIER_SD * 1.4826 * float(np.median(np.abs(values_hu - middle)))
    return middle - reach, middle + reach


@lru_cache(maxsize=1)
def tried_edges() -> NDArray[np.float64]:
    """Offset and width in mm of every edge that a measurement tries. Shape (E, 2)."""
    return np.stack(np.meshgrid(_OFFSETS_MM, _WIDTHS_MM, indexing="ij"), axis=-1).reshape(-1, 2)


@lru_cache(maxsize=1)
def _shares() -> NDArray[np.float64]:
    """Share of tumour tissue by distance, for every edge that is tried. Shape (E, B)."""
    shares = [Edge(offset_mm=offset, width_mm=width).share(_BINS_MM) for offset, width in tried_edges()]
    return np.array(shares, dtype=np.float64)


def _fit(voxels: _Voxels, diameter_mm: float) -> TumorEdge:
    """Fit host, depth, offset and width by least squares; outliers, such as vessels, are left out in turns."""
    tried, shares, weights = tried_edges(), _shares(), _bin_weights(voxels.layers_mm)  # (N, B)
    is_kept = np.ones(len(voxels.values_hu), dtype=bool)
    for _ in range(_ROUNDS):
        squares, host_hu, depth_hu, spread = _regress(weights[is_kept], voxels.values_hu[is_kept], shares)
        best = int(np.argmin(squares))
        rest_hu = voxels.values_hu - host_hu[best] - depth_hu[best] * (weights @ shares[best])
        reach_hu = _OUTLIER_SD * 1.4826 * float(np.median(np.abs(rest_hu[is_kept])))
        is_fitted, is_kept = is_kept, np.abs(rest_hu) <= reach_hu
        if (is_kept == is_fitted).all():
            break
    variance = squares[best] / is_fitted.sum()
    block_sums = np.bincount(voxels.blocks[is_fitted], rest_hu[is_fitted])
    variance *= max(1.0, float(np.sum(block_sums**2) / (is_fitted.sum() * variance)))  # neighbours say the same
    ratio = np.maximum(depth_hu / (voxels.deep_hu or 1.0), math.exp(-3.0))
    losses = 0.5 * squares / variance + 0.5 * ((np.log(ratio) - _DEPTH_LOG_RATIO) / _DEPTH_LOG_SD) ** 2
    losses = np.minimum(losses - losses.min(), _MOST_LOSS)
    chances = np.where(losses < _MOST_LOSS, np.exp(-losses), 0.0)
    chances /= chances.sum()
    (offset_mm, width_mm), mean_hu = chances @ tried, float(chances @ depth_hu)
    errors_mm = np.sqrt(chances @ (tried - (offset_mm, width_mm)) ** 2)
    return TumorEdge(
        diameter_mm=diameter_mm,
        depth_hu=mean_hu,
        depth_error_hu=math.sqrt(chances @ ((depth_hu - mean_hu) ** 2 + variance / spread)),
        clarity=math.sqrt(max(0.0, (np.var(voxels.values_hu[is_fitted]) * is_fitted.sum() - squares[best]) / variance)),
        offset_mm=float(offset_mm),
        offset_error_mm=float(errors_mm[0]),
        width_mm=float(width_mm),
        width_error_mm=float(errors_mm[1]),
        profile_hu=_profile(voxels.values_hu[is_kept] - float(chances @ host_hu), voxels.distances_mm[is_kept]),
        losses=tuple(losses.round(1).tolist()),
    )


def _regress(
    weights: NDArray[np.float64], values: NDArray[np.floating], shares: NDArray[np.float64]
) -> tuple[NDArray[np.float64], ...]:
    """For every edge tried: sum of squares, host and depth, and the sum of squares of its share about the mean."""
    values = values.astype(np.float64)
    count, mean = len(values), values.mean()
    products = weights.T @ weights
    totals, with_values = weights.sum(axis=0), weights.T @ (values - mean)
    share_mean = shares @ totals / count
    spread = np.maximum(np.einsum("eb,eb->e", shares @ products, shares) - count * share_mean**2, 1e-6)
    covariance = shares @ with_values
    depth = covariance / spread
    squares = np.sum((values - mean) ** 2) - covariance * depth
    return squares, mean - depth * share_mean, depth, spread


def _bin_weights(layers_mm: NDArray[np.floating]) -> NDArray[np.float64]:
    """Share of each voxel that lies in each bin of distance, divided between the two nearest bins. Shape (N, B)."""
    count = layers_mm.shape[1]
    weights = np.zeros((count, len(_BINS_MM)))
    voxels = np.arange(count)
    for layer in layers_mm:
        place = np.clip((layer - _BINS_MM[0]) / _BIN_MM, 0.0, len(_BINS_MM) - 1.001)
        lower = place.astype(np.int64)
        upper_share = place - lower
        weights[voxels, lower] += (1.0 - upper_share) / len(layers_mm)
        weights[voxels, lower + 1] += upper_share / len(layers_mm)
    return weights


def _profile(differences_hu: NDArray[np.floating], distances_mm: NDArray[np.floating]) -> tuple[float | None, ...]:
    bins = np.floor(distances_mm - PROFILE_EDGES_MM[0]).astype(np.int64)
    inside = (bins >= 0) & (bins < len(PROFILE_EDGES_MM) - 1)
    counts = np.bincount(bins[inside], minlength=len(PROFILE_EDGES_MM) - 1)
    sums = np.bincount(bins[inside], differences_hu[inside], minlength=len(PROFILE_EDGES_MM) - 1)
    return tuple(round(float(each / count), 2) if count else None for each, count in zip(sums, counts, strict=True))
