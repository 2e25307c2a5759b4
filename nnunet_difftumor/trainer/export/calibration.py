"""A checkpoint whose network must be more certain of a tumour: another constant in its last layer, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nnunet_difftumor.errors import ModelExportError
from nnunet_difftumor.support.files.atomic_files import written_whole
from nnunet_difftumor.trainer.export.trained_model import load_checkpoint

CALIBRATED_CHECKPOINT = "checkpoint_calibrated.pth"
_PREDICTING_KEYS = ("trainer_name", "init_args", "inference_allowed_mirroring_axes")
_LAST_LAYERS = re.compile(r"(?:.*\.)?decoder\.seg_layers\.(\d+)\.bias")


def write_shifted(
    fold: Path, checkpoint: str, channels: Sequence[int], shift: float, *, of: int, overwrite: bool = False
) -> Path:
    """Write `checkpoint_calibrated.pth` beside a fold's checkpoint, with lower logits of some channels.

    The checkpoint is unpickled as nnU-Net does it, which runs code that a file may hold. Optimiser and curves are left
    out: the result predicts.

    Args:
        fold: Folder fold_K of a trained model.
        channels: Those of the tumours.
        shift: How much lower, in logits.
        of: Channels of the network.

    Returns:
        The file.

    Raises:
        ModelExportError: If the checkpoint is none of nnU-Net's, or its network ends otherwise than nnU-Net's do.
        OutputExistsError: If the file is there and is not to be replaced.
    """
    content = load_checkpoint(fold / checkpoint)
    weights: dict[str, torch.Tensor] = dict(content["network_weights"])
    found = {int(match[1]): name for name in weights if (match := _LAST_LAYERS.fullmatch(name))}
    name = found[max(found)] if found else ""
    if not found or weights[name].shape != (of,):
        ends = f"has the shape {tuple(weights[name].shape)}" if found else "is not there"
        raise ModelExportError(
            f"{fold / checkpoint}: the constants of the last layer (decoder.seg_layers) should be {of}, one a label, "
            f"but the layer {ends}. Networks that end otherwise than nnU-Net's own cannot be calibrated."
        )
    shifted = weights[name].clone()
    shifted[list(channels)] -= shift
    kept: dict[str, Any] = {key: content[key] for key in _PREDICTING_KEYS if key in content}
    path = fold / CALIBRATED_CHECKPOINT
    with written_whole(path, overwrite=overwrite) as temporary:
        torch.save({**kept, "network_weights": {**weights, name: shifted}}, temporary)
    return path
