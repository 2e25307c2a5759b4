"""How much of a generator is evaluated, and how finely."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

EVALUATION_SPACING_MM = 2.0
"""Isotropic grid of all scans in the evaluation, in mm."""

DISTANCE_TO_TUMOR_MM = 5.0
"""Least distance between a transplant's soft rim and a real tumour, in mm."""

FEWEST_PATIENTS = 8
"""A range of plausible means from fewer patients is none."""

HEADLINE_RADII_MM = (5.0, 15.0)
"""Smallest and largest radius of the transplants in the headline figures, in mm."""


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings:
    """Training of the two-sample classifier.

    Attributes:
        steps: Optimiser steps for each fold; 0 trains no classifier.
        seeds: Trainings of each classifier, over which its area under the curve is averaged.
        positions_per_patient: Patches of each patient, shared by the tumours; every tumour has at least 4.
        patch_side: Side of a patch in voxels of the evaluation's grid.
        width: Channels of the first block.
        learning_rate: Highest learning rate, warmed up and then lowered along a cosine.
    """

    steps: int = 200
    seeds: int = 3
    batch_pairs: int = 8
    patch_side: int = 24
    positions_per_patient: int = 24
    most_folds: int = 4
    width: int = 12
    learning_rate: float = 3e-3


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is made and measured.

    Attributes:
        steps: Denoising steps T.
        most_tumors: Most tumours of a case that are compared; where there are more, they spread over the sizes.
        draws_per_case: Generated tumours for the real ones of a case, at least one each, with looks of training
            tumours; one more each is made with the look of the real tumour itself.
        radii_mm: Radii of transplanted tumours in mm.
        control_radii_mm: Radii in mm at which contrasts and heterogeneities are requested, at one place each in a case.
        diversity_seeds: Seeds for each tumour whose diversity is measured, at `diversity_radii_mm`.
        native_radii_mm: Radii in mm of the transplants that are made on the scan's own grid too.
        reconstruction_tiles: Most tiles of a case on which the autoencoder is measured.
        uses_training_range: Also take the tumours of the other cases of the data set into a second range of plausible
            means.
    """

    steps: int = 4
    seed: int = 0
    most_tumors: int = 12
    draws_per_case: int = 4
    radii_mm: tuple[float, ...] = (4.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0)
    places_per_radius: int = 2
    control_radii_mm: tuple[float, ...] = (6.0, 9.0, 12.0, 18.0)  # 4, 6, 8 and 12 voxels of 1.5 mm
    control_contrasts_hu: tuple[float, ...] = (-40.0, -20.0, 0.0, 20.0)
    control_heterogeneities_hu: tuple[float, ...] = (4.0, 8.0, 12.0, 16.0)
    diversity_seeds: int = 3
    diversity_radii_mm: tuple[float, ...] = (6.0, 10.0, 15.0)
    native_radii_mm: tuple[float, ...] = (4.0, 8.0, 12.0)
    bootstrap_draws: int = 2000
    reconstruction_tiles: int = 8
    uses_training_range: bool = False
    classifier: ClassifierSettings = field(default_factory=ClassifierSettings)


def quick_settings(**others: Any) -> EvaluationSettings:
    """Settings that run in seconds, to try the command or to test it; the figures are rough."""
    return EvaluationSettings(
        radii_mm=(4.0, 8.0),
        places_per_radius=1,
        control_radii_mm=(6.0,),
        control_contrasts_hu=(-40.0, 0.0),
        control_heterogeneities_hu=(4.0, 12.0),
        diversity_seeds=2,
        diversity_radii_mm=(8.0,),
        native_radii_mm=(8.0,),
        bootstrap_draws=200,
        reconstruction_tiles=1,
        classifier=ClassifierSettings(
            steps=4, seeds=1, batch_pairs=2, patch_side=16, positions_per_patient=4, most_folds=2
        ),
        **others,
    )
