"""Pictures of scans for the report: the data, reconstructions, predictions beside the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.ct.datasets import Case
from nnunet_difftumor.ct.reading import CTVolume, read_ct, read_mask
from nnunet_difftumor.ct.resample import resample
from nnunet_difftumor.demo.figures import PREDICTION_COLOR, TRUTH_COLOR, Outlines, Tile, draw_tiles
from nnunet_difftumor.support.pictures.montage import flips_to_display

_CROP_SPACING_MM = 2.0
_CROP_SIDE = 64
_DIFFERENCE_HU = (-100.0, 100.0)

Volume = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LabelledScan:
    """A CT and one or two label maps, turned as radiologists read them.

    Attributes:
        image_hu: Values in HU. Shape (D, H, W).
        truth: True label map. Shape (D, H, W).
        prediction: Predicted label map, if there is one. Shape (D, H, W).
        spacing_mm: Voxel size (D, H, W) in mm.
    """

    identifier: str
    image_hu: Volume
    truth: NDArray[np.int16]
    prediction: NDArray[np.int16] | None
    spacing_mm: tuple[float, float, float]


def read_scan(case: Case, prediction: Path | None = None) -> LabelledScan:
    """Read a case for a picture.

    Args:
        prediction: Predicted label map on the same grid.

    Returns:
        The scan; the first slice is the uppermost, the patient's right is on the left.
    """
    ct = read_ct(case.image_path)
    flips = flips_to_display(ct.geometry.affine)
    truth = read_mask(case.label_path, ct) if case.label_path is not None else np.zeros(ct.image_hu.shape, np.int16)
    predicted = read_mask(prediction, ct) if prediction is not None else None
    return LabelledScan(
        case.identifier,
        np.flip(ct.image_hu, flips),
        np.flip(truth, flips),
        None if predicted is None else np.flip(predicted, flips),
        ct.spacing_mm,
    )


def draw_overview(cases: Sequence[Case], organ_label: int, tumor_label: int) -> str | None:
    """Draw one transverse slice of each case with organ and tumour outlined.

    Args:
        cases: Cases with labels; a healthy one shows the largest section of its organ.

    Returns:
        PNG in base64, or None without cases.
    """
    if not cases:
        return None
    plain, outlined = [], []
    for case in cases:
        scan = read_scan(case)
        index = _slice_with_most(scan.truth, tumor_label, organ_label)
        aspect = scan.spacing_mm[1] / scan.spacing_mm[2]
        truth = scan.truth[index]
        outlines = ((truth == organ_label, "#4fa3ff"), (truth == tumor_label, "#ff4f4f"))
        plain.append(Tile(scan.image_hu[index], case.identifier, aspect=aspect))
        outlined.append(Tile(scan.image_hu[index], "", outlines, aspect))
    return draw_tiles([plain, outlined])


def draw_predictions(scans: Sequence[LabelledScan], tumor_label: int, notes: Mapping[str, str]) -> str | None:
    """Draw the truth beside the prediction in the slice with most tumour.

    Args:
        notes: What stands above the prediction of each case.

    Returns:
        PNG in base64, or None without scans.
    """
    tiles = [_prediction_tiles(scan, tumor_label, notes.get(scan.identifier, "")) for scan in scans]
    if not tiles:
        return None
    rows = [first + second for first, second in zip(tiles[0::2], tiles[1::2], strict=False)]
    if len(tiles) % 2:
        rows.append(tiles[-1])
    return draw_tiles(rows)


def draw_reconstructions(cases: Sequence[Case], autoencoder_folder: Path, tumor_label: int) -> str | None:
    """Draw crops of held-out cases beside their reconstructions by the autoencoder and by average pooling.

    Args:
        cases: Held-out cases with labels.
        tumor_label: Value of the tumour, on which the crops are centred where there is one.

    Returns:
        PNG in base64, or None without cases.
    """
    import torch
    from torch.nn.functional import avg_pool3d, interpolate

    from autoencoder.model import AutoencoderKL3D

    if not cases:
        return None
    model = AutoencoderKL3D.from_pretrained(autoencoder_folder).eval()
    rows = []
    for case in cases:
        crop_hu = torch.from_numpy(_crop(case, tumor_label))[None, None]
        inside = model.window.clip(crop_hu)
        with torch.inference_mode():
            estimates = {"autoencoder": model.window.clip(model.reconstruct(inside))}
        for factor in (2, 4):
            pooled = avg_pool3d(inside, factor)
            estimates[f"{factor}x average pooling"] = interpolate(pooled, size=inside.shape[2:], mode="trilinear")
        middle = _CROP_SIDE // 2
        row = [Tile(inside[0, 0, middle].numpy(), f"{case.identifier}: input")]
        for name, estimate in estimates.items():
            error_hu = (estimate - inside)[0, 0]
            row.append(Tile(estimate[0, 0, middle].numpy(), f"{name}\n{error_hu.abs().mean():.1f} HU"))
        difference = (estimates["autoencoder"] - inside)[0, 0, middle].numpy()
        row.append(Tile(difference, "autoencoder - input\n(-100 to 100 HU)", limits=_DIFFERENCE_HU))
        rows.append(row)
    return draw_tiles(rows)


def _prediction_tiles(scan: LabelledScan, tumor_label: int, note: str) -> list[Tile]:
    prediction = np.zeros_like(scan.truth) if scan.prediction is None else scan.prediction
    most = scan.truth if (scan.truth == tumor_label).any() else prediction
    index = _slice_with_most(most, tumor_label, None)
    rows, columns = _body_window(scan.image_hu[index])
    image = scan.image_hu[index, rows, columns]
    aspect = scan.spacing_mm[1] / scan.spacing_mm[2]
    true: Outlines = ((scan.truth[index, rows, columns] == tumor_label, TRUTH_COLOR),)
    predicted: Outlines = ((prediction[index, rows, columns] == tumor_label, PREDICTION_COLOR),)
    return [
        Tile(image, f"{scan.identifier}\ntruth", true, aspect),
        Tile(image, f"prediction\n{note}", predicted, aspect),
    ]


def _body_window(image_hu: Volume) -> tuple[slice, slice]:
    """Rows and columns that hold the body, so that air around it takes no room."""
    body = image_hu > -300.0
    rows, columns = np.flatnonzero(body.any(axis=1)), np.flatnonzero(body.any(axis=0))
    if len(rows) == 0:
        return slice(None), slice(None)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _slice_with_most(labels: NDArray[np.int16], first: int, second: int | None) -> int:
    """Transverse slice with most of the first label, else of the second, else the middle one."""
    for value in (first, second):
        counts = (labels == value).sum(axis=(1, 2))
        if counts.any():
            return int(np.argmax(counts))
    return labels.shape[0] // 2


def _crop(case: Case, tumor_label: int) -> Volume:
    """Isotropic crop around the tumour, or around the labelled organ."""
    ct = read_ct(case.image_path)
    labels = read_mask(case.label_path, ct) if case.label_path is not None else np.ones(ct.image_hu.shape, np.int16)
    wanted = labels == tumor_label if (labels == tumor_label).any() else labels > 0
    centre_mm = np.argwhere(wanted).mean(axis=0) * np.asarray(ct.spacing_mm)
    start_mm = _start(ct, centre_mm)
    spacing = (_CROP_SPACING_MM,) * 3
    crop_hu = resample(ct.image_hu, ct.spacing_mm, (_CROP_SIDE,) * 3, spacing, start_mm.tolist(), whole_voxels=True)
    return np.ascontiguousarray(np.flip(crop_hu, flips_to_display(ct.geometry.affine)), dtype=np.float32)


def _start(ct: CTVolume, centre_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Corner of the crop, moved so that the crop stays inside the scan where it fits."""
    extent_mm = (np.asarray(ct.image_hu.shape) - 1) * np.asarray(ct.spacing_mm)
    room_mm = np.maximum(extent_mm - (_CROP_SIDE - 1) * _CROP_SPACING_MM, 0.0)
    return np.clip(centre_mm - 0.5 * (_CROP_SIDE - 1) * _CROP_SPACING_MM, 0.0, room_mm)
