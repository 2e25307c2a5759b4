"""Tumour probabilities: nnU-Net's .npz files, and probability maps as images."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.ct.grid import GridGeometry, turn_onto_grid
from nnunet_difftumor.ct.reading import IMAGE_ENDINGS, read_array
from nnunet_difftumor.errors import CorruptImageError, DatasetError, GeometryMismatchError
from nnunet_difftumor.evaluation.scoring.scheme import LabelScheme

NPZ_ENDING = ".npz"
_MEMBER = "probabilities.npy"
_RANGE_SLACK = 1e-3


def find_probability_files(
    folder: Path, case: str, scheme: LabelScheme, *, is_prediction_folder: bool
) -> Mapping[str, Path]:
    """Find the files with the tumour probabilities of a case.

    Args:
        is_prediction_folder: The folder holds the predicted label maps too, so that <case>.nii.gz is one of those.

    Returns:
        File by tumour label: <case>.npz for all of them, or <case>_<label>.nii.gz (or another image ending), or
        <case>.nii.gz if there is one tumour label.

    Raises:
        DatasetError: If there are no probabilities of a tumour label.
    """
    npz = folder / f"{case}{NPZ_ENDING}"
    if npz.is_file():
        return {label.name: npz for label in scheme.tumors}
    found = {}
    for label in scheme.tumors:
        stems = [f"{case}_{label.name}"]
        if len(scheme.tumors) == 1 and not is_prediction_folder:
            stems.append(case)
        paths = [folder / f"{stem}{ending}" for stem in stems for ending in IMAGE_ENDINGS]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise DatasetError(
                f"{folder} holds no probabilities of '{label.name}' for {case}: neither {npz.name} (nnUNetv2_predict "
                f"--save_probabilities) nor {' nor '.join(f'{stem}.nii.gz' for stem in stems)}."
            )
        found[label.name] = path
    return found


def read_probabilities(
    files: Mapping[str, Path], scheme: LabelScheme, prediction: GridGeometry, reference: GridGeometry
) -> dict[str, NDArray[np.float32]]:
    """Read tumour probabilities onto the reference's grid.

    Args:
        files: File by tumour label (see `find_probability_files`).
        prediction: Grid of the predicted label map, which nnU-Net's arrays lie on.

    Returns:
        Probabilities by tumour label. Shape (D, H, W) of the reference.

    Raises:
        CorruptImageError: If a file cannot be read, or holds anything but probabilities.
        GeometryMismatchError: If the grids differ.
    """
    channels = {label.name: label.channel for label in scheme.tumors if label.name in files}
    arrays: dict[str, tuple[NDArray[Any], GridGeometry]] = {}
    for path in set(files.values()):
        of_file = {name: channel for name, channel in channels.items() if files[name] == path}
        if path.name.endswith(NPZ_ENDING):
            read = read_npz_channels(path, of_file.values(), scheme.channels)
            turn = _turn_back if scheme.is_reoriented else lambda array, _: array
            arrays |= {name: (turn(read[channel], prediction), prediction) for name, channel in of_file.items()}
        else:
            arrays[next(iter(of_file))] = read_array(path)
    return {name: _on_grid(*arrays[name], reference, files[name]) for name in channels}


def read_npz_channels(path: Path, channels: Collection[int], expected: int) -> dict[int, NDArray[Any]]:
    """Read some channels of nnU-Net's probabilities, one after the other, so that the others take no memory.

    Args:
        path: A file that `nnUNetv2_predict --save_probabilities` wrote.
        expected: Number of channels that the labels of the data set ask for.

    Returns:
        Array by channel. Shape (D, H, W) as nnU-Net's reader orders the axes.

    Raises:
        CorruptImageError: If the file cannot be read or has other channels.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(_MEMBER) as stream:
            is_oldest = np.lib.format.read_magic(stream) == (1, 0)
            read_header = np.lib.format.read_array_header_1_0 if is_oldest else np.lib.format.read_array_header_2_0
            shape, is_fortran, dtype = read_header(stream)
            if len(shape) != 4 or shape[0] != expected or is_fortran or dtype.kind != "f":
                raise CorruptImageError(
                    f"{path} should hold nnU-Net's probabilities of {expected} channels in C order, but has shape "
                    f"{shape}, type {dtype}{', Fortran order' if is_fortran else ''}. Give the dataset.json that the "
                    "model was trained with."
                )
            read = {}
            start, size = stream.tell(), int(np.prod(shape[1:])) * dtype.itemsize
            for channel in sorted(channels):
                stream.seek(start + channel * size)
                read[channel] = np.frombuffer(stream.read(size), dtype=dtype).reshape(shape[1:])
            return read
    except CorruptImageError:
        raise
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptImageError(
            f"{path} cannot be read as nnU-Net's probabilities ({' '.join(str(error).split())[:200]}). Predict again "
            "with --save_probabilities."
        ) from error


def _turn_back(array: NDArray[Any], geometry: GridGeometry) -> NDArray[Any]:
    """Undo nnU-Net's turn to (superior, anterior, right) axes; the array keeps its shape if it was turned so."""
    orientation = nibabel.orientations.io_orientation(geometry.affine)  # patient axis and sign of each array axis
    turned = array.transpose([2 - int(axis) for axis in orientation[:, 0]])
    return np.flip(turned, axis=tuple(np.flatnonzero(orientation[:, 1] < 0).tolist()))


def _on_grid(array: NDArray[Any], geometry: GridGeometry, reference: GridGeometry, path: Path) -> NDArray[np.float32]:
    """Probabilities on the reference's grid, checked."""
    if array.shape != geometry.shape:
        raise GeometryMismatchError(
            f"{path} holds probabilities of shape {array.shape}, but the predicted label map has {geometry.shape}. "
            "Both must come from one prediction."
        )
    mismatch = (
        f"The probabilities and the reference must lie on the same grid.\n  probabilities {path}: "
        f"{geometry.describe()}\n  reference: {reference.describe()}"
    )
    turned = turn_onto_grid(array, geometry, reference, mismatch)
    low, high = float(turned.min()), float(turned.max())
    if not (low >= -_RANGE_SLACK and high <= 1.0 + _RANGE_SLACK):
        raise CorruptImageError(
            f"{path} should hold probabilities from 0 to 1, but holds values from {low:.4g} to {high:.4g}. Logits and "
            "percentages must be converted first."
        )
    return turned.astype(np.float32, copy=False)
