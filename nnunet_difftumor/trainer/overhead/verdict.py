"""Whether nnU-Net's workers keep up with the training, and what to change if they do not."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nnunet_difftumor.trainer.overhead.epochs import EpochCosts
from nnunet_difftumor.trainer.overhead.loaders import LoaderCosts

LARGEST_WAITED_SHARE = 0.05
_RESERVE = 1.2  # workers are never all busy, and the training process needs a core itself


@dataclass(frozen=True)
class Verdict:
    """What the measurements say about a training.

    Attributes:
        keeps_up: The training loop waits for batches in at most 5 % of its time.
        workers: Workers of nnU-Net.
        workers_needed: Workers that the costs ask for, with a reserve of a fifth.
        lines: What was found and what to change, in sentences.
    """

    keeps_up: bool
    workers: int
    workers_needed: int
    lines: tuple[str, ...]


def judge(costs: LoaderCosts, baseline: EpochCosts, trainer: EpochCosts, *, workers: int, cores: int) -> Verdict:
    """Compare what workers make with what the training takes.

    Args:
        costs: Costs of the loaders.
        baseline: Epochs of the baseline.
        trainer: Epochs of the trainer with synthetic tumours.
        workers: Workers of nnU-Net; 0 loads in the training process.
        cores: CPU cores of the machine.

    Returns:
        The verdict.
    """
    needed = _workers_for(costs.trainer.median, costs, trainer)
    keeps_up = trainer.waited_share <= LARGEST_WAITED_SHARE
    waits = f"the training loop waited for batches in {trainer.waited_share:.0%} of its time"
    stock = f"{baseline.waited_share:.0%} without synthetic tumours"
    if keeps_up:
        lines = [f"The workers keep up: {waits} ({stock}).", *_slower_steps(baseline, trainer)]
        return Verdict(True, workers, needed, tuple(lines))
    lines = [f"The workers do not keep up: {waits} ({stock}). What helps, best first:"]
    if workers < needed <= cores or workers == 0:
        lines.append(f"More workers: export nnUNet_n_proc_DA={min(max(needed, 1), cores)} (now {workers}).")
    elif needed > cores:
        lines.append(
            f"More CPU cores: {needed} workers would be needed, and this machine has {cores} cores"
            f"{f'; use them all with nnUNet_n_proc_DA={cores}' if workers < cores else ''}."
        )
    else:
        lines.append(
            f"A machine that nothing else works on: {workers} workers should do by the loaders' cost, but did not."
        )
    if _workers_for(costs.baseline.median, costs, trainer) > cores:
        lines.append("Without synthetic tumours the workers would not keep up either: the CPU is short for nnU-Net.")
    lines += _cheaper_injection(costs, trainer, workers=max(workers, min(needed, cores)))
    return Verdict(False, workers, needed, tuple(lines))


def _slower_steps(baseline: EpochCosts, trainer: EpochCosts) -> list[str]:
    """Say where an epoch is longer although nothing waits: the training step shares the CPU with the workers."""
    longer = trainer.step_s / baseline.step_s - 1.0
    if longer <= LARGEST_WAITED_SHARE:
        return []
    return [f"But its steps took {longer:.0%} longer: they share the CPU with the workers, which have more to do."]


def _workers_for(cpu_seconds_per_sample: float, costs: LoaderCosts, epochs: EpochCosts) -> int:
    return max(1, math.ceil(_RESERVE * costs.batch_size * cpu_seconds_per_sample / epochs.step_s))


def _cheaper_injection(costs: LoaderCosts, epochs: EpochCosts, *, workers: int) -> list[str]:
    """How far the injection must shrink for a number of workers."""
    if costs.injected is None:
        return []
    budget_s = workers * epochs.step_s / (_RESERVE * costs.batch_size) - costs.baseline.median
    share = budget_s / max(costs.trainer.median - costs.baseline.median, 1e-9)
    if share >= 1.0:
        return []
    fewer = (
        f'Fewer tumours: a lower "injection_probability", about {share:.0%} of the present one for {workers} workers.'
        if share > 0
        else 'Fewer tumours: a lower "injection_probability"; this alone will not do.'
    )
    return [
        fewer,
        f'A smaller generator (train both stages with "--preset tiny"), fewer "steps" or smaller "size_classes": an '
        f"injected sample costs {costs.injected.median:.2f} CPU-seconds now.",
    ]
