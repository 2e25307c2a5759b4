"""Whether a trained model and its export predict the same, to the bit, as nnU-Net loads them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from nnunet_difftumor.errors import ModelExportError
from nnunet_difftumor.trainer.discovery import own_trainers_found
from nnunet_difftumor.trainer.export.trained_model import TrainedModel

_BLOB_VOXELS = 3.0
_SLICES_FOR_2D = 2

_Image = tuple[NDArray[np.float32], dict[str, Any]]
"""Values (C, D, H, W) and properties, as nnU-Net's readers return them."""


def verify_same_predictions(
    model: TrainedModel, exported: Path, *, images: Sequence[Path] = (), device: str = "cpu"
) -> dict[str, Any]:
    """Predict one image, or a small synthetic volume, with a model and its export; demand the same, to the bit.

    Both are loaded by nnU-Net's own predictor. Mirrored copies are not predicted; the axes along which nnU-Net
    would mirror are compared instead.

    Returns:
        On what they predicted the same, and what, as the manifest has it; shape and spacing in the reader's order.

    Raises:
        ModelExportError: If anything differs, or an image does not fit the model.
    """
    first = _load_predictor(model.folder, model, device)
    image = _read_image(model, first, images) if images else _draw_image(first)
    expected = _predict(first, image)
    del first
    found = _predict(_load_predictor(exported, model, device), image)
    difference = _difference(expected, found)
    if difference is not None:
        raise ModelExportError(
            f"The exported model does not predict what the original predicts: they differ in {difference}. Nothing was "
            "exported. If it happens on a GPU only, compare with --device cpu."
        )
    labels, counts = np.unique(found[0], return_counts=True)
    values, properties = image
    return {
        "predictions_identical": True,
        "image": "given by the exporter" if images else "synthetic",
        "shape": values.shape[1:],
        "spacing_mm": tuple(map(float, properties["spacing"])),
        "predicted_voxels_by_label": dict(zip(labels.tolist(), counts.tolist(), strict=True)),
    }


def _load_predictor(folder: Path, model: TrainedModel, device: str) -> nnUNetPredictor:
    with own_trainers_found():
        predictor = nnUNetPredictor(
            use_mirroring=False, perform_everything_on_device=device != "cpu", device=torch.device(device)
        )
        chosen: Any = tuple(int(fold) if fold.isdigit() else fold for fold in model.folds)
        predictor.initialize_from_trained_model_folder(str(folder), chosen, model.checkpoint)
    return predictor


def _predict(predictor: nnUNetPredictor, image: _Image) -> tuple[NDArray[Any], NDArray[Any], tuple[int, ...] | None]:
    """Segmentation, probabilities, axes along which nnU-Net would mirror."""
    values, properties = image
    with contextlib.redirect_stdout(io.StringIO()):
        predicted: Any = predictor.predict_single_npy_array(
            values.copy(), dict(properties), save_or_return_probabilities=True
        )
    axes: Any = predictor.allowed_mirroring_axes
    return np.asarray(predicted[0]), np.asarray(predicted[1]), None if axes is None else tuple(map(int, axes))


def _difference(expected: Sequence[Any], found: Sequence[Any]) -> str | None:
    """What differs between two predictions, or None."""
    (labels, probabilities, axes), (other_labels, other_probabilities, other_axes) = expected, found
    if axes != other_axes:
        return f"axes of mirroring {axes} and {other_axes}"
    voxels = int((labels != other_labels).sum())
    if probabilities.tobytes() != other_probabilities.tobytes():
        largest = float(np.abs(probabilities - other_probabilities).max())
        return f"probabilities by up to {largest:.2g}, the label of {voxels} voxels"
    return f"the label of {voxels} voxels" if voxels else None


def _read_image(model: TrainedModel, predictor: nnUNetPredictor, files: Sequence[Path]) -> _Image:
    plans: Any = predictor.plans_manager
    if len(files) != len(model.channels):
        raise ModelExportError(
            f"The model takes {len(model.channels)} channels ({', '.join(map(str, model.channels.values()))}), but "
            f"--verify-with names {len(files)} files; give one file a channel, in this order."
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
    return np.asarray(values, dtype=np.float32), properties


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
    return np.stack(channels).astype(np.float32), {"spacing": [spacing[axis] for axis in backward]}
