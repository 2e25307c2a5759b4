"""`difftumor experiment`: the matched arms of a study, from one YAML file to the report."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.support.processes.logged_command import ending_on_sigterm

if TYPE_CHECKING:
    from nnunet_difftumor.study.runs import Run

DESCRIPTION = """Train the matched arms of a study with nnU-Net's own commands, then compare them.

STUDY.yaml names a preprocessed data set, folds, repetitions, numbers of annotated tumour cases, and arms. All arms
see the same plans, the same validation cases, and the same first N annotated cases, for equal epochs. Each run
has a folder of its own, --output/runs/NAME. A finished run is never done again; an interrupted one continues when
the same command is given again. When all runs are finished, `difftumor compare` is run once for each number of
annotated cases, on the hospitals of the study or on the validation cases: --output/compare/annotated-N/report. With
--compare that is done before, with the arms and repetitions of which all folds are finished; the others are named.

With `exposure: equal`, not the epochs are equal but the samples of annotated cases: arms that also draw healthy
samples are trained for more epochs, and what each run has seen is checked. `length: longest` in an arm trains it as
long as the longest other one. --dry-run shows epochs and annotated samples of every run.

With `generators: {preset: base}` and `generator: study` in an arm, the study also trains the generator of each fold
and number of annotated cases, on the same tumour cases as the arm: --output/generators/fold-F.annotated-N. It comes
before the first run that needs it.

nnU-Net is not seeded: runs with other seeds are repetitions. The seed decides the synthetic tumours only.

A small study:

  dataset: 7
  folds: [0, 1, 2]
  annotated: [10, all]
  schedule: {epochs: 500}
  seconds_per_epoch: 90
  generators: {preset: base}
  arms:
    - {name: nnU-Net, trainer: stock, healthy: false}
    - {name: healthy scans only, trainer: healthy-only}
    - {name: DiffTumor, trainer: difftumor, generator: study}"""
EXAMPLE = "difftumor experiment study.yaml --output study --dry-run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("study", type=Path, metavar="STUDY.yaml", help="what to train and compare")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the study")
    add("--only", metavar="RUN", help="train this run alone, and compare nothing")
    add("--compare", action="store_true", help="train nothing; compare the runs that are finished")
    add("--dry-run", action="store_true", help="print commands and expected time; train nothing")
    add("--slurm", type=Path, metavar="FILE", help="write a Slurm job array, a run a task; no training")
    add("--overwrite", action="store_true", help="replace the file of --slurm")
    on_ray = parser.add_argument_group(
        "Ray",
        "train several runs at once (extra: ray). All machines need the same paths to data, study and --output, on a "
        "shared file system, and the same installation.",
    )
    address = (
        "each run is a task of this Ray cluster; without ADDRESS that of RAY_ADDRESS or of this machine, else a "
        "Ray of its own on this machine"
    )
    on_ray.add_argument("--ray", nargs="?", const="", metavar="ADDRESS", help=address)
    gpus = "GPUs reserved for a run (default 1; 0 for device: cpu)"
    on_ray.add_argument("--gpus-per-run", type=float, metavar="N", help=gpus)
    on_ray.add_argument("--cpus-per-run", type=float, default=1.0, metavar="N", help="cores reserved (default 1)")


def run(args: argparse.Namespace) -> int:
    """Plan the study, then print, write or train it."""
    from nnunet_difftumor.study.data_views import open_data
    from nnunet_difftumor.study.plan import read_study
    from nnunet_difftumor.study.plan_text import describe_plan
    from nnunet_difftumor.study.planning import check_hospitals, check_versions, plan_runs

    others = {"--only": args.only is not None, "--dry-run": args.dry_run, "--slurm": args.slurm is not None}
    given = [name for name, is_given in others.items() if is_given]
    if args.compare and given:
        raise ConfigurationError(f"--compare compares what is finished and does nothing else. Remove {given[0]}.")
    study = read_study(args.study)
    runs = plan_runs(study, open_data(study), args.output)
    check_hospitals(runs)
    for each in runs:
        each.check()
    check_versions(runs, trains=not args.compare)
    for stage in {stage.name: stage for each in runs for stage in each.generator_stages}.values():
        stage.check()
    chosen = [each for each in runs if args.only in (None, each.name)]
    if not chosen:
        names = ", ".join(each.name for each in runs)
        raise ConfigurationError(f"--only: the study has no run {args.only!r}. Its runs: {names}.")
    if args.dry_run:
        print(describe_plan(chosen))
    elif args.slurm is not None:
        _write_slurm_script(args, chosen)
    else:
        with ending_on_sigterm():
            return _train_and_compare(args, runs, chosen)
    return 0


def _write_slurm_script(args: argparse.Namespace, chosen: Sequence[Run]) -> None:
    from nnunet_difftumor.study.plan_text import command_of_study, write_slurm_script

    if count := write_slurm_script(args.slurm, chosen, overwrite=args.overwrite):
        print(f"Wrote {args.slurm}: {count} runs. Look at it, then: sbatch {shlex.quote(str(args.slurm))}")
    else:
        command = command_of_study(chosen[0])
        print(f"{args.slurm} is not written: all its runs are finished. To compare them: {command}")


def _train_and_compare(args: argparse.Namespace, runs: Sequence[Run], chosen: Sequence[Run]) -> int:
    from nnunet_difftumor.study.comparing import compare_all
    from nnunet_difftumor.study.on_ray import ray_session
    from nnunet_difftumor.study.runs import train_all

    train, compare = train_all, compare_all
    with contextlib.ExitStack() as session:
        if args.ray is not None:
            gpus = float(runs[0].study.device == "cuda") if args.gpus_per_run is None else args.gpus_per_run
            ray = ray_session(args.ray or None, gpus_per_run=gpus, cpus_per_run=args.cpus_per_run)
            on_ray = session.enter_context(ray)
            train, compare = on_ray.train_all, on_ray.compare_all
        errors = {} if args.compare else train(chosen)
        if errors:
            print(f"\n{len(errors)} of {len(chosen)} runs failed: {', '.join(errors)}.", file=sys.stderr)
            print("Correct the causes above and give the same command again: what is done is kept.", file=sys.stderr)
            print("With --compare it trains nothing and compares what is finished.", file=sys.stderr)
            return 1
        if args.only is not None:
            return 0
        reports = compare(runs)
        for report in reports:
            print(f"Look at {report}.")
        if not reports:
            print("Nothing was compared: no arm has a repetition with all its folds finished.", file=sys.stderr)
        return 0 if reports else 1
