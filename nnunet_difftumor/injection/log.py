"""What an nnU-Net training keeps about its synthetic tumours: counts, records to replay, a montage."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.injection.histogram import InjectionHistogram
from nnunet_difftumor.injection.intensities import CTIntensities
from nnunet_difftumor.injection.records import InjectedTumor
from nnunet_difftumor.injection.sample_shares import describe_shares
from nnunet_difftumor.support.files.atomic_files import written_whole
from nnunet_difftumor.support.pictures.montage import own_style, save_figure

COUNTS_FILE_NAME = "injection_counts.csv"
RECORDS_FILE_NAME = "difftumor_records.jsonl"
MONTAGE_FILE_NAME = "difftumor_samples.png"
_MONTAGE_SAMPLES = 8
_FIRST_COLUMNS = ("epoch", "healthy_samples", "carrying", "injected", "out_of_view")


@dataclass(frozen=True)
class SamplePicture:
    """One slice of a crop through a tumour.

    Attributes:
        before: The crop, 0 to 255 over nnU-Net's clip window. Shape (H, W).
        after: The crop with tumours, same scale. Shape (H, W).
        is_tumor: True where a voxel was labelled tumour. Shape (H, W).
    """

    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    is_tumor: NDArray[np.bool_]


def take_picture(
    intensities: CTIntensities, before: NDArray[np.float32], after: NDArray[np.float32], is_tumor: NDArray[np.bool_]
) -> SamplePicture:
    """Take the slice of a crop that shows most tumour, or the middle one if none does.

    Args:
        before: Normalised crop. Shape (D, H, W).
        after: Normalised crop with tumours. Shape (D, H, W).
        is_tumor: True in the tumours. Shape (D, H, W).
    """
    area = is_tumor.sum(axis=(1, 2))
    section = int(np.argmax(area)) if area.any() else len(area) // 2

    def grey(normalised: NDArray[np.float32]) -> NDArray[np.uint8]:
        low, high = intensities.low_hu, intensities.high_hu
        share = (intensities.to_hu(normalised[section]) - low) / (high - low)
        return np.round(255 * np.clip(share, 0.0, 1.0)).astype(np.uint8)

    return SamplePicture(grey(before), grey(after), is_tumor[section].copy())


class InjectionLog:
    """Collects the reports of an epoch's batches and writes them into a training's output folder."""

    def __init__(
        self, output_folder: Path, recorded_samples: int, *, first_epoch: int, target_names: Sequence[str] = ("tumour",)
    ) -> None:
        """Open the log; what an earlier training left of the coming epochs is dropped at the first write.

        Args:
            recorded_samples: How many injected samples are recorded.
            first_epoch: Epoch that this training starts or continues at.
            target_names: Name of each target, for the histogram.
        """
        self._folder = output_folder
        self._rows = [row for row in read_counts(output_folder / COUNTS_FILE_NAME) if row["epoch"] < first_epoch]
        recorded = _count_lines(output_folder / RECORDS_FILE_NAME) if first_epoch > 0 else 0
        self._records_left = recorded_samples - recorded
        self._first_epoch = first_epoch
        self._histogram = InjectionHistogram(output_folder, target_names, first_epoch=first_epoch)
        self._is_untouched = True
        self.clear()

    def clear(self) -> None:
        """Forget the reports collected so far."""
        self._counts: Counter[str] = Counter()
        self._records: list[Mapping[str, Any]] = []
        self._pictures: list[SamplePicture] = []
        self._tumors: list[tuple[int, InjectedTumor]] = []

    def add(self, report: Mapping[str, Any]) -> None:
        """Collect the report of one batch."""
        self._counts.update(report["counts"])
        self._records += report["records"][: max(0, self._records_left - len(self._records))]
        self._pictures += report["pictures"][: max(0, _MONTAGE_SAMPLES - len(self._pictures))]
        self._tumors += report.get("tumors", ())

    def collected(self) -> dict[str, Any]:
        """Return what was collected, as a report that `add` takes."""
        pictures, tumors = self._pictures, self._tumors
        return {"counts": dict(self._counts), "records": self._records, "pictures": pictures, "tumors": tumors}

    def write_epoch(self, epoch: int) -> tuple[str, ...]:
        """Write an epoch's counts and records, and the montage of the first epoch.

        Returns:
            Lines for the training log.
        """
        row = {"epoch": epoch, **{key: self._counts.get(key, 0) for key in _FIRST_COLUMNS[1:]}, **self._counts}
        self._rows = [*self._rows, row]
        _write_counts(self._folder / COUNTS_FILE_NAME, self._rows)
        if self._is_untouched and self._first_epoch == 0:
            (self._folder / RECORDS_FILE_NAME).unlink(missing_ok=True)
        self._is_untouched = False
        if self._records:
            with (self._folder / RECORDS_FILE_NAME).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"epoch": epoch, **record}) + "\n" for record in self._records)
            self._records_left -= len(self._records)
        if epoch == self._first_epoch and self._pictures:
            write_montage(self._folder / MONTAGE_FILE_NAME, self._pictures)
        self._histogram.add(self._tumors)
        self._histogram.write(epoch)
        return describe_counts(self._counts), *describe_shares(self._counts)


def describe_counts(counts: Mapping[str, int]) -> str:
    """Return an epoch's counts as one line for the training log.

    Args:
        counts: Counts by name: healthy_samples, carrying, injected, out_of_view, rejected_<reason>, tumors_<...>.
    """
    carrying, injected = counts.get("carrying", 0), counts.get("injected", 0)
    reasons = {key[len("rejected_") :]: value for key, value in sorted(counts.items()) if key.startswith("rejected_")}
    rejected = ", ".join(f"{reason} {value}" for reason, value in reasons.items()) or "none"
    control = counts.get("control_samples", 0)
    if control:
        return (
            f"Synthetic tumours: none in this arm; healthy samples {counts.get('healthy_samples', 0)}, "
            f"crops chosen as for a tumour {control}"
        )
    return (
        f"Synthetic tumours: healthy samples {counts.get('healthy_samples', 0)}, tumours in their case {carrying}: "
        f"shown {injected}, out of view {counts.get('out_of_view', 0)}, rejected: {rejected}; "
        f"tumours put in {counts.get('tumors_placed', 0)}"
    )


def read_counts(path: Path) -> list[dict[str, int]]:
    """Read the rows of injection_counts.csv, one an epoch: counts by column name; a missing file has none."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: int(value or 0) for key, value in row.items()} for row in csv.DictReader(file)]


def write_montage(path: Path, pictures: Sequence[SamplePicture]) -> None:
    """Draw samples in rows: before, after, after with the label's outline. A PNG that exists is replaced."""
    from matplotlib.figure import Figure

    with own_style():
        figure = Figure(figsize=(6.6, 2.2 * len(pictures)), layout="constrained")
        axes = figure.subplots(len(pictures), 3, squeeze=False)
        for row, picture in zip(axes, pictures, strict=True):
            for axis, image in zip(row, (picture.before, picture.after, picture.after), strict=True):
                axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                axis.set_axis_off()
            if picture.is_tumor.any():
                row[2].contour(picture.is_tumor, levels=[0.5], colors="#d62728", linewidths=1.0)
        for axis, title in zip(axes[0], ("healthy crop", "with synthetic tumour", "label"), strict=True):
            axis.set_title(title, fontsize=9)
        save_figure(figure, path, dpi=110)


def _write_counts(path: Path, rows: Sequence[Mapping[str, int]]) -> None:
    others = sorted({key for row in rows for key in row} - set(_FIRST_COLUMNS))
    with written_whole(path, overwrite=True) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*_FIRST_COLUMNS, *others], restval=0)
        writer.writeheader()
        writer.writerows(rows)


def _count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0
