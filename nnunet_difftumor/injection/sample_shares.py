"""What the samples of a training show, annotated cases beside healthy ones with synthetic tumours."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.injection.case_tumors import values_of

ANNOTATED, INJECTED = "annotated", "injected"
"""Kinds of samples: of annotated cases, and of healthy cases that carry synthetic tumours."""

_SHOWN = {"with_tumor": ("with tumour", "show a tumour"), "without_organ": ("without organ", "show no organ")}
_LARGEST_DIFFERENCE = 1.0 / 3.0
_STANDARD_ERRORS = 3.0


class TargetReader:
    """Tells whether a training target shows the tumour, be it a label map or one channel a region."""

    def __init__(self, label_manager: LabelManager, organ_label: int, tumor_label: int) -> None:
        """Find the tumour in nnU-Net's targets.

        Raises:
            ConfigurationError: If no region tells the tumour from the organ.
        """
        self._labels = torch.tensor([organ_label, tumor_label])
        self._has_regions = label_manager.has_regions
        if self._has_regions:
            regions = [values_of(region) for region in label_manager.foreground_regions]
            self._foreground = [i for i, region in enumerate(regions) if organ_label in region or tumor_label in region]
            self._tumor = [i for i in self._foreground if organ_label not in regions[i]]
            if not self._tumor:
                raise ConfigurationError(
                    f"None of the regions {regions} in dataset.json holds the tumour label {tumor_label} without the "
                    f"organ label {organ_label}, so nothing could be learned about tumours. Add a region, "
                    f'e.g. "tumor": {tumor_label}, and its entry in regions_class_order.'
                )

    def shows_tumor(self, target: torch.Tensor) -> bool:
        """True if a sample's target has a voxel of the tumour. Shape (1, ...), or (regions, ...) for regions."""
        return bool((target[self._tumor] if self._has_regions else target == self._labels[1]).any())

    def shows_organ(self, target: torch.Tensor) -> bool:
        """True if a sample's target has a voxel of the organ or of the tumour. Shape as for `shows_tumor`."""
        if self._has_regions:
            return bool(target[self._foreground].any())
        return bool(torch.isin(target, self._labels.to(target.dtype)).any())


def count_sample(kind: str, *, shows_tumor: bool, shows_organ: bool) -> dict[str, int]:
    """Return the counts of one sample, by the names that `describe_shares` reads.

    Args:
        kind: `ANNOTATED` or `INJECTED`.
        shows_tumor: Its target has a voxel of a tumour.
        shows_organ: Its target has a voxel of an organ or of a tumour.
    """
    counts = {"samples": 1, "with_tumor": int(shows_tumor), "without_organ": int(not shows_organ)}
    return {f"{kind}_{what}": count for what, count in counts.items()}


def describe_shares(counts: Mapping[str, int]) -> tuple[str, ...]:
    """Describe what both kinds of samples show, and warn where they differ.

    A difference is told where one share is more than a third below the other, and the difference is more than three
    standard errors, so that few samples raise no alarm.

    Args:
        counts: Sums of `count_sample`; other counts are left alone.

    Returns:
        Lines for the log; none where no sample was counted.
    """
    names = {ANNOTATED: "annotated cases", INJECTED: "healthy cases with synthetic tumours"}
    samples = {kind: counts[f"{kind}_samples"] for kind in names if counts.get(f"{kind}_samples", 0) > 0}
    if not samples:
        return ()
    shares = {
        what: {kind: counts.get(f"{kind}_{what}", 0) / count for kind, count in samples.items()} for what in _SHOWN
    }
    parts = []
    for kind, count in samples.items():
        shown = ", ".join(f"{100 * shares[what][kind]:.0f} % {words}" for what, (words, _) in _SHOWN.items())
        parts.append(f"{names[kind]} {shown} ({count} samples)")
    lines = [f"Samples show: {'; '.join(parts)}"]
    for what, (_, words) in _SHOWN.items():
        if _differ(shares[what], samples):
            different = " against ".join(f"{100 * share:.0f} %" for share in shares[what].values())
            lines.append(
                f"WARNING: {different} of the samples (annotated cases, healthy cases with synthetic tumours) {words}, "
                "so that a network can learn which kind of scan has tumours. Compare the extent of both kinds of "
                "scans, and tumors_per_case and size_classes with the annotated tumours."
            )
    return tuple(lines)


def _differ(shares: Mapping[str, float], samples: Mapping[str, int]) -> bool:
    """True if two shares by kind differ; one share alone does not."""
    gap = max(shares.values()) - min(shares.values())
    variance = sum(share * (1.0 - share) / samples[kind] for kind, share in shares.items())
    return gap > _LARGEST_DIFFERENCE * max(shares.values()) and gap > _STANDARD_ERRORS * math.sqrt(variance)
