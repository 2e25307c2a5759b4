from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.tumor.appearance import Appearance
from nnunet_difftumor.tumor.drawing import MaskSurface, draw_on_grid
from nnunet_difftumor.tumor.sizes import PAPER_SIZE_CLASSES, SizeClass
from nnunet_difftumor.tumor.spec import TumorSpec, draw_tumor_spec
from nnunet_difftumor.tumor.surface import TumorSurface

SPACINGS = [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (3.0, 0.8, 0.8)]


def drawn_ratio(spec: TumorSpec, spacing_mm: tuple[float, float, float]) -> float:
    surface = TumorSurface(spec)
    return draw_on_grid(surface, spacing_mm).label.sum() * np.prod(spacing_mm) / surface.volume_mm3


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("radius_mm", [6.0, 8.0, 10.0, 15.0, 20.0])
def test_drawn_volume_is_within_ten_percent_of_the_requested(radius_mm: float, spacing_mm):
    rng = np.random.default_rng(1)
    size = SizeClass(name="test", radius_mm=(radius_mm, radius_mm), probability=1.0)
    ratios = [
        drawn_ratio(draw_tumor_spec(size, rng.uniform(-9, 9, 3), Appearance(), rng), spacing_mm) for _ in range(10)
    ]
    assert max(abs(ratio - 1.0) for ratio in ratios) <= 0.10


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_mean_volume_of_tiny_tumours_over_200_positions_is_right(spacing_mm):
    rng = np.random.default_rng(2)
    ratios = [
        drawn_ratio(draw_tumor_spec(PAPER_SIZE_CLASSES[0], rng.uniform(-9, 9, 3), Appearance(), rng), spacing_mm)
        for _ in range(200)
    ]
    assert abs(np.mean(ratios) - 1.0) <= 0.10


@pytest.mark.parametrize("radius_mm", [4.0, 8.0, 16.0])
def test_the_implicit_surface_itself_encloses_the_requested_volume(radius_mm: float):
    """The zero level set is counted on a fine grid, independent of the drawing's own volume rule."""
    rng = np.random.default_rng(3)
    size = SizeClass(name="test", radius_mm=(radius_mm, radius_mm), probability=1.0)
    surface = TumorSurface(draw_tumor_spec(size, (0.0, 0.0, 0.0), Appearance(), rng))
    step = radius_mm / 25.0
    side = int(4.4 * radius_mm / step)
    grid = surface.signed_distance_on_grid((side,) * 3, (step,) * 3, (-2.2 * radius_mm,) * 3)
    assert (grid < 0).sum() * step**3 == pytest.approx(surface.volume_mm3, rel=0.01)


def test_distance_to_a_sphere_is_exact():
    surface = TumorSurface(TumorSpec(centre_mm=(0, 0, 0), radius_mm=10.0))
    points = np.array([[0.0, 0.0, 4.0], [0.0, 10.0, 0.0], [15.0, 0.0, 0.0]])
    np.testing.assert_allclose(surface.signed_distance(points), [-6.0, 0.0, 5.0], atol=1e-9)


def test_distance_has_unit_slope_at_the_surface():
    rng = np.random.default_rng(4)
    surface = TumorSurface(draw_tumor_spec(PAPER_SIZE_CLASSES[2], (0, 0, 0), Appearance(), rng))
    grid = surface.signed_distance_on_grid((90,) * 3, (0.7,) * 3, (-31.0,) * 3)
    slope = np.linalg.norm(np.stack(np.gradient(grid, 0.7)), axis=0)
    near = np.abs(grid) < 0.7
    assert np.median(slope[near]) == pytest.approx(1.0, abs=0.05)
    assert np.percentile(slope[near], 95) < 1.3


def test_same_spec_gives_the_same_drawing_and_survives_json():
    spec = draw_tumor_spec(
        PAPER_SIZE_CLASSES[1],
        (3.0, 4.0, 5.0),
        Appearance(contrast_hu=-30.0, heterogeneity_hu=6.0),
        np.random.default_rng(5),
    )
    again = TumorSpec.from_json(json.loads(json.dumps(asdict(spec))))
    assert again == spec
    first, second = draw_on_grid(TumorSurface(spec), (2, 1, 1)), draw_on_grid(TumorSurface(again), (2, 1, 1))
    assert first.start == second.start
    assert np.array_equal(first.label, second.label)
    assert np.array_equal(first.weight, second.weight)


