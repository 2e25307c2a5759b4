"""What is settled before a training starts: its cases, its fold, and that the generator does not know them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_difftumor.cases.healthy import CaseGroups, choose_holdout, count_label_voxels, group_cases
from nnunet_difftumor.cases.known_cases import NOTHING_KNOWN, KnownCases, read_known_cases
from nnunet_difftumor.cases.splits import (
    DEFAULT_SEED,
    HOLDOUT_FILE_NAME,
    SPLITS_FILE_NAME,
    Split,
    arrange_split,
    cross_validation,
    read_holdout,
    read_splits,
)
from nnunet_difftumor.ct.datasets import read_dataset_json
from nnunet_difftumor.ct.label_roles import LabelRoles, declared_values, foreground_labels, require_declared
from nnunet_difftumor.errors import ConfigurationError, DatasetError, DiffTumorError, list_some
from nnunet_difftumor.settings.trainer_settings import DiffTumorConfig, OrganTarget
from nnunet_difftumor.support.files.fact_cache import CASE_FACTS_FILE_NAME, FactCache

_READERS = 4  # each holds a CT of up to 1 GB


@dataclass(frozen=True, kw_only=True)
class PreprocessedCases:
    """The preprocessed cases of a data set and where their raw files are.

    Attributes:
        folder: The data set's folder in nnUNet_preprocessed.
        images: Raw CT of each case, as far as nnUNet_raw is at hand.
        labels: `labels` of dataset.json.
    """

    folder: Path
    identifiers: tuple[str, ...]
    label_ending: str
    images: Mapping[str, Path]
    labels: Mapping[str, Any]

    def label_file(self, identifier: str) -> Path:
        """Return nnU-Net's copy of a case's label file, on the raw grid."""
        return self.folder / "gt_segmentations" / f"{identifier}{self.label_ending}"

    def open_cache(self) -> FactCache:
        """Open what is known of the cases' files, beside the plans."""
        return FactCache(self.folder / CASE_FACTS_FILE_NAME)


def open_preprocessed_cases(folder: Path, data_folder: Path, dataset_json: Mapping[str, Any]) -> PreprocessedCases:
    """Find the preprocessed cases of a data set.

    Args:
        folder: The data set's folder in nnUNet_preprocessed.
        data_folder: Folder of the configuration in it.
    """
    from nnunetv2.paths import nnUNet_raw
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    ending = dataset_json["file_ending"]
    return PreprocessedCases(
        folder=folder,
        identifiers=tuple(sorted(infer_dataset_class(str(data_folder)).get_identifiers(str(data_folder)))),
        label_ending=ending,
        images=find_raw_images(Path(str(nnUNet_raw)) / folder.name, ending) if nnUNet_raw.is_set() else {},
        labels=dataset_json["labels"],
    )


def find_raw_images(raw_dataset_folder: Path, ending: str) -> dict[str, Path]:
    """Find the CT of each case, with this ending, in nnUNet_raw, as far as at hand, whatever else is wrong there."""
    images = raw_dataset_folder.glob(f"imagesTr/*_0000{ending}")
    found = {path.name.removesuffix(f"_0000{ending}"): path for path in images}
    with suppress(DiffTumorError):
        listed = read_dataset_json(raw_dataset_folder / "dataset.json").get("dataset", {})
        for case, entry in listed.items():
            with suppress(TypeError, KeyError, IndexError):
                found[case] = raw_dataset_folder / os.path.expandvars(entry["images"][0])
    return found


