from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

from diffusion.conditioning import fill_tumor_region, rim_median_hu
from nnunet_difftumor.errors import EmptyOrganError, GeometryMismatchError
from nnunet_difftumor.synthesis.host import Host
from nnunet_difftumor.synthesis.placement import TumorPlan, draw_tumors
from nnunet_difftumor.synthesis.synthesizer import TumorSynthesizer
from nnunet_difftumor.synthesis.tissue.interface import GeneratedRegions
from nnunet_difftumor.tumor.appearance import Appearance, AppearanceRule
from nnunet_difftumor.tumor.drawing import MaskSurface
from nnunet_difftumor.tumor.edge import Edge
from nnunet_difftumor.tumor.region import RoiRule, choose_roi
from nnunet_difftumor.tumor.sizes import PAPER_SIZE_CLASSES, SizeClass, fit_size_classes
from nnunet_difftumor.tumor.spec import TumorSpec
from nnunet_difftumor.tumor.surface import TumorSurface

RULE = RoiRule(sides=(32, 48, 64), margin_voxels=12, spacing_range_mm=(1.5, 6.0))
AT_OUTLINE = Edge(offset_mm=0.0, width_mm=0.1)
SMALL = (SizeClass(name="small", radius_mm=(6.0, 10.0), probability=1.0, max_count=3),)


class FlatTissue:
    """Organ plus the requested contrast inside the mask, smoothed host outside: stands in for a network."""

    roi_rule = RULE
    window_hu = (-175.0, 250.0)
    appearances = (Appearance(contrast_hu=-30.0),)

    def generate(self, host_hu, tumor_masks, appearances, seeds):
        reconstruction = np.clip(host_hu, *self.window_hu)
        level = np.median(reconstruction, axis=(1, 2, 3))
        contrast = np.array([look.contrast_hu or 0.0 for look in appearances])
        noise = np.stack([np.random.default_rng(seed).normal(0, 1, host_hu.shape[1:]) for seed in seeds])
        inside = (level + contrast)[:, None, None, None] + noise
        tumor = np.where(tumor_masks, inside, reconstruction)
        return GeneratedRegions(tumor.astype(np.float32), reconstruction.astype(np.float32))


def make_host(spacing_mm=(2.0, 1.5, 1.5), shape=(48, 64, 64)) -> Host:
    rng = np.random.default_rng(0)
    image = rng.normal(60.0, 12.0, shape).astype(np.float32)
    organ = np.zeros(shape, dtype=bool)
    organ[6:-6, 8:-8, 8:-8] = True
    image[~organ] = -100.0
    return Host(image, spacing_mm, organ, organ, np.ones(shape, dtype=bool))


@pytest.mark.parametrize("spacing_mm", [(2.0, 1.5, 1.5), (3.0, 0.8, 0.8), (1.0, 1.0, 1.0)])
def test_voxels_outside_the_support_keep_every_bit(spacing_mm):
    host = make_host(spacing_mm)
    specs, _ = draw_tumors(
        host,
        TumorPlan(size_classes=SMALL, appearances=AppearanceRule(examples=(Appearance(contrast_hu=-40.0),))),
        np.random.default_rng(1),
    )
    result = TumorSynthesizer(FlatTissue()).synthesize(host, specs)
    assert result.tumors
    changed, support = result.apply_to(host.image_hu), result.support_mask(host.image_hu.shape)
    assert np.array_equal(changed[~support], host.image_hu[~support])
    assert not np.array_equal(changed[support], host.image_hu[support])
    assert not (result.label_mask(host.image_hu.shape) & ~host.replaceable_mask).any()


def test_same_record_gives_the_same_tumour_alone_or_in_company():
    host = make_host()
    plan = TumorPlan(size_classes=SMALL, appearances=AppearanceRule(examples=(Appearance(contrast_hu=-40.0),)))
    specs, _ = draw_tumors(host, plan, np.random.default_rng(3), count=2)
    together = TumorSynthesizer(FlatTissue()).synthesize(host, specs)
    assert len(together.tumors) == 2
    for tumor in together.tumors:
        spec = TumorSpec.from_json(asdict(tumor.record.spec))
        (alone,) = TumorSynthesizer(FlatTissue()).synthesize(host, [spec]).tumors
        assert alone.box == tumor.box
        assert np.array_equal(alone.label, tumor.label)
        np.testing.assert_allclose(alone.image_hu, tumor.image_hu, atol=1e-3)


