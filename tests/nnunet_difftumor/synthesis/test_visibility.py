"""What a synthetic tumour shows: its edge, its depth in thick slices, and whether it can be seen at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from diffusion.conditioning import fill_tumor_region
from nnunet_difftumor.synthesis.host import Host
from nnunet_difftumor.synthesis.synthesizer import TumorSynthesizer
from nnunet_difftumor.synthesis.tissue.interface import GeneratedRegions
from nnunet_difftumor.tumor.drawing import draw_on_grid
from nnunet_difftumor.tumor.region import RoiRule
from nnunet_difftumor.tumor.spec import TumorSpec
from nnunet_difftumor.tumor.surface import TumorSurface


class Untouched:
    """A generator that changes nothing."""

    roi_rule = RoiRule(sides=(32, 48, 64), margin_voxels=12, spacing_range_mm=(1.5, 6.0))
    window_hu = (-175.0, 250.0)
    appearances = ()

    def generate(self, host_hu, tumor_masks, appearances, seeds):
        return GeneratedRegions(host_hu, host_hu)


class Flat(Untouched):
    """The fill that a network starts from: flat tissue at the level that was asked for."""

    def generate(self, host_hu, tumor_masks, appearances, seeds):
        asked = torch.tensor([look.contrast_hu for look in appearances])
        regions = torch.from_numpy(host_hu[:, None]), torch.from_numpy(tumor_masks[:, None])
        return GeneratedRegions(fill_tumor_region(*regions, asked)[:, 0].numpy(), host_hu)


def make_host(spacing_mm=(1.0, 1.0, 1.0), level_hu=60.0, sd_hu=0.0, correlation_voxels=0.0, side_mm=64.0) -> Host:
    shape = tuple(round(side_mm / step) for step in spacing_mm)
    noise = np.random.default_rng(0).normal(size=shape)
    if correlation_voxels:
        noise = gaussian_filter(noise, correlation_voxels)
    image = (level_hu + sd_hu * noise / noise.std()).astype(np.float32)
    organ = np.ones(shape, dtype=bool)
    return Host(image, spacing_mm, organ, organ, organ)


def tumor_at_centre(radius_mm: float, contrast_hu: float | None = -40.0, **others) -> TumorSpec:
    return TumorSpec(centre_mm=(32.0, 32.0, 32.0), radius_mm=radius_mm, contrast_hu=contrast_hu, **others)


@pytest.mark.parametrize("radius_mm", [4.0, 6.0, 9.0])
def test_the_volume_at_half_contrast_is_that_of_the_label(radius_mm: float):
    host = make_host()
    half, labelled = 0, 0
    for seed in range(6):
        place = tuple(np.random.default_rng(seed).uniform(31.0, 33.0, 3))
        spec = TumorSpec(centre_mm=place, radius_mm=radius_mm, contrast_hu=-40.0, axis_ratios=(1, 0.85, 0.7), seed=seed)
        result = TumorSynthesizer(Flat()).synthesize(host, [spec])
        half += (result.apply_to(host.image_hu) - host.image_hu <= -20.0).sum()
        labelled += result.label_mask(host.image_hu.shape).sum()
    assert half / labelled == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("spacing_mm", [(1.5, 1.0, 1.0), (5.0, 0.8, 0.8)])
@pytest.mark.parametrize(("offset_mm", "width_mm"), [(-3.0, 1.5), (0.0, 1.5), (2.0, 2.0)])
def test_the_profile_is_that_of_the_edge_at_every_millimetre(spacing_mm, offset_mm: float, width_mm: float):
    host = make_host(spacing_mm)
    sums, counts = np.zeros((2, 12)), np.zeros(12)
    for radius_mm, seed in ((7.0, 1), (10.0, 2), (14.0, 3)):
        shape = {"axis_ratios": (1.0, 0.85, 0.7), "roughness": 0.08, "seed": seed}
        spec = tumor_at_centre(radius_mm, edge_offset_mm=offset_mm, edge_width_mm=width_mm, **shape)
        change = TumorSynthesizer(Flat()).synthesize(host, [spec]).apply_to(host.image_hu) - host.image_hu
        drawn = draw_on_grid(TumorSurface(spec), spacing_mm)
        assert min(drawn.start) >= 0
        part_hu = change[tuple(slice(s, s + n) for s, n in zip(drawn.start, drawn.label.shape, strict=True))]
        surface = TumorSurface(spec)
        fine = surface.signed_distance_on_grid(change.shape, spacing_mm, (0.0, 0.0, 0.0))
        near = np.abs(fine) < 10.0
        voxels = np.argwhere(near) * spacing_mm - spec.centre_mm
        fine[near] = np.sign(fine[near]) * cKDTree(surface.surface_offsets_mm(5000)).query(voxels)[0]
        millimetre = np.floor(fine).astype(int) + 8
        near = (millimetre >= 0) & (millimetre < 12)
        sums[0] += np.bincount(millimetre[near], change[near] / -40.0, 12)
        sums[1] += np.bincount(millimetre[near], spec.edge.share(fine[near]), 12)
        counts += np.bincount(millimetre[near], minlength=12)
        assert np.abs(part_hu).max() == np.abs(change).max()  # nothing changes outside the drawing
    found, expected = sums / counts
    np.testing.assert_allclose(found, expected, atol=0.1)


def test_a_small_tumour_in_thick_slices_loses_the_contrast_that_physics_takes():
    for radius_mm in (3.0, 4.0):
        host = make_host((5.0, 0.8, 0.8))
        spec = tumor_at_centre(radius_mm)
        (tumor,) = TumorSynthesizer(Flat()).synthesize(host, [spec]).tumors
        fine = draw_on_grid(TumorSurface(spec), (0.5, 0.4, 0.4))
        share_in_thick = _thick_share(fine, tumor)
        assert tumor.image_hu[tumor.label].mean() - 60.0 == pytest.approx(-40.0 * share_in_thick, rel=0.1)
        assert share_in_thick < 0.85


def _thick_share(fine, tumor) -> float:
    """Mean share of tissue in the label's thick voxels, added up on a grid of half a millimetre and less."""
    points = np.argwhere(np.ones_like(fine.label)) + np.asarray(fine.start)
    voxels = np.round(points * np.array([0.5, 0.4, 0.4]) / np.array([5.0, 0.8, 0.8])).astype(int)
    voxels -= np.array([part.start for part in tumor.box])
    inside = np.all((voxels >= 0) & (voxels < tumor.label.shape), axis=1)
    shares = np.zeros(tumor.label.shape)
    np.add.at(shares, tuple(voxels[inside].T), fine.weight.ravel()[inside] * 0.5 * 0.4 * 0.4 / (5.0 * 0.8 * 0.8))
    return float(shares[tumor.label].mean())


