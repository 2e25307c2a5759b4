"""Real soft-tissue sarcoma CTs as an nnU-Net raw data set, with tumour-free parts as healthy cases.

The data lie outside the project, in the folder named by DIFFTUMOR_REAL_CT. They are real CTs, but neither the
organs nor the early tumours of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.cases.healthy import CaseGroups
from nnunet_difftumor.cases.splits import Split, cross_validation
from nnunet_difftumor.ct.reading import CTVolume, read_ct, read_labels
from nnunet_difftumor.errors import DatasetError, OutputExistsError
from nnunet_difftumor.support.files.atomic_files import write_json, written_whole

TRAINING_CASES = tuple(f"STS_{number:03d}" for number in range(1, 30))
VALIDATION_CASES = tuple(f"STS_{number:03d}" for number in range(31, 41))
DATASET_NAME = "Dataset902_SoftTissue"
CROSS_VALIDATION_NAME = "Dataset903_SoftTissueFolds"
ORGAN, TUMOR = 1, 2

_HEALTHY_SUFFIX = "_healthy"
_DISTANCE_TO_TUMOR_MM = 5.0
_THINNEST_MM = 40.0
_FEWEST_SLICES = 12
_DESCRIPTION = (
    "Soft-tissue sarcoma, CT of PET/CT, cropped around the tumour. Label 1 was derived by a threshold, label 2 is an "
    "expert contour. Vallieres et al. 2015, TCIA, doi 10.7937/K9/TCIA.2015.7GO2GSKS, by way of IBSI data_sets."
)


@dataclass(frozen=True)
class SarcomaDataset:
    """What was written: an nnU-Net raw data set. The folds are not: nnU-Net keeps them with the preprocessed data."""

    folder: Path
    folds: tuple[Split, ...]  # healthy cases are in training lists only
    healthy: tuple[str, ...]  # tumour-free parts of training cases


def make_real_dataset(
    source_folder: Path,
    output_raw_folder: Path,
    *,
    name: str = DATASET_NAME,
    training: Sequence[str] = TRAINING_CASES,
    validation: Sequence[str] = VALIDATION_CASES,
    healthy_count: int = 6,
) -> SarcomaDataset:
    """Write an nnU-Net raw data set of soft-tissue sarcomas with one fold.

    Healthy cases are runs of slices of training cases, at least 5 mm from the tumour and at least 40 mm or
    12 slices thick; they train as well. No voxel of a validation case is in a training case.

    Args:
        source_folder: Folder with `sts/<case>_ct.nii.gz` and `sts/<case>_label.nii.gz`.
        output_raw_folder: nnU-Net's raw folder; the data set is made inside.
        training, validation: Those without a file are left out. With no validation case at all, its list is empty.
        healthy_count: Most healthy cases; the thickest tumour-free parts are taken.

    Raises:
        DatasetError: If the folder holds no training or no validation case, or a case is in both lists.
        OutputExistsError: If the data set exists.
    """
    source, folder = source_folder / "sts", output_raw_folder / name
    both = sorted(set(training) & set(validation))
    if both:
        raise DatasetError(f"{', '.join(both)} would train and validate; put each case into one list.")
    train, val = _existing(source, training), _existing(source, validation) if validation else ()
    if folder.exists():
        raise OutputExistsError(f"{folder} exists already; remove it or choose another name.")
    healthy = dict(_thickest_parts(source, train, healthy_count))
    for case in (*train, *val):
        ct = read_ct(source / f"{case}_ct.nii.gz")
        labels, _ = read_labels(source / f"{case}_label.nii.gz")
        if case in healthy:
            _write(folder, f"{case}{_HEALTHY_SUFFIX}", ct, labels, slice(*healthy[case]))
        _write(folder, case, ct, labels, slice(0, None))
    names = tuple(f"{case}{_HEALTHY_SUFFIX}" for case in sorted(healthy))
    write_json(folder / "dataset.json", _dataset_json(len(train) + len(val) + len(names)))
    return SarcomaDataset(folder, (Split(tuple(sorted([*train, *names])), tuple(sorted(val))),), names)


def make_cross_validation_dataset(source: Path, output: Path, *, folds: int) -> SarcomaDataset:
    """Write all sarcoma cases as `make_real_dataset` does, with folds in which no patient is on both sides.

    The tumour-free part of a patient, a case of its own, trains in the folds in which the patient trains and is in no
    validation list: `difftumor splits` would put it into every fold, since it knows nothing of patients.

    Args:
        folds: Their number; split as nnU-Net splits.

    Raises:
        DatasetError: If the folder holds none of the cases, or fewer than there are folds.
        OutputExistsError: If the data set exists.
    """
    cases = (*TRAINING_CASES, *VALIDATION_CASES)
    made = make_real_dataset(
        source, output, name=CROSS_VALIDATION_NAME, training=cases, validation=(), healthy_count=len(cases)
    )
    patients = tuple(case for case in made.folds[0].train if case not in made.healthy)
    splits = []
    for fold in cross_validation(CaseGroups(patients, healthy=(), other=()), (), folds=folds):
        parts = [case for case in made.healthy if case.removesuffix(_HEALTHY_SUFFIX) in fold.train]
        splits.append(Split(tuple(sorted([*fold.train, *parts])), fold.val))
    return replace(made, folds=tuple(splits))


def tumor_free_slices(labels: NDArray[np.int16], spacing_mm: Sequence[float]) -> tuple[int, int] | None:
    """Find the thickest run of slices that stays 5 mm away from the tumour and holds soft tissue.

    Args:
        labels: Labels with 2 for tumour. Shape (D, H, W).
        spacing_mm: Spacing in mm, (D, H, W).

    Returns:
        First slice and one past the last, or None if no run is 40 mm or 12 slices thick.
    """
    with_tumor = np.flatnonzero((labels == TUMOR).any(axis=(1, 2)))
    if len(with_tumor) == 0:
        return 0, labels.shape[0]
    gap = math.ceil(_DISTANCE_TO_TUMOR_MM / spacing_mm[0])
    runs = [(0, int(with_tumor[0]) - gap + 1), (int(with_tumor[-1]) + gap, labels.shape[0])]
    enough = min(_FEWEST_SLICES, math.ceil(_THINNEST_MM / spacing_mm[0]))
    kept = [run for run in runs if run[1] - run[0] >= enough and (labels[slice(*run)] == ORGAN).any()]
    return max(kept, key=lambda run: run[1] - run[0], default=None)


def _existing(source: Path, cases: Sequence[str]) -> tuple[str, ...]:
    found = tuple(case for case in cases if (source / f"{case}_ct.nii.gz").is_file())
    if not found:
        raise DatasetError(
            f"{source} holds none of {cases[0] if cases else 'no case'} ... as <case>_ct.nii.gz. Point "
            "DIFFTUMOR_REAL_CT at the folder that holds sts/."
        )
    return found


def _thickest_parts(source: Path, cases: Sequence[str], count: int) -> list[tuple[str, tuple[int, int]]]:
    parts = []
    for case in cases:
        labels, geometry = read_labels(source / f"{case}_label.nii.gz")
        run = tumor_free_slices(labels, geometry.spacing_mm)
        if run is not None:
            parts.append((case, run))
    return sorted(parts, key=lambda part: (part[1][0] - part[1][1], part[0]))[:count]  # thickest first


def _write(folder: Path, case: str, ct: CTVolume, labels: NDArray[np.int16], part: slice) -> None:
    """Write a run of slices, where it lies in the patient."""
    affine = ct.geometry.affine @ np.eye(4)[[2, 1, 0, 3]]  # NIfTI's first axis is our last
    affine[:3, 3] += ct.geometry.affine[:3, 0] * part.start
    image = np.rint(ct.image_hu).astype(np.int16)
    for kind, values, suffix in (("imagesTr", image, "_0000"), ("labelsTr", labels.astype(np.uint8), "")):
        with written_whole(folder / kind / f"{case}{suffix}.nii.gz") as temporary:
            nibabel.save(nibabel.Nifti1Image(values[part].T, affine), temporary)  # pyright: ignore


def _dataset_json(count: int) -> dict[str, object]:
    return {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "soft_tissue": ORGAN, "tumor": TUMOR},
        "numTraining": count,
        "file_ending": ".nii.gz",
        "name": "Soft-tissue sarcoma",
        "description": _DESCRIPTION,
        "licence": "CC BY 3.0",
    }
