"""The injection as the first transform of a training sample: it makes the tumours that the network will see.

nnU-Net cuts a raw crop of up to four times the patch, so that it covers the patch however it is rotated and scaled;
two samples of three are neither, and show its middle alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert3DTo2DTransform

from nnunet_difftumor.ct.boxes import Box, as_box
from nnunet_difftumor.injection.injector import TumorInjector
from nnunet_difftumor.injection.log import SamplePicture, take_picture
from nnunet_difftumor.injection.records import CaseTumors, InjectedCrop, SampleDraw

_PICTURES_PER_WORKER = 4
_KERNEL_VOXELS = 2


@dataclass
class WorkerState:
    """What the loader, its data set and its first transform share within one worker.

    Attributes:
        case: Identifier of the case that was loaded last.
        image: Its image as nnU-Net stores it, until its crop is chosen. Shape (C, D, H, W).
        labels: Its labels. Shape (1, D, H, W).
        draws: Draws of samples whose transforms are still to run.
        outcomes: Draws and injected crops of the batch in the making.
        pictures: Pictures that were not handed over yet.
    """

    case: str = ""
    image: Any = None
    labels: Any = None
    draws: deque[SampleDraw] = field(default_factory=deque)
    outcomes: list[tuple[SampleDraw, InjectedCrop | None]] = field(default_factory=list)
    pictures: list[SamplePicture] = field(default_factory=list)
    pictures_left: int = _PICTURES_PER_WORKER


class InjectTumors(BasicTransform):
    """Makes the tumours that reach what the network will see of a crop."""

    def __init__(
        self,
        injectors: Sequence[TumorInjector],
        state: WorkerState,
        following: BasicTransform | None,
        *,
        is_control: bool = False,
    ) -> None:
        """Create the transform.

        Args:
            injectors: One for each target.
            following: nnU-Net's transforms, which read a part of the crop alone.
            is_control: Nothing is put in: the crop stays as it is.
        """
        super().__init__()
        self._injectors = tuple(injectors)
        self._state = state
        self.following = following
        self._is_control = is_control

    def apply(self, data_dict: dict, **params: Any) -> dict:
        """Inject tumours into the sample if that was drawn; otherwise return it untouched."""
        draw, crop = self._state.draws.popleft(), None
        is_sham = not draw.shams.is_empty
        drawn = CaseTumors() if self._is_control else draw.shams if is_sham else draw.in_crop
        tumors = self._seen(drawn, draw.target, data_dict["image"])
        if not tumors.is_empty:
            injector = self._injectors[draw.target]
            image, labels = data_dict["image"][0].numpy(), data_dict["segmentation"][0].numpy()
            if is_sham:
                crop = injector.put_shams(image, labels, tumors.specs)
            else:
                crop = injector.inject(image, labels, tumors)
            if crop.record is not None:
                if not is_sham and self._state.pictures_left > 0:
                    self._state.pictures_left -= 1
                    self._state.pictures.append(take_picture(injector.rules, image, crop))
                data_dict["image"] = torch.from_numpy(crop.image[None])
                data_dict["segmentation"] = torch.from_numpy(crop.labels[None])
        self._state.outcomes.append((draw, crop))
        return data_dict

    def _seen(self, tumors: CaseTumors, target: int, image: torch.Tensor) -> CaseTumors:
        region = None if tumors.is_empty else find_seen_region(self.following, image)
        return tumors if region is None else tumors.reaching(region, self._injectors[target].rules.spacing_mm)


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
