"""One case read from its files: reference, prediction and probabilities on the reference's grid."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.ct.boxes import box_of, widened
from nnunet_difftumor.ct.grid import GridGeometry, turn_onto_grid
from nnunet_difftumor.ct.reading import IMAGE_ENDINGS, read_array, read_labels
from nnunet_difftumor.errors import CorruptImageError, DatasetError, DiffTumorError, GeometryMismatchError
from nnunet_difftumor.evaluation.scoring.scheme import LabelScheme, ScoredLabel

NPZ_ENDING = ".npz"

_MEMBER = "probabilities.npy"
_RANGE_SLACK = 1e-3
_CHANCE_SLACK = 0.01
_LARGEST_SHEAR_DEGREES = 1.0  # where distances between neighbours are wrong by less than 1%


class ShearedGridError(DiffTumorError):
    """The axes of a label map do not meet at right angles, so that a spacing gives no distances."""


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """Files of one case.

    Attributes:
        probabilities: File by tumour label (see `find_probability_files`).
        organ_mask: For an organ filter that takes one from a folder.
    """

    case: str
    reference: Path
    prediction: Path
    probabilities: Mapping[str, Path] = field(default_factory=dict)
    organ_mask: Path | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class CaseMaps:
    """Arrays of one case, cropped to what any of them holds plus one voxel.

    Attributes:
        reference: Labels. Shape (D, H, W), and so are those of all other maps and the order of spacings.
        axial_axis: The axis that runs from axial slice to slice.
        probabilities: Probabilities by tumour label.
        largest_probability: Largest probability in the whole scan, outside the ignore label, by tumour label.
        organ_mask: The organ from a file.
    """

    case: str
    reference: NDArray[np.int16]
    prediction: NDArray[np.int16]
    spacing_mm: tuple[float, float, float]
    voxel_mm3: float
    axial_axis: int
    probabilities: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    largest_probability: Mapping[str, float] = field(default_factory=dict)
    organ_mask: NDArray[np.bool_] | None = None


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


def read_case_maps(files: CaseFiles, scheme: LabelScheme) -> CaseMaps:
    """Read a case onto the reference's grid.

    Raises:
        CorruptImageError: If a file cannot be read.
        GeometryMismatchError: If the grids differ.
        ShearedGridError: If the axes of the reference do not meet at right angles.
        DatasetError: If a label map holds values that dataset.json does not declare.
    """
    reference, grid = read_labels(files.reference)
    _check_right_angles(grid, files.reference)
    _check_declared(reference, scheme, files.reference)
    prediction, own_grid = read_labels(files.prediction)
    _check_declared(prediction, scheme, files.prediction)
    prediction = _turned(prediction, own_grid, files.prediction, grid, files.reference)
    probabilities = _read_probabilities(files.probabilities, scheme, own_grid, grid)
    _check_that_probabilities_belong(files, scheme, prediction, probabilities)
    organ_mask = None
    if files.organ_mask is not None:
        organ_mask = _turned(*read_labels(files.organ_mask), files.organ_mask, grid, files.reference) > 0
    is_known = True if scheme.ignore is None else reference != scheme.ignore
    largest = {name: float(values.max(where=is_known, initial=0.0)) for name, values in probabilities.items()}
    box = widened(box_of(reference, prediction, organ_mask), 1, reference.shape)
    return CaseMaps(
        case=files.case,
        reference=reference[box].copy(),
        prediction=prediction[box].copy(),
        spacing_mm=grid.spacing_mm,
        voxel_mm3=abs(float(np.linalg.det(grid.affine[:3, :3]))),
        axial_axis=axial_axis(grid),
        probabilities={name: values[box].copy() for name, values in probabilities.items()},
        largest_probability=largest,
        organ_mask=None if organ_mask is None else organ_mask[box].copy(),
    )


def axial_axis(grid: GridGeometry) -> int:
    """Return the array axis closest to the patient's long axis: it runs from axial slice to slice."""
    return int(np.argmax(np.abs(grid.affine[2, :3]) / np.asarray(grid.spacing_mm)))


def _check_right_angles(grid: GridGeometry, path: Path) -> None:
    directions = grid.affine[:3, :3] / np.asarray(grid.spacing_mm)
    cosines = np.abs(directions.T @ directions)[np.triu_indices(3, 1)]
    shear_degrees = float(np.rad2deg(np.arcsin(min(cosines.max(), 1.0))))
    if shear_degrees > _LARGEST_SHEAR_DEGREES:
        raise ShearedGridError(
            f"{path} lies on a sheared grid: two of its axes meet at {90.0 - shear_degrees:.1f} degrees, as with a "
            "tilted gantry, where 90 are needed to measure distances. Resample reference and prediction with nearest "
            "neighbour onto a grid with right angles."
        )