def test_an_invisible_tumour_is_dropped_and_counted():
    host = make_host()
    spec = TumorSpec(centre_mm=(48.0, 48.0, 48.0), radius_mm=8.0, contrast_hu=0.0)
    result = TumorSynthesizer(FlatTissue(), max_attempts=2).synthesize(host, [spec])
    assert result.tumors == ()
    assert result.rejected == {"invisible": 1}


def test_the_measured_contrast_is_the_requested_one():
    host = make_host()
    spec = TumorSpec(centre_mm=(48.0, 48.0, 48.0), radius_mm=9.0, contrast_hu=-40.0)
    (tumor,) = TumorSynthesizer(FlatTissue()).synthesize(host, [spec]).tumors
    assert tumor.record.depth_hu == pytest.approx(-40.0, abs=3.0)


def test_a_tumour_lands_at_its_requested_contrast_and_its_texture_stays():
    class Bright(FlatTissue):
        error_hu = 12.0

        def generate(self, host_hu, tumor_masks, appearances, seeds):
            regions = super().generate(host_hu, tumor_masks, appearances, seeds)
            return replace(regions, tumor_hu=regions.tumor_hu + np.where(tumor_masks, np.float32(self.error_hu), 0))

    class FarTooBright(Bright):
        error_hu = 60.0

    host = make_host()
    spec = TumorSpec(centre_mm=(48.0, 48.0, 48.0), radius_mm=9.0, contrast_hu=-20.0, seed=3)
    (right,) = TumorSynthesizer(FlatTissue()).synthesize(host, [spec]).tumors
    for wrong in (Bright(), FarTooBright()):
        (shifted,) = TumorSynthesizer(wrong).synthesize(host, [spec]).tumors
        assert shifted.record.depth_hu == pytest.approx(right.record.depth_hu, abs=0.5)
        core = np.asarray(binary_erosion(shifted.label, iterations=2))
        assert core.sum() > 100
        assert np.std(shifted.image_hu[core] - right.image_hu[core]) < 0.5


def test_a_tumour_without_organ_around_it_is_not_set_against_fat():
    host = make_host()
    image = np.full_like(host.image_hu, -100.0)  # fat all round
    organ = np.zeros_like(host.organ_mask)
    organ[20:28, 27:37, 27:37] = True
    image[organ] = 60.0
    small = replace(host, image_hu=image, organ_mask=organ, replaceable_mask=organ)
    spec = TumorSpec(centre_mm=(48.0, 48.0, 48.0), radius_mm=19.0, contrast_hu=-20.0)
    asked: list[float | None] = []

    class AtOrganLevel(FlatTissue):
        def generate(self, host_hu, tumor_masks, appearances, seeds):
            asked.extend(look.contrast_hu for look in appearances)
            regions = super().generate(host_hu, tumor_masks, appearances, seeds)
            return replace(regions, tumor_hu=np.where(tumor_masks, np.float32(40.0), regions.reconstruction_hu))

    TumorSynthesizer(AtOrganLevel(), max_attempts=1, minimum_inside_share=0.02).synthesize(small, [spec])
    bright = replace(spec, contrast_hu=20.0)
    (tumor,) = (
        TumorSynthesizer(AtOrganLevel(), minimum_inside_share=0.02, has_residual=False)
        .synthesize(small, [bright])
        .tumors
    )
    assert asked == [-20.0, 20.0]  # not shifted by the fat's 160 HU
    assert tumor.image_hu[tumor.label].mean() == pytest.approx(45.0, abs=10.0)  # nor the tumour itself


def test_a_tumour_outside_the_organ_or_on_another_is_refused_by_reason():
    host = make_host()
    inside = TumorSpec(centre_mm=(48.0, 48.0, 48.0), radius_mm=8.0, contrast_hu=-40.0)
    result = TumorSynthesizer(FlatTissue()).synthesize(
        host,
        [inside, inside.moved_to((50.0, 48.0, 48.0)), inside.moved_to((0.0, 0.0, 0.0)), inside.moved_to((9e3,) * 3)],
    )
    assert len(result.tumors) == 1
    assert result.rejected == {"overlap": 1, "outside_organ": 1, "out_of_view": 1}


