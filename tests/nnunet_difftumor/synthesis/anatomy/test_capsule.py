"""A tumour at the organ's surface: its outline turns along the capsule, and stays as it is elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from nnunet_difftumor.synthesis.anatomy.capsule import turned_along_capsule
from nnunet_difftumor.tumor.spec import TumorSpec
from nnunet_difftumor.tumor.surface import TumorSurface

RADIUS_MM = 10.0
SPACINGS_MM = [(1.0, 1.0, 1.0), (5.0, 0.8, 0.8)]
Spacing = tuple[float, float, float]


def ball_at_capsule(spacing_mm: Spacing, protruding_mm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signed distance to a ball, the organ, and how far voxels lie beyond its plane surface at 30 mm, in mm."""
    shape = tuple(round(60.0 / mm) for mm in spacing_mm)
    spec = TumorSpec(centre_mm=(30.0, 30.0, 20.0 + protruding_mm), radius_mm=RADIUS_MM, seed=0, roughness=0.0)
    beyond_mm = np.broadcast_to(np.arange(shape[2]) * spacing_mm[2] - 30.0, shape)
    return TumorSurface(spec).signed_distance_on_grid(shape, spacing_mm, (0.0, 0.0, 0.0)), beyond_mm <= 0.0, beyond_mm


@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
def test_a_tumour_half_outside_stays_in_its_organ_or_bulges_it_a_little(spacing_mm: Spacing):
    drawn_mm, organ, beyond_mm = ball_at_capsule(spacing_mm, RADIUS_MM)
    inside = turned_along_capsule(drawn_mm, organ, None, spacing_mm, RADIUS_MM) <= 0.0
    bulging = turned_along_capsule(drawn_mm, organ, ~organ, spacing_mm, RADIUS_MM) <= 0.0
    assert inside[organ].any()
    assert not inside[~organ].any()
    assert 0.0 < beyond_mm[bulging].max() <= 1.5 + 0.5 * spacing_mm[2]
    assert inside.sum() < bulging.sum()
    middle = bulging[:, :, (beyond_mm[0, 0] > 0.0) & (beyond_mm[0, 0] <= 1.0)]
    assert 0 < middle.sum() < 0.9 * bulging[:, :, (beyond_mm[0, 0] > -4.0) & (beyond_mm[0, 0] <= -3.0)].sum()  # a dome


@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
def test_the_outline_turns_into_the_capsule_by_a_shoulder(spacing_mm: Spacing):
    drawn_mm, organ, beyond_mm = ball_at_capsule(spacing_mm, 6.0)
    turned_mm = turned_along_capsule(drawn_mm, organ, None, spacing_mm, RADIUS_MM)
    along, across = np.gradient(turned_mm, *spacing_mm)[1:]
    plane = drawn_mm.shape[0] // 2
    right = np.arange(drawn_mm.shape[1]) * spacing_mm[1] > 30.0
    outline = (np.abs(turned_mm[plane]) < 0.7) & right[:, None] & (beyond_mm[plane] > -8.0)
    angle = np.degrees(np.arctan2(across[plane][outline], along[plane][outline]))  # 90 along the capsule
    steps = np.diff(np.sort(angle))
    assert angle.max() > 80.0
    assert angle.min() < 30.0
    assert steps.max() < 15.0  # a cut jumps by some 70 degrees: none of its outline faces between flank and capsule


@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
def test_far_from_the_capsule_the_distance_is_the_same_to_the_bit(spacing_mm: Spacing):
    drawn_mm, organ, beyond_mm = ball_at_capsule(spacing_mm, 3.0)
    turned_mm = turned_along_capsule(drawn_mm, organ, None, spacing_mm, RADIUS_MM)
    is_far = organ & (drawn_mm - beyond_mm > 4.0 + spacing_mm[2])
    assert is_far.mean() > 0.2
    np.testing.assert_array_equal(turned_mm[is_far], drawn_mm[is_far])
    assert (turned_mm >= drawn_mm).all()
    everywhere = np.ones_like(organ)
    np.testing.assert_array_equal(turned_along_capsule(drawn_mm, everywhere, None, spacing_mm, RADIUS_MM), drawn_mm)


def test_a_bulge_takes_only_what_it_may():
    drawn_mm, organ, _ = ball_at_capsule((1.0, 1.0, 1.0), RADIUS_MM)
    fat = ~organ
    fat[:, :30] = False
    label = turned_along_capsule(drawn_mm, organ, fat, (1.0, 1.0, 1.0), RADIUS_MM) <= 0.0
    assert not label[~organ & ~fat].any()
    assert label[~organ & fat].any()


def test_gaps_in_an_organs_label_do_not_turn_the_outline():
    spacing_mm = (1.0, 1.0, 1.0)
    drawn_mm, organ, _ = ball_at_capsule(spacing_mm, -10.0)
    gaps = organ.copy()
    gaps[28:30, 28:30, 5:15] = False  # a vessel that the label leaves out
    turned_mm = turned_along_capsule(drawn_mm, gaps, None, spacing_mm, RADIUS_MM)
    near = gaps & (np.abs(drawn_mm) < RADIUS_MM)
    np.testing.assert_array_equal(turned_mm[near], drawn_mm[near])
    assert (turned_mm[~gaps] > 0.0).all()
