"""What the samples of a training show, annotated cases beside healthy ones with synthetic tumours."""

from __future__ import annotations

import math
from collections.abc import Mapping

ANNOTATED, INJECTED = "annotated", "injected"
"""Kinds of samples: of annotated cases, and of healthy cases that carry synthetic tumours."""

SAMPLES, WITH_TUMOR, WITHOUT_ORGAN = "samples", "with_tumor", "without_organ"
_LARGEST_DIFFERENCE = 1.0 / 3.0
_STANDARD_ERRORS = 3.0


def count_sample(kind: str, *, shows_tumor: bool, shows_organ: bool) -> dict[str, int]:
    """Return the counts of one sample, by the names that `describe_shares` reads.

    Args:
        kind: `ANNOTATED` or `INJECTED`.
        shows_tumor: Its target has a voxel of a tumour.
        shows_organ: Its target has a voxel of an organ or of a tumour.
    """
    return {
        f"{kind}_{SAMPLES}": 1,
        f"{kind}_{WITH_TUMOR}": int(shows_tumor),
        f"{kind}_{WITHOUT_ORGAN}": int(not shows_organ),
    }


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
    kinds = [kind for kind in names if counts.get(f"{kind}_{SAMPLES}", 0) > 0]
    if not kinds:
        return ()
    parts = [
        f"{names[kind]} {100 * _share(counts, kind, WITH_TUMOR):.0f} % with tumour, "
        f"{100 * _share(counts, kind, WITHOUT_ORGAN):.0f} % without organ "
        f"({counts[f'{kind}_{SAMPLES}']} samples)"
        for kind in kinds
    ]
    lines = [f"Samples show: {'; '.join(parts)}"]
    if len(kinds) == 2:
        lines += [_warning(counts, what) for what in (WITH_TUMOR, WITHOUT_ORGAN) if _differs(counts, what)]
    return tuple(lines)


def _share(counts: Mapping[str, int], kind: str, what: str) -> float:
    return counts.get(f"{kind}_{what}", 0) / counts[f"{kind}_{SAMPLES}"]


def _differs(counts: Mapping[str, int], what: str) -> bool:
    first, second = (_share(counts, kind, what) for kind in (ANNOTATED, INJECTED))
    variance = sum(
        share * (1.0 - share) / counts[f"{kind}_{SAMPLES}"] for share, kind in ((first, ANNOTATED), (second, INJECTED))
    )
    gap = abs(first - second)
    return gap > _LARGEST_DIFFERENCE * max(first, second) and gap > _STANDARD_ERRORS * math.sqrt(variance)


def _warning(counts: Mapping[str, int], what: str) -> str:
    shares = " against ".join(f"{100 * _share(counts, kind, what):.0f} %" for kind in (ANNOTATED, INJECTED))
    shown = "show a tumour" if what == WITH_TUMOR else "show no organ"
    return (
        f"WARNING: {shares} of the samples (annotated cases, healthy cases with synthetic tumours) {shown}, so that a "
        "network can learn which kind of scan has tumours. Compare the extent of both kinds of scans, and "
        "tumors_per_case and size_classes with the annotated tumours."
    )
