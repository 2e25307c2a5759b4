"""Which cases are healthy: organ present and tumour absent on the raw grid, by their annotated labels."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunet_difftumor.cases.known_cases import NOTHING_KNOWN, KnownCases
from nnunet_difftumor.ct.label_roles import HEALTHY, TUMOR, LabelRoles, kind_of_case
from nnunet_difftumor.ct.reading import read_labels
from nnunet_difftumor.errors import ConfigurationError, DatasetError, list_some
from nnunet_difftumor.support.files.fact_cache import FactCache

_READERS = 4

LabelVoxels = Mapping[int, int]


@dataclass(frozen=True)
class CaseGroups:
    """Cases of a data set by what their labels say; sorted.

    Attributes:
        healthy: Cases with the organ and without tumour: tumours may be placed in them.
        other: The rest: without the organ, or without tumour but not listed or confirmed as healthy.
        places: For each healthy case, the targets (by their number) whose organ it has.
    """

    tumor: tuple[str, ...]
    healthy: tuple[str, ...]
    other: tuple[str, ...]
    places: Mapping[str, tuple[int, ...]] = field(default_factory=dict, compare=False)


def count_label_voxels(
    label_files: Mapping[str, Path], cache: FactCache, *, show_progress: bool = False
) -> dict[str, dict[int, int]]:
    """Count the voxels of each label value in each case, on the raw grid, unless the cache holds the counts.

    Raises:
        DatasetError: If a label file is missing.
        CorruptImageError: If a label file cannot be read.
    """
    missing = sorted(identifier for identifier, path in label_files.items() if not path.is_file())
    if missing:
        raise DatasetError(
            f"{len(missing)} cases have no label file: {list_some(missing)} (looked for {label_files[missing[0]]}). "
            "nnU-Net keeps a copy of every training label in gt_segmentations; run nnUNetv2_plan_and_preprocess again."
        )
    found: dict[Path, Any] = {path: cache.get(path, "label_voxels") for path in label_files.values()}
    unknown = [path for path, voxels in found.items() if voxels is None]
    with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as readers:
        counts = readers.map(_count_voxels, unknown)
        is_quiet = not (show_progress and unknown)
        bar = tqdm(counts, total=len(unknown), desc="Looking for healthy cases", disable=is_quiet)
        for path, voxels in zip(unknown, bar, strict=True):
            found[path] = voxels
            cache.put(path, "label_voxels", {str(label): count for label, count in voxels.items()})
    cache.save()
    return {
        identifier: {int(label): int(count) for label, count in found[path].items()}
        for identifier, path in label_files.items()
    }


def group_cases(
    label_voxels: Mapping[str, LabelVoxels],
    roles: LabelRoles | Sequence[LabelRoles],
    *,
    healthy_cases: Collection[str] | None = None,
    confirmed_healthy: bool = False,
    known: KnownCases = NOTHING_KNOWN,
) -> CaseGroups:
    """Sort cases into tumour, healthy and other by their labels (see `kind_of_case`).

    A case with ignored voxels was not looked at everywhere, so it is healthy only if the user says so. With several
    targets a healthy case is free of the tumours of all of them, and has the organ of at least one.

    Args:
        healthy_cases: The cases that the user lists as healthy; None takes all that have no tumour.
        confirmed_healthy: Cases without annotated tumour are known to be healthy.
        known: A case that is known to have a tumour is not healthy, although its labels show none.

    Raises:
        ConfigurationError: If a listed case is unknown or not healthy, or if nothing in the data set says
            that cases without annotated tumour are healthy.
    """
    all_roles = (roles,) if isinstance(roles, LabelRoles) else tuple(roles)
    present = {case: {value for value, count in each.items() if count > 0} for case, each in label_voxels.items()}
    said = {case: kind_of_case(values, all_roles, is_confirmed=True) for case, values in present.items()}
    tumor = {case for case, kind in said.items() if kind == TUMOR}
    no_tumor = {case for case, kind in said.items() if kind == HEALTHY} - set(known.tumor)
    free = [{case for case in no_tumor if role.organ in present[case]} for role in all_roles]
    if healthy_cases is not None:
        _check_list(healthy_cases, label_voxels, no_tumor)
        free = [cases & set(healthy_cases) for cases in free]
    elif not confirmed_healthy:
        free = [_looked_at(cases, present, role, all_roles) for cases, role in zip(free, all_roles, strict=True)]
    healthy = set[str]().union(*free)
    return CaseGroups(
        tumor=tuple(sorted(tumor)),
        healthy=tuple(sorted(healthy)),
        other=tuple(sorted(set(label_voxels) - healthy - tumor)),
        places={case: tuple(n for n, cases in enumerate(free) if case in cases) for case in sorted(healthy)},
    )


def choose_holdout(
    healthy: Sequence[str],
    share: float,
    seed: int = 12345,
    *,
    others: Collection[str] = (),
    known: KnownCases = NOTHING_KNOWN,
) -> tuple[str, ...]:
    """Choose the healthy cases that train in no fold and no arm; at least one is left to train.

    The order depends on each identifier alone, so that adding a case moves few others. Patients are held out with all
    their scans, so those are left who have further scans among `others`, which train.
    """
    count = min(round(share * len(healthy)), max(0, len(healthy) - 1))
    scans: dict[str, list[str]] = defaultdict(list)
    for case in healthy:
        scans[known.patient_of(case)].append(case)
    chosen: list[str] = []
    for patient in hashed_order(scans.keys() - set(map(known.patient_of, others)), seed):
        if len(chosen) + len(scans[patient]) <= count:
            chosen += scans[patient]
    return tuple(sorted(chosen))


def hashed_order(cases: Collection[str], seed: int) -> list[str]:
    """Order cases by a hash of seed and identifier: as good as random, and the same on every machine."""
    return sorted(cases, key=lambda case: hashlib.sha256(f"{seed}:{case}".encode()).digest())


def _looked_at(
    cases: Collection[str], present: Mapping[str, Collection[int]], role: LabelRoles, all_roles: Sequence[LabelRoles]
) -> set[str]:
    """Return the cases without tumour of a role in which nobody left out a part; raise where nobody may have looked."""
    whole = {case for case in cases if kind_of_case(present[case], all_roles) == HEALTHY}
    has_tumor = any(kind_of_case(values, [role]) == TUMOR for values in present.values())
    _refuse_unconfirmed(whole, set(cases) - whole, has_tumor, role.tumor)
    return whole


def _refuse_unconfirmed(free: Collection[str], partly: Collection[str], has_tumor: bool, tumor_label: int) -> None:
    """Raise where the absence of the tumour label may only mean that nobody looked."""
    if free and not has_tumor:
        raise ConfigurationError(
            f"No case of this data set has a voxel of the tumour label {tumor_label}, so its absence may only mean "
            "that tumours were not annotated, and a tumour that is not annotated is not health. If the "
            f'{len(free)} cases are known to be free of tumour, set "confirmed_healthy": true (or list them in '
            '"healthy_cases").'
        )
    if partly and not free:
        raise ConfigurationError(
            f"All {len(partly)} cases without annotated tumour have voxels of the ignore label "
            f"({list_some(sorted(partly))}), so a tumour may lie where nobody looked. If they are known to be "
            'free of tumour, set "confirmed_healthy": true (or list them in "healthy_cases").'
        )


def _check_list(listed: Collection[str], label_voxels: Mapping[str, LabelVoxels], free: Collection[str]) -> None:
    unknown = sorted(set(listed) - set(label_voxels))
    if unknown:
        raise ConfigurationError(
            f"healthy_cases names {len(unknown)} cases that are not in the data set: {list_some(unknown)}. "
            "Write case identifiers as in labelsTr, without the file ending."
        )
    wrong = sorted(set(listed) - set(free))
    if wrong:
        raise ConfigurationError(
            f"healthy_cases names {len(wrong)} cases that have voxels of a tumour label, a tumour by the metadata of "
            f"`difftumor splits`, or none of an organ label: {list_some(wrong)}. Take them off the list."
        )


def _count_voxels(path: Path) -> dict[int, int]:
    labels, _ = read_labels(path)
    totals: Counter[int] = Counter()
    for section in labels:  # slice by slice: a whole CT at once would take its memory several times
        values, counts = np.unique(section, return_counts=True)
        totals.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return totals
