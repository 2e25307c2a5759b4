"""What synthetic tumours cannot be made for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nnunet_difftumor.errors import ConfigurationError

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager


def refuse_unsupported_plans(name: str, configuration: ConfigurationManager, dataset_json: Mapping[str, Any]) -> None:
    """Raise for what synthetic tumours cannot be made for, with what to use instead.

    Raises:
        ConfigurationError: For 2D, cascades, several channels, or images that are not normalised as CT.
    """
    channels = dataset_json.get("channel_names", dataset_json.get("modality", {}))
    schemes = list(configuration.normalization_schemes)
    refusal = None
    if len(configuration.patch_size) != 3:
        refusal = f"the 2D configuration '{name}'. Tumours are made in 3D: train 3d_fullres (or 3d_lowres)."
    elif configuration.previous_stage_name is not None:
        refusal = (
            f"the cascade configuration '{name}'. The previous stage's predictions do not know the synthetic tumours: "
            "train 3d_fullres or 3d_lowres."
        )
    elif len(channels) != 1:
        names = ", ".join(map(str, channels.values()))
        refusal = f"{len(channels)} input channels ({names}). Make a data set with the CT alone."
    elif schemes != ["CTNormalization"]:
        refusal = (
            f"images normalised by {', '.join(schemes)}. CTNormalization is needed to know HU: set "
            '"channel_names": {"0": "CT"} in dataset.json and run nnUNetv2_plan_and_preprocess again.'
        )
    if refusal is not None:
        raise ConfigurationError(f"nnUNetTrainerDiffTumor does not train with {refusal}")