@dataclass(frozen=True)
class FoldCases:
    """Cases of one training.

    Attributes:
        holdout: Healthy cases that are in no list.
        notes: Lines for the log.
        known: What `difftumor splits` recorded beside the holdout.
        beside: Cases in neither list, of this data set or others, that may be scans of validation patients.
    """

    groups: CaseGroups
    holdout: tuple[str, ...]
    split: Split
    notes: tuple[str, ...]
    known: KnownCases = NOTHING_KNOWN
    beside: tuple[str, ...] = ()

    @property
    def healthy_train(self) -> tuple[str, ...]:
        """Healthy training cases: those that tumours are injected into."""
        return tuple(sorted(set(self.split.train).intersection(self.groups.healthy)))

    @property
    def tumor_train(self) -> tuple[str, ...]:
        """Training cases with tumours: real ones are measured and copied from these alone."""
        return tuple(sorted(set(self.split.train).intersection(self.groups.tumor)))

    @property
    def unlisted(self) -> tuple[str, ...]:
        """Cases that neither train nor validate, and are neither held out nor beside validation patients."""
        everyone = {*self.groups.tumor, *self.groups.healthy, *self.groups.other}
        return tuple(sorted(everyone.difference(self.split.train, self.split.val, self.holdout, self.beside)))

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the record in the output folder."""
        return {**self.split.to_json(), "healthy_train": list(self.healthy_train), "holdout": list(self.holdout)}


def choose_cases(
    cases: PreprocessedCases, config: DiffTumorConfig, fold: int | str, *, show_progress: bool = False
) -> FoldCases:
    """Settle which cases train and which validate in a fold (or "all"); nothing is written but the case facts.

    Raises:
        DatasetError: If the fold does not exist or one of its lists is empty.
        ConfigurationError: If a listed healthy case is not healthy.
    """
    label_files = {identifier: cases.label_file(identifier) for identifier in cases.identifiers}
    known = read_known_cases(cases.folder / HOLDOUT_FILE_NAME)
    groups = group_dataset(label_files, cases.labels, config, cases.open_cache(), known, show_progress=show_progress)
    written_holdout = read_holdout(cases.folder / HOLDOUT_FILE_NAME)
    holdout = choose_holdout(groups.healthy, config.healthy_holdout) if written_holdout is None else written_holdout
    listed = f" ({', '.join(holdout)})" if holdout else ""
    notes = [
        f"Cases: {len(groups.tumor)} with tumour, {len(groups.healthy)} healthy, {len(groups.other)} other. "
        f"Held out of training by {'healthy_holdout' if written_holdout is None else HOLDOUT_FILE_NAME}: "
        f"{len(holdout)} healthy{listed}.",
        *assumptions(groups, known),
    ]
    if not groups.tumor:
        notes.append(
            "No case has an annotated tumour: training sees synthetic tumours only, and validation on healthy cases "
            "can say how often tumours are found where none are, but nothing about how many real ones are found."
        )
    splits_file, beside = cases.folder / SPLITS_FILE_NAME, set[str]()
    if fold == "all":
        split, note = _all_cases(groups, holdout), "Fold 'all': validation cases are training cases."
    elif splits_file.is_file():
        folds = read_splits(splits_file)
        chosen = _the_fold(folds, int(fold), str(splits_file))
        split = arrange_split(chosen, groups, holdout, origin=f"Fold {fold} of {splits_file}", known=known)
        note = f"Using fold {fold} of {splits_file}."
        if beside := {*chosen.val}.difference(split.val, split.train, holdout):
            note += (
                f" {len(beside)} healthy validation cases ({list_some(sorted(beside))}) neither validate, as tumour "
                "Dice is undefined on them, nor train, as they may be scans of validation patients."
            )
    else:
        folds = cross_validation(groups, holdout, seed=DEFAULT_SEED, known=known)
        split = _the_fold(folds, int(fold), "the default cross-validation")
        note = (
            f"There is no {splits_file}: using a {len(folds)}-fold cross-validation over the cases with tumours, "
            "which is not written. Run `difftumor splits -d ID` first, so that a stock nnU-Net training and the "
            "generators use the same folds."
        )
    if fold != "all":
        beside.update(known.others_of(split.val))
    return FoldCases(groups, tuple(holdout), split, (*notes, note), known, tuple(sorted(beside)))


def require_hosts(cases: FoldCases, config: DiffTumorConfig) -> None:
    """Refuse a fold that has no case for what the settings put in.

    Raises:
        ConfigurationError: If there is none.
    """
    if config.annotated_probability > 0 and not cases.tumor_train:
        raise ConfigurationError(
            f'inject_into is "{config.inject_into}", but no training case has an annotated tumour. Set "inject_into": '
            '"healthy".'
        )
    if config.healthy_probability <= 0 or cases.healthy_train:
        return
    if lost := sorted(set(cases.groups.healthy).intersection(cases.unlisted)):
        raise ConfigurationError(
            f"{SPLITS_FILE_NAME} leaves out the {len(lost)} healthy cases ({list_some(lost)}), so there is nowhere to "
            "put synthetic tumours: it is older than they are, or of another trainer. Write it again: difftumor splits "
            "-d ID --overwrite"
        )
    raise ConfigurationError(
        f"No healthy case is among the {len(cases.split.train)} training cases, so there is nowhere to put "
        "synthetic tumours. Add cases with the organ and without tumour to the data set, or use those of another "
        '(difftumor add-healthy -d ID --from OTHER), or put tumours into annotated cases ("inject_into": '
        '"annotated"), or set "injection_probability": 0 to train without synthetic tumours.'
    )


def group_dataset(
    label_files: Mapping[str, Path],
    labels: Mapping[str, Any],
    config: DiffTumorConfig,
    cache: FactCache,
    known: KnownCases = NOTHING_KNOWN,
    *,
    show_progress: bool = False,
) -> CaseGroups:
    """Sort the cases of a data set by their label files, for `difftumor splits` and the trainer alike.

    Raises:
        DatasetError: If a label file is missing or holds values that `labels` of dataset.json does not declare.
        ConfigurationError: If a listed healthy case is not healthy, or nothing says which cases are.
    """
    voxels = count_label_voxels(label_files, cache, show_progress=show_progress)
    require_declared({label_files[case]: values for case, values in voxels.items()}, declared_values(labels))
    return group_cases(
        voxels,
        [roles_of(labels, target) for target in config.organ_targets],
        healthy_cases=config.healthy_cases,
        confirmed_healthy=config.confirmed_healthy,
        known=known,
    )


def assumptions(groups: CaseGroups, known: KnownCases) -> tuple[str, ...]:
    """Say in one line each what is taken for granted of the cases where no metadata say it."""
    labels = (
        "Healthy is read off the label maps alone: a tumour that is known but not annotated is told by difftumor "
        "splits --metadata FILE --tumor-column NAME."
    )
    alone = sorted({*groups.tumor, *groups.healthy, *groups.other}.difference(known.patients))
    patients = (
        f"{f'Each of {list_some(alone)}' if known.patients else 'Every scan'} counts as a patient of its own; several "
        "scans of a patient are kept together by difftumor splits --group-pattern REGEX, or --metadata FILE "
        "--group-column NAME."
    )
    return (labels,) * bool(groups.healthy and not known.tumor) + (patients,) * bool(alone)


@dataclass(frozen=True)
class LeakFindings:
    """What a generator shares with the cases of a fold, after nothing was refused; lines for record and log.

    Attributes:
        acknowledged: Overlaps that the settings accept; recorded.
        notes: For the log, warnings among them.
        warnings: What may be an overlap; recorded.
    """

    acknowledged: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def roles_of(labels: Mapping[str, Any], target: OrganTarget) -> LabelRoles:
    """Return what the `labels` of a dataset.json mean for one target."""
    return LabelRoles.of_dataset(labels, target.organ_label, target.tumor_label)


def tumor_masks_of(labels: Mapping[str, Any], target: OrganTarget) -> tuple[tuple[int, ...], ...]:
    """Return the label values of each mask that a generator's training may have taken for a target's tumour.

    That is the tumour's own label, then the regions that hold it.
    """
    roles = roles_of(labels, target)
    regions = [
        values for values in foreground_labels(labels).values() if roles.tumor in values and roles.organ not in values
    ]
    return tuple(dict.fromkeys([(roles.tumor,), tuple(sorted((roles.tumor, *roles.tumor_parts))), *regions]))


def check_leaks(
    generator_folder: Path,
    data: PreprocessedCases,
    cases: FoldCases,
    config: DiffTumorConfig,
    fold: int | str,
    *,
    target: OrganTarget | None = None,
) -> LeakFindings:
    """Compare a generator's training cases with a fold's validation cases and with the holdout.

    Args:
        fold: "all" makes no validation claim, so nothing is refused.
        target: Target whose tumour masks are compared; by default the first of the settings.

    Raises:
        LeakError: If the generator knows validation cases, or does not tell what trained it.
    """
    from nnunet_difftumor.cases import leak_guard  # prediction imports this module too, and needs no generator

    provenance = leak_guard.read_provenance(generator_folder)
    cache = data.open_cache()
    masks = tumor_masks_of(data.labels, target or config.organ_targets[0])

    def describe(names: Sequence[str]) -> list[leak_guard.CaseContent]:
        def describe_one(name: str) -> leak_guard.CaseContent:
            if name not in data.identifiers:  # of another data set
                return leak_guard.CaseContent(identifier=name)
            return leak_guard.describe_case(name, data.label_file(name), data.images.get(name), masks, cache)

        with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as readers:  # decoding leaves Python's lock
            bar = tqdm(readers.map(describe_one, names), "Looking for copies", len(names), leave=False, delay=3.0)
            return list(bar)

    validated, held_out = describe([*cases.split.val, *cases.beside]), describe(cases.holdout)
    cache.save()
    validation, holdout = (leak_guard.find_overlap(contents, provenance) for contents in (validated, held_out))
    notes = [
        f"Held-out healthy cases: {line}; specificity measured on them may be too good."
        for line in leak_guard.describe_overlap(holdout, "held-out case")
    ]
    if cases.beside:
        notes.append(f"Compared as validation cases, as scans of their patients: {list_some(cases.beside)}.")
    warnings = (*leak_guard.describe_unknown(provenance), *leak_guard.describe_resemblance(validation))
    notes += [f"WARNING: {line}" for line in warnings]
    notes += leak_guard.describe_blind_spots(validated)
    notes += leak_guard.describe_blind_spots(held_out, "held-out case")
    notes += leak_guard.describe_unlabelled(provenance)
    if fold == "all":
        lines = leak_guard.describe_overlap(validation)
        notes += [f"Fold 'all' makes no claim about validation: {line}." for line in lines]
        return LeakFindings((), tuple(notes), warnings)
    acknowledged = leak_guard.refuse_overlap(
        validation,
        acknowledge_identifier_matches=config.acknowledge_identifier_matches,
        acknowledge_autoencoder_overlap=config.acknowledge_autoencoder_overlap,
    )
    return LeakFindings(acknowledged, (*notes, *(f"Acknowledged: {line}." for line in acknowledged)), warnings)


def _all_cases(groups: CaseGroups, holdout: Sequence[str]) -> Split:
    train = sorted({*groups.tumor, *groups.healthy, *groups.other} - set(holdout))
    val = list(groups.tumor) or train
    if not train:
        raise DatasetError("No case is left to train with; lower healthy_holdout.")
    return Split(tuple(train), tuple(val))


def _the_fold(folds: Sequence[Split], fold: int, origin: str) -> Split:
    if not 0 <= fold < len(folds):
        raise DatasetError(
            f"Fold {fold} does not exist: {origin} has the folds 0 to {len(folds) - 1}. Choose one of them, or 'all'."
        )
    return folds[fold]
