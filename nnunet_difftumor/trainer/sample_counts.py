"""How many training samples a training has seen of each case, in its output folder."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import distributed as dist

from nnunet_difftumor.support.files.atomic_files import written_whole

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    _Trainer = nnUNetTrainer
else:
    _Trainer = object

SAMPLES_FILE_NAME = "samples_seen.csv"
EPOCHS_FILE_NAME = "samples_seen_by_epoch.jsonl"


class SampleCountMixin(_Trainer):
    """Lets a trainer of nnU-Net count its training samples by the cases that its batches name.

    Batches are looked at and left as they are. At the end of each epoch the totals of all epochs, summed over all
    ranks, are in samples_seen.csv in the output folder.
    """

    _samples: Counter[str] | None = None
    _sample_log: SampleLog | None = None

    def train_step(self, batch: dict) -> dict:
        """Count the samples of a batch, then train on it as nnU-Net does."""
        if self._samples is None:
            self._samples = Counter()
        self._samples.update(str(case) for case in batch.get("keys", ()))
        return super().train_step(batch)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """End the epoch as nnU-Net does, and write the counts."""
        super().on_train_epoch_end(train_outputs)
        counts, self._samples = self._samples or Counter(), None
        if self.is_ddp:
            of_ranks: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(of_ranks, counts)
            counts = sum(of_ranks, Counter())
        if self.local_rank == 0 and self.output_folder is not None:
            if self._sample_log is None:
                self._sample_log = SampleLog(Path(self.output_folder), first_epoch=self.current_epoch)
            self._sample_log.write_epoch(self.current_epoch, counts)


class SampleLog:
    """Keeps the counts of each epoch and their totals in a training's output folder.

    An epoch is counted once: a training that continues from a checkpoint drops what was counted after it.
    """

    def __init__(self, output_folder: Path, *, first_epoch: int) -> None:
        """Open the log; nothing is written before an epoch is.

        Args:
            output_folder: The training's output folder.
            first_epoch: Epoch that this training starts or continues at.
        """
        self._folder = output_folder
        self._epochs = {
            epoch: counts for epoch, counts in _read_epochs(output_folder / EPOCHS_FILE_NAME) if epoch < first_epoch
        }
        self._is_complete = len(self._epochs) == first_epoch
        self._total: Counter[str] = sum(map(Counter, self._epochs.values()), Counter())
        self._is_untouched = True

    def write_epoch(self, epoch: int, counts: Mapping[str, int]) -> None:
        """Write the counts of an epoch and the totals.

        Where epochs before this training's first one are not on record, there are no totals, and no file of them.
        """
        path, line = self._folder / EPOCHS_FILE_NAME, _line_of(epoch, counts)
        if self._is_untouched:
            kept = "".join(_line_of(*each) for each in self._epochs.items())
            with written_whole(path, overwrite=True) as temporary:
                temporary.write_text(kept + line, encoding="utf-8")
        else:
            with path.open("a", encoding="utf-8") as file:
                file.write(line)
        self._is_untouched = False
        self._total.update(counts)
        if self._is_complete:
            _write_totals(self._folder / SAMPLES_FILE_NAME, self._total)
        else:
            (self._folder / SAMPLES_FILE_NAME).unlink(missing_ok=True)


def read_samples_seen(path: Path) -> dict[str, int] | None:
    """Read samples_seen.csv.

    Returns:
        Training samples by case; None if there is no file.
    """
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        return {row["case"]: int(row["samples"]) for row in csv.DictReader(file)}


def _write_totals(path: Path, samples: Mapping[str, int]) -> None:
    with (
        written_whole(path, overwrite=True) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["case", "samples"])
        writer.writerows(sorted(samples.items()))


def _line_of(epoch: int, counts: Mapping[str, int]) -> str:
    return json.dumps({"epoch": epoch, "samples": dict(sorted(counts.items()))}) + "\n"


def _read_epochs(path: Path) -> Iterable[tuple[int, dict[str, int]]]:
    """Epochs on record; a line that a killed process left half written belongs to an epoch without a checkpoint."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            content = json.loads(line)
            yield content["epoch"], content["samples"]
