"""Where the voxels of an array lie in the patient."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.errors import DiffTumorError, GeometryMismatchError

MOST_VOXELS = 2**30
"""A grid of more voxels is a wrong header or number: it is four times the largest CT, and 4 GB as float32."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
REVERSED_AXES = np.eye(4)[[2, 1, 0, 3]]
"""Takes a voxel index (d, h, w, 1) to (i, j, k, 1), and back."""

_LARGEST_CORNER_SHIFT_VOXELS = 0.1


@dataclass(frozen=True, eq=False)
class GridGeometry:
    """Where the voxels of an array lie in the patient.

    Attributes:
        shape: (D, H, W).
        affine: Takes a voxel index (d, h, w, 1) to a position in mm, right-anterior-superior axes. Shape (4, 4).
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels in mm, (D, H, W)."""
        depth, height, width = voxel_sizes(self.affine).tolist()
        return depth, height, width

    def describe(self) -> str:
        """Return one line with shape, spacing, position of the first voxel and axis directions."""
        spacing = ", ".join(f"{value:.4g}" for value in self.spacing_mm)
        origin = ", ".join(f"{value:.2f}" for value in self.affine[:3, 3])
        axes = "".join(str(code) for code in nibabel.aff2axcodes(self.affine))
        return f"shape {self.shape}, spacing ({spacing}) mm, origin ({origin}) mm, axes {axes}"


def require_bounded(shape: Iterable[int], what: object) -> None:
    """Refuse the grid of a file or of something else, `what` in the message, before it is allocated.

    Raises:
        DiffTumorError: If it has more than 2^30 voxels.
    """
    sizes = tuple(map(int, shape))
    if math.prod(sizes) > MOST_VOXELS:
        raise DiffTumorError(
            f"{what} would take a grid of {' x '.join(map(str, sizes))} voxels, more than 2^30. Check its "
            "header: sizes, and voxel spacing in mm."
        )


def voxel_sizes(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance between neighbouring voxels along each axis of an affine (4, 4)."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def turn_onto_grid(array: NDArray[Any], geometry: GridGeometry, target: GridGeometry, mismatch: str) -> NDArray[Any]:
    """Undo axis flips and permutations between two descriptions of the same physical grid. Nothing is resampled.

    Args:
        array: Values on `geometry`. Shape (D, H, W).
        mismatch: What the error says.

    Raises:
        GeometryMismatchError: If the two physical grids differ by more than 0.1 voxel at a corner.
    """
    to_source = np.linalg.solve(geometry.affine, target.affine)  # target index -> source index
    turn = np.rint(to_source[:3, :3])
    if not all((np.abs(turn).sum(axis=axis) == 1).all() for axis in (0, 1)):
        raise GeometryMismatchError(mismatch)
    source_axes = np.abs(turn).argmax(axis=0)  # source axis of each target axis
    signs = turn[source_axes, [0, 1, 2]]
    if tuple(array.shape[axis] for axis in source_axes) != target.shape:
        raise GeometryMismatchError(mismatch)
    shift = np.zeros(3)
    shift[source_axes] = np.where(signs < 0, np.array(target.shape) - 1, 0)
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in target.shape], indexing="ij")).reshape(3, -1)
    actual = to_source[:3, :3] @ corners + to_source[:3, 3:]
    if np.abs(actual - (turn @ corners + shift[:, None])).max() > _LARGEST_CORNER_SHIFT_VOXELS:
        raise GeometryMismatchError(mismatch)
    turned = array.transpose(source_axes)
    return np.ascontiguousarray(np.flip(turned, axis=tuple(np.flatnonzero(signs < 0).tolist())))
