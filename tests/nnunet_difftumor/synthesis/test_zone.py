"""Tumours keep the distance from the organ's surface that was asked for, whatever cuts their host off."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from nnunet_difftumor.errors import EmptyOrganError
from nnunet_difftumor.synthesis import placement
from nnunet_difftumor.synthesis.anatomy.organ_depth import lies_at_depth, organ_depth_mm
from nnunet_difftumor.synthesis.host import Host
from nnunet_difftumor.synthesis.placement import Surroundings, TumorPlan, Zone, draw_tumors
from nnunet_difftumor.tumor.sizes import SizeClass

TINY = (SizeClass(name="tiny", radius_mm=(2.0, 3.0), probability=1.0),)
SPACING_MM = (2.0, 1.0, 1.0)


def ball_host(radius_mm: float, *, padding: int = 0) -> Host:
    """A ball of organ; the first slices are padding."""
    d, h, w = np.ix_(2.0 * np.arange(40), np.arange(80), np.arange(80))
    organ = (d - 40) ** 2 + (h - 40) ** 2 + (w - 40) ** 2 < radius_mm**2
    valid = np.ones_like(organ)
    valid[:padding] = False
    organ &= valid
    return Host(np.zeros(organ.shape, np.float32), SPACING_MM, organ, organ, valid)


def test_centres_lie_in_the_zone():
    host = ball_host(30.0)
    depth_mm = distance_transform_edt(host.organ_mask, sampling=SPACING_MM)
    plan = TumorPlan(size_classes=TINY, zone=Zone(surface_distance_mm=(15.0, 40.0)))
    for seed in range(30):
        (spec,), _ = draw_tumors(host, plan, np.random.default_rng(seed), count=1)
        voxel = np.round(np.asarray(spec.centre_mm) / SPACING_MM).astype(int)
        assert depth_mm[tuple(voxel)] >= 15.0 - 1.0  # drawn inside a voxel of the zone


@pytest.mark.parametrize("shape", [(8, 8, 8), (20, 30, 40)])
def test_an_organ_that_fills_its_host_has_no_surface(shape: tuple[int, int, int]):
    everywhere = np.ones(shape, bool)
    assert np.isinf(organ_depth_mm(everywhere, everywhere, SPACING_MM)).all()
    host = Host(np.zeros(shape, np.float32), SPACING_MM, everywhere, everywhere, everywhere)
    with pytest.raises(EmptyOrganError):
        draw_tumors(
            host, TumorPlan(size_classes=TINY, zone=Zone(surface_distance_mm=(0.0, 5.0))), np.random.default_rng(0)
        )


def test_an_organ_goes_on_behind_padding_as_behind_the_hosts_edge():
    whole, padded = ball_host(60.0), ball_host(60.0, padding=5)
    behind_edge = organ_depth_mm(whole.organ_mask[5:], whole.valid_mask[5:], SPACING_MM)
    behind_padding = organ_depth_mm(padded.organ_mask, padded.valid_mask, SPACING_MM)
    np.testing.assert_allclose(behind_padding[5:], behind_edge)
    assert behind_padding[5, 40, 40] > 15.0


@pytest.mark.parametrize("depth_range_mm", [(0.0, 4.0), (5.0, 12.0), (15.0, 40.0), (10.0, 1e6)])
def test_the_depth_of_one_voxel_is_that_of_the_whole_map(depth_range_mm: tuple[float, float]):
    host = ball_host(35.0, padding=6)
    labels = np.where(host.valid_mask, np.where(host.organ_mask, 1, 0), -1).astype(np.int16)
    labels[20:22, 30:34, 50:54] = 3
    depth_mm = organ_depth_mm(labels == 1, labels != -1, SPACING_MM)
    rng = np.random.default_rng(0)
    voxels = rng.permutation(np.argwhere(labels == 1))[:200]
    low_mm, high_mm = depth_range_mm
    for voxel in voxels:
        expected = low_mm <= depth_mm[tuple(voxel)] <= high_mm
        assert lies_at_depth(labels[None], voxel, 1, -1, SPACING_MM, depth_range_mm) == expected
    assert not lies_at_depth(labels[None], (20, 30, 50), 1, -1, SPACING_MM, (0.0, 1e6))  # no voxel of the organ


@pytest.mark.parametrize("distance_mm", [0.0, 1.0, 3.0, 7.5, 500.0])
@pytest.mark.parametrize("spacing_mm", [(2.0, 1.0, 1.0), (0.8, 0.7, 0.7)])
def test_what_is_near_is_what_the_distance_map_says(distance_mm: float, spacing_mm: tuple[float, float, float]):
    rng = np.random.default_rng(0)
    start, everywhere = np.array([3, 0, 5]), np.ones((14, 17, 19), bool)
    near = Surroundings(start, spacing_mm, everywhere, everywhere)
    for share in (0.0005, 0.005, 0.05):
        mask = rng.random(everywhere.shape) < share
        depth_mm = distance_transform_edt(~mask, sampling=spacing_mm) if mask.any() else np.full(mask.shape, np.inf)
        for _ in range(20):
            points_mm = (start + rng.uniform(-2.0, 20.0, (3, 3))) * spacing_mm
            expected = near.share_in(depth_mm <= distance_mm, points_mm) > 0.0
            assert near.is_near(mask, points_mm, distance_mm) == expected


def test_a_scan_without_room_is_not_measured_again_for_every_place(monkeypatch: pytest.MonkeyPatch):
    measured = []

    def measure(*arguments, **options):
        measured.append(None)
        return distance_transform_edt(*arguments, **options)

    monkeypatch.setattr(placement, "distance_transform_edt", measure, raising=False)
    host = ball_host(30.0)
    vessels = np.zeros_like(host.organ_mask)
    vessels[::2, ::4, ::4] = True
    host = dataclasses.replace(host, avoid_mask=vessels)
    placed, given_up = draw_tumors(
        host, TumorPlan(size_classes=TINY, zone=Zone(avoid_distance_mm=3.0)), np.random.default_rng(0), count=2
    )
    assert (len(placed), len(given_up)) == (0, 2)
    assert len(measured) <= 1
