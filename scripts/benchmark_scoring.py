"""Measure what `difftumor score` costs on this machine and write the figures as JSON."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path


def main() -> int:
    """Run the benchmark."""
    from nnunet_difftumor.evaluation.scoring.benchmark import measure_scoring, write_benchmark_folders
    from nnunet_difftumor.support.files.atomic_files import write_json

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where to write the figures")
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--side", type=int, default=128, help="side of the label maps in voxels")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--probabilities", action="store_true", help="read nnU-Net's probabilities too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "data"
        write_benchmark_folders(data, options.cases, options.side, with_probabilities=options.probabilities)
        cost = measure_scoring(data, Path(temporary) / "scores", workers=options.workers)
    write_json(options.json, asdict(cost), overwrite=True)
    print(
        f"{cost.cases} cases of {cost.side_voxels} voxels cubed with {cost.workers} processes: {cost.wall_seconds:.0f} "
        f"s, {cost.cpu_seconds_per_case:.3f} CPU-s a case, {cost.peak_memory_mb:.0f} MB; written to {options.json}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