def test_a_region_beyond_the_scan_or_in_padding_shows_the_tissue_at_its_edge():
    image = np.full((20, 30, 30), 55.0, dtype=np.float32)
    valid = np.ones(image.shape, dtype=bool)
    image[:, :, 18:], valid[:, :, 18:] = -1000.0, False  # padding
    surface = TumorSurface(TumorSpec(centre_mm=(2.0, 4.0, 30.0), radius_mm=8.0, contrast_hu=-20.0))
    roi = choose_roi(surface, (2.0, 2.0, 2.0), RULE)
    assert min(roi.start_mm) < -10.0
    np.testing.assert_allclose(roi.sample(image, (2.0, 2.0, 2.0), valid), 55.0, atol=1e-3)


def test_contrast_is_against_the_organ_where_the_generators_rim_is_other_tissue():
    host = make_host()
    image = host.image_hu.copy()
    image[~host.organ_mask] = 5.0  # soft tissue of another level all round a thin organ
    organ = np.zeros_like(host.organ_mask)
    organ[20:28, 20:44, 20:44] = True
    image[~organ] = 5.0
    thin = replace(host, image_hu=image, organ_mask=organ, replaceable_mask=organ)
    spec = TumorSpec(centre_mm=(48.0, 48.0, 48.0), radius_mm=6.0, contrast_hu=-25.0)
    asked: list[float] = []

    class Asked(FlatTissue):
        def generate(self, host_hu, tumor_masks, appearances, seeds):
            levels = rim_median_hu(torch.from_numpy(host_hu[:, None]), torch.from_numpy(tumor_masks[:, None])).numpy()
            asked.extend(level + look.contrast_hu for level, look in zip(levels, appearances, strict=True))
            return super().generate(host_hu, tumor_masks, appearances, seeds)

    TumorSynthesizer(Asked(), max_attempts=1).synthesize(thin, [spec])
    assert asked == [pytest.approx(60.0 - 25.0, abs=2.0)]


def test_padding_never_becomes_tumour():
    host = make_host()
    valid = np.ones_like(host.valid_mask)
    valid[:, :, 34:] = False
    host = replace(host, valid_mask=valid)
    spec = TumorSpec(centre_mm=(48.0, 48.0, 48.0), radius_mm=9.0, contrast_hu=-40.0)
    (tumor,) = TumorSynthesizer(FlatTissue()).synthesize(host, [spec]).tumors
    assert not (tumor.support & ~valid[tumor.box]).any()


def test_an_exophytic_tumour_leaves_air_and_bone_alone():
    host = make_host()
    image, organ = host.image_hu.copy(), host.organ_mask.copy()
    image[:, :, :5] = -1000.0
    image[:, :5, :] = 700.0
    image[20:24, 30:34, 20:24] = 900.0  # calcified organ is the tumour's own
    exophytic = replace(host, image_hu=image, replaceable_mask=np.ones_like(organ))
    spec = TumorSpec(centre_mm=(48.0, 16.0, 16.0), radius_mm=9.0, contrast_hu=-40.0)
    (tumor,) = TumorSynthesizer(FlatTissue()).synthesize(exophytic, [spec]).tumors
    touched = tumor.support & ~organ[tumor.box]
    assert touched.any()  # it does leave the organ
    assert np.abs(image[tumor.box][touched]).max() < 300
    inside = TumorSpec(centre_mm=(44.0, 48.0, 33.0), radius_mm=9.0, contrast_hu=-40.0)
    (tumor,) = TumorSynthesizer(FlatTissue()).synthesize(exophytic, [inside]).tumors
    assert tumor.label[image[tumor.box] == 900.0].all()


WINDOWS = pytest.mark.parametrize("window_hu", [(-160.0, 240.0), (-120.0, 201.0)])


