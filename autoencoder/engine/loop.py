"""The loop around a `Fit`: progress bar, records, and a look at held-out data now and then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from autoencoder.engine.fit import Fit
from autoencoder.engine.records import TrainingRecord

Evaluate = Callable[[int, TrainingRecord], None]
"""Measures held-out data after a step and writes to the record."""


def run_fit(
    fit: Fit[Any], heading: str, evaluate: Evaluate | None, evaluate_every: int, *, show_progress: bool
) -> None:
    """Train to the end; the main process records and shows progress.

    Args:
        evaluate: Called every `evaluate_every` steps and after the last one; None for never.
    """
    if not fit.is_main_process:
        for _ in fit:
            pass
        return
    total = fit.settings.steps
    progress = tqdm(total=total, initial=fit.steps_done, desc=heading, disable=not show_progress)
    with fit.saved_on_interrupt(), progress, TrainingRecord(fit.output_folder, fit.steps_done) as record:

        def evaluate_if_due(index: int) -> None:
            if evaluate is not None and (index % evaluate_every == 0 or index == total):
                evaluate(index, record)

        if fit.steps_done > 0 and not record.has_heldout(fit.steps_done):  # it was interrupted
            evaluate_if_due(fit.steps_done)
        for step in fit:
            record.add_step(step)
            progress.update()
            progress.set_postfix(loss=f"{step.losses['total']:.4f}", refresh=False)
            evaluate_if_due(step.index)
