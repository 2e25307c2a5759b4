"""MONAI's U-Net and Swin UNETR as networks of nnU-Net, padded inside to sizes that they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from math import prod
from typing import Any

from torch import Tensor, nn

from nnunet_difftumor.errors import ConfigurationError

_OLDEST_MONAI = (1, 5)  # before, SwinUNETR asked for the size of the image


@dataclass(frozen=True)
class Backbone:
    """A network of MONAI, and what it asks of a patch.

    Attributes:
        multiple: Every side of its input is a multiple of this, in voxels.
        class_name: Its class in monai.networks.nets.
        options: Keywords of the class but the channels.
    """

    name: str
    multiple: int
    class_name: str
    options: Mapping[str, Any]

    def build(self, patch_size: Sequence[int], input_channels: int, output_channels: int) -> PaddedNetwork:
        """Build the network, untrained; it takes any size and returns logits of the same size.

        Raises:
            ConfigurationError: If the network cannot take nnU-Net's patch (see `padded_size`).
            ImportError: If MONAI is missing or too old.
        """
        self.padded_size(patch_size)  # refuses before MONAI is asked for
        make = getattr(_monai_networks(self.name), self.class_name)
        network = make(spatial_dims=3, in_channels=input_channels, out_channels=output_channels, **self.options)
        return PaddedNetwork(network, self.multiple)

    def padded_size(self, patch_size: Sequence[int]) -> tuple[int, ...]:
        """Return the size to which a patch is padded inside the network: the next larger multiples.

        Args:
            patch_size: nnU-Net's patch in voxels. (D, H, W).

        Raises:
            ConfigurationError: If the patch is 2D or so small that nothing is left of it at the deepest level.
        """
        if len(patch_size) != 3:
            raise ConfigurationError(
                f"The {self.name} of this package is a 3D network and does not take the 2D patch "
                f"{format_size(patch_size)}. Train 3d_fullres or 3d_lowres."
            )
        padded = tuple(side + -side % self.multiple for side in patch_size)
        if prod(padded) <= self.multiple**3:  # instance normalisation needs more than one voxel at the deepest level
            raise ConfigurationError(
                f"The patch {format_size(patch_size)} is too small for the {self.name}: one side at least must be "
                f'longer than {self.multiple} voxels. Enlarge "patch_size" of the configuration in the plans file (no '
                "new preprocessing is needed), or plan for more memory: "
                "nnUNetv2_plan_experiment -d DATASET -gpu_memory_target 16 -overwrite_plans_name nnUNetPlans_16GB."
            )
        return padded


class PaddedNetwork(nn.Module):
    """Pads an image to multiples that a network takes, and cuts its output back to the image.

    The border is filled with zeros, as nnU-Net fills patches that reach beyond a scan. The network inside returns one
    output of the size of its input, whose sides are multiples of `multiple` voxels.
    """

    def __init__(self, network: nn.Module, multiple: int) -> None:
        super().__init__()
        self.network = network
        self.multiple = multiple

    def forward(self, image: Tensor) -> Tensor:
        """Return the network's logits, shape (B, K, D, H, W), for an image of any size, shape (B, C, D, H, W)."""
        missing = [-side % self.multiple for side in image.shape[2:]]
        before = [side // 2 for side in missing]
        # torch pads the last axis first
        padding = [width for low, all_ in zip(before[::-1], missing[::-1], strict=True) for width in (low, all_ - low)]
        output = self.network(nn.functional.pad(image, padding))  # (B, K, D', H', W')
        for axis, (low, side) in enumerate(zip(before, image.shape[2:], strict=True), start=2):
            output = output.narrow(axis, low, side)
        return output


UNET = Backbone("U-Net", 16, "UNet", {"channels": (16, 32, 64, 128, 256), "strides": (2, 2, 2, 2), "num_res_units": 2})
"""MONAI's residual U-Net with five levels and the widths of MONAI's tutorials.

Source: Kerfoot et al., "Left-Ventricle Quantification Using Residual U-Net", STACOM 2018."""

SWIN_UNETR = Backbone("Swin UNETR", 32, "SwinUNETR", {"feature_size": 48, "use_v2": True})
"""Swin UNETR, version 2, of the base size.

Source: Hatamizadeh et al., "Swin UNETR", BrainLes 2021; He et al., "SwinUNETR-V2", MICCAI 2023."""


def format_size(size: Sequence[int]) -> str:
    """Write a size as 40 x 224 x 224."""
    return " x ".join(str(side) for side in size)


def _monai_networks(name: str) -> Any:
    oldest = ".".join(map(str, _OLDEST_MONAI))
    asked = f"The {name} comes from MONAI {oldest} or later, %s: pip install 'nnunet-difftumor[backbones]'."
    try:
        found = version("monai")
        networks = import_module("monai.networks.nets")
    except (PackageNotFoundError, ImportError) as error:
        raise ImportError(asked % "which is not installed") from error
    if tuple(int(part) for part in found.split(".")[:2]) < _OLDEST_MONAI:
        raise ImportError(asked % f"and {found} is installed")
    return networks