def test_untouched_tissue_is_no_tumour():
    """Structure of a scan, correlated over voxels, differs from its surroundings by more than two standard errors."""
    host = make_host(sd_hu=12.0, correlation_voxels=2.0, side_mm=96.0)
    rng = np.random.default_rng(1)
    specs = [
        TumorSpec(centre_mm=tuple(rng.uniform(12, 84, 3)), radius_mm=float(radius), seed=int(radius * 10))
        for radius in rng.uniform(3.0, 6.0, 60)
    ]
    shown = [TumorSynthesizer(Untouched(), max_attempts=1).synthesize(host, [spec]).tumors for spec in specs]
    assert sum(map(len, shown)) == 0


def test_a_large_flat_tumour_that_noise_hides_from_a_reader_is_left_out():
    host = make_host(sd_hu=20.0)
    faint, clear = tumor_at_centre(15.0, -6.0), tumor_at_centre(15.0, -25.0)
    assert TumorSynthesizer(Flat()).synthesize(host, [faint]).rejected == {"invisible": 1}
    (tumor,) = TumorSynthesizer(Flat()).synthesize(host, [clear]).tumors
    assert tumor.record.noise_ratio == pytest.approx(-25.0 / 20.0, rel=0.1)


def test_the_record_says_what_the_network_is_shown_in_a_fatty_liver():
    host = make_host(level_hu=0.0, sd_hu=8.0, correlation_voxels=0.7)
    low_hu = -20.0
    narrow = replace(host, image_hu=np.clip(host.image_hu, low_hu, 200.0), clipped_to_hu=(low_hu, 200.0))
    kept = 0
    for contrast_hu in (-12.0, -18.0, -27.0, -40.0):
        result = TumorSynthesizer(Flat()).synthesize(narrow, [tumor_at_centre(8.0, contrast_hu)])
        for tumor in result.tumors:
            kept += 1
            before, after = (np.clip(each, low_hu, 200.0) for each in (narrow.image_hu[tumor.box], tumor.image_hu))
            core = tumor.label & (np.abs(tumor.image_hu - narrow.image_hu[tumor.box]) > 0.5 * abs(contrast_hu))
            assert np.mean(np.abs(after - before)[core] < 0.5) <= 0.25
            rim_hu = np.median(before[~tumor.support])
            assert tumor.record.contrast_hu == pytest.approx(after[tumor.label].mean() - rim_hu, abs=1.5)
    assert kept >= 1


def test_what_the_window_cannot_show_is_left_out_and_counted():
    host = make_host(level_hu=-31.0, sd_hu=8.0)
    narrow = replace(host, image_hu=np.clip(host.image_hu, -30.0, 200.0), clipped_to_hu=(-30.0, 200.0))
    result = TumorSynthesizer(Flat()).synthesize(narrow, [tumor_at_centre(8.0, -60.0)])
    assert result.rejected == {"cut_off": 1}
