"""What a study will do and how long that may take, for people; and the script for a Slurm job array."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path

from nnunet_difftumor.study.generators import GeneratorStage
from nnunet_difftumor.study.runs import Run
from nnunet_difftumor.study.training_logs import seconds_per_epoch
from nnunet_difftumor.support.files.atomic_files import written_whole
from nnunet_difftumor.support.processes.steps import FINISHED

_GENERATORS_NOTE = "# The first task that needs a generator trains it; others that need the same one wait.\n"
_SECONDS_OF_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def describe_plan(runs: Sequence[Run]) -> str:
    """Say for every run what would be done, and how long the training that is left may take.

    The time of an epoch is measured in the logs of the arm's runs where there are any, or as the study says.
    """
    measured = _measured(runs)
    lines, total, unknown = _describe_generators(runs), 0.0, 0
    for run in runs:
        state = run.state()
        lines.append(f"# {run.name}: {state}; {_facts(run)}{_samples(run, state)}")
        if state == FINISHED:
            continue
        lines += [f"#   not there yet: {folder}" for folder in run.missing_generators]
        lines.append(run.as_typed())
        seconds = measured.get(run.arm.name, run.arm.seconds_per_epoch)
        if seconds is None:
            unknown += 1
            lines.append("#   time unknown: no seconds_per_epoch in the study, and no log of this arm yet")
        else:
            source = "measured" if run.arm.name in measured else "from the study"
            count = run.epochs_left()
            total += seconds * count
            before = f"; {run.epochs - count} of {run.epochs} are in the last checkpoint"
            lines.append(
                f"#   {count} epochs of {seconds:.3g} s ({source}): {show_seconds(seconds * count)}"
                f"{before if count < run.epochs else ''}"
            )
    left = sum(run.state() != FINISHED for run in runs)
    lines.append(f"# {len(runs)} runs, {len(runs) - left} finished, {left} to train, one after the other:")
    at_least = "at least " if unknown else ""
    more = f"; unknown for {unknown} runs" if unknown else ""
    lines.append(f"# {at_least}{show_seconds(total)} of training{more}, validation and test predictions not counted")
    return "\n".join(lines)


def _describe_generators(runs: Sequence[Run]) -> list[str]:
    """What is trained before the runs; each stage once."""
    stages: dict[str, GeneratorStage] = {stage.name: stage for run in runs for stage in run.generator_stages}
    if not stages:
        return []
    states = {name: stage.state() for name, stage in stages.items()}
    left = sum(state != FINISHED for state in states.values())
    lines = [
        f"# Generators: {len(stages)} trainings, {left} of them left. Each comes before the first run that needs it; "
        "their time is not counted below."
    ]
    for name, stage in stages.items():
        count = f"{len(stage.split.train)} cases may train, {len(stage.split.val)} are held out"
        lines.append(f"# {name}: {states[name]}; {count}")
        if states[name] != FINISHED:
            lines.append(stage.as_typed())
    return [*lines, "#"]


def show_seconds(seconds: float) -> str:
    """Write a time in the largest unit that fits."""
    for size, unit in _SECONDS_OF_UNITS:
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def write_slurm_script(path: Path, runs: Sequence[Run], study_file: Path, output: Path, *, overwrite: bool) -> int:
    """Write a job array with one run a task; finished runs are left out, and without others nothing is written.

    Returns:
        Number of tasks.

    Raises:
        OutputExistsError: If the file exists and `overwrite` is False.
    """
    left = [run for run in runs if run.state() != FINISHED]
    if not left:
        return 0
    command = command_of_study(study_file, output)
    logs = output.resolve() / "slurm"
    logs.mkdir(parents=True, exist_ok=True)
    names = "\n".join(f"  {shlex.quote(run.name)}" for run in left)
    text = f"""#!/bin/bash
#SBATCH --job-name=difftumor
#SBATCH --array=0-{len(left) - 1}
#SBATCH --output={shlex.quote(f"{_for_slurm(logs)}/%A_%a.log")}
#SBATCH --requeue
#SBATCH --signal=TERM@120
# Add what your cluster needs, e.g. --gres=gpu:1 --cpus-per-task=12 --mem=64G --time=48:00:00, and the environment.
# Submit with the nnU-Net variables exported. When all tasks are done:  {command}
{_GENERATORS_NOTE if any(run.generator_stages for run in left) else ""}set -euo pipefail
runs=(
{names}
)
exec {command} --only "${{runs[$SLURM_ARRAY_TASK_ID]}}"
"""
    with written_whole(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return len(left)


def command_of_study(study_file: Path, output: Path) -> str:
    """The command that trains and compares all of a study, to be given in any folder."""
    return shlex.join(["difftumor", "experiment", str(study_file.resolve()), "--output", str(output.resolve())])


def _for_slurm(path: Path) -> str:
    """Escape the sign that Slurm replaces in the names of logs."""
    return str(path).replace("%", "%%")


def _facts(run: Run) -> str:
    cases = f"{len(run.split.train)} training and {len(run.split.val)} validation cases"
    control = "" if run.arm.wall_clock_factor is None else "; wall-clock control"
    return f"{run.trainer}, {cases}{'' if run.healthy else ', without healthy ones'}{control}"


def _samples(run: Run, state: str) -> str:
    """Samples of annotated cases: how many are planned, and how many a finished run has seen."""
    if run.annotated_samples is None:
        return ""
    seen = run.annotated_samples_seen() if state == FINISHED else None
    planned = f"; {run.annotated_samples:.0f} of {run.samples} samples annotated"
    return planned if seen is None else f"{planned}, {seen} seen"


def _measured(runs: Sequence[Run]) -> dict[str, float]:
    """Median over the runs of each arm that have finished an epoch."""
    times: dict[str, list[float]] = {}
    for run in runs:
        seconds = seconds_per_epoch(run.fold_folder)
        if seconds is not None:
            times.setdefault(run.arm.name, []).append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}
