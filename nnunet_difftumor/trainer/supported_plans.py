"""Which of nnU-Net's configurations the trainer takes; the others are refused by name, with what to use instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_difftumor.errors import ConfigurationError

_SUPPORTED_NORMALISATION = "CTNormalization"


def refuse_unsupported_plans(name: str, configuration: ConfigurationManager, dataset_json: Mapping[str, Any]) -> None:
    """Raise for what synthetic tumours cannot be made for.

    Raises:
        ConfigurationError: For 2D, cascades, several channels, or images that are not normalised as CT.
    """
    channels = dataset_json.get("channel_names", dataset_json.get("modality", {}))
    schemes = list(configuration.normalization_schemes)
    if len(configuration.patch_size) != 3:
        _refuse(f"the 2D configuration '{name}'", "Tumours are made in 3D: train 3d_fullres (or 3d_lowres).")
    if configuration.previous_stage_name is not None:
        _refuse(
            f"the cascade configuration '{name}'",
            "The previous stage's predictions do not know the synthetic tumours: train 3d_fullres or 3d_lowres.",
        )
    if len(channels) != 1:
        _refuse(
            f"{len(channels)} input channels ({', '.join(map(str, channels.values()))})",
            "Make a data set with the CT alone.",
        )
    if schemes != [_SUPPORTED_NORMALISATION]:
        _refuse(
            f"images normalised by {', '.join(schemes)}",
            f'{_SUPPORTED_NORMALISATION} is needed to know HU: set "channel_names": {{"0": "CT"}} in dataset.json '
            "and run nnUNetv2_plan_and_preprocess again.",
        )


def _refuse(what: str, instead: str) -> None:
    raise ConfigurationError(f"nnUNetTrainerDiffTumor does not train with {what}. {instead}")
