"""The folder of checkpoints of one training run; a checkpoint is complete or not there."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

_AVERAGED_WEIGHTS = "averaged_weights.safetensors"
_FOLDER_NAME = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True)
class CheckpointFolder:
    """Names, newest first and pruning of the checkpoints in one folder: `step_00000200` and so on."""

    root: Path

    def path_of(self, step: int) -> Path:
        """Folder of the checkpoint after this many steps."""
        return self.root / f"step_{step:08d}"

    def temporary_path_of(self, step: int) -> Path:
        """Where that checkpoint is written before it is complete."""
        return self.root / f".unfinished_step_{step:08d}"

    def steps(self) -> tuple[int, ...]:
        """Steps that have a complete checkpoint, ascending."""
        if not self.root.is_dir():
            return ()
        matches = (_FOLDER_NAME.fullmatch(path.name) for path in self.root.iterdir())
        return tuple(sorted(int(match[1]) for match in matches if match))

    def newest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None without any."""
        steps = self.steps()
        return steps[-1] if steps else None

    def clear(self, temporary: Path) -> None:
        """Make an empty temporary folder, removing what killed runs left behind."""
        self.root.mkdir(parents=True, exist_ok=True)
        for leftover in self.root.glob(".unfinished_step_*"):
            shutil.rmtree(leftover)
        temporary.mkdir()

    def publish(self, temporary: Path, target: Path, keep: int) -> None:
        """Give a complete checkpoint its name and remove all but the newest `keep`."""
        os.replace(temporary, target)
        for step in self.steps()[:-keep]:
            shutil.rmtree(self.path_of(step))


def save_averaged_weights(average: EMAModel, model: nn.Module, folder: Path) -> None:
    """Write the averaged weights, by parameter name, and how many updates they hold."""
    names = [name for name, _ in model.named_parameters()]
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in zip(names, average.shadow_params, strict=True)
    }
    metadata = {"optimization_step": str(average.optimization_step)}
    save_file(tensors, folder / _AVERAGED_WEIGHTS, metadata=metadata)


def load_averaged_weights(average: EMAModel, model: nn.Module, folder: Path) -> None:
    """Read back what `save_averaged_weights` wrote."""
    with safe_open(folder / _AVERAGED_WEIGHTS, framework="pt") as file, torch.no_grad():
        for (name, _), shadow in zip(model.named_parameters(), average.shadow_params, strict=True):
            shadow.copy_(file.get_tensor(name))
        average.optimization_step = int(file.metadata()["optimization_step"])
