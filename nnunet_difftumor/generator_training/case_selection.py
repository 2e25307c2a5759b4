"""Which cases train a generator and which are held out, from folders, a split or a list of exclusions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.generator.provenance import hash_file, hash_identifier
from nnunet_difftumor.cases.splits import read_splits
from nnunet_difftumor.ct.datasets import Case, RawDataset, find_ct_files, load_raw_dataset
from nnunet_difftumor.ct.label_roles import declared_values, find_tumor_label
from nnunet_difftumor.errors import DatasetError, MissingLabelError, list_some

if TYPE_CHECKING:
    from nnunet_difftumor.generator_training.crop_cache import CachedCase

_HELDOUT_SHARE = 0.1
_FEWEST_TO_HOLD_OUT = 4


@dataclass(frozen=True)
class DataFolder:
    """One folder of `-d`, with the values of its tumour label and of all labels; a plain folder of CTs has none."""

    folder: Path
    cases: tuple[Case, ...]
    tumor_values: tuple[int, ...]
    declared: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class HoldOut:
    """What is held out of training; fold and hash of the splits file are None without a split."""

    identifiers: frozenset[str] | None = None  # None: nobody asked, a tenth is held out
    train_only: frozenset[str] | None = None  # of folders with a case of the split, only these train; None: all others
    fold: int | None = None
    splits_hash: str | None = None
    trained_before: frozenset[str] = frozenset()  # hashes of stage one: without a rule, others are held out first


@dataclass(frozen=True)
class SelectedCases:
    """Cases that train and cases that are held out by a rule; `notes` are lines that tell how that came about."""

    training: tuple[CachedCase, ...]
    heldout: tuple[CachedCase, ...]
    rule: HoldOut
    notes: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)  # bad cases, with their errors


def open_data_folder(folder: Path) -> DataFolder:
    """Find the cases of an nnU-Net raw data set, and its tumour if the names tell, or those of a plain folder of CTs.

    Raises:
        DatasetError: If there is none, or the data set is incomplete.
    """
    if not (folder / "dataset.json").is_file() and not (folder / "imagesTr").is_dir():
        return DataFolder(folder, find_ct_files(folder), ())
    dataset = load_raw_dataset(folder, needs_labels=False)
    try:
        return labelled_folder(dataset)
    except MissingLabelError:
        return DataFolder(folder, dataset.cases, ())


def labelled_folder(dataset: RawDataset, tumor_label: str | None = None) -> DataFolder:
    """Describe a raw data set whose tumour label is named, or told by the names of the labels.

    Raises:
        MissingLabelError: If there is no such label, or several look like a tumour.
    """
    tumors = find_tumor_label(dataset.labels, tumor_label)
    return DataFolder(dataset.folder, dataset.cases, tumors, declared_values(dataset.labels))


def read_hold_out(splits: Path | None, fold: int | None, exclude_cases: Path | None) -> HoldOut:
    """Read what is to be held out; excluded cases stand in a text file, one identifier a line, or in a JSON list.

    Raises:
        DatasetError: If a file cannot be understood, or the arguments do not go together.
    """
    if (splits is None) != (fold is None) or (splits is not None and exclude_cases is not None):
        raise DatasetError("Give --splits FILE and -f K together, or --exclude-cases FILE, or none of them.")
    if splits is not None and fold is not None:
        folds = read_splits(splits)
        if not 0 <= fold < len(folds):
            raise DatasetError(f"{splits} has the folds 0 to {len(folds) - 1}, not {fold}.")
        val, train = frozenset(folds[fold].val), frozenset(folds[fold].train)
        return HoldOut(identifiers=val, train_only=train, fold=fold, splits_hash=hash_file(splits))
    return HoldOut(identifiers=None if exclude_cases is None else read_identifiers(exclude_cases, "--exclude-cases"))


def select_cases(folders: Sequence[tuple[Path, Sequence[CachedCase]]], hold_out: HoldOut) -> SelectedCases:
    """Divide cases, which stay in order, into those that train and those that do not.

    A fold rules every folder that has one of its cases: there, only its training cases train, so that
    neither its validation cases nor a healthy holdout do. A case whose CT or tumour equals a held-out one
    is held out as well, whatever its name. Without any rule a tenth of the cases is held out, at least one
    of four or more, chosen by the hash of the identifier, first among those that trained no earlier stage.

    Raises:
        DatasetError: If the rule fits no case, or no case is left to train.
    """
    every = [case for _, cases in folders for case in cases]
    if hold_out.identifiers is None:
        held, notes = _choose_tenth(every, hold_out.trained_before), []
    else:
        held, notes = _apply_rule(folders, hold_out)
    copies = _copies(every, held)
    if copies:
        notes.append(f"{_listing(copies)} equal held-out cases under another name and are held out as well.")
        held |= copies
    training = tuple(case for case in every if case.identifier not in held)
    heldout = tuple(case for case in every if case.identifier in held)
    if not training:
        raise DatasetError(_nothing_left(len(every), {case.identifier for case in every}, hold_out, copies))
    seen = {each.identifier for each in heldout if each.fingerprint.content_hashes & hold_out.trained_before}
    if seen:
        notes.append(
            f"The autoencoder was trained on the CT of {_listing(seen)} that are held out here: what is measured on "
            "them is a little too good. Train both with the same -d and -f."
        )
    return SelectedCases(training, heldout, hold_out, tuple(notes))


def _nothing_left(count: int, identifiers: set[str], hold_out: HoldOut, copies: frozenset[str]) -> str:
    """Say why no case trains: what is held out, what equals a held-out case, and what the fold does not name."""
    named = identifiers - copies if hold_out.identifiers is None else identifiers & hold_out.identifiers
    kinds = {"held out": named, "copies of held-out ones": copies}
    kinds["in neither list of the fold"] = identifiers - named - copies
    reasons = "; ".join(f"{why}: {_listing(names)}" for why, names in kinds.items() if names)
    fix = "Give different cases" if hold_out.identifiers is None else "Check the identifiers in --exclude-cases"
    if hold_out.fold is not None:
        fix = "Check the identifiers in --splits"
    return f"None of the {count} cases is left to train on. {reasons[:1].upper()}{reasons[1:]}. {fix}."


def _apply_rule(
    folders: Sequence[tuple[Path, Sequence[CachedCase]]], hold_out: HoldOut
) -> tuple[frozenset[str], list[str]]:
    named = hold_out.identifiers or frozenset()
    known = named | (hold_out.train_only or frozenset())
    held: set[str] = set()
    found: set[str] = set()
    notes = []
    for folder, cases in folders:
        identifiers = {case.identifier for case in cases}
        found |= identifiers & known
        if not identifiers & known:
            notes.append(f"{folder}: none of its cases is in the given list; all {len(cases)} train.")
            continue
        unlisted = set() if hold_out.train_only is None else identifiers - known
        held |= (identifiers & named) | unlisted
        if unlisted:
            notes.append(f"{folder}: {_listing(unlisted)} are in neither list of the fold and do not train.")
    if not found:
        raise DatasetError(
            f"None of the {len(known)} listed cases ({_listing(known)}) is in the data sets (-d). If the list "
            "belongs to other patients, leave --splits or --exclude-cases out; otherwise check identifiers and file."
        )
    missing = named - found
    if missing:
        notes.append(f"{_listing(missing)} of the list are not among the usable cases of the data sets (-d).")
    return frozenset(held), notes


def _choose_tenth(cases: Sequence[CachedCase], trained_before: frozenset[str]) -> frozenset[str]:
    seen = {case.identifier for case in cases if case.fingerprint.content_hashes & trained_before}
    identifiers = sorted({case.identifier for case in cases}, key=lambda name: (name in seen, hash_identifier(name)))
    if len(identifiers) < _FEWEST_TO_HOLD_OUT:
        return frozenset()
    return frozenset(identifiers[: max(1, round(_HELDOUT_SHARE * len(identifiers)))])


def _copies(cases: Sequence[CachedCase], held: frozenset[str]) -> frozenset[str]:
    """Cases that are not held out, but equal one that is."""
    prints = [case.fingerprint.content_hashes for case in cases if case.identifier in held]
    hashes = frozenset[str]().union(*prints)
    return frozenset({case.identifier for case in cases if case.fingerprint.content_hashes & hashes} - held)


def read_identifiers(path: Path, option: str) -> frozenset[str]:
    """Read case identifiers from a text file, one a line, or from a JSON list.

    Raises:
        DatasetError: If the file that an option names cannot be read, or holds none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text) if text.lstrip().startswith("[") else text.split("\n")
        identifiers = frozenset(str(item).strip() for item in content) - {""}
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} must hold one case identifier a line, or a JSON list ({error}).") from error
    if not identifiers:
        raise DatasetError(f"{path} names no case. Write one case identifier a line, or leave {option} out.")
    return identifiers


def _listing(identifiers: frozenset[str] | set[str]) -> str:
    return f"{len(identifiers)} case{'s' if len(identifiers) > 1 else ''} ({list_some(sorted(identifiers))})"
