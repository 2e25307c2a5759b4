"""A look at a tumour's outline and ring tells cut vessels from those that pass by, and flat caps from rounded ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from nnunet_difftumor.evaluation.realism.measures.ring import look_at_ring
from nnunet_difftumor.synthesis.anatomy.capsule import turned_along_capsule

Spacing = tuple[float, float, float]
SPACINGS_MM = [(1.0, 1.0, 1.0), (4.0, 0.8, 0.8)]
SIDE_MM, RADIUS_MM = 52.0, 10.0


def grid_mm(spacing_mm: Spacing) -> np.ndarray:
    """Positions relative to the middle of a box of 52 mm. Shape (3, D, H, W)."""
    axes = [np.arange(round(SIDE_MM / mm)) * mm - 0.5 * SIDE_MM for mm in spacing_mm]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def liver(spacing_mm: Spacing, vessel_mm: np.ndarray | None = None) -> np.ndarray:
    """Noisy organ at 110 HU with a tube of 160 HU where the distance to its surface is negative."""
    shape = grid_mm(spacing_mm).shape[1:]
    noise = gaussian_filter(np.random.default_rng(0).normal(size=shape), [0.3, 0.8, 0.8])
    image_hu = 110.0 + 12.0 * noise / noise.std()
    return image_hu if vessel_mm is None else np.where(vessel_mm < 0.0, image_hu + 50.0, image_hu)


@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
def test_only_a_vessel_that_ends_at_the_outline_is_cut(spacing_mm: Spacing):
    z, y, x = grid_mm(spacing_mm)
    label = z**2 + y**2 + x**2 <= RADIUS_MM**2
    organ = np.ones_like(label)
    radial_mm = np.hypot(z, y) - 3.0
    passing_mm = np.hypot(z, x - RADIUS_MM - 3.0) - 3.0
    away_mm = np.hypot(z, x - RADIUS_MM - 9.0) - 3.0
    looks = [look_at_ring(label, liver(spacing_mm, vessel), organ, spacing_mm) for vessel in (radial_mm, passing_mm)]
    assert [look.cut_vessels for look in looks] == [2, 0]  # it leaves the ball on both sides
    assert looks[0].contact_cm2 > looks[1].contact_cm2 > 0.1
    for vessel_mm in (None, away_mm):
        look = look_at_ring(label, liver(spacing_mm, vessel_mm), organ, spacing_mm)
        assert (look.cut_vessels, look.contact_cm2) == (0, pytest.approx(0.0, abs=0.05))
    assert looks[0].surface_cm2 == pytest.approx(4.0 * math.pi, rel=0.1)
    assert looks[0].cut_vessels_per_cm2 == looks[0].cut_vessels / looks[0].surface_cm2


def test_what_lies_inside_the_label_does_not_matter():
    spacing_mm = SPACINGS_MM[0]
    z, y, x = grid_mm(spacing_mm)
    label, organ = z**2 + y**2 + x**2 <= RADIUS_MM**2, np.ones(z.shape, bool)
    image_hu = liver(spacing_mm, np.hypot(z, y) - 3.0)
    before, after = (
        look_at_ring(label, each, organ, spacing_mm) for each in (image_hu, np.where(label, 40.0, image_hu))
    )
    assert before.cut_vessels == after.cut_vessels == 2
    assert before.contact_cm2 == after.contact_cm2


@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
def test_a_flat_cap_is_sharper_at_its_rim_than_one_that_turns_along_the_capsule(spacing_mm: Spacing):
    z, y, x = grid_mm(spacing_mm)
    drawn_mm = np.sqrt(z**2 + y**2 + x**2) - RADIUS_MM
    organ = x <= 5.0
    turned_mm = turned_along_capsule(drawn_mm, organ, None, spacing_mm, RADIUS_MM)
    bulged_mm = turned_along_capsule(drawn_mm, organ, ~organ, spacing_mm, RADIUS_MM)
    image_hu = liver(spacing_mm)
    flat, turned, bulged = (
        look_at_ring(label, image_hu, organ, spacing_mm)
        for label in ((drawn_mm <= 0.0) & organ, turned_mm <= 0.0, bulged_mm <= 0.0)
    )
    assert 0.1 < turned.cap_share < flat.cap_share < 0.35
    assert flat.rim_curvature > turned.rim_curvature + 0.3
    assert bulged.cap_curvature > flat.cap_curvature + 0.1
    inside = look_at_ring(drawn_mm <= 0.0, image_hu, np.ones_like(organ), spacing_mm)
    assert inside.cap_share == 0.0
    assert math.isnan(inside.rim_curvature)