def _check_declared(labels: NDArray[np.int16], scheme: LabelScheme, path: Path) -> None:
    unknown = np.unique(labels[~np.isin(labels, sorted(scheme.declared))]).tolist()
    if unknown:
        shown = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
        raise DatasetError(
            f"{path} holds the values {shown}, which dataset.json does not declare (it has "
            f"{', '.join(map(str, sorted(scheme.declared)))}). Give the dataset.json of these label maps."
        )


def _turned(
    labels: NDArray[np.int16], geometry: GridGeometry, path: Path, grid: GridGeometry, reference: Path
) -> NDArray[np.int16]:
    mismatch = (
        f"{path.name} and its reference must lie on the same grid.\n  {path}: {geometry.describe()}\n"
        f"  reference {reference}: {grid.describe()}\nPredict on the image that the reference was drawn on, or "
        "resample the labels onto the reference with nearest neighbour."
    )
    return turn_onto_grid(labels, geometry, grid, mismatch)


def _read_probabilities(
    files: Mapping[str, Path], scheme: LabelScheme, prediction: GridGeometry, reference: GridGeometry
) -> dict[str, NDArray[np.float32]]:
    """Read tumour probabilities by label onto the reference's grid.

    `prediction` is the grid of the predicted label map, which nnU-Net's arrays lie on.
    """
    arrays: dict[str, tuple[NDArray[Any], GridGeometry]] = {}
    for path in set(files.values()):
        labels = [label for label in scheme.tumors if files.get(label.name) == path]
        if path.name.endswith(NPZ_ENDING):
            for name, values in _read_npz(path, labels, scheme.channels).items():
                arrays[name] = (turn_back(values, prediction) if scheme.is_reoriented else values), prediction
        else:
            arrays[labels[0].name] = read_array(path)
    names = [label.name for label in scheme.tumors if label.name in files]
    return {name: _on_grid(*arrays[name], reference, files[name]) for name in names}


def _read_npz(path: Path, labels: Sequence[ScoredLabel], expected: int) -> dict[str, NDArray[Any]]:
    """Read nnU-Net's probabilities of some labels, one after the other, so that the others take no memory.

    Shapes (D, H, W) as nnU-Net's reader orders the axes; `expected` is the number of channels of the data set.
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
            for label in sorted(labels, key=lambda label: label.channel):
                stream.seek(start + label.channel * size)
                read[label.name] = np.frombuffer(stream.read(size), dtype=dtype).reshape(shape[1:])
            return read
    except CorruptImageError:
        raise
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptImageError(
            f"{path} cannot be read as nnU-Net's probabilities ({' '.join(str(error).split())[:200]}). Predict again "
            "with --save_probabilities."
        ) from error


def turn_back(array: NDArray[Any], geometry: GridGeometry) -> NDArray[Any]:
    """Undo nnU-Net's turn to (superior, anterior, right) axes; the array keeps its shape if it was turned so."""
    orientation = nibabel.orientations.io_orientation(geometry.affine)  # patient axis and sign of each array axis
    turned = array.transpose([2 - int(axis) for axis in orientation[:, 0]])
    return np.flip(turned, axis=tuple(np.flatnonzero(orientation[:, 1] < 0).tolist()))


def _on_grid(array: NDArray[Any], geometry: GridGeometry, reference: GridGeometry, path: Path) -> NDArray[np.float32]:
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


def _check_that_probabilities_belong(
    files: CaseFiles, scheme: LabelScheme, prediction: NDArray[np.int16], probabilities: dict[str, NDArray[np.float32]]
) -> None:
    """Raise where nnU-Net would not have predicted tumour: axes are mixed up, or the files are of two models."""
    for label in scheme.tumors:
        path = files.probabilities.get(label.name)
        if path is None or not path.name.endswith(NPZ_ENDING):
            continue
        inside = probabilities[label.name][np.isin(prediction, label.values)]
        median = float(np.median(inside)) if len(inside) else 1.0
        if median < 1.0 / scheme.channels - _CHANCE_SLACK:
            raise GeometryMismatchError(
                f"{path} does not belong to {files.prediction}: half of the voxels that are '{label.name}' there have "
                f"a probability of {median:.3f} or less. Take both from one prediction."
            )
