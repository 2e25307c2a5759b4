"""Make the generator that is shipped as builtin:soft-tissue-tiny again, from the CT in DIFFTUMOR_REAL_CT."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from nnunet_difftumor.builtin_recipe import build_builtin
from nnunet_difftumor.errors import DiffTumorError


def main() -> int:
    """Run the recipe."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__} About half an hour on one CPU core. Run it again to go on after an interruption.",
        epilog="example: OMP_NUM_THREADS=1 python scripts/train_builtin.py --work builtin_work --replace",
    )
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="folder for data set and runs")
    parser.add_argument("--replace", action="store_true", help="put it in the place of the one in the package")
    options = parser.parse_args()
    source = os.environ.get("DIFFTUMOR_REAL_CT")
    if not source:
        print("Set DIFFTUMOR_REAL_CT to the folder that holds sts/.", file=sys.stderr)
        return 2
    try:
        print(f"Wrote {build_builtin(Path(source), options.work, replace=options.replace)}.")
    except DiffTumorError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
