"""Prepare the data set of the soft-tissue study (docs/results.md) in nnU-Net's folders.

Raw data, plans, preprocessing, and folds in which no patient is on both sides. The study is `difftumor experiment`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from nnunet_difftumor.cases.splits import write_splits
from nnunet_difftumor.demo.settings import CONFIGURATION, PLANS_NAME, demo_settings
from nnunet_difftumor.demo.soft_tissue import CROSS_VALIDATION_NAME, make_cross_validation_dataset
from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.trainer.small_plans import write_small_plans


def prepare(source: Path, *, folds: int) -> Path:
    """Make the data set in nnU-Net's folders from the one that holds `sts/`, and return the preprocessed one."""
    raw, preprocessed = (Path(os.environ[name]) for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    settings = demo_settings("real")
    made = make_cross_validation_dataset(source, raw, folds=folds)
    number = CROSS_VALIDATION_NAME[len("Dataset") : len("Dataset") + 3]
    spacing = [f"{value:g}" for value in settings.target_spacing_mm]
    plan = ["nnUNetv2_plan_and_preprocess", "-d", number, "-c", CONFIGURATION, "--verify_dataset_integrity"]
    _run([*plan, "-np", "1", "-npfp", "1", "--no_pp", "-overwrite_target_spacing", *spacing])
    folder = preprocessed / made.folder.name
    write_small_plans(folder, settings.network, name=PLANS_NAME, overwrite=True)
    _run(["nnUNetv2_preprocess", "-d", number, "-c", CONFIGURATION, "-plans_name", PLANS_NAME, "-np", "1"])
    write_splits(folder, made.folds, {"holdout": [], "share": 0.0, "healthy_cases": len(made.healthy)})
    return folder


def _run(words: list[str]) -> None:
    print("$ " + " ".join(words), flush=True)
    subprocess.run([str(Path(sys.executable).parent / words[0]), *words[1:]], check=True)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: export nnUNet_raw=study/raw nnUNet_preprocessed=study/preprocessed nnUNet_results=study/"
        "results nnUNet_def_n_proc=1 OMP_NUM_THREADS=1; python scripts/prepare_soft_tissue_study.py",
    )
    parser.add_argument("--folds", type=int, default=2, help="number of folds (default 2)")
    options = parser.parse_args()
    missing = [name for name in ("DIFFTUMOR_REAL_CT", "nnUNet_raw", "nnUNet_preprocessed") if not os.environ.get(name)]
    if missing:
        print(f"Set {', '.join(missing)}: DIFFTUMOR_REAL_CT is the folder that holds sts/.", file=sys.stderr)
        return 2
    try:
        prepared = prepare(Path(os.environ["DIFFTUMOR_REAL_CT"]), folds=options.folds)
    except (DiffTumorError, subprocess.CalledProcessError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(f"Prepared {prepared}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
