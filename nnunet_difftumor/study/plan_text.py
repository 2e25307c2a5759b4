"""What a study will do and how long that may take, for people; and the script for a Slurm job array."""

from __future__ import annotations

import shlex
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from nnunet_difftumor.study.runs import Run
from nnunet_difftumor.support.files.atomic_files import written_whole
from nnunet_difftumor.support.processes.steps import FINISHED


def describe_plan(runs: Sequence[Run]) -> str:
    """Say for every run what would be done, and how long the training that is left may take.

    The time of an epoch is measured in the logs of the arm's runs where there are any, or as the study says.
    """
    measured = _measured(runs)
    lines, times = _describe_generators(runs), []
    for run in runs:
        state = run.state()
        lines.append(f"# {run.name}: {state}; {_facts(run, state)}")
        if state == FINISHED:
            continue
        seconds = measured.get(run.arm.name, run.arm.seconds_per_epoch)
        source = "measured" if run.arm.name in measured else "from the study"
        times.append(None if seconds is None else seconds * run.epochs_left())
        lines += [f"#   not there yet: {folder}" for folder in run.missing_generators]
        lines += [run.as_typed(), _describe_time(run, seconds, source)]
    left, unknown = len(times), times.count(None)
    total = _show_seconds(sum(time for time in times if time is not None))
    lines.append(f"# {len(runs)} runs, {len(runs) - left} finished, {left} to train, one after the other:")
    at_least, more = ("at least ", f"; unknown for {unknown} runs") if unknown else ("", "")
    lines.append(f"# {at_least}{total} of training{more}, validation and test predictions not counted")
    return "\n".join(lines)


def _describe_time(run: Run, seconds: float | None, source: str) -> str:
    if seconds is None:
        return "#   time unknown: no seconds_per_epoch in the study, and no log of this arm yet"
    left = run.epochs_left()
    before = f"; {run.epochs - left} of {run.epochs} are in the last checkpoint" if left < run.epochs else ""
    return f"#   {left} epochs of {seconds:.3g} s ({source}): {_show_seconds(seconds * left)}{before}"


def _describe_generators(runs: Sequence[Run]) -> list[str]:
    """What is trained before the runs; each stage once."""
    stages = {stage.name: stage for run in runs for stage in run.generator_stages}
    if not stages:
        return []
    left = sum(stage.state() != FINISHED for stage in stages.values())
    lines = [
        f"# Generators: {len(stages)} trainings, {left} of them left. Each comes before the first run that needs it; "
        "their time is not counted below."
    ]
    for name, stage in stages.items():
        count = f"{len(stage.split.train)} cases may train, {len(stage.split.val)} are held out"
        lines.append(f"# {name}: {stage.state()}; {count}")
        if stage.state() != FINISHED:
            lines.append(stage.as_typed())
    return [*lines, "#"]


def _show_seconds(seconds: float) -> str:
    """Write a time in the largest unit that fits."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _facts(run: Run, state: str) -> str:
    """Trainer and cases; and samples of annotated ones: how many are planned, and how many a finished run has seen."""
    facts = f"{run.trainer}, {len(run.split.train)} training and {len(run.split.val)} validation cases"
    facts += "" if run.healthy else ", without healthy ones"
    facts += "" if run.arm.wall_clock_factor is None else "; wall-clock control"
    if run.annotated_samples is None:
        return facts
    seen = run.annotated_samples_seen() if state == FINISHED else None
    planned = f"{facts}; {run.annotated_samples:.0f} of {run.samples} samples annotated"
    return planned if seen is None else f"{planned}, {seen} seen"


def _measured(runs: Sequence[Run]) -> dict[str, float]:
    """Median over the runs of each arm that have finished an epoch, in s."""
    times: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        if (seconds := run.seconds_per_epoch()) is not None:
            times[run.arm.name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def write_slurm_script(path: Path, runs: Sequence[Run], *, overwrite: bool) -> int:
    """Write a job array with one run a task and return how many; without a run that is left, nothing is written.

    Raises:
        OutputExistsError: If the file exists and `overwrite` is False.
    """
    left = [run for run in runs if run.state() != FINISHED]
    if not left:
        return 0
    command, logs = command_of_study(runs[0]), runs[0].root / "slurm"
    logs.mkdir(parents=True, exist_ok=True)
    log = shlex.quote(str(logs).replace("%", "%%") + "/%A_%a.log")  # Slurm replaces what follows a single %
    names = "\n".join(f"  {shlex.quote(run.name)}" for run in left)
    note = "# The first task that needs a generator trains it; others that need the same one wait.\n"
    about_generators = note if any(run.generator_stages for run in left) else ""
    text = f"""#!/bin/bash
#SBATCH --job-name=difftumor
#SBATCH --array=0-{len(left) - 1}
#SBATCH --output={log}
#SBATCH --requeue
#SBATCH --signal=TERM@120
# Add what your cluster needs, e.g. --gres=gpu:1 --cpus-per-task=12 --mem=64G --time=48:00:00, and the environment.
# Submit with the nnU-Net variables exported. When all tasks are done:  {command}
{about_generators}set -euo pipefail
runs=(
{names}
)
exec {command} --only "${{runs[$SLURM_ARRAY_TASK_ID]}}"
"""
    with written_whole(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return len(left)


def command_of_study(run: Run) -> str:
    """The command that trains and compares all of the study of a run, to be given in any folder."""
    return shlex.join(["difftumor", "experiment", str(run.study.path.resolve()), "--output", str(run.root)])
