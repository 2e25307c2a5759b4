"""Exact drawing of a tumour's label and of the share of its tissue on any grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from nnunet_difftumor.ct.boxes import as_box
from nnunet_difftumor.ct.components import equivalent_diameter_mm
from nnunet_difftumor.ct.grid import require_bounded
from nnunet_difftumor.ct.resample import Vector, average_onto, resample
from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.tumor.appearance import Appearance
from nnunet_difftumor.tumor.edge import draw_edge
from nnunet_difftumor.tumor.rim import signed_distance_mm
from nnunet_difftumor.tumor.spec import TumorSpec
from nnunet_difftumor.tumor.surface import TumorSurface

if TYPE_CHECKING:
    from diffusion.generator.info import EdgeStatistics

_EXACT_DRAWING_VOXELS = 120_000
_SMALLEST_WEIGHT = np.float32(1e-3)
_SMALLEST_MARGIN_MM = 2.0
_NEAR_VOXELS = 1.5  # from the surface, where its distance is right to first order

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class DrawnTumor:
    """A tumour drawn on a grid, before anything is clipped.

    Attributes:
        start: Voxel index of the box's corner in the grid, may be negative. (D, H, W).
        label: True where the voxel belongs to the tumour: what a reader would outline. Shape of the box.
        weight: Share of tumour tissue in the voxel, 0 beyond the visible edge (see `Edge`). Shape of the box.
        distance_mm: Mean signed distance of the voxel to the outline in mm. Shape of the box.
    """

    start: tuple[int, int, int]
    label: NDArray[np.bool_]
    weight: NDArray[np.float32]
    distance_mm: NDArray[np.float32]

    @classmethod
    def of(cls, start: NDArray[np.int64], label: NDArray[np.bool_], weight: FloatArray, distance: FloatArray) -> Self:
        """Make a drawing that leaves out weights next to 0."""
        depth, height, width = start.tolist()
        return cls((depth, height, width), label, np.where(weight < _SMALLEST_WEIGHT, 0.0, weight), distance)


def draw_on_grid(surface: TumorSurface, spacing_mm: Vector) -> DrawnTumor:
    """Draw label and blending weight of a tumour on a grid that starts at 0 mm and has no end.

    The label is the set of voxels with the largest share of tumour whose joint volume is nearest to the
    tumour's own, so that the volume is right at any spacing. The weight follows the tumour's edge and is averaged
    over the voxel, as a thick slice averages a lesion; the edge's width is that in the plane of the finest voxels.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    edge = surface.spec.edge
    centre = np.asarray(surface.spec.centre_mm)
    reach_mm = surface.half_extent_mm + max(0.0, edge.outer_mm) + 0.5 * spacing
    start = np.floor((centre - reach_mm) / spacing).astype(int)
    stop = np.ceil((centre + reach_mm) / spacing).astype(int) + 1
    shape = stop - start
    require_bounded(shape, f"A tumour of {surface.spec.radius_mm:g} mm radius on voxels of {spacing.tolist()} mm")
    fine_shape, fine_spacing, fine_start = _fine_grid(surface, shape, spacing, start * spacing)
    distance_mm = surface.signed_distance_on_grid(fine_shape, fine_spacing, fine_start)
    if max(edge.outer_mm, edge.outer_mm - 2.0 * edge.offset_mm) > _NEAR_VOXELS * fine_spacing.max():
        distance_mm = from_surface(distance_mm, fine_spacing)
    offset_mm = start * spacing - fine_start
    ramp = np.clip(0.5 - distance_mm / float(fine_spacing.min()), 0.0, 1.0).astype(np.float32)
    share = average_onto(ramp, fine_spacing, shape, spacing, offset_mm)
    mean_distance_mm = average_onto(distance_mm, fine_spacing, shape, spacing, offset_mm)
    share_of_tissue = edge.within_voxels(float(spacing.min()), float(fine_spacing.min())).share(distance_mm)
    weight = average_onto(share_of_tissue, fine_spacing, shape, spacing, offset_mm)
    count = max(1, round(surface.volume_mm3 / float(np.prod(spacing))))
    return DrawnTumor.of(start, _largest(share, mean_distance_mm, count), weight, mean_distance_mm)


def from_surface(distance_mm: FloatArray, spacing_mm: Vector) -> FloatArray:
    """Make distances that are right next to a surface right farther away too, by the nearest voxel beyond it.

    Shape (D, H, W); negative inside, with voxels of both kinds.
    """
    inside = distance_mm <= 0.0
    result = distance_mm.copy()
    for part, sign in ((inside, -1.0), (~inside, 1.0)):
        far = part & (np.abs(distance_mm) > _NEAR_VOXELS * max(spacing_mm))
        found: Any = distance_transform_edt(part, sampling=spacing_mm, return_indices=True)
        to_voxel_mm, nearest = found
        beyond_mm = np.abs(distance_mm[tuple(nearest[:, far])])
        result[far] = np.float32(sign) * np.maximum(to_voxel_mm[far] - beyond_mm, 0.0)
    return result


