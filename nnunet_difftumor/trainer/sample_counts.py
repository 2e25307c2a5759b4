"""How many training samples a training has seen of each case, in its output folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from nnunet_difftumor.support.files.atomic_files import written_whole
from nnunet_difftumor.support.files.epochs import add_epoch

SAMPLES_FILE_NAME = "samples_seen.csv"
EPOCHS_FILE_NAME = "samples_seen_by_epoch.jsonl"


def write_samples_seen(output_folder: Path, epoch: int, counts: Mapping[str, int]) -> None:
    """Write the counts of an epoch, and the totals with those of the epochs before it that are on record.

    What was counted of later epochs is dropped: a training that continues from a checkpoint trains them again. If
    epochs before are not on record, there are no totals, and no file of them.
    """
    epochs = add_epoch(output_folder / EPOCHS_FILE_NAME, epoch, {"samples": dict(sorted(counts.items()))})
    totals_path = output_folder / SAMPLES_FILE_NAME
    if len(epochs) <= epoch:
        totals_path.unlink(missing_ok=True)
        return
    totals = sum((Counter(each["samples"]) for each in epochs), Counter())
    with written_whole(totals_path, overwrite=True) as temporary:
        table = pd.DataFrame(sorted(totals.items()), columns=["case", "samples"])
        table.to_csv(temporary, index=False, lineterminator="\r\n")


def read_samples_seen(path: Path) -> dict[str, int] | None:
    """Return the training samples by case in samples_seen.csv, or None if there is no file."""
    if not path.is_file():
        return None
    table = pd.read_csv(path, dtype={"case": str}, keep_default_na=False)
    return dict(zip(table["case"], table["samples"].tolist(), strict=True))
