"""The classifier must find a difference that is there and none that is not: else its figures say nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nnunet_difftumor.evaluation.realism.measures.classifier import PatchClassifier, PatchPairs, score_held_out
from nnunet_difftumor.evaluation.realism.measures.probes import ProbeResult, Training, run_side_by_side
from nnunet_difftumor.evaluation.realism.settings import ClassifierSettings

SETTINGS = ClassifierSettings(steps=30, batch_pairs=4, patch_side=12, positions_per_patient=12, width=4)
PATIENTS = 6
WINDOW_HALF_HU = 212.5


def pairs(*, shift_hu: float) -> PatchPairs:
    """Noise of 15 HU around each patient's own mean; the synthetic side is other noise, shifted inside."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(PATIENTS), SETTINGS.positions_per_patient)
    side = SETTINGS.patch_side
    offset_mm = 2.0 * np.abs(np.indices((side, side, side)) - (side - 1) / 2).max(axis=0)
    distance = np.clip((offset_mm - 6.0) / 8.0, -1.0, 1.0)
    mask = distance < 0

    def patches(inside_hu: float) -> np.ndarray:
        noise = rng.normal(0.0, 15.0, (len(patients), side, side, side))
        means = 40.0 + 5.0 * patients[:, None, None, None] - 37.5
        image_hu = noise + means + inside_hu * mask
        channels = [image_hu / WINDOW_HALF_HU, image_hu / 80.0, np.broadcast_to(distance, image_hu.shape)]
        return np.stack(channels, axis=1).astype(np.float32)

    return PatchPairs(patches(0.0), patches(shift_hu), patients, patients.copy())


def result_of(found: PatchPairs) -> ProbeResult:
    torch.set_num_threads(1)
    real, synthetic = score_held_out(found, SETTINGS, np.random.default_rng(1))
    names, diameters_mm = tuple("abcdef"), np.full(len(found.patients), 30.0)
    return ProbeResult(names, found.patients, found.tumors, diameters_mm, real[None], synthetic[None])


def test_a_shift_of_15_hu_is_found():
    assert result_of(pairs(shift_hu=15.0)).pooled_auc().value > 0.85


def test_nothing_is_found_where_nothing_differs():
    found = result_of(pairs(shift_hu=0.0)).pooled_auc()
    assert found.value == pytest.approx(0.5, abs=0.12)


def test_the_result_is_the_same_for_the_same_seed():
    first, second = (result_of(pairs(shift_hu=5.0)) for _ in range(2))
    assert np.array_equal(first.synthetic_scores, second.synthetic_scores)


def test_trainings_in_processes_of_their_own_find_the_same():
    torch.set_num_threads(1)
    settings = replace(SETTINGS, steps=4, seeds=2)

    def trainings() -> list[Training]:
        shifts_hu = (0.0, 15.0)
        return [Training("probe", pairs(shift_hu=hu), settings, np.random.default_rng(1)) for hu in shifts_hu]

    apart = [next(run_side_by_side([each])) for each in trainings()]
    assert np.array_equal(apart, list(run_side_by_side(trainings())))


def test_a_result_survives_its_file():
    before = ProbeResult(
        ("a", "b"),
        np.array([0, 0, 1, 1]),
        np.array([0, 0, 1, 2]),
        np.array([12.0, 12.0, 60.0, 60.0]),
        np.array([[0.0, 1.0, 5.0, 6.0]]),
        np.array([[2.0, 3.0, 5.5, 7.0]]),
    )
    after = ProbeResult.from_json(before.to_json())
    assert after.patients == before.patients
    assert after.within_patient_auc().value == pytest.approx((1.0 + 0.75) / 2)
    assert after.pooled_auc((0.0, 20.0)).value == 1.0
    assert after.confidence() == {0: 2.5, 1: 5.5, 2: 7.0}


def test_the_network_has_50_to_100_thousand_weights_by_default():
    count = sum(weight.numel() for weight in PatchClassifier(ClassifierSettings().width).parameters())
    assert 50_000 < count < 110_000


def test_a_rim_of_one_voxel_is_found_although_the_inside_is_hidden():
    """Darker by 10 HU in the first layer outside the label; the label's inside holds a constant on both sides."""
    found = pairs(shift_hu=0.0)
    inside = found.real[:, 2] < 0
    rim = ~inside & (found.real[:, 2] <= 0.25)
    for patches in (found.real, found.synthetic):
        for channel in (0, 1):
            patches[:, channel][inside] = 0.0
    found.synthetic[:, 0][rim] -= 10.0 / WINDOW_HALF_HU
    found.synthetic[:, 1][rim] -= 10.0 / 80.0
    assert result_of(found).pooled_auc().value > 0.75
