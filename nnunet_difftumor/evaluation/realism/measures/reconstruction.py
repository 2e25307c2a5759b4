"""What the autoencoder loses on the evaluated scans, beside average pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.ct.resample import AIR_HU, resample
from nnunet_difftumor.evaluation.realism.tumors.scans import EvaluationScan

COARSE_SPACING_MM = 4.0
_INNER, _MARGIN = 48, 8


def measure_reconstruction(
    autoencoder: Any, scans: Sequence[EvaluationScan], most_tiles: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Mean absolute errors of autoencoder, 2x and 4x pooling in the body and in tumours.

    Args:
        autoencoder: `AutoencoderKL3D`, in evaluation mode.
        most_tiles: Most tiles of a scan; those with most tumour are taken first.

    Returns:
        By spacing ("2 mm", "4 mm") and region ("body", "tumor"): `mae_hu`, `mae_pool2_hu`, `mae_pool4_hu`,
        `voxels`, `ratio_2x` and `ratio_4x`. A region without a voxel is left out.
    """
    import torch

    from autoencoder.heldout import reconstruction_errors

    result: dict[str, dict[str, dict[str, float]]] = {}
    for spacing_mm in (scans[0].spacing_mm[0], COARSE_SPACING_MM):
        tiles = [tile for scan in scans for tile in _tiles(scan, spacing_mm, most_tiles)]
        crops = [torch.from_numpy(image_hu)[None, None] for image_hu, _, _ in tiles]
        regions: dict[str, dict[str, float]] = {}
        for name in ("body", "tumor"):
            masks = [
                counted & (tumor if name == "tumor" else image_hu > autoencoder.window.low_hu)
                for image_hu, tumor, counted in tiles
            ]
            chosen = [index for index, mask in enumerate(masks) if mask.any()]
            if not chosen:
                continue
            errors = reconstruction_errors(
                autoencoder,
                [crops[index] for index in chosen],
                [torch.from_numpy(masks[index])[None, None] for index in chosen],
            )
            ratios = {
                "ratio_2x": errors.mae_hu / max(errors.mae_pool2_hu, 1e-9),
                "ratio_4x": errors.mae_hu / max(errors.mae_pool4_hu, 1e-9),
            }
            regions[name] = {**asdict(errors), **ratios}
        result[f"{spacing_mm:g} mm"] = regions
    return result


def _tiles(
    scan: EvaluationScan, spacing_mm: float, most: int
) -> list[tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]]:
    """Crops of up to 64 voxels with tumour and the voxels that count: not those at the crop's edge."""
    image_hu, tumor = scan.image_hu, scan.tumors
    if spacing_mm != scan.spacing_mm[0]:
        shape = [
            max(4, int(size * step / spacing_mm)) for size, step in zip(image_hu.shape, scan.spacing_mm, strict=True)
        ]
        grid = (shape, (spacing_mm,) * 3, (0.0, 0.0, 0.0))
        image_hu = resample(image_hu, scan.spacing_mm, *grid, fill_value=AIR_HU, whole_voxels=True)
        tumor = resample(tumor, scan.spacing_mm, *grid, fill_value=0.0, whole_voxels=True) >= 0.5
    usable = [size // 4 * 4 for size in image_hu.shape]
    tiles = []
    for corner in np.ndindex(*[-(-size // _INNER) for size in usable]):
        inner = [(index * _INNER, min((index + 1) * _INNER, size)) for index, size in zip(corner, usable, strict=True)]
        outer = [(max(0, a - _MARGIN), min(b + _MARGIN, size)) for (a, b), size in zip(inner, usable, strict=True)]
        box = tuple(slice(a, b) for a, b in outer)
        counted = np.zeros([b - a for a, b in outer], dtype=bool)
        counted[tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(inner, outer, strict=True))] = True
        tiles.append((np.ascontiguousarray(image_hu[box]), np.ascontiguousarray(tumor[box]), counted))
    tiles.sort(key=lambda tile: -int((tile[1] & tile[2]).sum()))
    return tiles[:most]
