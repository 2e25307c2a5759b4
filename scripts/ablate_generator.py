"""Train and measure a generator with one thing changed at a time; writes ablation.csv and ablation.md."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_difftumor import cli
from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.support.files.atomic_files import written_whole

COLUMNS = (
    "in_mask_w1_hu",
    "in_mask_w1_hu_in_place",
    "lowpass_ratio",
    "highpass_ratio",
    "highpass_ratio_no_residual",
    "contrast_slope",
    "contrast_median_error_hu",
    "contrast_spearman",
    "two_sample_auc",
    "rim_probe_auc",
)
"""Headline figures of `evaluate-generator` that the table shows; the residual is the difference of two columns."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One generator to train, with these options of `difftumor train-diffusion`; `steps` T at which it is measured."""

    name: str
    options: tuple[str, ...] = ()
    steps: tuple[int, ...] = (4,)


TRAININGS: tuple[Training, ...] = (
    Training(name="flow", steps=(1, 2, 4, 10)),
    Training(name="v", options=("--objective", "v"), steps=(1, 2, 4, 10)),
    Training(name="epsilon", options=("--objective", "epsilon")),
    Training(name="flow-plain-latents", options=("--plain-latents",)),
    Training(name="flow-one-spacing", options=("--spacing-mm", "2", "2")),
)
"""Rectified flow, v, the paper's epsilon at T = 4; flow in plain latents; flow without spacing augmentation."""


@dataclass(frozen=True, kw_only=True)
class AblationData:
    """What every row has in common; the fold's training cases train, its validation cases are measured."""

    dataset: Path
    autoencoder: Path
    splits: Path
    fold: int
    preset: str
    training_steps: int
    seed: int = 0


def run_ablation(
    data: AblationData, output: Path, *, names: Sequence[str] | None = None, classifier_steps: int = 0
) -> pd.DataFrame:
    """Train and measure every row, all or those with these names; what is there already is not done again.

    Without `classifier_steps` there is no two-sample classifier, which saves most of the time. The table has one row
    for each training and T; it is also written as `ablation.csv` and `ablation.md`.

    Raises:
        ConfigurationError: If a name is unknown.
    """
    known = [training.name for training in TRAININGS]
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise ConfigurationError(f"There is no ablation {', '.join(unknown)}. Known: {', '.join(known)}.")
    rows = []
    for training in TRAININGS:
        if names and training.name not in names:
            continue
        generator = _train(training, data, output / training.name)
        for steps in training.steps:
            summary = _measure(generator, data, output / f"{training.name}_T{steps}", steps, classifier_steps)
            shown = {column: _show(summary.get(column)) for column in COLUMNS}
            rows.append({"training": training.name, "T": steps, **shown})
            write_tables(pd.DataFrame(rows), output)
    return pd.DataFrame(rows)


def write_tables(table: pd.DataFrame, output: Path) -> None:
    """Write the table, one row for each training and T, as CSV and as Markdown."""
    with written_whole(output / "ablation.csv", overwrite=True) as temporary:
        table.to_csv(temporary, index=False)
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    with written_whole(output / "ablation.md", overwrite=True) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _train(training: Training, data: AblationData, folder: Path) -> Path:
    generator = folder / "generator"
    if generator.is_dir():
        return generator
    words = ["train-diffusion", "-d", str(data.dataset), "--autoencoder", str(data.autoencoder)]
    words += ["--splits", str(data.splits), "-f", str(data.fold), "--preset", data.preset]
    words += ["--steps", str(data.training_steps), "--seed", str(data.seed), "--output", str(folder)]
    words += [*training.options, *(["--c"] if folder.exists() else [])]
    print("$ difftumor " + " ".join(words), flush=True)
    if cli.main(words) != 0:
        raise ConfigurationError(f"The training of {training.name!r} failed; the message above says why.")
    return generator


def _measure(generator: Path, data: AblationData, folder: Path, steps: int, classifier_steps: int) -> Mapping[str, Any]:
    from nnunet_difftumor.evaluation.realism.generator import evaluate_generator
    from nnunet_difftumor.evaluation.realism.held_out import HeldOut
    from nnunet_difftumor.evaluation.realism.settings import EvaluationSettings

    summary = folder / "summary.json"
    if summary.is_file():
        return json.loads(summary.read_text(encoding="utf-8"))
    settings = EvaluationSettings(
        steps=steps,
        seed=data.seed,
        draws_per_case=2,
        radii_mm=(6.0, 8.0, 10.0, 12.0, 15.0),
        places_per_radius=1,
        native_radii_mm=(),
        diversity_seeds=2,
        diversity_radii_mm=(10.0,),
    )
    settings = replace(settings, classifier=replace(settings.classifier, steps=classifier_steps))
    return evaluate_generator([generator], data.dataset, folder, settings, held_out=HeldOut(data.splits, data.fold))


def _show(value: Any) -> str:
    if not isinstance(value, Mapping):
        return "-" if value is None else f"{value:.2f}"
    limits = f" ({value['low']:.2f} to {value['high']:.2f})" if value.get("low") is not None else ""
    return _show(value.get("value")) + limits


def main() -> int:
    """Run the ablation."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__} Run it again to go on after an interruption.",
        epilog="example: python scripts/ablate_generator.py -d nnUNet_raw/Dataset902_SoftTissue --autoencoder ae "
        "--splits splits_final.json -f 0 --output ablation --steps 600",
    )
    add = parser.add_argument
    add("-d", "--dataset", type=Path, required=True, metavar="RAW_DATASET", help="annotated tumours")
    add("--autoencoder", type=Path, required=True, metavar="DIR", help="--output of train-autoencoder")
    add("--splits", type=Path, required=True, metavar="FILE", help="splits_final.json")
    add("-f", "--fold", type=int, required=True, metavar="K", help="its validation cases are measured")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for everything")
    add("--preset", default="tiny", help="preset of the diffusion model (default tiny)")
    steps = "training steps of each (default 600)"
    add("--steps", dest="training_steps", type=int, default=600, metavar="N", help=steps)
    add("--classifier-steps", type=int, default=0, metavar="N", help="of the classifier (default: none)")
    add("--seed", type=int, default=0, metavar="S", help="seed of training and evaluation")
    add("--only", nargs="+", metavar="NAME", help=", ".join(training.name for training in TRAININGS))
    options = parser.parse_args()
    data = AblationData(**{field.name: getattr(options, field.name) for field in fields(AblationData)})
    table = run_ablation(data, options.output, names=options.only, classifier_steps=options.classifier_steps)
    print(table.to_string(index=False))
    print(f"Written to {options.output / 'ablation.md'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
