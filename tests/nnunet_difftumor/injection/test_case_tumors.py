"""Tumours of whole cases: how many, where, off the real ones, and what nnU-Net is told of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from nnunet_difftumor.injection.case_tumors import draw_case_tumors, locations_with_tumors
from nnunet_difftumor.injection.injector import TumorInjector
from nnunet_difftumor.injection.records import CaseTumors
from nnunet_difftumor.injection.rules import REAL_TUMOR_RIM_MM, CTIntensities, InjectionRules
from nnunet_difftumor.injection.sample_shares import count_sample, describe_shares
from nnunet_difftumor.synthesis.placement import Zone
from nnunet_difftumor.tumor.sizes import SizeClass
from nnunet_difftumor.tumor.surface import TumorSurface

CT = CTIntensities(mean_hu=90.0, std_hu=25.0, low_hu=-20.0, high_hu=190.0)
SPACING_MM = (3.0, 2.0, 2.0)
SMALL = (SizeClass(name="small", radius_mm=(4.0, 7.0), probability=1.0),)
SHAPE = (40, 70, 70)


def make_rules(**changes):
    values = {
        "organ_label": 1,
        "tumor_label": 2,
        "exophytic": False,
        "spacing_mm": SPACING_MM,
        "intensities": CT,
        "size_classes": SMALL,
        "real_tumor_labels": (2,),
    }
    return InjectionRules(**{**values, **changes})


def ball(centre, radius_mm):
    grid = [np.arange(size) * step for size, step in zip(SHAPE, SPACING_MM, strict=True)]
    d, h, w = np.meshgrid(*grid, indexing="ij")
    return np.linalg.norm([d - centre[0], h - centre[1], w - centre[2]], axis=0) < radius_mm


def make_labels(real_radius_mm=0.0):
    """An organ of 50 mm radius, with a real tumour off its middle."""
    labels = ball((58.0, 70.0, 70.0), 50.0).astype(np.int16)
    if real_radius_mm > 0:
        labels[ball((58.0, 60.0, 75.0), real_radius_mm)] = 2
    return labels


def draw(labels, seed=0, rules=None, **options):
    rules = rules or make_rules()
    return draw_case_tumors(labels[None], np.argwhere(labels == 1), rules, np.random.default_rng(seed), **options)


def test_a_case_gets_as_many_tumours_as_annotated_cases_have():
    counts = (1, 1, 1, 5)
    labels, found = make_labels(), []
    for seed in range(120):
        tumors = draw(labels, seed, make_rules(tumor_counts=counts))
        found.append(len(tumors.specs) + len(tumors.given_up))
    assert set(found) == {1, 5}
    assert 0.15 < np.mean(np.array(found) == 5) < 0.36


def test_places_are_uniform_over_the_organ():
    labels = make_labels()
    rules = make_rules(size_classes=(SizeClass(name="dot", radius_mm=(1.0, 1.0), probability=1.0),))
    middle = np.array([58.0, 70.0, 70.0])
    centres = [draw(labels, seed, rules).specs[0].centre_mm for seed in range(400)]
    depth = np.linalg.norm(np.array(centres) - middle, axis=1)
    # in a ball, the cube of the relative distance from the middle is uniform from 0 to 1
    assert np.mean((depth / 50.0) ** 3) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("real_radius_mm", [10.0, 25.0, 36.0])
def test_synthetic_tumours_find_room_beside_a_real_one_and_keep_off_it(real_radius_mm, contrast_source):
    """Room is found here by a distance transform; no voxel within the rim of the real tumour changes."""
    labels = make_labels(real_radius_mm)
    room_mm = distance_transform_edt(labels == 1, sampling=SPACING_MM)
    to_real_mm = distance_transform_edt(labels != 2, sampling=SPACING_MM)
    assert ((room_mm > 8.0) & (to_real_mm > 14.0)).any()
    rules = make_rules(size_classes=(SizeClass(name="small", radius_mm=(4.0, 5.0), probability=1.0),))
    image = CT.normalise(np.random.default_rng(1).normal(100.0, 10.0, SHAPE).astype(np.float32))
    placed = 0
    for seed in range(40):
        tumors = draw(labels, seed, rules)
        placed += bool(tumors.specs)
        if not tumors.specs or seed % 8:
            continue
        crop = TumorInjector(contrast_source, rules).inject(image, labels, tumors)
        assert crop.placed > 0
        changed = (crop.image != image) | (crop.labels != labels)
        assert changed.any()
        assert to_real_mm[changed].min() > REAL_TUMOR_RIM_MM
        assert np.array_equal(crop.labels[labels == 2], labels[labels == 2])
    assert placed >= 0.9 * 40


def test_the_rim_of_a_real_tumour_stays_even_where_a_tumour_is_put_upon_it(contrast_source):
    labels = make_labels(15.0)
    spec = draw(labels).specs[0].moved_to((58.0, 60.0, 92.0))  # its edge would lie in the real one's rim
    image = CT.normalise(np.full(SHAPE, 100.0, np.float32))
    crop = TumorInjector(contrast_source, make_rules()).inject(image, labels, CaseTumors((spec,), (spec,)))
    changed = (crop.image != image) | (crop.labels != labels)
    to_real_mm = distance_transform_edt(labels != 2, sampling=SPACING_MM)
    assert not changed[to_real_mm <= REAL_TUMOR_RIM_MM].any()


def test_nnunet_is_told_of_the_tumours_as_if_they_were_annotated():
    labels = make_labels()
    tumors = draw(labels, 3, make_rules(tumor_counts=(3,))).specs
    voxels = np.random.default_rng(0).permutation(np.argwhere(labels == 1))[:8000]
    organ = np.concatenate([np.zeros((8000, 1), int), voxels], axis=1)
    told = locations_with_tumors({1: organ, 2: []}, tumors, labels[None], make_rules(), {})
    inside = np.zeros(SHAPE, bool)
    for spec in tumors:
        offsets = np.indices(SHAPE).reshape(3, -1).T * np.array(SPACING_MM) - spec.centre_mm
        inside |= (TumorSurface(spec).signed_distance(offsets) <= 0).reshape(SHAPE)
    assert inside[tuple(told[2][:, 1:].T)].all()
    assert not inside[tuple(told[1][:, 1:].T)].any()
    assert len(told[1]) == (~inside[tuple(organ[:, 1:].T)]).sum()
    volumes = [spec.radius_mm**3 for spec in tumors]
    nearest = [np.argmin([np.linalg.norm(v * SPACING_MM - s.centre_mm) for s in tumors]) for v in told[2][:, 1:]]
    shares = np.bincount(nearest, minlength=3) / len(nearest)
    assert shares == pytest.approx(np.array(volumes) / sum(volumes), abs=0.05)


def test_real_and_synthetic_tumours_are_told_in_proportion_to_their_volumes():
    labels = make_labels(15.0)
    real = np.argwhere(labels == 2)
    tumors = draw(labels, 5, make_rules(tumor_counts=(2,))).specs
    for known in (real, np.repeat(real, 10, axis=0)[:10_000]):  # all voxels, and as many as nnU-Net keeps
        known = np.concatenate([np.zeros((len(known), 1), int), known], axis=1)
        counted = {}
        told = locations_with_tumors({1: [], 2: known}, tumors, labels[None], make_rules(), counted)
        assert counted == ({2: len(real)} if len(known) == 10_000 else {})  # read once, then known
        share = 1.0 - len(known) / len(told[2])
        volume = sum(TumorSurface(spec).volume_mm3 for spec in tumors) / np.prod(SPACING_MM)
        assert share == pytest.approx(volume / (volume + len(real)), rel=0.05)


def test_regions_are_told_in_their_own_words():
    labels = make_labels()
    tumors = draw(labels).specs
    organ = np.concatenate([np.zeros((500, 1), int), np.argwhere(labels == 1)[:500]], 1)
    everywhere = (-1, 0, 1, 2)
    told = locations_with_tumors({(1, 2): organ, (2,): [], everywhere: organ}, tumors, labels[None], make_rules(), {})
    assert told[1, 2] is organ
    assert told[everywhere] is organ
    assert len(told[2,]) > 0


def test_the_negative_control_labels_other_places_of_the_organ(contrast_source):
    labels = make_labels()
    tumors = draw(labels, 2, is_misplaced=True)
    assert [spec.seed for spec in tumors.specs] == [spec.seed for spec in tumors.labelled]
    for put, told in zip(tumors.specs, tumors.labelled, strict=True):
        assert np.linalg.norm(np.subtract(put.centre_mm, told.centre_mm)) > 1.0
    assert tumors.specs == draw(labels, 2).specs
    image = CT.normalise(np.random.default_rng(1).normal(100.0, 5.0, SHAPE).astype(np.float32))
    injector = TumorInjector(contrast_source, make_rules())
    crop = injector.inject(image, labels, tumors)
    labelled = crop.labels == 2
    assert labelled.any()
    assert set(labels[labelled]) == {1}
    voxels = np.argwhere(labelled) * SPACING_MM
    (spec,) = tumors.labelled
    assert np.linalg.norm(voxels.mean(axis=0) - spec.centre_mm) < 2.0
    replayed = injector.replay(image, labels, crop.record)
    assert np.array_equal(replayed[0], crop.image)
    assert np.array_equal(replayed[1], crop.labels)


def test_a_zone_is_kept():
    labels = make_labels()
    depth_mm = distance_transform_edt(labels == 1, sampling=SPACING_MM)
    rules = make_rules(zone=Zone(surface_distance_mm=(20.0, 40.0)))
    for seed in range(20):
        for spec in draw(labels, seed, rules).specs:
            voxel = np.round(np.divide(spec.centre_mm, SPACING_MM)).astype(int)
            assert depth_mm[tuple(voxel)] >= 17.0


def test_shares_are_told_and_a_difference_is_a_warning():
    assert describe_shares({"healthy_samples": 4}) == ()
    same = _counts(annotated=(100, 60, 10), injected=(100, 55, 8))
    assert len(describe_shares(same)) == 1
    assert "annotated cases 60 % with tumour, 10 % without organ (100 samples)" in describe_shares(same)[0]
    other = describe_shares(_counts(annotated=(100, 60, 10), injected=(100, 99, 0)))
    assert [line.split(":")[0] for line in other] == ["Samples show", "WARNING", "WARNING"]
    assert "60 % against 99 %" in other[1]
    few = _counts(annotated=(4, 2, 0), injected=(4, 4, 0))
    assert len(describe_shares(few)) == 1


def _counts(**kinds):
    counts: dict[str, int] = {}
    for kind, (samples, with_tumor, without_organ) in kinds.items():
        for number in range(samples):
            one = count_sample(kind, shows_tumor=number < with_tumor, shows_organ=number >= without_organ)
            counts = {key: counts.get(key, 0) + one.get(key, 0) for key in {*counts, *one}}
    return counts


def test_tumours_of_a_case_are_placed_beside_the_large_vessels_that_its_image_shows():
    labels = make_labels()
    grid = [np.arange(size) * step for size, step in zip(SHAPE, SPACING_MM, strict=True)]
    _, h, w = np.meshgrid(*grid, indexing="ij")
    vessels = (labels == 1) & ((h % 28.0 - 14.0) ** 2 + (w % 28.0 - 14.0) ** 2 < 4.0**2)  # upright, 28 mm apart
    noise = np.random.default_rng(0).normal(0.0, 8.0, SHAPE)
    image = CT.normalise(np.where(vessels, 165.0, 100.0) + noise)

    def share_in_vessels(**options):
        specs = [spec for seed in range(25) for spec in draw(labels, seed, **options).specs]
        inside = np.concatenate([TumorSurface(each).interior_offsets_mm(60) + each.centre_mm for each in specs])
        return vessels[tuple(np.round(inside / SPACING_MM).astype(int).T)].mean(), len(specs)

    (blind, count), (looking, count_looking) = share_in_vessels(), share_in_vessels(image=image[None])
    assert blind > 0.03
    assert looking < 0.2 * blind
    assert count_looking == count
