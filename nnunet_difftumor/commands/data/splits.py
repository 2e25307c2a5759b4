"""`difftumor splits`: cross-validation over tumour cases, with healthy cases in every training list."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_difftumor.errors import ConfigurationError, DatasetError

if TYPE_CHECKING:
    from nnunet_difftumor.cases.healthy import CaseGroups
    from nnunet_difftumor.cases.known_cases import KnownCases

DESCRIPTION = """Write splits_final.json into the data set's folder in nnUNet_preprocessed (preprocessed or not yet).

The cases with annotated tumours are split for cross-validation as nnU-Net does. Healthy cases (organ present,
tumour absent) train in every fold, because tumour Dice is undefined on them. A share of them, the holdout, is
in no list, so that specificity can be measured; healthy_holdout.json names it.

Healthy and patients are read off labels and identifiers alone, unless a table says more: a CSV with a column case
(--metadata). A case with a known tumour is not healthy, whatever its labels show; scans of one patient are never on
both sides of a fold. The trainer reads both from healthy_holdout.json.

Generators (train-diffusion -d 901 -f 0), nnUNetTrainerDiffTumor and stock nnU-Net all take their folds from it."""
EXAMPLE = """difftumor splits -d 901
difftumor splits -d 901 --metadata cases.csv --tumor-column lesions --group-column patient"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("-d", "--dataset", required=True, metavar="ID", help="nnU-Net data set: number or full name")
    add("--folds", type=int, default=5, metavar="N", help="number of folds (default 5)")
    add("--seed", type=int, default=12345, help="seed of split and holdout (default 12345, nnU-Net's)")
    holdout = "share of the healthy cases in no list (default: healthy_holdout in the settings, 0.2)"
    add("--holdout", type=float, default=None, metavar="SHARE", help=holdout)
    add("--metadata", type=Path, metavar="FILE", help="table of the cases: CSV or TSV with a column case")
    add("--tumor-column", metavar="NAME", help="its column that says who has a tumour: yes or no, or a number")
    patients = parser.add_mutually_exclusive_group()
    patients.add_argument("--group-column", metavar="NAME", help="its column that names the patient")
    pattern = "regular expression that finds the patient in the case identifier"
    patients.add_argument("--group-pattern", metavar="REGEX", help=pattern)
    left_out = "a column such as the hospital: one fold for each of its values, which validates and never trains"
    add("--leave-out", metavar="NAME", help=left_out)
    add("--overwrite", action="store_true", help="replace other splits of this data set")


def run(args: argparse.Namespace) -> int:
    """Write the splits."""
    from nnunet_difftumor.cases.fold import assumptions, group_dataset
    from nnunet_difftumor.cases.healthy import choose_holdout
    from nnunet_difftumor.cases.known_cases import KnownCases, one_value_each
    from nnunet_difftumor.cases.nnunet_folders import find_dataset_name, require_nnunet_folders
    from nnunet_difftumor.cases.splits import cross_validation, write_splits
    from nnunet_difftumor.ct.datasets import load_raw_dataset
    from nnunet_difftumor.settings.resolving import resolve_config
    from nnunet_difftumor.settings.sources import ENVIRONMENT_VARIABLE, find_sources
    from nnunet_difftumor.support.files.fact_cache import CASE_FACTS_FILE_NAME, FactCache

    raw_root, preprocessed_root = require_nnunet_folders()
    name = find_dataset_name(args.dataset)
    raw, folder = load_raw_dataset(raw_root / name), preprocessed_root / name
    sources = find_sources(os.environ.get(ENVIRONMENT_VARIABLE), folder, raw.options)
    config = resolve_config(raw.options["labels"], sources).config
    label_files = {case.identifier: case.label_path for case in raw.cases if case.label_path is not None}
    share = config.healthy_holdout if args.holdout is None else args.holdout
    if not 0 <= share < 1:
        raise ValueError(f"--holdout must be at least 0 and below 1, got {share}.")
    known = _read_known(args, sorted(label_files))
    sites = one_value_each(args.metadata, args.leave_out, sorted(label_files), is_needed=True) if args.leave_out else {}
    together, most = (KnownCases(patients=sites), len(label_files)) if sites else (known, args.folds)
    cache = FactCache(folder / CASE_FACTS_FILE_NAME)
    groups = group_dataset(label_files, raw.options["labels"], config, cache, known, show_progress=True)
    others = (*groups.tumor, *groups.other)
    holdout = choose_holdout(groups.healthy, share, args.seed, others=others, known=known)
    folds = cross_validation(groups, holdout, folds=most, seed=args.seed, known=together)
    folds = tuple(fold.without(known.others_of(fold.val)) for fold in folds)  # of patients in several hospitals
    if not all(fold.train for fold in folds):
        raise DatasetError("A fold has no case to train on: every patient has a scan in the hospital that is left out.")
    about = {"holdout": list(holdout), "share": share, "healthy_cases": len(groups.healthy), "seed": args.seed}
    is_new = write_splits(folder, folds, {**about, **known.to_json()}, overwrite=args.overwrite)
    for line in (*_describe(groups, holdout), *assumptions(groups, known)):
        print(line)
    for number, fold in enumerate(folds):
        site = f"{args.leave_out} {together.patient_of(fold.val[0])}: " if sites else ""
        print(f"fold {number}: {site}training {len(fold.train)}, validation {len(fold.val)} (cases)")
    if len(folds) < most and not sites:
        print(f"{len(folds)} folds, not {most}: there are no more patients to divide.")
    print(f"{'Wrote' if is_new else 'Unchanged:'} {folder / 'splits_final.json'}")
    return 0


def _describe(groups: CaseGroups, holdout: Sequence[str]) -> Iterator[str]:
    yield (
        f"{len(groups.tumor)} cases with tumour, {len(groups.healthy)} healthy, {len(groups.other)} neither; "
        f"held out: {', '.join(holdout) or 'none'}"
    )
    yield f"healthy: {', '.join(groups.healthy) or 'none'}\nneither: {', '.join(groups.other) or 'none'}"
    if not groups.tumor:
        yield "No case has an annotated tumour: the healthy cases were split; validation shows false alarms only."
    if not groups.healthy:
        yield (
            "No case is healthy (organ and no tumour): nnUNetTrainerDiffTumor has nowhere to put tumours. Add such "
            "cases, or use those of another data set (see difftumor add-healthy --help)."
        )


def _read_known(args: argparse.Namespace, cases: Sequence[str]) -> KnownCases:
    from nnunet_difftumor.cases.known_cases import KnownCases, cases_with_tumor, one_value_each, patients_by_pattern

    columns = (args.tumor_column, args.group_column, args.leave_out)
    if (args.metadata is None) == any(columns):
        raise ConfigurationError(
            "--metadata goes with the name of a column in it: --tumor-column, --group-column or --leave-out."
        )
    tumor = cases_with_tumor(args.metadata, args.tumor_column, cases) if args.tumor_column else ()
    if args.group_pattern:
        return KnownCases(tumor, patients_by_pattern(cases, args.group_pattern), args.group_pattern)
    return KnownCases(tumor, one_value_each(args.metadata, args.group_column, cases) if args.group_column else {})
