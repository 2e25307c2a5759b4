"""`difftumor ext-trainer`: where nnU-Net finds the trainer."""

from __future__ import annotations

import argparse

from nnunet_difftumor.trainer.discovery import ext_trainer_folder

DESCRIPTION = """Print the folder in which nnU-Net finds nnUNetTrainerDiffTumor.

nnU-Net looks for trainers outside its own package in the folders named by nnUNet_extTrainer. Set it for
training and for prediction, e.g. in ~/.bashrc. It may name several folders, separated by colons."""
EXAMPLE = "export nnUNet_extTrainer=$(difftumor ext-trainer)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments: there are none."""


def run(args: argparse.Namespace) -> int:
    """Print the folder."""
    print(ext_trainer_folder())
    return 0
