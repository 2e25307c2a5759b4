"""Measure what a synthetic tumour costs on this machine's CPU and write the figures as JSON."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main() -> int:
    """Run the benchmark."""
    for name in _ONE_THREAD:  # before numpy is imported: threads that wait for one another cost CPU-seconds too
        os.environ.setdefault(name, "1")
    from nnunet_difftumor.support.files.atomic_files import write_json
    from nnunet_difftumor.synthesis_benchmark import REFERENCE_RADIUS_MM, full_benchmark

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where to write the figures")
    parser.add_argument("--presets", nargs="+", default=["tiny", "base"], help="presets, the last one for memory")
    parser.add_argument("--radii-mm", nargs="+", type=float, default=[4.0, REFERENCE_RADIUS_MM, 16.0, 40.0])
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    figures = full_benchmark(options.presets, options.radii_mm, options.repetitions)
    write_json(options.json, figures, overwrite=True)
    print(f"{'preset':8s}{'radius mm':>10s}{'batch':>6s}{'CPU-s per tumour, median (range)':>36s}")
    for row in figures["rows"]:
        cost = f"{row['cpu_seconds_per_tumor']:.3f} ({row['lowest']:.3f}-{row['highest']:.3f})"
        print(f"{row['preset']:8s}{row['radius_mm']:10.0f}{row['batch']:6d}{cost:>36s}")
    for preset, seconds in figures["full_patch_cpu_seconds"].items():
        print(f"{preset}: the same on a full patch of {figures['full_patch_side_voxels']} voxels: {seconds:.2f} CPU-s")
    print(f"peak memory of {figures['peak_rss_preset']}: {figures['peak_rss_mb']:.0f} MB; written to {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
