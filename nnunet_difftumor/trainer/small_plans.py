"""Plans of nnU-Net with a small patch and network, for a first run without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_difftumor.cases.nnunet_folders import read_plans
from nnunet_difftumor.errors import ConfigurationError, OutputExistsError
from nnunet_difftumor.support.files.atomic_files import write_json

MOST_VOXELS = 32 * 64 * 64
"""Most voxels of the patch of a small network."""

_FEATURES, _MOST_FEATURES = 8, 64  # of the first stage, doubled in each further one; nnU-Net plans 32 to 320
_SMALLEST_MAP, _MOST_HALVINGS = 4, 3  # of an axis; nnU-Net plans maps of 4 voxels a side and more, and halves freely


@dataclass(frozen=True, kw_only=True)
class SmallNetwork:
    """Patch and network; sizes are (D, H, W) in the order of the plans."""

    patch_size: tuple[int, int, int]  # in voxels
    features: tuple[int, ...]  # channels of the network's stages
    strides: tuple[tuple[int, ...], ...]


def plan_small_network(spacing_mm: Sequence[float], median_shape: Sequence[float]) -> SmallNetwork:
    """Plan a network as nnU-Net does, within `MOST_VOXELS`.

    The patch is as near to a cube in mm as the median shape and the halvings of the network let it be.

    Args:
        spacing_mm: Of the configuration, as is the median shape in voxels. Shape (3,).
    """
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    spacing = np.asarray(spacing_mm, dtype=float)
    side_mm = np.cbrt(MOST_VOXELS * spacing.prod())
    wanted = np.maximum(np.minimum(side_mm / spacing, median_shape), 1).astype(int)
    _, strides, _, _, divisor = get_pool_and_conv_props(spacing, wanted, _SMALLEST_MAP, _MOST_HALVINGS)
    depth, height, width = (int(size) for size in wanted // divisor * divisor)
    features = tuple(min(_FEATURES * 2**stage, _MOST_FEATURES) for stage in range(len(strides)))
    return SmallNetwork(patch_size=(depth, height, width), features=features, strides=strides)


def write_small_plans(
    folder: Path,
    network: SmallNetwork | None = None,
    *,
    plans_name: str = "nnUNetPlans",
    configuration: str = "3d_fullres",
    name: str | None = None,
    overwrite: bool = False,
) -> tuple[Path, SmallNetwork]:
    """Copy plans of nnU-Net beside them with a small patch and network, two samples a batch, so that a CPU can train.

    Args:
        folder: The data set's folder in nnUNet_preprocessed; the copy holds the one configuration alone.
        network: What `plan_small_network` plans by default.
        name: Of the copy; by default that of the plans with "Small" at its end.

    Returns:
        The file, and what is in it.

    Raises:
        DatasetError: If there are no such plans, or they lack the configuration.
        ConfigurationError: If the configuration is 2D or a cascade, or the name is that of the plans.
        OutputExistsError: If the copy exists and `overwrite` is False.
    """
    name = name or f"{plans_name}Small"
    plans, _ = read_plans(folder, plans_name, configuration)
    path = folder / f"{name}.json"
    if name == plans_name or Path(name).name != name:
        raise ConfigurationError(
            f"-overwrite_plans_name must be a name of its own for the small plans, such as {plans_name}Small; got "
            f"{name!r}."
        )
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists already. Choose another -overwrite_plans_name, or add --overwrite.")
    content = _alone(plans, configuration)
    network = network or plan_small_network(content["spacing"], content["median_image_size_in_voxels"])
    content |= {
        "patch_size": network.patch_size,
        "batch_size": 2,
        "batch_dice": True,  # with two samples a batch, most samples have no tumour to take a Dice of
        "data_identifier": f"{name}_{configuration}",
    }
    _build(content["architecture"]["arch_kwargs"], network)
    plans |= {"plans_name": name, "configurations": {configuration: content}}
    write_json(path, plans, overwrite=overwrite)
    return path, network


def _alone(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """Content of a configuration that names no other one: what it inherits is in it, and the cascade is not."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    content = PlansManager(plans).get_configuration(configuration).configuration
    if len(content["patch_size"]) != 3 or "previous_stage" in content:
        raise ConfigurationError(
            f"{configuration} is 2D or a cascade; tumours are made in 3D. Name 3d_fullres or 3d_lowres (-c)."
        )
    return {key: value for key, value in content.items() if key not in ("inherits_from", "next_stage")}


def _build(arch_kwargs: dict[str, Any], network: SmallNetwork) -> None:
    """Change the arguments of nnU-Net's U-Net, plain or with residual blocks, to those of a small one."""
    stages = len(network.features)
    depth = ("n_blocks_per_stage", 1) if "n_blocks_per_stage" in arch_kwargs else ("n_conv_per_stage", 2)
    arch_kwargs |= {
        "n_stages": stages,
        "features_per_stage": network.features,
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": network.strides,
        depth[0]: [depth[1]] * stages,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
    }
