"""Collect the validation scores of a study's finished runs in one CSV, and print them as the tables of a results page.

The CSV outlives the study's folder: runs that were made elsewhere or earlier stay in it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_difftumor.errors import DatasetError, DiffTumorError, OutputExistsError
from nnunet_difftumor.evaluation.statistics.intervals import patient_interval
from nnunet_difftumor.evaluation.statistics.paired_tests import sign_flip_p_value
from nnunet_difftumor.evaluation.statistics.scales import SHARE, SHARE_DIFFERENCE, Scale
from nnunet_difftumor.support.files.atomic_files import written_whole

COLUMNS = ("run", "arm", "annotated", "fold", "seed", "case", "dice")
DRAWS = 10_000


def read_finished(study: Path, label: str) -> pd.DataFrame:
    """Read the tumour Dice of each validation case of each finished run of a study: one row per run and case.

    Raises:
        DatasetError: If nothing is finished, or nnU-Net's summary lacks the label (its key there).
    """
    rows = []
    for done in sorted(study.glob("runs/*/done.json")):
        run = json.loads((done.parent / "run.json").read_text())
        head = (done.parent.name, run["arm"], str(run["annotated"]), run["fold"], run["seed"])
        summaries = list(done.parent.glob(f"results/*/*/fold_{run['fold']}/validation/summary.json"))
        if len(summaries) != 1:
            raise DatasetError(f"{done.parent}: expected one validation/summary.json, found {len(summaries)}.")
        for case in json.loads(summaries[0].read_text())["metric_per_case"]:
            if label not in case["metrics"]:
                known = ", ".join(case["metrics"])
                raise DatasetError(
                    f"{summaries[0]}: label {label} is not in it; it has {known}. Name one with --label."
                )
            name = Path(case["reference_file"]).name.split(".")[0]
            rows.append((*head, name, round(float(case["metrics"][label]["Dice"]), 4)))
    if not rows:
        raise DatasetError(f"{study}: no finished run (runs/*/done.json). Is it the --output of difftumor experiment?")
    return pd.DataFrame.from_records(rows, columns=list(COLUMNS))


def merge(old: pd.DataFrame, new: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Add runs of the study to those that the CSV held before; a run has one result.

    Raises:
        OutputExistsError: If a run is in both with different scores.
    """
    both: Any = old.merge(new, on=["run", "case"], suffixes=("_old", "_new"))
    changed = both.loc[both["dice_old"] != both["dice_new"], "run"]
    if len(changed):
        raise OutputExistsError(
            f"{path} has other scores of {changed.iloc[0]}. A run is not replaced by a better one: remove its lines "
            "by hand if it was wrong, and say so beside the results."
        )
    joined: Any = pd.concat([old, new]).drop_duplicates(["run", "case"])
    by_number = pd.to_numeric(joined["annotated"], errors="coerce")
    order = ["by_number", "seed", "fold", "arm", "case"]
    return joined.assign(by_number=by_number).sort_values(order).drop(columns="by_number")


def tables(scores: pd.DataFrame, baseline: str) -> str:
    """Write the tables: each run, then each arm beside the baseline's trainings of the same repetitions."""
    rows: Any
    of_number: Any
    lines = ["| run | patients | Dice |", "|---|---|---|"]
    for run, rows in scores.groupby("run", sort=False):
        lines.append(f"| {run} | {len(rows)} | {_interval(rows['dice'].to_numpy(), SHARE)} |")
    for annotated, of_number in scores.groupby("annotated", sort=False):
        values = of_number.pivot(index=["fold", "case", "seed"], columns="arm", values="dice")
        arms = [name for name in values if name != baseline]
        compared = [_compare(values, str(arm), baseline) for arm in arms] if baseline in values else []
        if any(compared):
            lines += ["", f"{annotated} annotated cases", ""]
            lines += [f"| arm | repetitions | patients | Dice | {baseline} beside it | difference | p |"]
            lines += ["|---|---|---|---|---|---|---|", *(line for line in compared if line)]
    return "\n".join(lines)


def _compare(values: Any, arm: str, baseline: str) -> str:
    """One row of a table from the repetitions that both arms have of all folds; empty if there is none."""
    paired = values[[arm, baseline]].dropna()
    folds = paired.index.get_level_values("fold")
    seeds = [
        seed for seed, rows in paired.groupby(level="seed") if set(rows.index.get_level_values("fold")) == set(folds)
    ]
    if not seeds:
        return ""
    paired = paired[paired.index.get_level_values("seed").isin(seeds)].groupby(level=["fold", "case"]).mean()
    difference = (paired[arm] - paired[baseline]).to_numpy()
    p_value = float(sign_flip_p_value(difference, draws=DRAWS, rng=np.random.default_rng(0)))
    means = (_interval(paired[name].to_numpy(), SHARE) for name in (arm, baseline))
    words = (arm, str(len(seeds)), str(len(paired)), *means, _interval(difference, SHARE_DIFFERENCE))
    return f"| {' | '.join(words)} | {p_value:.2g} |"


def _interval(values: np.ndarray, scale: Scale) -> str:
    found = patient_interval(values, np.ones(len(values)), scale, draws=DRAWS, rng=np.random.default_rng(0))
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python scripts/tabulate_study.py --study work/study --scores docs/results/soft_tissue.csv",
    )
    parser.add_argument("--study", type=Path, metavar="DIR", help="--output of difftumor experiment; without: CSV only")
    parser.add_argument("--scores", type=Path, required=True, metavar="CSV", help="finished runs are added to it")
    parser.add_argument("--label", default="2", help="tumour label in nnU-Net's summary.json (default 2)")
    parser.add_argument("--baseline", default="nnU-Net", help="arm that the others are compared with")
    options = parser.parse_args()
    try:
        scores = pd.read_csv(options.scores, dtype={"annotated": str}) if options.scores.exists() else None
        if options.study is not None:
            found = read_finished(options.study, options.label)
            scores = found if scores is None else merge(scores, found, options.scores)
            with written_whole(options.scores, overwrite=True) as temporary:
                scores.to_csv(temporary, index=False)
        if scores is None:
            raise DatasetError(f"{options.scores} does not exist. Name the study with --study.")
    except DiffTumorError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(tables(scores, options.baseline))
    return 0


if __name__ == "__main__":
    sys.exit(main())
