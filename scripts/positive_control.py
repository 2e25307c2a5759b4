"""Run the positive control: does the product help where the truth is known, and may help be seen at all?

CT phantoms with early tumours of several hospitals, to train on and to test on, then the studies of docs/results:
positive_control.yaml, beside 3 annotated livers, across_organs.yaml, where the generator of those livers draws tumours
of the pancreas, of which none is annotated, edge_effect.yaml, synthetic tumours alone for readers who draw the
outline 2.5 mm outside of what is seen, and edge_annotated.yaml, the tumours of those readers themselves. Given again
with the same folder, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from nnunet_difftumor.cases.splits import SPLITS_FILE_NAME, Split, write_splits
from nnunet_difftumor.demo.settings import CONFIGURATION, PLANS_NAME, demo_settings
from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.phantom.dataset import write_phantom_dataset
from nnunet_difftumor.phantom.styles import PhantomStyle
from nnunet_difftumor.support.files.atomic_files import write_json
from nnunet_difftumor.synthesis.tissue.diffusion import BFLOAT16, PRECISION_VARIABLE
from nnunet_difftumor.trainer.small_plans import write_small_plans

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
SAMPLE_DICE_PLANS_NAME = "nnUNetPlansSmallSampleDice"
SPACING_MM = (3.0, 2.5, 2.5)
PATCH_SIZE = (16, 32, 32)
ANNOTATED = 12
HOSPITALS = ("standard", "thin-sharp", "thick-smooth", "arterial")


@dataclass(frozen=True, kw_only=True)
class PhantomSet:
    """One phantom data set of the control; frozen, as is everything in this file that changes a voxel or a step."""

    name: str
    organ: str
    hospitals: tuple[str, ...]
    seed: int
    cases: int
    healthy: int
    edge_offset_mm: float = 0.0


@dataclass(frozen=True)
class Part:
    """A study, and the data sets that it trains on and is tested on: one of each hospital."""

    study: str
    training: PhantomSet
    tests: tuple[PhantomSet, ...]


def _part(study: str, organ: str, number: int, seed: int) -> Part:
    name = f"Phantom{organ.capitalize()}"
    training = PhantomSet(
        name=f"Dataset{number}_{name}", organ=organ, hospitals=HOSPITALS, seed=seed, cases=ANNOTATED + 1, healthy=16
    )
    tests = (
        replace(training, name=f"Dataset{number + k}_{name}Test", hospitals=(each,), seed=seed + k, cases=10, healthy=5)
        for k, each in enumerate(HOSPITALS, start=1)
    )
    return Part(study, training, tuple(tests))


_EDGE = PhantomSet(
    name="Dataset931_PhantomLiverEdge",
    organ="liver",
    hospitals=HOSPITALS,
    seed=300,
    cases=1,
    healthy=24,
    edge_offset_mm=-2.5,
)
_EDGE_TEST = replace(
    _EDGE, name=f"{_EDGE.name.replace('931', '932')}Test", hospitals=HOSPITALS[::2], seed=301, cases=24, healthy=0
)
_EDGE_ANNOTATED = replace(_EDGE, name=_EDGE.name.replace("931", "933") + "Annotated", seed=302, cases=25, healthy=0)
PARTS = (
    _part("positive_control", "liver", 911, 100),
    _part("across_organs", "pancreas", 921, 200),
    Part("edge_effect", _EDGE, (_EDGE_TEST,)),
    Part("edge_annotated", _EDGE_ANNOTATED, (_EDGE_TEST,)),
)


def prepare(folder: Path, part: Part) -> None:
    """Make the data sets, plans, folds and preprocessed cases that are missing."""
    raw, preprocessed = folder / "raw", folder / "preprocessed" / part.training.name
    for phantoms in (part.training, *part.tests):
        _write(phantoms, raw / phantoms.name)
    number = part.training.name[len("Dataset") : len("Dataset") + 3]
    if not (preprocessed / "nnUNetPlans.json").is_file():
        plan = ["nnUNetv2_plan_and_preprocess", "-d", number, "-c", CONFIGURATION, "-np", "1", "-npfp", "1", "--no_pp"]
        _run([*plan, "-overwrite_target_spacing", *(f"{value:g}" for value in SPACING_MM)])
    cases = sorted(path.name.split(".")[0] for path in (raw / part.training.name / "labelsTr").iterdir())
    if (preprocessed / SPLITS_FILE_NAME).is_file():
        return
    network = replace(demo_settings("phantom"), patch_size=PATCH_SIZE).network
    write_small_plans(preprocessed, network, name=PLANS_NAME, overwrite=True)
    _write_sample_dice_plans(preprocessed)
    _run(["nnUNetv2_preprocess", "-d", number, "-c", CONFIGURATION, "-plans_name", PLANS_NAME, "-np", "1"])
    validation = (
        f"phantom_tumor_{part.training.cases - 1:03d}"  # nnU-Net wants one; the comparison is on the test hospitals
    )
    split = Split(train=tuple(case for case in cases if case != validation), val=(validation,))
    write_splits(preprocessed, [split], {"holdout": [], "share": 0.0, "healthy_cases": part.training.healthy})


def _write(phantoms: PhantomSet, folder: Path) -> None:
    if folder.is_dir():
        return
    style = PhantomStyle.named(
        organs=[phantoms.organ],
        hospitals=phantoms.hospitals,
        size="small",
        tumors="early",
        edge_offset_mm=phantoms.edge_offset_mm,
    )
    made = write_phantom_dataset(
        folder, cases=phantoms.cases, healthy=phantoms.healthy, seed=phantoms.seed, style=style
    )
    for number, (identifier, _) in enumerate(made, start=1):
        print(f"{phantoms.name} [{number}/{phantoms.cases + phantoms.healthy}] {identifier}", flush=True)


def _write_sample_dice_plans(preprocessed: Path) -> None:
    """Copy the small plans, with a Dice loss of each sample on its own; the preprocessed cases are the same."""
    plans = json.loads((preprocessed / f"{PLANS_NAME}.json").read_text(encoding="utf-8"))
    plans["plans_name"] = SAMPLE_DICE_PLANS_NAME
    plans["configurations"][CONFIGURATION]["batch_dice"] = False
    write_json(preprocessed / f"{SAMPLE_DICE_PLANS_NAME}.json", plans, overwrite=True)


def _run(words: list[str]) -> None:
    print("$ " + " ".join(words), flush=True)
    subprocess.run([str(Path(sys.executable).parent / words[0]), *words[1:]], check=True)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: taskset -c 1 python scripts/positive_control.py --output control"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of data, runs and reports")
    names = [part.study for part in PARTS]
    parser.add_argument("--study", choices=names, help="one of the studies (default: one after the other)")
    parser.add_argument("--prepare-only", action="store_true", help="make the data and stop")
    parser.add_argument("words", nargs="*", help="further words for `difftumor experiment`, after --")
    options = parser.parse_args()
    if options.words and not options.study:
        parser.error("words for `difftumor experiment` are of one study: name it with --study")
    folder = options.output.resolve()
    for name in ("raw", "preprocessed", "results"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    for name in ("nnUNet_def_n_proc", "nnUNet_n_proc_DA", "OMP_NUM_THREADS", "nnUNet_difftumor_cpu_threads"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault(PRECISION_VARIABLE, BFLOAT16)  # in all runs the same, whatever CPU they are made on
    try:
        for part in PARTS:
            if options.study in (None, part.study):
                prepare(folder, part)
                study = ["difftumor", "experiment", str(RESULTS / f"{part.study}.yaml"), "--output"]
                if not options.prepare_only:
                    _run([*study, str(folder / part.study), *options.words])
    except (DiffTumorError, subprocess.CalledProcessError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