def clipped_host(window_hu: tuple[float, float]) -> Host:
    """An organ in noisy fat, with a block of air and one of bone, as nnU-Net restores them: clipped, then resampled."""
    rng = np.random.default_rng(0)
    image = np.where(make_host().organ_mask, 150.0, -100.0) + rng.normal(0.0, 15.0, (48, 64, 64))
    image[10:30, :8, 10:30] = -1000.0
    image[10:30, :8, 34:54] = 800.0
    image = np.clip(image, *window_hu) + rng.uniform(-0.4, 0.4, image.shape)
    replaceable = np.ones(image.shape, dtype=bool)
    return replace(
        make_host(), image_hu=image.astype(np.float32), replaceable_mask=replaceable, clipped_to_hu=window_hu
    )


@WINDOWS
def test_clipped_air_and_bone_beside_the_organ_are_left_alone_and_noisy_fat_is_not(window_hu: tuple[float, float]):
    host = clipped_host(window_hu)
    box = (slice(5, 35), slice(0, 40), slice(5, 60))
    allowed = np.zeros(host.image_hu.shape, dtype=bool)
    allowed[box] = host.may_become_tumor(box)
    assert not allowed[10:30, :8, 10:30].any()
    assert not allowed[10:30, :8, 34:54].any()
    assert allowed[box][host.organ_mask[box]].all()
    assert allowed[30:35, :8, 5:60].mean() > 0.999
    part = (slice(12, 20), slice(2, 12), slice(8, 40))
    assert np.array_equal(host.may_become_tumor(part), allowed[part])  # whatever part is asked for


def test_where_fat_is_clipped_as_well_air_is_taken_for_fat():
    host = clipped_host((-79.0, 304.0))
    box = (slice(0, 48), slice(0, 64), slice(0, 64))
    unclipped = replace(host, clipped_to_hu=None)
    assert np.array_equal(host.may_become_tumor(box), unclipped.may_become_tumor(box))
    assert host.may_become_tumor(box)[10:30, :8, 10:30].all()


class FilledTissue(FlatTissue):
    """The fill alone, against the rim that the network's fill is set against."""

    def generate(self, host_hu, tumor_masks, appearances, seeds):
        reconstruction = np.clip(host_hu, *self.window_hu)
        contrasts = torch.tensor([look.contrast_hu for look in appearances])
        masks = torch.from_numpy(tumor_masks[:, None])
        filled = fill_tumor_region(torch.from_numpy(reconstruction[:, None]), masks, contrasts)
        return GeneratedRegions(filled[:, 0].numpy(), reconstruction)


@pytest.mark.parametrize("low_hu", [-30.0, -17.0])
def test_a_tumour_beside_clipped_fat_is_as_bright_as_beside_fat(low_hu: float):
    """A tumour that bulges out of its organ: fat clipped to soft tissue must not count as what it contrasts with."""
    whole = clipped_host((-1024.0, 3000.0))
    whole = replace(whole, image_hu=np.where(whole.organ_mask | (whole.image_hu > -200), whole.image_hu, -100.0))
    clipped = replace(whole, image_hu=np.clip(whole.image_hu, low_hu, 201.0), clipped_to_hu=(low_hu, 201.0))
    spec = TumorSpec(centre_mm=(48.0, 48.0, 14.0), radius_mm=10.0, contrast_hu=-30.0)
    expected, found = (TumorSynthesizer(FilledTissue()).synthesize(host, [spec]).tumors[0] for host in (whole, clipped))
    assert np.array_equal(found.label, expected.label)
    assert found.record.depth_hu == pytest.approx(expected.record.depth_hu, abs=1.0)
    inside, outside = (found.label & (clipped.organ_mask[found.box] == organ) for organ in (True, False))
    for part in (inside, outside):
        assert part.sum() > 100
        assert found.image_hu[part].mean() == pytest.approx(expected.image_hu[part].mean(), abs=4.0)
    assert np.array_equal(found.image_hu[~found.support], clipped.image_hu[found.box][~found.support])


def test_a_window_that_shows_fat_changes_nothing():
    host = clipped_host((-31.0, 201.0))
    spec = TumorSpec(centre_mm=(48.0, 48.0, 14.0), radius_mm=10.0, contrast_hu=-30.0)
    found, expected = (
        TumorSynthesizer(FilledTissue()).synthesize(each, [spec]).tumors[0].image_hu
        for each in (host, replace(host, clipped_to_hu=None))
    )
    assert np.array_equal(found, expected)


