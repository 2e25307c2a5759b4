"""What part of nnU-Net's raw crop reaches the network, and where a crop must start to show a voxel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.placement import Box

Vector = Sequence[int] | NDArray[np.integer]

_SMALLEST_SCALE = 0.7  # nnU-Net's SpatialTransform scales by 0.7 to 1.4; below 1 the patch shows less of the crop
_JITTER_SHARE = 0.8


@dataclass(frozen=True)
class PatchGeometry:
    """What part of a raw crop reaches the network.

    nnU-Net's spatial transform cuts the final patch out of the crop's centre, scaled and rotated about it.

    Attributes:
        crop_size: Size of the raw crop in voxels. (D, H, W).
        final_size: Size of the final patch in voxels. (D, H, W).
        in_plane_only: Rotation and scaling leave axis 0 alone (nnU-Net's dummy 2D augmentation).
    """

    crop_size: tuple[int, int, int]
    final_size: tuple[int, int, int]
    in_plane_only: bool

    @property
    def safe_reach(self) -> NDArray[np.float64]:
        """Distance from the centre, by axis, within which a voxel is seen under every rotation and scale."""
        final = np.asarray(self.final_size, dtype=np.float64)
        if self.in_plane_only:
            in_plane = 0.5 * _SMALLEST_SCALE * float(final[1:].min())
            reach = np.array([0.5 * final[0], in_plane, in_plane])
        else:
            reach = np.full(3, 0.5 * _SMALLEST_SCALE * float(final.min()))
        return np.maximum(reach - 1.0, 0.0)

    @property
    def region(self) -> Box:
        """Box of the crop around the centre that reaches the network (its corners almost always)."""
        low, high = self._centre - np.floor(self.safe_reach), self._centre + np.floor(self.safe_reach) + 1
        starts, stops = np.maximum(low, 0).astype(int), np.minimum(high, self.crop_size).astype(int)
        return tuple(slice(int(start), int(stop)) for start, stop in zip(starts, stops, strict=True))  # type: ignore[return-value]

    def draw_crop_start(
        self, voxel: Vector, lowest: Vector, highest: Vector, rng: np.random.Generator
    ) -> tuple[int, int, int]:
        """Draw where a crop starts that shows a voxel off its centre by a random offset.

        The crop stays in the range that nnU-Net draws from wherever the voxel is still sure to be seen.

        Args:
            voxel: The voxel, in the preprocessed case.
            lowest: Smallest start that nnU-Net would draw.
            highest: Largest start that nnU-Net would draw.
            rng: Random generator.

        Returns:
            Corner of the crop in the case; may be negative.
        """
        centred = np.asarray(voxel) - self._centre
        offset = _draw_in_unit_ball(rng, self.in_plane_only) * self.safe_reach * _JITTER_SHARE
        offset = centred - np.clip(centred - offset, lowest, np.maximum(lowest, highest))
        start = centred - np.trunc(self._limit(offset)).astype(int)
        return int(start[0]), int(start[1]), int(start[2])

    @property
    def _centre(self) -> NDArray[np.int64]:
        return np.asarray(self.crop_size) // 2

    def _limit(self, offset: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pull an offset back to where it is seen under every rotation and scale."""
        share = offset / np.maximum(self.safe_reach, 1e-9)
        if self.in_plane_only:
            share[0] = np.clip(share[0], -1.0, 1.0)
            share[1:] /= max(1.0, float(np.linalg.norm(share[1:])))
        else:
            share /= max(1.0, float(np.linalg.norm(share)))
        return share * self.safe_reach


def _draw_in_unit_ball(rng: np.random.Generator, in_plane_only: bool) -> NDArray[np.float64]:
    """Draw a point of the unit ball, or of the unit cylinder along axis 0. Shape (3,)."""
    free = 2 if in_plane_only else 3
    direction = rng.normal(size=free)
    point = direction / max(float(np.linalg.norm(direction)), 1e-9) * rng.random() ** (1.0 / free)
    return np.concatenate([rng.uniform(-1.0, 1.0, size=1), point]) if in_plane_only else point
