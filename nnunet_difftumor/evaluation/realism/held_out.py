"""Which cases a generator is judged on: those that it never saw, nor another scan of their patients."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_difftumor.cases.known_cases import NOTHING_KNOWN, KnownCases
from nnunet_difftumor.cases.leak_guard import hash_ct
from nnunet_difftumor.ct.datasets import Case, RawDataset
from nnunet_difftumor.ct.reading import read_stored_ct
from nnunet_difftumor.errors import DatasetError, LeakError, list_some

if TYPE_CHECKING:
    from diffusion.generator.provenance import CaseFingerprint, Provenance


@dataclass(frozen=True)
class HeldOut:
    """How cases are chosen.

    Attributes:
        splits: A splits_final.json whose validation cases are judged; None: every case that did not train a generator.
        fold: Fold of the splits of a single generator; of several, each has the fold of its place in their order.
        known: Which cases are scans of one patient.
    """

    splits: Path | None = None
    fold: int | None = None
    known: KnownCases = NOTHING_KNOWN

    def cases(self, dataset: RawDataset, provenances: Sequence[Provenance]) -> list[list[Case]]:
        """Return the cases that each generator is judged on.

        Raises:
            DatasetError: If the splits do not hold what is asked for, or a patient would be judged twice.
            LeakError: If a case to judge, or another scan of its patient, trained the generator.
        """
        folds = self.folds(len(provenances))
        found = [self._cases(dataset, each, fold) for each, fold in zip(provenances, folds, strict=True)]
        judged = Counter(name for own in found for name in {self.known.patient_of(case.identifier) for case in own})
        if twice := sorted(name for name, count in judged.items() if count > 1):
            raise DatasetError(
                f"{self.splits} validates {list_some(twice)} in more than one of its first {len(found)} folds, but a "
                "patient is judged by one generator. Write splits in which every case is validated once."
            )
        return found

    def folds(self, count: int) -> list[int | None]:
        """Return the fold whose validation cases each of so many generators is judged on; None: there are no splits.

        Raises:
            DatasetError: If splits and fold do not go together, or the splits do not have such a fold.
        """
        several = count > 1
        if several and (self.splits is None or self.fold is not None):
            raise DatasetError(
                f"{count} generators need --splits, each for the fold of its place in their order, and no "
                "-f. Give the splits that they were trained with, or one generator."
            )
        if not several and (self.splits is None) != (self.fold is None):
            raise DatasetError("--splits and -f belong together; give both or neither.")
        folds: list[int | None] = [*range(count)] if several else [self.fold]
        for fold in folds:
            if self.splits is not None and fold is not None:
                _validation(self.splits, fold)
        return folds

    def _cases(self, dataset: RawDataset, provenance: Provenance, fold: int | None) -> list[Case]:
        patient_of = self.known.patient_of
        if self.splits is None or fold is None:
            trained = {patient_of(name) for name in known_cases(dataset.cases, provenance.diffusion)}
            return [case for case in dataset.cases if patient_of(case.identifier) not in trained]
        by_identifier = {case.identifier: case for case in dataset.cases}
        names = _validation(self.splits, fold)
        if unknown := sorted(set(names) - set(by_identifier)):
            raise DatasetError(f"{self.splits} names cases that {dataset.folder} does not hold: {list_some(unknown)}.")
        others = [by_identifier[name] for name in self.known.others_of(names) if name in by_identifier]
        cases = [by_identifier[name] for name in names]
        if leaked := known_cases([*cases, *others], provenance.diffusion):
            raise LeakError(
                f"{len(leaked)} of the cases to evaluate trained this generator ({list_some(leaked)}), or are further "
                f"scans of their patients. Train it with --splits {self.splits} -f {fold}; of several generators, "
                "the first belongs to fold 0."
            )
        return cases


def known_cases(cases: Sequence[Case], trained: Sequence[CaseFingerprint]) -> list[str]:
    """Cases that trained a part of the generator, by their names or else by their CT."""
    from diffusion.generator.provenance import hash_identifier

    hashes = {value for entry in trained for value in (entry.identifier_hash, *entry.content_hashes)}
    named = {case.identifier for case in cases if hash_identifier(case.identifier) in hashes}
    others = [case for case in cases if case.identifier not in named]
    seen = {each.identifier for each in others if not hashes.isdisjoint(hash_ct(read_stored_ct(each.image_path)))}
    return [case.identifier for case in cases if case.identifier in named | seen]


def _validation(splits: Path, fold: int) -> list[str]:
    try:
        return json.loads(splits.read_text(encoding="utf-8"))[fold]["val"]
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        raise DatasetError(f"{splits} has no validation list for fold {fold} ({error!r}).") from error
