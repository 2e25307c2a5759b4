"""What the autoencoder loses on the evaluated scans, beside average pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.ct.boxes import as_box, inside, widened
from nnunet_difftumor.ct.resample import AIR_HU, resample
from nnunet_difftumor.evaluation.realism.settings import EVALUATION_SPACING_MM
from nnunet_difftumor.evaluation.realism.tumors.scans import EvaluationScan

if TYPE_CHECKING:
    from autoencoder.heldout import ReconstructionErrors

COARSE_SPACING_MM = 4.0
_INNER, _MARGIN = 48, 8


def measure_reconstruction(
    judged: Sequence[tuple[Any, Sequence[EvaluationScan]]], most_tiles: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Mean absolute errors of autoencoders, 2x and 4x pooling in the body and in tumours.

    Args:
        judged: Each `AutoencoderNetwork`, in evaluation mode, with the scans that it is measured on.
        most_tiles: Most tiles of a scan; those with most tumour are taken first.

    Returns:
        By spacing ("2 mm", "4 mm") and region ("body", "tumor"): `mae_hu`, `mae_pool2_hu`, `mae_pool4_hu`,
        `voxels`, `ratio_2x` and `ratio_4x`. A region without a voxel is left out.
    """
    result: dict[str, dict[str, dict[str, float]]] = {}
    for spacing_mm in (EVALUATION_SPACING_MM, COARSE_SPACING_MM):
        regions = result[f"{spacing_mm:g} mm"] = {}
        for name in ("body", "tumor"):
            found = [_errors(model, scans, spacing_mm, most_tiles, name) for model, scans in judged]
            known = [asdict(errors) for errors in found if errors]
            if not known:
                continue
            voxels = sum(errors["voxels"] for errors in known)
            keys = ("mae_hu", "mae_pool2_hu", "mae_pool4_hu")
            mean = {key: sum(errors[key] * errors["voxels"] for errors in known) / voxels for key in keys}
            ratios = {f"ratio_{by}x": mean["mae_hu"] / max(mean[f"mae_pool{by}_hu"], 1e-9) for by in (2, 4)}
            regions[name] = {**mean, "voxels": voxels, **ratios}
    return result


def _errors(
    autoencoder: Any, scans: Sequence[EvaluationScan], spacing_mm: float, most_tiles: int, region: str
) -> ReconstructionErrors | None:
    """Errors of one autoencoder in a region, "body" or "tumor"; None without a voxel of it."""
    import torch

    from autoencoder.heldout import reconstruction_errors

    crops, masks = [], []
    for image_hu, tumor, counted in (tile for scan in scans for tile in _tiles(scan, spacing_mm, most_tiles)):
        mask = counted & (tumor if region == "tumor" else image_hu > autoencoder.window.low_hu)
        if mask.any():
            crops.append(torch.from_numpy(image_hu)[None, None])
            masks.append(torch.from_numpy(mask)[None, None])
    return reconstruction_errors(autoencoder, crops, masks) if crops else None


def _tiles(
    scan: EvaluationScan, spacing_mm: float, most: int
) -> list[tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]]:
    """Crops of up to 64 voxels with tumour and the voxels that count: not those at the crop's edge."""
    image_hu, tumor = scan.image_hu, scan.tumors
    if spacing_mm != scan.spacing_mm[0]:
        shape = [max(4, int(size * scan.spacing_mm[0] / spacing_mm)) for size in image_hu.shape]
        grid = (shape, (spacing_mm,) * 3, (0.0, 0.0, 0.0))
        image_hu = resample(image_hu, scan.spacing_mm, *grid, fill_value=AIR_HU, whole_voxels=True)
        tumor = resample(tumor, scan.spacing_mm, *grid, fill_value=0.0, whole_voxels=True) >= 0.5
    usable = np.array(image_hu.shape) // 4 * 4
    tiles = []
    for corner in np.ndindex(*np.ceil(usable / _INNER).astype(int)):
        start = np.multiply(corner, _INNER)
        inner = as_box(start, np.minimum(start + _INNER, usable))
        box = widened(inner, _MARGIN, usable)
        counted = np.zeros(tumor[box].shape, dtype=bool)
        counted[inside(inner, box)] = True
        tiles.append((np.ascontiguousarray(image_hu[box]), np.ascontiguousarray(tumor[box]), counted))
    tiles.sort(key=lambda tile: -int((tile[1] & tile[2]).sum()))
    return tiles[:most]
