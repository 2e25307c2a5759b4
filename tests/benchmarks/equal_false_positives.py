"""Compare the arms of a comparison at the false positives of its baseline, and print the table as Markdown.

nnU-Net writes a tumour where it is the most probable label, and how many false positives that gives differs between
trainings. Here predicted tumours below a threshold of their score are left out. Thresholds are cross-fitted: the
patients of each hospital are split into two halves, and each half is judged with the threshold that leaves an arm no
more false positives on the *other* half than the baseline of the same repetition has there.

    python tests/benchmarks/equal_false_positives.py COMPARISON --baseline nnU-Net

COMPARISON is an output folder of `difftumor compare` with `prediction: {probabilities: true}`.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false
# What pandas selects is typed as a union of everything it could be.
from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

_SEED = re.compile(r"(?P<arm>.+)_seed_(?P<seed>\d+)")
_KEYS = ["hospital", "case"]


def read_scores(folder: Path, label: str) -> dict[tuple[str, int], tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]]:
    """Read cases, tumours and predicted tumours of each arm and repetition.

    Args:
        folder: Output folder of `difftumor compare`.
        label: Name of the tumour label.

    Raises:
        ValueError: If there are no scores with probabilities.
    """
    scores = {}
    for run in sorted((folder / "scores").glob("*_seed_*")):
        found = _SEED.fullmatch(run.name)
        if found is not None:
            tables = [_read(run, name, label) for name in ("cases", "tumors", "predictions")]
            scores[found["arm"], int(found["seed"])] = (tables[0], tables[1], tables[2])
    if not scores or any(predictions["score"].isna().any() for _, _, predictions in scores.values()):
        raise ValueError(
            f"{folder} holds no scores of predicted tumours. Compare with `prediction: {{probabilities: true}}`."
        )
    return scores


def _read(run: Path, name: str, label: str) -> pd.DataFrame:
    tables = [pd.read_csv(file).assign(hospital=file.parent.name) for file in sorted(run.glob(f"*/{name}.csv"))]
    table = pd.concat(tables, ignore_index=True)
    return table[table["label"] == label]


def halves(cases: pd.DataFrame) -> pd.Series:
    """Half (0 or 1) of each case: every second one of a hospital, with and without tumours apart."""
    return cases.sort_values("case").groupby(["hospital", "is_healthy"]).cumcount() % 2


def threshold_for(scores: Sequence[float], most: int) -> float:
    """Smallest threshold above which at most `most` of the scores lie; minus infinity if none is needed."""
    descending = np.sort(np.asarray(scores, dtype=float))[::-1]
    return float(descending[most]) if most < len(descending) else -np.inf


def judge(
    cases: pd.DataFrame, tumors: pd.DataFrame, predictions: pd.DataFrame, thresholds: pd.Series, small_mm: float
) -> pd.DataFrame:
    """Measure each case when only predicted tumours with more than the case's threshold are kept.

    The voxels that a prediction shares with its tumour follow from their volumes and IoU; what else of the case's
    true positives there is belongs to the other predictions that touch a tumour, by volume. Fragments that are too
    small to count as a predicted tumour stay.

    Args:
        thresholds: One per row of `cases`, with its index.

    Returns:
        One row a case: `dice`, `found`, `found_small`, `false_positives`, `clear`; NaN where there is nothing to find.
    """
    limits = cases[_KEYS].assign(threshold=thresholds)
    tumors = tumors.assign(small=tumors["equivalent_diameter_mm"] < small_mm)
    volumes = tumors[[*_KEYS, "tumor", "small"]].assign(true_mm3=tumors["volume_mm3"])
    kept = predictions.merge(limits, on=_KEYS).merge(
        volumes, left_on=[*_KEYS, "matched_tumor"], right_on=[*_KEYS, "tumor"], how="left"
    )
    touches, matched = kept["touches_tumor"].astype(bool), kept["matched_tumor"].notna()
    kept["kept"] = kept["score"] > kept["threshold"]
    kept["shared"] = (kept["iou"] * (kept["volume_mm3"] + kept["true_mm3"]) / (1 + kept["iou"])).where(matched, 0.0)
    whole = cases.set_index(_KEYS)

    def per_case(values: pd.Series) -> pd.Series:
        return values.groupby([kept["hospital"], kept["case"]]).sum().reindex(whole.index, fill_value=0)

    both_mm3 = (whole["reference_ml"] + whole["predicted_ml"]) * 1000
    true_positive = whole["dice"] * both_mm3 / 2
    rest = true_positive - per_case(kept["shared"])
    weight = kept["volume_mm3"].where(touches & ~matched, 0.0)
    total = weight.groupby([kept["hospital"], kept["case"]]).transform("sum")
    kept["shared"] += (weight / total).fillna(0.0) * rest.reindex(pd.MultiIndex.from_frame(kept[_KEYS])).to_numpy()
    lost, lost_mm3 = (per_case(kept[name].where(~kept["kept"], 0.0)) for name in ("shared", "volume_mm3"))
    ill = ~whole["is_healthy"].astype(bool)
    found = per_case((matched & kept["kept"]).astype(float))
    found_small = per_case((matched & kept["kept"] & kept["small"].eq(True)).astype(float))
    number = tumors.groupby(_KEYS).size().reindex(whole.index, fill_value=0)
    number_small = tumors.groupby(_KEYS)["small"].sum().reindex(whole.index, fill_value=0)
    dice = (2 * (true_positive - lost) / (both_mm3 - lost_mm3)).where(ill)
    return pd.DataFrame(
        {
            "dice": dice,
            "found": (found / number).where(number > 0),
            "found_small": (found_small / number_small).where(number_small > 0),
            "false_positives": per_case((~touches & kept["kept"]).astype(float)),
        }
    ).assign(clear=(per_case(kept["kept"].astype(float)) == 0).astype(float).where(~ill))


def compare(folder: Path, baseline: str, label: str, small_mm: float) -> pd.DataFrame:
    """Measure every arm at the baseline's false positives.

    Returns:
        One row for each arm and case, averaged over repetitions.
    """
    scores = read_scores(folder, label)
    rows = []
    for (arm, seed), (cases, tumors, predictions) in scores.items():
        if (baseline, seed) not in scores:
            continue
        half = halves(cases)
        of_half = cases[_KEYS].assign(half=half)
        wrong = predictions[~predictions["touches_tumor"].astype(bool)].merge(of_half, on=_KEYS)
        allowed = scores[baseline, seed][2]
        allowed = allowed[~allowed["touches_tumor"].astype(bool)].merge(of_half, on=_KEYS)
        limit = {
            1 - side: threshold_for(
                wrong.loc[wrong["half"] == side, "score"].tolist(), int((allowed["half"] == side).sum())
            )
            for side in (0, 1)
        }
        judged = judge(cases, tumors, predictions, half.map(limit), small_mm)
        rows.append(judged.reset_index().assign(arm=arm.replace("_", " "), seed=seed))
    table = pd.concat(rows, ignore_index=True)
    return table.drop(columns="seed").groupby(["arm", *_KEYS]).mean().reset_index()


def as_markdown(table: pd.DataFrame, baseline: str, rng: np.random.Generator) -> str:
    """Show means of the arms, and differences to the baseline with 95% percentile intervals over patients."""
    measures = ["dice", "found", "found_small", "false_positives", "clear"]
    cases = {arm: rows.set_index(_KEYS)[measures] for arm, rows in table.groupby("arm")}
    lines = [f"| arm | {' | '.join(measures)} |", f"|---|{'---|' * len(measures)}"]
    for arm, rows in cases.items():
        cells = []
        for name in measures:
            text = f"{rows[name].mean():.3f}"
            difference = (rows[name] - cases[baseline][name]).dropna().to_numpy()
            if arm != baseline and np.ptp(difference) > 0:
                interval = bootstrap((difference,), np.mean, method="percentile", rng=rng).confidence_interval
                text += f", {difference.mean():+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"
            cells.append(text)
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path, help="output folder of difftumor compare")
    parser.add_argument("--baseline", default="nnU-Net", help="arm whose false positives are allowed (nnU-Net)")
    parser.add_argument("--label", default="tumor", help="tumour label (tumor)")
    parser.add_argument("--small-mm", type=float, default=20.0, help="tumours below this diameter are small (20)")
    arguments = parser.parse_args()
    try:
        table = compare(arguments.comparison, arguments.baseline, arguments.label, arguments.small_mm)
    except ValueError as error:
        sys.exit(str(error))
    sys.stdout.write(as_markdown(table, arguments.baseline, np.random.default_rng(0)) + "\n")


if __name__ == "__main__":
    main()
