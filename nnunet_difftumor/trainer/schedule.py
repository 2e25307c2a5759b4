"""What trainers with and without synthetic tumours share: their schedule, use of the CPU, and counts of samples."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed as dist

from autoencoder.engine import cpu_bfloat16
from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.settings.resolving import resolve_config
from nnunet_difftumor.settings.sources import ENVIRONMENT_VARIABLE, find_sources
from nnunet_difftumor.settings.trainer_settings import DiffTumorConfig
from nnunet_difftumor.trainer.sample_counts import write_samples_seen
from nnunet_difftumor.trainer.short_errors import short_errors

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as _Trainer
else:
    _Trainer = object

CPU_THREADS_VARIABLE = "nnUNet_difftumor_cpu_threads"
SCHEDULE_KEYS = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch")
STOCK_SCHEDULE = {"num_epochs": 1000, "num_iterations_per_epoch": 250, "num_val_iterations_per_epoch": 50}
"""What nnU-Net 2.8 trains for."""


class ScheduleMixin(_Trainer):
    """Gives a trainer of nnU-Net the epochs and iterations of the settings; everything else stays the trainer's.

    Only a file named by the environment variable nnUNet_difftumor is looked at, so that the settings beside the
    plans, which are meant for synthetic tumours, change nothing here.

    It counts the training samples of each case as batches name them, and leaves the batches as they are. At the end of
    each epoch the totals of all epochs, summed over all ranks, are in samples_seen.csv in the output folder.

    Attributes:
        trains_in_bfloat16: Whether forward pass and loss, and the prediction of validation cases, run under autocast
            to bfloat16 on a CPU, as nnU-Net runs them in float16 on a GPU. Weights, gradients and optimiser stay in
            float32.
    """

    trains_in_bfloat16: bool = False
    _samples: Counter[str] | None = None

    def initialize(self) -> None:
        """Apply the settings and take the requested number of threads, then initialise as nnU-Net does."""
        with short_errors(self.plans_manager.dataset_name, self.fold):
            require_device(self.device)
            config = None if self.was_initialized else self._schedule_settings()
        if config is not None:
            for key in SCHEDULE_KEYS:
                if getattr(config, key) is not None:
                    setattr(self, key, getattr(config, key))
            self.trains_in_bfloat16 = config.cpu_bfloat16
            if self.device.type == "cpu" and config.cpu_bfloat16 and not cpu_bfloat16.is_sound():
                self.trains_in_bfloat16 = False
                self.print_to_log_file(cpu_bfloat16.UNSOUND)
        limit_cpu_threads(self.device)
        super().initialize()

    def train_step(self, batch: dict) -> dict:
        """Count the samples of a batch, then train on it as nnU-Net does."""
        if self._samples is None:
            self._samples = Counter()
        self._samples.update(str(case) for case in batch.get("keys", ()))
        with self._autocast():
            return super().train_step(batch)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """End the epoch as nnU-Net does, and write the counts of samples."""
        super().on_train_epoch_end(train_outputs)
        counts, self._samples = sum(self._of_all_ranks(self._samples or Counter()), Counter()), None
        if self.local_rank == 0:
            write_samples_seen(Path(str(self.output_folder)), self.current_epoch, counts)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Prediction of the validation cases at the end of the training."""
        with self._autocast():
            super().perform_actual_validation(save_probabilities)

    def _schedule_settings(self) -> DiffTumorConfig | None:
        path = os.environ.get(ENVIRONMENT_VARIABLE)
        return resolve_config(self.dataset_json["labels"], find_sources(path, None, {})).config if path else None

    def _of_all_ranks(self, value: Any) -> list[Any]:
        if not self.is_ddp:
            return [value]
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, value)
        return gathered

    def _autocast(self) -> torch.autocast | nullcontext[None]:
        is_wanted = self.device.type == "cpu" and self.trains_in_bfloat16
        return torch.autocast("cpu", dtype=torch.bfloat16) if is_wanted else nullcontext()


def require_device(device: torch.device) -> None:
    """Refuse a GPU that is not there, which nnU-Net asks for where no device is named.

    Raises:
        ConfigurationError: If it is.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(
            "nnU-Net is to train on a GPU, and PyTorch finds none. For a first run without one plan a small network: "
            "difftumor small-plans -d ID, which prints the commands that come next (-device cpu). If this machine has "
            "a GPU, install the PyTorch build for its CUDA version."
        )


def limit_cpu_threads(device: torch.device) -> None:
    """Give PyTorch the number of threads that the environment names, for a training on the CPU.

    `nnUNetv2_train -device cpu` takes every core, whatever OMP_NUM_THREADS says. Two trainings on one machine then
    wait for one another's threads.

    Args:
        device: What the network trains on; anything but a CPU is left alone.

    Raises:
        ConfigurationError: If the variable nnUNet_difftumor_cpu_threads is no whole number of at least 1.
    """
    wanted = os.environ.get(CPU_THREADS_VARIABLE, "").strip()
    if device.type != "cpu" or not wanted:
        return
    if not (wanted.isascii() and wanted.isdecimal()) or int(wanted) < 1:
        raise ConfigurationError(
            f"{CPU_THREADS_VARIABLE} must be a whole number of threads, 1 or more; it is {wanted!r}. "
            f"Example: export {CPU_THREADS_VARIABLE}=1"
        )
    torch.set_num_threads(int(wanted))
