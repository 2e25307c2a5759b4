"""`difftumor add-healthy`: prepare the healthy cases of another data set to be trained with one."""

from __future__ import annotations

import argparse
import json

DESCRIPTION = """Preprocess the cases of another nnU-Net data set with the plans of the one that is trained on, so that
nnUNetTrainerDiffTumor trains on them too and places tumours in them. Nothing is copied: they stay in folders of
their own, and train in every fold, but are in no validation list.

Their labels must hold the organ and no tumour. Label names must mean the same values in both data sets, and case
identifiers must differ. In a data set without tumour labels, no label may only mean that nobody looked; so say
with --confirmed-healthy that its patients are known to be free of tumours."""
EXAMPLE = "difftumor add-healthy -d 801 --from 802 --confirmed-healthy --write"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("-d", "--dataset", required=True, metavar="ID", help="data set to train on: number or name")
    add("--from", dest="extra", required=True, metavar="ID", help="data set of the healthy cases: number or name")
    add("-p", "--plans", default="nnUNetPlans", metavar="NAME", help="plans to train with (nnUNetPlans)")
    add("-c", "--configuration", default="3d_fullres", metavar="NAME", help="default: 3d_fullres")
    add("--confirmed-healthy", action="store_true", help="these patients are known to have no tumour")
    add("--write", action="store_true", help="write the setting into difftumor.json beside the plans")
    add("--workers", type=int, default=4, metavar="N", help="processes side by side (default 4)")
    add("--overwrite", action="store_true", help="preprocess again what was preprocessed before")


def run(args: argparse.Namespace) -> int:
    """Prepare the data set."""
    from nnunet_difftumor.cases.extra import preprocessing
    from nnunet_difftumor.cases.nnunet_folders import find_dataset_name, require_nnunet_folders
    from nnunet_difftumor.errors import ConfigurationError

    raw_root, preprocessed_root = require_nnunet_folders()
    name, extra = find_dataset_name(args.dataset), find_dataset_name(args.extra)
    if not args.confirmed_healthy:
        raise ConfigurationError(
            f"Are the patients of {extra} known to be free of tumours? If no tumour is labelled because nobody looked, "
            "they must not be trained on as healthy. If they are, add --confirmed-healthy."
        )
    if args.workers < 1:
        raise ConfigurationError(f"--workers must be 1 or more, got {args.workers}.")
    target = preprocessing.open_target(preprocessed_root / name, args.plans, args.configuration)
    work = preprocessing.plan_extra(target, raw_root / extra)
    entries = preprocessing.setting_with(target.folder, extra)
    is_new = preprocessing.preprocess_extra(work, processes=args.workers, overwrite=args.overwrite)
    count = len(work.raw.cases)
    print(f"{count} cases of {extra} {'are' if is_new else 'were already'} preprocessed: {work.data_folder}")
    setting = preprocessing.setting_to_json(entries)
    if args.write:
        print(f"Wrote {preprocessing.write_setting(target.folder, entries)}: {json.dumps(setting)}")
    else:
        print(f"To train with them, write into {target.folder / 'difftumor.json'} (or add --write):")
        print(json.dumps(setting, indent=2))
    return 0
