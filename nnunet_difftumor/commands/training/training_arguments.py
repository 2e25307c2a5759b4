"""Arguments that both training commands take; nothing heavy is imported for --help."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_difftumor.commands.dataset_arguments import SPLITS
from nnunet_difftumor.generator_training import CACHE_FOLDER, PRESETS


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that both training commands take."""
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="new folder for the run")
    add("--preset", choices=PRESETS, required=True, help="nano: tests; tiny: CPU; base: GPU; large: GPUs")
    held = parser.add_argument_group("held-out cases", "never trained on; without these a tenth is held out")
    held.add_argument("-f", "--fold", type=int, metavar="K", help="train on this fold's training cases only")
    held.add_argument("--splits", type=Path, metavar="FILE", help=SPLITS)
    held.add_argument("--exclude-cases", type=Path, metavar="FILE", help="case identifiers, one a line")
    add("--steps", type=int, metavar="N", help="training steps (default: the preset's)")
    add("--skip-bad", action="store_true", help="leave out bad cases (not in HU, damaged, labels elsewhere); list them")
    add("--c", dest="resume", action="store_true", help="continue the run in --output")
    add("--seed", type=int, default=0, metavar="S", help="seed of weights, crops and noise (default 0)")
    add("--workers", type=int, default=0, metavar="N", help="data-loading processes (default 0: none)")
    add("--precision", choices=("no", "bf16", "fp16"), default="no", help="mixed precision (default no)")
    cache = f"decoded CTs, for all runs (default: {CACHE_FOLDER} beside --output)"
    add("--cache", type=Path, metavar="DIR", help=cache)
