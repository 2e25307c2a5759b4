"""Whether two trained folders predict the same, to the bit, as nnU-Net loads them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from nnunet_difftumor.errors import ModelExportError
from nnunet_difftumor.trainer.discovery import own_trainers_found

_BLOB_VOXELS = 3.0
_SLICES_FOR_2D = 2


@dataclass(frozen=True)
class Verification:
    """On what two models were compared, and what both predicted.

    Attributes:
        is_synthetic: The image was drawn here; otherwise it was given.
        shape: Shape of the image in the reader's order.
        spacing_mm: Its spacing in mm, in the same order.
        voxels_by_label: Predicted voxels of each label.
    """

    is_synthetic: bool
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    voxels_by_label: dict[int, int]


@dataclass(frozen=True, eq=False)
class _Image:
    values: NDArray[np.float32]
    properties: dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Prediction:
    segmentation: NDArray[np.integer[Any]]
    probabilities: NDArray[np.floating[Any]]
    mirroring_axes: tuple[int, ...] | None

    def difference_from(self, other: _Prediction) -> str | None:
        """What differs from another prediction, or None."""
        if self.mirroring_axes != other.mirroring_axes:
            return f"axes of mirroring {self.mirroring_axes} and {other.mirroring_axes}"
        if self.probabilities.tobytes() != other.probabilities.tobytes():
            largest = float(np.abs(self.probabilities - other.probabilities).max())
            voxels = int((self.segmentation != other.segmentation).sum())
            return f"probabilities by up to {largest:.2g}, the label of {voxels} voxels"
        if not np.array_equal(self.segmentation, other.segmentation):
            return f"the label of {int((self.segmentation != other.segmentation).sum())} voxels"
        return None


def verify_same_predictions(
    original: Path,
    exported: Path,
    *,
    folds: Sequence[str],
    checkpoint: str,
    images: Sequence[Path] = (),
    device: str = "cpu",
) -> Verification:
    """Predict one image with two trained folders and demand the same probabilities, to the bit.

    Both are loaded by nnU-Net's own predictor. Mirrored copies are not predicted; the axes along which nnU-Net
    would mirror are compared instead.

    Args:
        exported: The folder that shall predict the same.
        images: Files of one image, one a channel; a small synthetic volume by default.

    Returns:
        What was compared.

    Raises:
        ModelExportError: If anything differs, or an image does not fit the model.
    """
    first = _load_predictor(original, folds, checkpoint, device)
    image = _read_image(first, images) if images else _draw_image(first)
    expected = _predict(first, image)
    del first
    found = _predict(_load_predictor(exported, folds, checkpoint, device), image)
    difference = expected.difference_from(found)
    if difference is not None:
        raise ModelExportError(
            f"The exported model does not predict what the original predicts: they differ in {difference}. Nothing was "
            "exported. If it happens on a GPU only, compare with --device cpu."
        )
    values, counts = np.unique(found.segmentation, return_counts=True)
    return Verification(
        is_synthetic=not images,
        shape=tuple(image.values.shape[1:]),
        spacing_mm=tuple(float(spacing) for spacing in image.properties["spacing"]),
        voxels_by_label={int(value): int(count) for value, count in zip(values, counts, strict=True)},
    )


def _load_predictor(folder: Path, folds: Sequence[str], checkpoint: str, device: str) -> nnUNetPredictor:
    with own_trainers_found():
        predictor = nnUNetPredictor(
            use_mirroring=False, perform_everything_on_device=device != "cpu", device=torch.device(device)
        )
        chosen: Any = tuple(int(fold) if fold.isdigit() else fold for fold in folds)
        predictor.initialize_from_trained_model_folder(str(folder), chosen, checkpoint)
    return predictor


def _predict(predictor: nnUNetPredictor, image: _Image) -> _Prediction:
    with contextlib.redirect_stdout(io.StringIO()):
        predicted: Any = predictor.predict_single_npy_array(
            image.values.copy(), dict(image.properties), save_or_return_probabilities=True
        )
    axes: Any = predictor.allowed_mirroring_axes
    return _Prediction(
        np.asarray(predicted[0]), np.asarray(predicted[1]), None if axes is None else tuple(int(axis) for axis in axes)
    )


def _read_image(predictor: nnUNetPredictor, files: Sequence[Path]) -> _Image:
    dataset_json: Any = predictor.dataset_json
    plans: Any = predictor.plans_manager
    channels = dataset_json.get("channel_names", dataset_json.get("modality", {}))
    if len(files) != len(channels):
        raise ModelExportError(
            f"The model takes {len(channels)} channels ({', '.join(map(str, channels.values()))}), but --verify-with "
            f"names {len(files)} files; give one file a channel, in this order."
        )
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise ModelExportError(f"--verify-with: {', '.join(missing)} does not exist.")
    try:
        values, properties = plans.image_reader_writer_class().read_images([str(path) for path in files])
    except Exception as error:  # a reader's errors are of every type
        raise ModelExportError(
            f"--verify-with: {', '.join(map(str, files))} cannot be read by {plans.plans['image_reader_writer']}, the "
            f"model's reader: {error}"
        ) from error
    return _Image(np.asarray(values, dtype=np.float32), properties)


def _draw_image(predictor: nnUNetPredictor) -> _Image:
    """Blobs and noise around the labelled tissue's intensities, one patch large, at the model's own spacing."""
    plans: Any = predictor.plans_manager
    configuration: Any = predictor.configuration_manager
    shape, spacing = list(configuration.patch_size), list(configuration.spacing)
    if len(shape) == 2:
        shape.insert(0, _SLICES_FOR_2D)
        spacing.insert(0, float(plans.original_median_spacing_after_transp[0]))
    backward = plans.transpose_backward  # the predictor transposes the reader's order forward
    rng = np.random.default_rng(0)
    channels = []
    for intensities in plans.foreground_intensity_properties_per_channel.values():
        noise = rng.normal(size=shape)
        blobs = gaussian_filter(rng.normal(size=shape), _BLOB_VOXELS)
        values = intensities["mean"] + intensities["std"] * (2.0 * blobs / max(float(blobs.std()), 1e-9) + 0.3 * noise)
        channels.append(values.transpose(backward))
    return _Image(np.stack(channels).astype(np.float32), {"spacing": [spacing[axis] for axis in backward]})
