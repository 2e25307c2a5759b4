"""Epochs and iterations from the settings, for trainers with and without synthetic tumours."""

from __future__ import annotations

import os
from typing import Any

from nnunet_difftumor.settings.resolving import resolve_config
from nnunet_difftumor.settings.sources import ENVIRONMENT_VARIABLE, find_sources
from nnunet_difftumor.settings.trainer_settings import DiffTumorConfig
from nnunet_difftumor.trainer.cpu_training import CpuTrainingMixin

SCHEDULE_KEYS = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch")
STOCK_SCHEDULE = {"num_epochs": 1000, "num_iterations_per_epoch": 250, "num_val_iterations_per_epoch": 50}
"""What nnU-Net 2.8 trains for."""


def set_schedule(trainer: Any, config: DiffTumorConfig | None) -> None:
    """Set a trainer's epochs, iterations and precision; what the settings leave open stays the trainer's."""
    if config is None:
        return
    for key in SCHEDULE_KEYS:
        if getattr(config, key) is not None:
            setattr(trainer, key, getattr(config, key))
    trainer.trains_in_bfloat16 = config.cpu_bfloat16


class ScheduleMixin(CpuTrainingMixin):
    """Gives a trainer of nnU-Net the epochs and iterations of the settings; everything else stays the trainer's.

    Only a file named by the environment variable nnUNet_difftumor is looked at, so that the settings beside the
    plans, which are meant for synthetic tumours, change nothing here.
    """

    def initialize(self) -> None:
        """Apply the schedule from the settings, then initialise as nnU-Net does."""
        path = os.environ.get(ENVIRONMENT_VARIABLE)
        if not self.was_initialized and path:
            dataset_json: Any = self.dataset_json
            source = find_sources(path, None, {})[0]
            set_schedule(self, resolve_config(dataset_json["labels"], [source]).config)
        super().initialize()
