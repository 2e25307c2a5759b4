"""Refusal of a generator that was trained on the cases that validate with it.

Identifiers and exact content refuse. A tumour print, which survives resampling, only warns: it can be wrong.

A CT is hashed as `read_ct` decodes it: float32 HU on the file's own grid, (D, H, W). A tumour mask is
hashed as `read_labels` decodes it, on the label file's own grid, so that a label map can be recognised
where its CT is not at hand (nnU-Net's gt_segmentations). Compression, stored type, slope and file format
do not change a hash; resampling, cropping and flipping do. A second hash of the CT, of what it shows
between -150 and 250 HU, does not change with mirrors, turns, padding, windows and the stated spacing.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial, reduce
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.generator.provenance import (
    CaseFingerprint,
    Provenance,
    ProvenanceError,
    TumorPrint,
    hash_array,
    hash_content,
    hash_identifier,
    hash_tumor_mask,
    load_provenance,
)
from diffusion.generator.records import read_value
from nnunet_difftumor.cases.tumor_prints import PRINT_VERSION, PrintTable, can_be_told, print_mask
from nnunet_difftumor.ct.reading import CTVolume, read_labels, read_stored_ct
from nnunet_difftumor.errors import DiffTumorError, LeakError, list_some
from nnunet_difftumor.support.files.fact_cache import FactCache

PROVENANCE_FILE_NAME = "provenance.json"
_DIFFUSION, _AUTOENCODER = "diffusion model", "autoencoder"


@dataclass(frozen=True, kw_only=True)
class CaseContent:
    """What is known of a case when it is compared with a generator's training cases.

    Attributes:
        image_hash: Hash of the decoded CT; None where the raw CT is not at hand or cannot be read.
        content_hash: Hash of what the CT shows, in whatever orientation; None as above.
        tumor_mask_hashes: Hashes of the decoded tumour masks that a training may have seen; none without tumour.
        tumor_prints: Prints of these masks and of their largest parts.
    """

    identifier: str
    image_hash: str | None = None
    content_hash: str | None = None
    tumor_mask_hashes: tuple[str, ...] = ()
    tumor_prints: tuple[TumorPrint, ...] = ()


@dataclass(frozen=True)
class StageOverlap:
    """Cases that one stage of a generator shares with a validation list.

    Attributes:
        same: Same content under the same identifier.
        renamed: Same content under another identifier.
        other_content: Same identifier, other content.
        not_comparable: Same identifier, but nothing at hand to compare the content.
        resembling: Other content, but a tumour of nearly the same shape in nearly the same surroundings.
    """

    same: list[str] = field(default_factory=list)
    renamed: list[str] = field(default_factory=list)
    other_content: list[str] = field(default_factory=list)
    not_comparable: list[str] = field(default_factory=list)
    resembling: list[str] = field(default_factory=list)

    @property
    def shared(self) -> list[str]:
        """Cases whose content trained the stage."""
        return self.same + self.renamed

    @property
    def only_named(self) -> list[str]:
        """Cases whose identifier, but not proven content, trained the stage."""
        return self.other_content + self.not_comparable


GeneratorOverlap = Mapping[str, StageOverlap]
"""What a generator shares with a validation list, by stage."""


def read_provenance(generator_folder: Path) -> Provenance:
    """Read which cases trained a generator.

    Raises:
        LeakError: If the record is missing, malformed or names no case of the diffusion model.
    """
    try:
        provenance = load_provenance(generator_folder / PROVENANCE_FILE_NAME)
    except ProvenanceError as error:
        raise LeakError(
            f"It cannot be told which cases trained this generator, so it may know the validation cases. {error}"
        ) from error
    if not provenance.diffusion and provenance.is_complete:
        raise LeakError(
            f"{generator_folder / PROVENANCE_FILE_NAME} names no case that trained the diffusion model, so the "
            "generator may know the validation cases. Train it again with `difftumor train-diffusion`."
        )
    return provenance


def describe_case(
    identifier: str, label_file: Path, image_file: Path | None, tumor_masks: Sequence[tuple[int, ...]], cache: FactCache
) -> CaseContent:
    """Fingerprint a case as the generator's training fingerprints its own.

    Args:
        label_file: Label file, on the raw grid; it and the CT are read once, and only if a fact is not in the cache.
        tumor_masks: Label values of each mask that a training may have taken for the tumour: the tumour's own
            label, and the regions that it belongs to.
    """
    load_ct, load_labels = lru_cache(1)(read_stored_ct), lru_cache(1)(read_labels)
    mask_of = lru_cache(1)(
        lambda values: reduce(np.logical_or, (load_labels(label_file)[0] == each for each in values))
    )
    image_hash = content_hash = None
    if image_file is not None:
        with suppress(DiffTumorError, OSError):  # describe_blind_spots names the case
            hashes_of = partial(cache.get_or_compute, image_file, "image_hashes")
            image_hash, content_hash = hashes_of(lambda: hash_ct(load_ct(image_file)))
    if image_hash is None:
        image_file = None

    def hash_mask(values: tuple[int, ...]) -> str:
        return hash_tumor_mask(mask_of(values)) or ""

    def take_prints(values: tuple[int, ...]) -> Any:
        ct = None if image_file is None else load_ct(image_file)
        prints = print_mask(mask_of(values), load_labels(label_file)[1], label_file, ct)
        return json.loads(json.dumps([asdict(each) for each in prints]))  # as the cache's file will hold it

    hashes: list[str] = []
    prints: list[TumorPrint] = []
    for values in tumor_masks:
        joined = "_".join(map(str, values))
        mask_hash = cache.get_or_compute(label_file, f"tumor_mask_hash_{joined}", partial(hash_mask, values))
        if mask_hash:  # there is a tumour
            hashes.append(mask_hash)
            fact = f"tumor_prints_{PRINT_VERSION}_{joined}_{image_hash or 'without_ct'}"
            taken = cache.get_or_compute(label_file, fact, partial(take_prints, values))
            prints += read_value(tuple[TumorPrint, ...], taken, f"{label_file}: {fact}", LeakError)
    return CaseContent(
        identifier=identifier,
        image_hash=image_hash,
        content_hash=content_hash,
        tumor_mask_hashes=tuple(dict.fromkeys(hashes)),
        tumor_prints=tuple(dict.fromkeys(prints)),
    )


def hash_ct(ct: CTVolume) -> list[str | None]:
    """Hash the values and the content of a CT."""
    return [hash_array(ct.image_hu), hash_content(ct.image_hu)]


def find_overlap(cases: Sequence[CaseContent], provenance: Provenance) -> GeneratorOverlap:
    """Compare cases with the ones that trained a generator."""
    trained_on = {_DIFFUSION: provenance.diffusion, _AUTOENCODER: provenance.autoencoder}
    return {stage: _stage_overlap(cases, theirs) for stage, theirs in trained_on.items()}


def refuse_overlap(
    overlap: GeneratorOverlap, *, acknowledge_identifier_matches: bool, acknowledge_autoencoder_overlap: bool
) -> tuple[str, ...]:
    """Raise for an overlap that spoils validation; return lines about those that the settings acknowledge.

    Raises:
        LeakError: If an overlap is not acknowledged, or cannot be.
    """
    diffusion, autoencoder = overlap[_DIFFUSION], overlap[_AUTOENCODER]
    if diffusion.shared:
        raise LeakError(
            f"The generator's diffusion model was trained on {_count(diffusion.shared)} of this fold"
            f"{_as_copy(diffusion)}. Its tumours would leak the validation tumours into training. Train a generator "
            "for this fold (difftumor train-diffusion -d ID -f K) and set "
            '"generator": "PATH/fold_{fold}".'
        )
    if autoencoder.shared and not acknowledge_autoencoder_overlap:
        raise LeakError(
            f"The generator's autoencoder was trained on {_count(autoencoder.shared)} of this fold"
            f"{_as_copy(autoencoder)}. Train it without them (difftumor train-autoencoder -d ID "
            '-f K), or set "acknowledge_autoencoder_overlap": true and say so with every result.'
        )
    named = list(dict.fromkeys(diffusion.only_named + autoencoder.only_named))
    if named and not acknowledge_identifier_matches:
        why = "but with other content."
        if diffusion.not_comparable or autoencoder.not_comparable:
            why = (
                "and their content cannot be compared without the raw CT: set nnUNet_raw so that it is found, unless "
                "the generator knows no more than names."
            )
        alike = [case for case in named if case in diffusion.resembling or case in autoencoder.resembling]
        if alike:
            why += f" {_count(alike)} also has the shape of a training tumour: most likely the same patient."
        raise LeakError(
            f"The generator was trained on cases with the identifiers of {_count(named)} of this fold, {why} "
            'If these are different patients, set "acknowledge_identifier_matches": true, which is recorded in the '
            "output folder."
        )
    return describe_overlap(overlap)


def describe_resemblance(overlap: GeneratorOverlap) -> tuple[str, ...]:
    """Return one warning per stage that was trained on tumours much like those of validation cases."""
    return tuple(
        f"{_count(found.resembling)} of this fold {'have' if len(found.resembling) > 1 else 'has'} a tumour of nearly "
        f"the same shape as a case that trained the {stage}: likely the same patient in another resampling. If so, "
        "validation with this generator is worthless; compare the cases, and take them out of the generator's "
        "training or out of validation."
        for stage, found in overlap.items()
        if found.resembling
    )


def describe_blind_spots(cases: Sequence[CaseContent], noun: str = "validation case") -> tuple[str, ...]:
    """Say which cases could have trained a generator without being noticed; nothing if none."""
    lines = []
    small = [case.identifier for case in cases if case.tumor_mask_hashes and not can_be_told(case.tumor_prints)]
    if small:
        lines.append(
            f"{_count(small, noun)} cannot be recognised in another resampling: too small, or without the CT around "
            "the tumour (nnUNet_raw)."
        )
    unseen = [case.identifier for case in cases if case.image_hash is None]
    if unseen:
        lines.append(
            f"WARNING: the CT of {_count(unseen, noun)} is missing in nnUNet_raw or cannot be read. A generator that "
            "saw it under another name is noticed only by the labels, if at all."
        )
    return tuple(lines)


def describe_unknown(provenance: Provenance) -> tuple[str, ...]:
    """Warn of a generator whose training cases are not all known."""
    if provenance.is_complete:
        return ()
    known = f"only {len(provenance.diffusion)} by name" if provenance.diffusion else "none"
    return (
        f"Of the cases that trained this generator {known} can be told, so it cannot be excluded that it knows this "
        "fold's validation cases. Validate on data that its authors did not have.",
    )


def describe_unlabelled(provenance: Provenance) -> tuple[str, ...]:
    """Say which stages were trained on cases of which only an exact copy of the CT is recognised."""
    counts = {
        stage: sum(case.tumor_prints is None and case.image_hash is not None for case in trained_on)
        for stage, trained_on in ((_DIFFUSION, provenance.diffusion), (_AUTOENCODER, provenance.autoencoder))
    }
    return tuple(
        f"The {stage} was trained on {count} cases without labels: they are not recognised in another resampling."
        for stage, count in counts.items()
        if count
    )


def describe_overlap(overlap: GeneratorOverlap, noun: str = "validation case") -> tuple[str, ...]:
    """Return one line per kind of overlap, for the log, without a full stop."""
    return tuple(
        f"the {stage} was trained on {what}{_count(cases, noun)}"
        for stage, found in overlap.items()
        for what, cases in (("", found.shared), ("other cases with the identifiers of ", found.only_named))
        if cases
    )


def _stage_overlap(cases: Sequence[CaseContent], trained_on: Sequence[CaseFingerprint]) -> StageOverlap:
    by_name: dict[str, list[CaseFingerprint]] = defaultdict(list)
    for fingerprint in trained_on:
        by_name[fingerprint.identifier_hash].append(fingerprint)
    known = frozenset[str]().union(*(fingerprint.content_hashes for fingerprint in trained_on))
    prints = PrintTable([fingerprint.tumor_prints or () for fingerprint in trained_on])
    found = StageOverlap()
    for case in cases:
        namesakes = by_name[hash_identifier(case.identifier)]
        if known & {case.image_hash, case.content_hash, *case.tumor_mask_hashes}:
            (found.same if namesakes else found.renamed).append(case.identifier)
            continue
        if prints.holds_same_tumor(case.tumor_prints):
            found.resembling.append(case.identifier)
        if namesakes:  # another mask alone may be another labelling of the same CT
            theirs = {other.image_hash for other in namesakes} - {None}
            differs = case.image_hash and theirs and case.image_hash not in theirs
            (found.other_content if differs else found.not_comparable).append(case.identifier)
    return found


def _count(cases: Sequence[str], noun: str = "validation case") -> str:
    return f"{len(cases)} {noun}{'s' if len(cases) > 1 else ''} ({list_some(cases)})"


def _as_copy(overlap: StageOverlap) -> str:
    return f"; {', '.join(overlap.renamed[:5])} under another identifier" if overlap.renamed else ""
