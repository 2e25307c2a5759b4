"""`difftumor small-plans`: plans of nnU-Net that a CPU can train, for a first run without a GPU."""

from __future__ import annotations

import argparse

DESCRIPTION = """Write plans with a small patch and network beside nnU-Net's plans of a data set, so that a first run of
nnUNetTrainerDiffTumor ends without a GPU: two patches a batch, of at most 131,072 voxels each, as near to a cube in mm
as the median scan lets them be, and 8 to 64 features.

Spacing and normalisation stay those of the plans. The scans are preprocessed once more, into a folder of their own. It
is a way to see that everything works; a network that is to be used is trained with nnU-Net's own plans, on a GPU."""
EXAMPLE = "difftumor small-plans -d 7"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("-d", "--dataset", required=True, metavar="ID", help="nnU-Net data set: number or full name")
    add("-c", "--configuration", default="3d_fullres", metavar="NAME", help="default 3d_fullres")
    add("-p", "--plans", default="nnUNetPlans", metavar="NAME", help="plans to start from (default nnUNetPlans)")
    add("-f", "--fold", default="0", metavar="K", help="fold of the training that is printed (default 0)")
    add("-overwrite_plans_name", metavar="NAME", help="name of the small plans (default: that of -p, and Small)")
    add("--overwrite", action="store_true", help="replace small plans of that name")


def run(options: argparse.Namespace) -> int:
    """Write the plans, print what comes next."""
    from nnunet_difftumor.cases.nnunet_folders import dataset_number, find_dataset_name, require_nnunet_folders
    from nnunet_difftumor.commands.training.next_steps import as_list, stage_three, typed
    from nnunet_difftumor.trainer.small_plans import write_small_plans

    _, preprocessed_root = require_nnunet_folders()
    name, configuration = find_dataset_name(options.dataset), options.configuration
    path, network = write_small_plans(
        preprocessed_root / name,
        plans_name=options.plans,
        configuration=configuration,
        name=options.overwrite_plans_name,
        overwrite=options.overwrite,
    )
    patch, number, plans = " x ".join(map(str, network.patch_size)), dataset_number(name), path.stem
    print(f"Wrote {path}: a patch of {patch} voxels, {network.features[0]} to {network.features[-1]} features.")
    preprocess = typed("nnUNetv2_preprocess", "-d", number, "-c", configuration, "-plans_name", plans)
    train = stage_three(number, configuration, options.fold, "-p", plans, "-device", "cpu")
    print(as_list([preprocess, *train]))
    print(
        'nnU-Net trains for 1000 epochs of 250 iterations. "num_epochs": 20 and "num_iterations_per_epoch": 100 in '
        "difftumor.json beside the plans make a first run short."
    )
    return 0
