"""How many training samples a training has seen of each case, in its output folder."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping
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

    Args:
        first_epoch: Epoch that this training starts or continues at.
    """

    def __init__(self, output_folder: Path, *, first_epoch: int) -> None:
        self._folder = output_folder
        recorded = _read_epochs(output_folder / EPOCHS_FILE_NAME)
        self._epochs = {epoch: counts for epoch, counts in recorded.items() if epoch < first_epoch}
        self._is_complete = len(self._epochs) == first_epoch

    def write_epoch(self, epoch: int, counts: Mapping[str, int]) -> None:
        """Write the counts of an epoch and the totals.

        Where epochs before this training's first one are not on record, there are no totals, and no file of them.
        """
        self._epochs[epoch] = dict(sorted(counts.items()))
        with written_whole(self._folder / EPOCHS_FILE_NAME, overwrite=True) as temporary:
            lines = [json.dumps({"epoch": number, "samples": each}) for number, each in self._epochs.items()]
            temporary.write_text("\n".join([*lines, ""]), encoding="utf-8")
        if not self._is_complete:
            (self._folder / SAMPLES_FILE_NAME).unlink(missing_ok=True)
            return
        totals: Counter[str] = Counter()
        for each in self._epochs.values():
            totals.update(each)
        with (
            written_whole(self._folder / SAMPLES_FILE_NAME, overwrite=True) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            csv.writer(file).writerows([("case", "samples"), *sorted(totals.items())])


def read_samples_seen(path: Path) -> dict[str, int] | None:
    """Return the training samples by case in samples_seen.csv, or None if there is no file."""
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        return {row["case"]: int(row["samples"]) for row in csv.DictReader(file)}


def _read_epochs(path: Path) -> dict[int, dict[str, int]]:
    """Epochs on record; a line that a killed process left half written belongs to an epoch without a checkpoint."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    contents = [json.loads(line) for line in lines if line.endswith("\n")]
    return {content["epoch"]: content["samples"] for content in contents}