def _fine_grid(
    surface: TumorSurface, shape: NDArray[np.int64], spacing: NDArray[np.float64], start_mm: NDArray[np.float64]
) -> tuple[tuple[int, int, int], NDArray[np.float64], NDArray[np.float64]]:
    """Grid on which the distance is evaluated: fine against the tumour, bounded in number."""
    extent_mm, radius_mm = shape * spacing, surface.spec.radius_mm
    bounded = (np.prod(extent_mm) / _EXACT_DRAWING_VOXELS) ** (1.0 / 3.0)
    fine = np.maximum(np.minimum(spacing, radius_mm / 6.0), min(bounded, radius_mm / 4.0))
    counts = np.ceil(extent_mm / fine).astype(int) + 1
    return (int(counts[0]), int(counts[1]), int(counts[2])), fine, start_mm - 0.5 * spacing


def _largest(share: NDArray[np.float32], distance_mm: NDArray[np.float32], count: int) -> NDArray[np.bool_]:
    """Mask of the `count` voxels with the largest share; the mean distance breaks ties."""
    mask = (share >= 0.999).ravel()
    missing = count - int(mask.sum())
    if missing < 0:
        mask[:] = False
        missing = count
    candidates = np.flatnonzero((share.ravel() > 0.0) & ~mask)
    order = np.lexsort((distance_mm.ravel()[candidates], -share.ravel()[candidates]))
    mask[candidates[order[:missing]]] = True
    return mask.reshape(share.shape)


class MaskSurface:
    """Surface of a tumour that a person drew as a mask; the mask is used as it is."""

    def __init__(
        self,
        mask: NDArray[np.bool_],
        spacing_mm: Vector,
        seed: int,
        appearance: Appearance | None = None,
        edges: Sequence[EdgeStatistics] = (),
    ) -> None:
        """Measure a mask, True inside the tumour, of shape (D, H, W).

        The seed is that of the generator's noise and of the edge, drawn from `edges` (see `draw_edge`). Without a
        look, the generator chooses it.

        Raises:
            DiffTumorError: If the mask is empty.
        """
        appearance = appearance or Appearance()
        voxels = np.argwhere(mask)
        if len(voxels) == 0:
            raise DiffTumorError("The tumour mask has no voxel. Draw at least one voxel in the organ.")
        spacing = np.asarray(spacing_mm, dtype=np.float64)
        low, high = voxels.min(axis=0) * spacing, voxels.max(axis=0) * spacing
        self.half_extent_mm = 0.5 * (high - low + spacing)
        volume_mm3 = len(voxels) * float(np.prod(spacing))
        radius_mm = 0.5 * equivalent_diameter_mm(volume_mm3)
        edge = draw_edge(edges, radius_mm, np.random.default_rng(seed))
        self.spec = TumorSpec(
            centre_mm=(0.0, 0.0, 0.0),
            radius_mm=radius_mm,
            edge_offset_mm=edge.offset_mm,
            edge_width_mm=edge.width_mm,
            seed=seed,
            contrast_hu=appearance.contrast_hu,
            heterogeneity_hu=appearance.heterogeneity_hu,
            size_class="mask",
        ).moved_to(0.5 * (low + high))
        margin = np.ceil(max(_SMALLEST_MARGIN_MM, edge.outer_mm) / spacing).astype(int) + 2
        self._start = voxels.min(axis=0) - margin
        self._spacing_mm = spacing
        tumor = mask[as_box(voxels.min(axis=0), voxels.max(axis=0) + 1)]
        self._label = np.pad(tumor, [(reach, reach) for reach in margin.tolist()])
        self._distance_mm = signed_distance_mm(self._label, spacing.tolist())

    def signed_distance_on_grid(
        self, shape: Sequence[int], spacing_mm: Vector, start_mm: Vector
    ) -> NDArray[np.float32]:
        """Signed distance at the voxel centres of a grid (see `TumorSurface.signed_distance_on_grid`)."""
        offset_mm = np.asarray(start_mm) - self._start * self._spacing_mm
        far_mm = float(self._distance_mm.max())
        return resample(self._distance_mm, self._spacing_mm, shape, spacing_mm, offset_mm, fill_value=far_mm)

    def draw(self) -> DrawnTumor:
        """Return the mask with the share of tumour tissue, on the grid of the mask."""
        return DrawnTumor.of(self._start, self._label, self.spec.edge.share(self._distance_mm), self._distance_mm)
