"""Measure how well tumour prints recognise resampled copies, and print the table of docs/explanation/leak-guard.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    """Measure every population."""
    import numpy as np

    from nnunet_difftumor.print_rates import all_populations, measure_rates

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, metavar="RAW_DATASET", help="an nnU-Net raw data set with real tumours")
    parser.add_argument("--drawn", type=int, default=400, metavar="N", help="drawn tumours of each size (default 400)")
    parser.add_argument("--phantoms", type=int, default=60, metavar="N", help="phantom patients (default 60)")
    parser.add_argument("--copies", type=int, default=2, metavar="N", help="copies of each kind (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default 0)")
    options = parser.parse_args()
    rows = []
    makers = all_populations(options.data, drawn=options.drawn, phantoms=options.phantoms, seed=options.seed)
    for name, make in makers.items():
        rates = measure_rates(name, make(), np.random.default_rng(options.seed), copies=options.copies)
        rows += [each.to_row() for each in rates]
    print("| tumours | compared by | large enough | copies found | false alarms |\n|---|---|---|---|---|")
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
