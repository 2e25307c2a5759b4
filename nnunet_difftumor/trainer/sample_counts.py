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

    def train_step(self, batch: dict) -> dict:
        """Count the samples of a batch, then train on it as nnU-Net does."""
        if self._samples is None:
            self._samples = Counter()
        self._samples.update(str(case) for case in batch.get("keys", ()))
        return super().train_step(batch)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """End the epoch as nnU-Net does, and write the counts."""
        super().on_train_epoch_end(train_outputs)
        counts, self._samples = sum(self._of_all_ranks(self._samples or Counter()), Counter()), None
        if self.local_rank == 0:
            write_samples_seen(Path(str(self.output_folder)), self.current_epoch, counts)

    def _of_all_ranks(self, value: Any) -> list[Any]:
        if not self.is_ddp:
            return [value]
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, value)
        return gathered


def write_samples_seen(output_folder: Path, epoch: int, counts: Mapping[str, int]) -> None:
    """Write the counts of an epoch, and the totals with those of the epochs before it that are on record.

    What was counted of later epochs is dropped: a training that continues from a checkpoint trains them again. If
    epochs before are not on record, there are no totals, and no file of them.
    """
    path, totals_path = output_folder / EPOCHS_FILE_NAME, output_folder / SAMPLES_FILE_NAME
    epochs = {number: samples for number, samples in _read_epochs(path) if number < epoch}
    is_complete = len(epochs) == epoch
    epochs[epoch] = dict(sorted(counts.items()))
    with written_whole(path, overwrite=True) as temporary:
        lines = [json.dumps({"epoch": number, "samples": samples}) for number, samples in epochs.items()]
        temporary.write_text("\n".join([*lines, ""]), encoding="utf-8")
    if not is_complete:
        totals_path.unlink(missing_ok=True)
        return
    totals: Counter[str] = Counter()
    for samples in epochs.values():
        totals.update(samples)
    with (
        written_whole(totals_path, overwrite=True) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file).writerows([("case", "samples"), *sorted(totals.items())])


def read_samples_seen(path: Path) -> dict[str, int] | None:
    """Return the training samples by case in samples_seen.csv, or None if there is no file."""
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        return {row["case"]: int(row["samples"]) for row in csv.DictReader(file)}


def _read_epochs(path: Path) -> Iterable[tuple[int, dict[str, int]]]:
    """Epochs on record; a line that a killed process left half written belongs to an epoch without a checkpoint."""
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else ():
        if line.endswith("\n"):
            content = json.loads(line)
            yield content["epoch"], content["samples"]
