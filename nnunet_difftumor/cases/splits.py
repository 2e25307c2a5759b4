"""Cross-validation over tumour cases with healthy cases in every training list."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_difftumor.cases.healthy import CaseGroups
from nnunet_difftumor.cases.known_cases import KNOWN_KEYS, NOTHING_KNOWN, KnownCases, read_known_cases
from nnunet_difftumor.errors import DatasetError, OutputExistsError, list_some
from nnunet_difftumor.support.files.atomic_files import write_json

SPLITS_FILE_NAME = "splits_final.json"
HOLDOUT_FILE_NAME = "healthy_holdout.json"
DEFAULT_SEED = 12345
DEFAULT_FOLDS = 5


@dataclass(frozen=True)
class Split:
    """Identifiers of the training and validation cases of one fold, sorted."""

    train: tuple[str, ...]
    val: tuple[str, ...]

    def without(self, cases: Collection[str]) -> Split:
        """Return the fold without some of its training cases."""
        return Split(tuple(case for case in self.train if case not in cases), self.val)

    def to_json(self) -> dict[str, list[str]]:
        """Return the fold as nnU-Net writes it into splits_final.json."""
        return {"train": list(self.train), "val": list(self.val)}


def cross_validation(
    groups: CaseGroups,
    holdout: Collection[str],
    *,
    folds: int = DEFAULT_FOLDS,
    seed: int = DEFAULT_SEED,
    known: KnownCases = NOTHING_KNOWN,
) -> tuple[Split, ...]:
    """Split the patients with tumour as nnU-Net splits cases; everyone else but the holdout trains in every fold.

    A fold trains on no scan of its validation patients; their healthy scans are in neither list. With no healthy case
    and one scan a patient the result equals nnU-Net's own default split. Without any tumour case the healthy cases
    are split instead. With fewer patients to split than folds, there is one fold a patient.

    Raises:
        DatasetError: If there are fewer than two patients to split.
    """
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    healthy = [case for case in groups.healthy if case not in holdout]
    to_split = list(groups.tumor) or healthy
    everywhere = [case for case in (*healthy, *groups.other) if case not in to_split]
    patients = sorted({known.patient_of(case) for case in to_split})
    if len(patients) < 2 or folds < 2:
        raise DatasetError(
            "Cross-validation needs at least 2 folds and 2 patients with annotated tumour (of --leave-out: hospitals), "
            f"got {folds} folds and {len(patients)} patients. Train with fold 'all' instead of a number."
        )
    splits = []
    for fold in generate_crossval_split(patients, seed=seed, n_splits=min(folds, len(patients))):
        val = sorted(case for case in to_split if known.patient_of(case) in fold["val"])
        train = sorted({*to_split, *everywhere}.difference(val))
        splits.append(Split(tuple(train), tuple(val)).without(known.others_of(val)))
    return tuple(splits)


def arrange_split(
    split: Split,
    groups: CaseGroups,
    holdout: Collection[str],
    *,
    origin: str = "The splits file",
    known: KnownCases = NOTHING_KNOWN,
) -> Split:
    """Apply the rules for healthy cases to a fold of an existing splits file (`origin`, for messages).

    Healthy validation cases leave their list, since tumour Dice is undefined on them, and do not train: whoever wrote
    the file may have put them beside other scans of their patients. The holdout leaves both lists. Without any tumour
    case the validation list keeps its healthy cases.

    Raises:
        DatasetError: If a list ends up empty, both hold the same case or patient, or the data set does not have one.
    """
    everyone = {*groups.tumor, *groups.healthy, *groups.other}
    unknown = sorted((set(split.train) | set(split.val)) - everyone)
    if unknown:
        raise DatasetError(
            f"{origin} names {len(unknown)} cases that are not in the data set, e.g. {unknown[0]}. "
            "Correct the file, or write a new one: difftumor splits -d ID --overwrite"
        )
    left_out = {*split.val}.intersection(groups.healthy) if groups.tumor else set()
    train = sorted({*split.train} - set(holdout))
    val = sorted({*split.val} - left_out - set(holdout))
    if not val or not train:
        raise DatasetError(
            f"No {'validation' if not val else 'training'} case is left in this fold: {origin} lists "
            f"{len(split.train)} for training and {len(split.val)} for validation, {len(left_out)} of them healthy, "
            "where tumour Dice is undefined. Write splits over the tumour cases: difftumor splits -d ID --overwrite"
        )
    shared, torn = sorted({*train} & {*val}), sorted({*known.others_of(val)} & {*train})
    if shared:
        raise DatasetError(
            f'{origin} has {len(shared)} case{"s" if len(shared) > 1 else ""} in both "train" and "val" '
            f"({list_some(shared)}): validation would be on what was learned. Take each out of one of the lists. Fold "
            "'all' trains on every case and makes no claim about validation."
        )
    if torn:
        raise DatasetError(
            f"{origin} trains on further scans of its validation patients ({list_some(torn)}), by the patients in "
            f"{HOLDOUT_FILE_NAME} beside it. Take them out of one list, or write both files again (difftumor splits)."
        )
    return Split(tuple(train), tuple(val))


def read_splits(path: Path) -> tuple[Split, ...]:
    """Read a splits file (splits_final.json) as nnU-Net writes it.

    Raises:
        DatasetError: If the file is no list of objects with "train" and "val".
    """
    if not path.is_file():
        raise DatasetError(f"{path} does not exist. Check the path; `difftumor splits -d ID` writes such a file.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return tuple(Split(_identifiers(fold["train"]), _identifiers(fold["val"])) for fold in content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f'{path} must be a list of folds like {{"train": ["case_1"], "val": ["case_2"]}} ({error!r}). '
            "Write a new one: difftumor splits -d ID --overwrite"
        ) from error


def read_holdout(path: Path) -> tuple[str, ...] | None:
    """Read the healthy holdout (healthy_holdout.json) written by `write_splits`, or return None if there is none.

    Raises:
        DatasetError: If the file cannot be understood.
    """
    if not path.is_file():
        return None
    try:
        return _identifiers(json.loads(path.read_text(encoding="utf-8"))["holdout"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f'{path} must look like {{"holdout": ["case_1"]}} ({error!r}).') from error


def write_splits(folder: Path, folds: Sequence[Split], holdout: Mapping[str, Any], *, overwrite: bool = False) -> bool:
    """Write splits_final.json and healthy_holdout.json; False if the same splits and holdout were there already.

    Args:
        folder: The data set's folder in nnUNet_preprocessed.
        holdout: What to write about the holdout; "holdout" lists its cases, and `KnownCases.to_json` more.

    Raises:
        OutputExistsError: If other splits are there and `overwrite` is False.
    """
    splits_file, holdout_file = folder / SPLITS_FILE_NAME, folder / HOLDOUT_FILE_NAME
    if splits_file.is_file() and not overwrite:
        known = {key: holdout[key] for key in KNOWN_KEYS if key in holdout}
        is_same = read_splits(splits_file) == tuple(folds) and read_known_cases(holdout_file).to_json() == known
        if is_same and read_holdout(holdout_file) == _identifiers(holdout["holdout"]):
            return False
        raise OutputExistsError(
            f"{folder} holds other splits ({SPLITS_FILE_NAME}). Trainings and generators made with them cannot be "
            "compared with new ones. To replace them all the same, add --overwrite."
        )
    write_json(holdout_file, dict(holdout), overwrite=True)
    write_json(splits_file, [fold.to_json() for fold in folds], overwrite=True)
    return True


def _identifiers(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise TypeError(f"expected a list of case identifiers, got {values!r}")
    return tuple(sorted(str(value) for value in values))
