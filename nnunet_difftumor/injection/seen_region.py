"""Which part of a raw crop nnU-Net's spatial transform will read, so that no tumour is made that nobody sees.

nnU-Net cuts a raw crop of up to four times the patch, so that it covers the patch however it is rotated and scaled;
two samples of three are neither, and show its middle alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert3DTo2DTransform

from nnunet_difftumor.ct.boxes import Box, as_box

_KERNEL_VOXELS = 2


def find_seen_region(transforms: BasicTransform | None, image: torch.Tensor) -> Box | None:
    """Find the box of a crop that its transforms will read; nnU-Net's random streams stay as they are.

    Args:
        image: The raw crop. Shape (1, D, H, W).

    Returns:
        The box; None where the transforms do not start with a spatial one of nnU-Net's kind: all may be read.
    """
    steps = list(transforms.transforms) if isinstance(transforms, ComposeTransforms) else [transforms]
    is_flat = isinstance(steps[0], Convert3DTo2DTransform)
    spatial = steps[1] if is_flat and len(steps) > 1 else steps[0]
    if type(spatial) is not SpatialTransform or spatial.p_elastic_deform > 0:
        return None
    shown = image[0] if is_flat else image
    with kept_random_state():
        drawn = spatial.get_parameters(image=shown)
    turned = np.eye(shown.ndim - 1) if drawn["affine"] is None else np.asarray(drawn["affine"])
    half = np.abs(turned) @ (np.asarray(spatial.patch_size) / 2.0)
    middle = np.asarray(drawn["center_location_in_pixels"])
    low, high = np.floor(middle - half) - _KERNEL_VOXELS, np.ceil(middle + half) + _KERNEL_VOXELS
    starts, stops = np.maximum(low, 0).astype(int), np.minimum(high, shown.shape[1:]).astype(int)
    if is_flat:
        starts, stops = np.insert(starts, 0, 0), np.insert(stops, 0, image.shape[1])
    return as_box(starts, stops)


@contextmanager
def kept_random_state(seed: int | None = None) -> Iterator[None]:
    """Give nnU-Net's global random streams back as they were; meanwhile numpy's starts from a seed, if there is one."""
    numpy_state, torch_state = np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 (nnU-Net's own stream)
    try:
        if seed is not None:
            np.random.seed(seed)  # noqa: NPY002
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
