"""What a training run writes while it runs; at a resume it is cut back to the checkpoint."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard.writer import SummaryWriter

from autoencoder.engine.files import name_beside
from autoencoder.engine.settings import FitStep


class TrainingRecord(ExitStack):
    """`history.csv`, `heldout_history.csv` and `tensorboard/` of one run: a context manager for the main process only.

    After `steps_done`, the steps of the checkpoint that the run goes on from, entries are dropped. TensorBoard gets a
    scalar every so many steps.
    """

    def __init__(self, output_folder: Path, steps_done: int, tensorboard_every: int = 10) -> None:
        super().__init__()
        self._history = self.enter_context(closing(CsvHistory(output_folder / "history.csv", steps_done)))
        self._heldout = self.enter_context(closing(CsvHistory(output_folder / "heldout_history.csv", steps_done)))
        writer = SummaryWriter(str(output_folder / "tensorboard"), purge_step=steps_done + 1)
        self._tensorboard = self.enter_context(closing(writer))
        self._tensorboard_every = tensorboard_every

    def add_step(self, step: FitStep) -> None:
        """Record one training step; everything is on the disk before a checkpoint is written."""
        values = {**step.losses, "learning_rate": step.learning_rate, "gradient_norm": step.gradient_norm}
        self._history.add(step.index, values)
        if step.index % self._tensorboard_every == 0 or step.checkpoint_follows:
            self._add_scalars(step.index, "training", values)
        if step.checkpoint_follows:
            self._tensorboard.flush()

    def add_heldout(self, index: int, values: Mapping[str, float]) -> None:
        """Record measurements on held-out data after `index` steps, one row for each `index`."""
        self._heldout.add(index, values)
        self._add_scalars(index, "heldout", values)
        self._tensorboard.flush()

    def has_heldout(self, index: int) -> bool:
        """Say whether there are measurements on held-out data after `index` steps."""
        return index in self._heldout.steps

    def add_picture(self, index: int, name: str, picture: NDArray[np.float32]) -> None:
        """Record a grey picture with values in [0, 1]. Shape (height, width)."""
        self._tensorboard.add_image(name, picture, global_step=index, dataformats="HW")

    def _add_scalars(self, index: int, group: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._tensorboard.add_scalar(f"{group}/{name}", value, global_step=index)


class CsvHistory:
    """A table with one row per step; rows after `steps_done` are dropped from an old file. `steps` have a row."""

    def __init__(self, path: Path, steps_done: int) -> None:
        self._path = path
        self.steps: set[int] = set()
        self._columns = self._cut_back(steps_done) if path.exists() else None
        self._file = path.open("a", newline="", encoding="utf-8")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row and hand it to the operating system, so that a killed run keeps it."""
        row = {"step": step, **values}
        if self._columns is None:
            self._columns = list(row)
            csv.writer(self._file).writerow(self._columns)
        csv.DictWriter(self._file, self._columns).writerow(row)
        self._file.flush()
        self.steps.add(step)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _cut_back(self, steps_done: int) -> list[str] | None:
        with self._path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
        # A killed run can leave half a row behind, so a row must also be complete.
        kept = [row for row in rows if len(row) == len(header) and int(row[0]) <= steps_done]
        self.steps.update(int(row[0]) for row in kept)
        temporary = name_beside(self._path)
        with temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *kept] if header else [])
        os.replace(temporary, self._path)
        return header or None
