"""`difftumor splits`: cross-validation over tumour cases, with healthy cases in every training list."""

from __future__ import annotations

import argparse
import os

DESCRIPTION = """Write splits_final.json into the data set's folder in nnUNet_preprocessed (preprocessed or not yet).

The cases with annotated tumours are split for cross-validation as nnU-Net does. Healthy cases (organ present,
tumour absent) train in every fold, because tumour Dice is undefined on them. A share of them, the holdout, is
in no list, so that specificity can be measured; healthy_holdout.json names it.

Use the same file for generators (train-diffusion --splits), for nnUNetTrainerDiffTumor and for stock nnU-Net."""
EXAMPLE = "difftumor splits -d 901"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("-d", "--dataset", required=True, metavar="ID", help="nnU-Net data set: number or full name")
    add("--folds", type=int, default=5, metavar="N", help="number of folds (default 5)")
    add("--seed", type=int, default=12345, help="seed of split and holdout (default 12345, nnU-Net's)")
    holdout = "share of the healthy cases in no list (default: healthy_holdout in the settings, 0.2)"
    add("--holdout", type=float, default=None, metavar="SHARE", help=holdout)
    add("--overwrite", action="store_true", help="replace other splits of this data set")


def run(args: argparse.Namespace) -> int:
    """Write the splits."""
    from nnunet_difftumor.cases.fold import roles_of
    from nnunet_difftumor.cases.healthy import choose_holdout, count_label_voxels, group_cases
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
    groups = group_cases(
        count_label_voxels(label_files, FactCache(folder / CASE_FACTS_FILE_NAME), show_progress=True),
        [roles_of(raw.options["labels"], target) for target in config.organ_targets],
        healthy_cases=config.healthy_cases,
        confirmed_healthy=config.confirmed_healthy,
    )
    holdout = choose_holdout(groups.healthy, share, args.seed)
    folds = cross_validation(groups, holdout, folds=args.folds, seed=args.seed)
    about = {"holdout": list(holdout), "share": share, "healthy_cases": len(groups.healthy), "seed": args.seed}
    is_new = write_splits(folder, folds, about, overwrite=args.overwrite)
    print(
        f"{len(groups.tumor)} cases with tumour, {len(groups.healthy)} healthy, {len(groups.other)} without "
        f"organ and tumour; held out: {', '.join(holdout) or 'none'}"
    )
    for number, fold in enumerate(folds):
        print(f"fold {number}: training {len(fold.train)}, validation {len(fold.val)} (cases)")
    if len(folds) < args.folds:
        print(f"{len(folds)} folds, not {args.folds}: there are no more cases to divide.")
    if not groups.tumor:
        print("No case has an annotated tumour: the healthy cases were split; validation shows false alarms only.")
    if not groups.healthy:
        print(
            "No case is healthy (organ and no tumour): nnUNetTrainerDiffTumor has nowhere to put tumours. Add such "
            "cases, or use those of another data set: difftumor add-healthy -d ID --from OTHER"
        )
    print(f"{'Wrote' if is_new else 'Unchanged:'} {folder / 'splits_final.json'}")
    return 0