def test_a_users_mask_is_labelled_as_drawn():
    host = make_host()
    mask = np.zeros(host.image_hu.shape, dtype=bool)
    mask[20:25, 25:35, 25:33] = True
    surface = MaskSurface(mask, host.spacing_mm, seed=1, appearance=Appearance(contrast_hu=-40.0))
    result = TumorSynthesizer(FlatTissue()).synthesize(host, [surface])
    assert np.array_equal(result.label_mask(mask.shape), mask)


def test_placement_covers_the_organ_evenly_and_stays_inside():
    host = make_host()
    plan = TumorPlan(size_classes=(SizeClass(name="tiny", radius_mm=(3.0, 4.0), probability=1.0),))
    rng = np.random.default_rng(4)
    centres = np.array([draw_tumors(host, plan, rng, count=1)[0][0].centre_mm for _ in range(300)])
    voxels = np.round(centres / host.spacing_mm).astype(int)
    assert host.organ_mask[tuple(voxels.T)].all()
    halves = (voxels > np.asarray(host.image_hu.shape) / 2).mean(axis=0)
    assert ((halves > 0.4) & (halves < 0.6)).all()


def test_placement_ends_on_an_organ_that_is_too_thin():
    host = make_host()
    organ = np.zeros_like(host.organ_mask)
    organ[20, 30, 10:50] = True
    host = replace(host, organ_mask=organ, replaceable_mask=organ)
    specs, given_up = draw_tumors(host, TumorPlan(size_classes=SMALL), np.random.default_rng(5), count=1)
    assert specs == []
    assert len(given_up) == 1


def test_an_empty_organ_is_a_named_error():
    host = make_host()
    host = replace(host, organ_mask=np.zeros_like(host.organ_mask))
    with pytest.raises(EmptyOrganError, match="organ mask"):
        draw_tumors(host, TumorPlan(size_classes=SMALL), np.random.default_rng(6))


def test_masks_of_another_shape_are_refused():
    host = make_host()
    with pytest.raises(GeometryMismatchError, match="organ_mask"):
        replace(host, organ_mask=host.organ_mask[:-1])


@pytest.mark.parametrize("radius_mm", [3.0, 5.0, 8.0, 15.0, 40.0, 64.0])
def test_the_region_holds_the_tumour_with_its_margin(radius_mm: float):
    surface = TumorSurface(TumorSpec(centre_mm=(0, 0, 0), radius_mm=radius_mm, axis_ratios=(1.0, 0.8, 0.6)))
    roi = choose_roi(surface, (3.0, 0.8, 0.8), RULE)
    margin_voxels = roi.side / 2 - surface.half_extent_mm.max() / roi.spacing_mm
    assert margin_voxels >= RULE.margin_voxels - 1e-6
    assert roi.side <= 64
    mask = roi.tissue_mask(roi.distance_mm(surface), AT_OUTLINE)
    assert mask.sum() * roi.spacing_mm**3 == pytest.approx(surface.volume_mm3, rel=0.35 if radius_mm < 6 else 0.1)


@pytest.mark.parametrize("radius_mm", [4.0, 9.0, 30.0])
def test_the_regions_mask_is_the_tumour_and_nothing_is_cut(radius_mm: float):
    ratios = {"axis_ratios": (1.0, 0.7, 0.5), "rotation": (0.8, 0.3, 0.4, 0.33), "roughness": 0.3}
    surface = TumorSurface(TumorSpec(centre_mm=(31.0, 42.0, 37.0), radius_mm=radius_mm, seed=4, **ratios))
    roi = choose_roi(surface, (1.5, 1.5, 1.5), RULE)
    whole = surface.signed_distance_on_grid((roi.side,) * 3, (roi.spacing_mm,) * 3, roi.start_mm) <= 0
    assert np.array_equal(roi.tissue_mask(roi.distance_mm(surface), AT_OUTLINE), whole)


def test_size_classes_are_cut_to_what_fits():
    fitted = fit_size_classes(PAPER_SIZE_CLASSES, 15.0)
    assert [size.name for size in fitted] == ["tiny", "small", "medium"]
    assert fitted[-1].radius_mm == (12.0, 15.0)
    assert fit_size_classes(PAPER_SIZE_CLASSES, 2.0)[0].radius_mm == (2.0, 2.0)