def test_record_with_an_unknown_key_is_refused_by_name():
    values = {**asdict(TumorSpec(centre_mm=(0, 0, 0), radius_mm=5.0)), "radius_vox": 3}
    with pytest.raises(DiffTumorError, match="radius_vox"):
        TumorSpec.from_json(values)


def test_the_weight_has_compact_support():
    surface = TumorSurface(draw_tumor_spec(PAPER_SIZE_CLASSES[1], (0, 0, 0), Appearance(), np.random.default_rng(6)))
    drawn = draw_on_grid(surface, (1.5, 1.0, 1.0))
    assert drawn.weight[drawn.label].mean() > 0.7
    shell = np.ones_like(drawn.label)
    shell[1:-1, 1:-1, 1:-1] = False
    assert (drawn.weight[shell] == 0).all()


def test_interior_points_lie_inside_and_spread_over_the_volume():
    surface = TumorSurface(draw_tumor_spec(PAPER_SIZE_CLASSES[2], (0, 0, 0), Appearance(), np.random.default_rng(7)))
    points = surface.interior_offsets_mm(500)
    assert (surface.signed_distance(points) <= 1e-6).all()
    assert np.linalg.norm(points.mean(axis=0)) < 0.15 * surface.spec.radius_mm


@pytest.mark.parametrize(("radius_mm", "low", "high"), [(8.0, 0.88, 0.99), (17.0, 0.83, 0.94), (36.0, 0.75, 0.89)])
def test_sphericity_lies_in_the_range_of_real_tumours(radius_mm: float, low: float, high: float):
    """Ranges (10th to 90th percentile) of 72 real kidney tumours by size."""
    measure = pytest.importorskip("skimage.measure")
    rng = np.random.default_rng(8)
    size = SizeClass(name="test", radius_mm=(radius_mm, radius_mm), probability=1.0)
    values = []
    for _ in range(8):
        surface = TumorSurface(draw_tumor_spec(size, (0, 0, 0), Appearance(), rng))
        step = radius_mm / 12.0
        grid = surface.signed_distance_on_grid((60,) * 3, (step,) * 3, (-30 * step,) * 3)
        vertices, faces, *_ = measure.marching_cubes(grid, 0.0, spacing=(step,) * 3)
        area = measure.mesh_surface_area(vertices, faces)
        values.append(math.pi ** (1 / 3) * (6 * surface.volume_mm3) ** (2 / 3) / area)
    assert low <= float(np.median(values)) <= high


def test_a_users_mask_is_used_as_it_is():
    mask = np.zeros((12, 30, 30), dtype=bool)
    mask[5:8, 10:18, 9:21] = True
    drawn = MaskSurface(mask, (3.0, 1.0, 1.0), seed=0).draw()
    restored = np.zeros_like(mask)
    inside = np.argwhere(drawn.label) + np.asarray(drawn.start)
    restored[tuple(inside.T)] = True
    assert np.array_equal(restored, mask)


def test_an_empty_mask_is_refused():
    with pytest.raises(DiffTumorError, match="no voxel"):
        MaskSurface(np.zeros((4, 4, 4), dtype=bool), (1, 1, 1), seed=0)


def test_interior_points_fill_the_tumour_evenly():
    """A ball of 10 mm: an eighth of the points in every octant, second moment r^2/5, 5/32 beyond half a radius."""
    points = TumorSurface(TumorSpec(centre_mm=(0.0, 0.0, 0.0), radius_mm=10.0)).interior_offsets_mm(512)
    octants = ((points > 0) * np.array([4, 2, 1])).sum(axis=1)
    assert np.abs(np.bincount(octants, minlength=8) / 512 - 1 / 8).max() < 0.02
    assert np.cov(points.T) == pytest.approx(np.eye(3) * 100.0 / 5.0, abs=1.0)
    rng = np.random.default_rng(0)
    for direction in rng.normal(size=(20, 3)):
        offset_mm = points @ (direction / np.linalg.norm(direction))
        beyond_half_radius = 5.0 / 32.0  # cap of a ball beyond half of its radius
        assert abs((offset_mm > 5.0).mean() - beyond_half_radius) < 0.025
