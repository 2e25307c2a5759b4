"""One case read from its files: reference, prediction and probabilities on the reference's grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_difftumor.ct.grid import GridGeometry, turn_onto_grid
from nnunet_difftumor.ct.reading import read_labels
from nnunet_difftumor.errors import DatasetError, DiffTumorError, GeometryMismatchError
from nnunet_difftumor.evaluation.scoring.probabilities import NPZ_ENDING, read_probabilities
from nnunet_difftumor.evaluation.scoring.scheme import LabelScheme

_MARGIN_VOXELS = 1
_CHANCE_SLACK = 0.01
_LARGEST_SHEAR_DEGREES = 1.0  # where distances between neighbours are wrong by less than 1%


class ShearedGridError(DiffTumorError):
    """The axes of a label map do not meet at right angles, so that a spacing gives no distances."""


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """Files of one case.

    Attributes:
        probabilities: File by tumour label (see `probabilities.find_probability_files`).
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
    probabilities = read_probabilities(files.probabilities, scheme, own_grid, grid)
    _check_that_probabilities_belong(files, scheme, prediction, probabilities)
    organ_mask = None
    if files.organ_mask is not None:
        organ_mask = _turned(*read_labels(files.organ_mask), files.organ_mask, grid, files.reference) > 0
    is_known = True if scheme.ignore is None else reference != scheme.ignore
    largest = {name: float(values.max(where=is_known, initial=0.0)) for name, values in probabilities.items()}
    box = box_of(reference, prediction, organ_mask, margin=_MARGIN_VOXELS)
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


def _check_that_probabilities_belong(
    files: CaseFiles,
    scheme: LabelScheme,
    prediction: NDArray[np.int16],
    probabilities: Mapping[str, NDArray[np.float32]],
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


def box_of(*maps: NDArray[Any] | None, margin: int = 0) -> tuple[slice, ...]:
    """Box of all that is not 0 in any of some maps, with a margin in voxels inside the array; one voxel without any."""
    is_something = np.logical_or.reduce([values != 0 for values in maps if values is not None])
    found = ndimage.find_objects(is_something.view(np.uint8))
    if not found:
        return (slice(0, 1),) * 3
    return tuple(slice(max(0, part.start - margin), part.stop + margin) for part in found[0])
