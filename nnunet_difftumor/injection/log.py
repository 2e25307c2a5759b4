"""What an nnU-Net training keeps about its synthetic tumours: counts, records to replay, a montage."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnunet_difftumor.injection.histogram import write_histogram
from nnunet_difftumor.injection.records import InjectedCrop
from nnunet_difftumor.injection.rules import InjectionRules
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


def take_picture(rules: InjectionRules, before: NDArray[np.float32], crop: InjectedCrop) -> SamplePicture:
    """Take the slice of a crop that shows most tumour, or the middle one if none does.

    Args:
        before: Normalised crop without its tumours. Shape (D, H, W).
    """
    intensities, is_tumor = rules.intensities, crop.labels == rules.tumor_label
    area = is_tumor.sum(axis=(1, 2))
    section = int(np.argmax(area)) if area.any() else len(area) // 2

    def grey(normalised: NDArray[np.float32]) -> NDArray[np.uint8]:
        low, high = intensities.low_hu, intensities.high_hu
        share = (intensities.to_hu(normalised[section]) - low) / (high - low)
        return np.round(255 * np.clip(share, 0.0, 1.0)).astype(np.uint8)

    return SamplePicture(grey(before), grey(crop.image), is_tumor[section].copy())


class InjectionLog:
    """Collects the reports of an epoch's batches and writes them into a training's output folder."""

    def __init__(
        self, output_folder: Path, recorded_samples: int, *, first_epoch: int, target_names: Sequence[str] = ("tumour",)
    ) -> None:
        """Open the log.

        Args:
            recorded_samples: How many injected samples are recorded.
            first_epoch: Epoch that this training starts or continues at.
            target_names: Name of each target, for the histogram.
        """
        self._folder = output_folder
        self._target_names = target_names
        self._first_epoch = first_epoch
        records = output_folder / RECORDS_FILE_NAME
        is_continued = first_epoch > 0 and records.is_file()
        recorded = len(records.read_text(encoding="utf-8").splitlines()) if is_continued else 0
        self._records_left = max(0, recorded_samples - recorded)
        self.clear()

    def clear(self) -> None:
        """Forget the reports collected so far."""
        self.collected: dict[str, Any] = {"counts": Counter(), "records": [], "pictures": [], "tumors": []}

    def add(self, report: Mapping[str, Any]) -> None:
        """Collect the report of one batch, or what another log collected."""
        self.collected["counts"].update(report["counts"])
        for key, most in (("records", self._records_left), ("pictures", _MONTAGE_SAMPLES), ("tumors", None)):
            self.collected[key] = [*self.collected[key], *report.get(key, ())][:most]

    def write_epoch(self, epoch: int) -> tuple[str, ...]:
        """Write an epoch's counts and records, after those of the epochs before it, and the montage of the first epoch.

        Returns:
            Lines for the training log.
        """
        counts, records, pictures = (self.collected[key] for key in ("counts", "records", "pictures"))
        earlier = [row for row in read_counts(self._folder / COUNTS_FILE_NAME) if row["epoch"] < epoch]
        others = sorted({key for row in (*earlier, counts) for key in row} - set(_FIRST_COLUMNS))
        table = pd.DataFrame([*earlier, {"epoch": epoch, **counts}], columns=[*_FIRST_COLUMNS, *others])
        with written_whole(self._folder / COUNTS_FILE_NAME, overwrite=True) as temporary:
            table.fillna(0).astype(int).to_csv(temporary, index=False, lineterminator="\r\n")
        if epoch == 0:
            (self._folder / RECORDS_FILE_NAME).unlink(missing_ok=True)
        if records:
            with (self._folder / RECORDS_FILE_NAME).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"epoch": epoch, **record}) + "\n" for record in records)
            self._records_left -= len(records)
        if epoch == self._first_epoch and pictures:
            write_montage(self._folder / MONTAGE_FILE_NAME, pictures)
        write_histogram(self._folder, self._target_names, epoch, self.collected["tumors"])
        return _describe_counts(counts), *describe_shares(counts)


def read_counts(path: Path) -> list[dict[str, int]]:
    """Read the rows of injection_counts.csv, one an epoch: counts by column name; a missing file has none."""
    if not path.is_file():
        return []
    return pd.read_csv(path).fillna(0).astype(int).to_dict("records")


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
            axis.set_title(title, fontsize=9, parse_math=False)
        save_figure(figure, path, dpi=110)


def _describe_counts(counts: Counter[str]) -> str:
    if counts["control_samples"]:
        return (
            f"Synthetic tumours: none in this arm; healthy samples {counts['healthy_samples']}, "
            f"crops chosen as for a tumour {counts['control_samples']}"
        )
    reasons = [key for key in sorted(counts) if key.startswith("rejected_")]
    rejected = ", ".join(f"{key.removeprefix('rejected_')} {counts[key]}" for key in reasons) or "none"
    return (
        f"Synthetic tumours: healthy samples {counts['healthy_samples']}, tumours in their case {counts['carrying']}: "
        f"shown {counts['injected']}, out of view {counts['out_of_view']}, rejected: {rejected}; "
        f"tumours put in {counts['tumors_placed']}"
        + (f"; shams put in {counts['shams']}, in {counts['sham_samples']} samples" if counts["shams"] else "")
    )
