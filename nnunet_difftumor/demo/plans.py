"""A copy of nnU-Net's plans with a small patch and network, so that a CPU can train it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nnunet_difftumor.demo.settings import DemoSettings
from nnunet_difftumor.support.files.atomic_files import write_json


def write_small_plans(folder: Path, plans_name: str, configuration: str, settings: DemoSettings) -> Path:
    """Copy nnUNetPlans.json under another name with a small patch and network.

    Args:
        folder: The data set's folder in nnUNet_preprocessed.
        configuration: Configuration to make small; the copy holds no other.
    """
    plans = json.loads((folder / "nnUNetPlans.json").read_text(encoding="utf-8"))
    small = plans["configurations"][configuration]
    small["patch_size"] = list(settings.patch_size)
    small["batch_size"] = 2
    small["batch_dice"] = True  # with two samples a batch, most samples have no tumour to take a Dice of
    small["data_identifier"] = f"{plans_name}_{configuration}"
    small["architecture"]["arch_kwargs"] |= _architecture(settings)
    plans["plans_name"] = plans_name
    plans["configurations"] = {configuration: small}
    path = folder / f"{plans_name}.json"
    write_json(path, plans, overwrite=True)
    return path


def _architecture(settings: DemoSettings) -> dict[str, Any]:
    stages = len(settings.features)
    return {
        "n_stages": stages,
        "features_per_stage": list(settings.features),
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [list(stride) for stride in settings.strides],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
    }
