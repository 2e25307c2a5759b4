from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter

from autoencoder.published.network import PublishedAutoencoder
from diffusion.generator.info import EdgeStatistics, GeneratorInfo
from diffusion.generator.provenance import Provenance
from diffusion.generator_folder import LoadedGenerator
from diffusion.published.network import PublishedDenoiser
from diffusion.published.sampler import PublishedSampler
from nnunet_difftumor.evaluation.realism import collection
from nnunet_difftumor.evaluation.realism.generator import donor_of_scan
from nnunet_difftumor.evaluation.realism.measures.textures import split_texture
from nnunet_difftumor.evaluation.realism.settings import EvaluationSettings
from nnunet_difftumor.evaluation.realism.tumors import making, scans
from nnunet_difftumor.evaluation.realism.tumors.healthy_host import FreeTissue, free_tissue, without_target
from nnunet_difftumor.evaluation.realism.tumors.making import find_places, place_of_target
from nnunet_difftumor.evaluation.realism.tumors.scans import EvaluationScan
from nnunet_difftumor.evaluation.realism.tumors.sources import FilledTissue, Sources, flat_fill
from nnunet_difftumor.synthesis.synthesizer import TumorSynthesizer
from nnunet_difftumor.synthesis.tissue.diffusion import BFLOAT16, FLOAT32, PRECISION_VARIABLE, DiffusionTissue
from nnunet_difftumor.synthesis.tissue.interface import GeneratedRegions
from nnunet_difftumor.tumor.appearance import Appearance, AppearanceRule
from nnunet_difftumor.tumor.drawing import MaskSurface
from nnunet_difftumor.tumor.region import RoiRule

WINDOW = (-175.0, 250.0)
SPACING = (2.0, 2.0, 2.0)
SETTINGS = EvaluationSettings(draws_per_case=2, radii_mm=(6.0, 10.0), places_per_radius=2, diversity_radii_mm=(10.0,))


def blur(regions_hu):
    """An autoencoder that takes noise away and keeps means."""
    return np.stack([gaussian_filter(np.clip(region, *WINDOW), 1.0) for region in regions_hu]).astype(np.float32)


class ConstantTissue:
    """Tissue of 60 HU plus the requested contrast."""

    roi_rule = RoiRule(sides=(32, 48), margin_voxels=8, spacing_range_mm=(1.5, 6.0))
    window_hu = WINDOW
    appearances = (Appearance(contrast_hu=-40.0), Appearance(contrast_hu=-20.0))
    edges = ()

    def generate(self, host_hu, tumor_masks, appearances: Sequence[Appearance], seeds: list[int]) -> GeneratedRegions:
        levels = np.array([60.0 + (look.contrast_hu or 0.0) for look in appearances], dtype=np.float32)
        tumor_hu = np.broadcast_to(levels[:, None, None, None], host_hu.shape).copy()
        return GeneratedRegions(tumor_hu, blur(host_hu))

    def reconstruct(self, host_hu):
        return blur(host_hu)

    def fill(self, host_hu, tumor_masks, appearances: Sequence[Appearance], seeds: list[int]):
        noise_hu = [np.random.default_rng(seed).normal(0.0, 9.0, host_hu.shape[1:]) for seed in seeds]
        generated_hu = self.generate(host_hu, tumor_masks, appearances, seeds).tumor_hu
        return np.where(tumor_masks, generated_hu + np.stack(noise_hu), host_hu).astype(np.float32)


class TooBright(ConstantTissue):
    """Brighter than asked by 15 HU."""

    def generate(self, host_hu, tumor_masks, appearances, seeds):
        regions = super().generate(host_hu, tumor_masks, appearances, seeds)
        return replace(regions, tumor_hu=regions.tumor_hu + 15.0)


def scan(*, identifier: str = "a", tumor_hu: float = 30.0, seed: int = 0) -> EvaluationScan:
    """Organ of 60 HU with a tumour of 12 mm radius at one end, noise of 10 HU everywhere."""
    shape = (56, 32, 32)
    rng = np.random.default_rng(seed)
    grid = np.indices(shape) * 2.0
    target = np.linalg.norm(grid - np.array([26.0, 32.0, 32.0])[:, None, None, None], axis=0) <= 12.0
    organ = np.ones(shape, dtype=bool)
    organ[:, :2] = False
    image = np.where(organ, 60.0, -100.0) + rng.normal(0.0, 10.0, shape)
    image[target] += tumor_hu - 60.0
    return EvaluationScan(
        identifier, SPACING, image.astype(np.float32), organ & ~target, target, target, WINDOW, patient=identifier
    )


def place_of(host: EvaluationScan) -> making.Place:
    return place_of_target(host, "tumour 1", free_tissue(host), np.random.default_rng(0))


@pytest.fixture(scope="module")
def sources() -> Sources:
    donors = tuple(donor_of_scan(scan(identifier=name, seed=seed)) for seed, name in enumerate("ab"))
    info = GeneratorInfo(roi_sides=(32, 48), margin_voxels=8, training_tumors=(), preset="nano", data_note="")
    return Sources(ConstantTissue(), info, AppearanceRule(examples=ConstantTissue.appearances), donors)


def replaced(sources: Sources, host: EvaluationScan) -> dict[str, list[collection.Row]]:
    made = collection.replace_targets(host, sources, SETTINGS, np.random.default_rng(0))
    return {method: [tumor for tumor in made if tumor["method"] == method] for method in making.METHODS}


def test_nothing_of_the_real_tumour_comes_back(sources):
    """A tumour brighter by 150 HU is replaced by the same voxels."""
    faint, bright = (replaced(sources, scan(tumor_hu=hu)) for hu in (30.0, 180.0))
    for method in (making.GENERATED, making.NO_RESIDUAL):
        for one, other in zip(faint[method][:2], bright[method][:2], strict=True):  # the third asks for the own look
            inside = one["made"].label
            assert np.abs(one["made"].image_hu[inside] - other["made"].image_hu[inside]).max() < 0.1, method


def test_beyond_the_rim_the_scan_is_unchanged_and_inside_the_request_is_met(sources):
    for tumor in replaced(sources, scan())[making.GENERATED]:
        made = tumor["made"]
        assert np.array_equal(made.image_hu[made.distance_mm > 7.0], made.host_hu[made.distance_mm > 7.0])
        assert tumor["depth_hu"] == pytest.approx(tumor["requested_contrast_hu"], abs=2.0)
        assert tumor["beyond_rim_hu"] == 0.0


def test_a_tumour_in_place_is_what_training_injects(sources):
    """The same voxels as of the synthesizer on the scan without its tumour."""
    host = scan()
    place = place_of(host)
    assert np.array_equal(place.host.image_hu, without_target(host, free_tissue(host), np.random.default_rng(0)))
    look = Appearance(contrast_hu=-30.0)
    found = making.make(place.asking(look, 5), TumorSynthesizer(ConstantTissue()))
    surface = MaskSurface(host.target, SPACING, 5, look)
    injected = TumorSynthesizer(ConstantTissue()).synthesize(place.host, [surface])
    assert np.array_equal(found.image_hu, injected.apply_to(place.host.image_hu)[found.box])
    assert np.array_equal(found.label, injected.label_mask(host.image_hu.shape)[found.box])


def test_the_healthy_host_has_no_edge_where_the_tumour_was():
    """Beside the organ it starts as the organ, beside fat with the fat that the scan shows there; inside it is organ.

    Half of each voxel of one side of the label is fat.
    """
    host = scan()
    rows = np.indices(host.target.shape)[1] * 2.0
    fat, mixed = rows > 44.0, rows == 44.0
    host.image_hu[fat] -= 160.0
    host.image_hu[mixed] -= np.where(host.target, 65.0, 80.0)[mixed]
    beside = replace(host, organ=host.organ & ~fat)
    image_hu = without_target(beside, free_tissue(beside), np.random.default_rng(0))
    farther = distance_transform_edt(~host.target, sampling=SPACING) > 4.0
    assert np.array_equal(image_hu[farther], host.image_hu[farther])
    from_fat_mm, from_tissue_mm = (distance_transform_edt(~mask, sampling=SPACING) for mask in (fat, ~host.target))
    edge = host.target & (from_tissue_mm <= 2.0)
    assert (host.target & mixed).any()
    assert image_hu[host.target & mixed].mean() == pytest.approx(60.0 - 80.0, abs=8.0)
    assert image_hu[edge & ~mixed & (from_fat_mm <= 6.0)].mean() == pytest.approx(60.0, abs=8.0)
    assert image_hu[edge & (from_fat_mm > 12.0)].mean() == pytest.approx(60.0, abs=5.0)
    assert image_hu[host.target & (from_tissue_mm > 7.0)].mean() == pytest.approx(60.0, abs=10.0)


def test_nothing_is_left_of_a_tumour_that_is_seen_outside_its_label():
    """A label that a reader drew 3 mm inside of what is seen."""
    whole = scan()
    distance_mm = distance_transform_edt(whole.target, sampling=SPACING)
    target = np.asarray(distance_mm > 3.0)
    tight = replace(whole, organ=(whole.organ | whole.target) & ~target, tumors=target, target=target)
    ring = whole.target & ~target
    assert tight.image_hu[ring].mean() == pytest.approx(30.0, abs=1.0)
    image_hu = without_target(tight, free_tissue(tight), np.random.default_rng(0))
    assert image_hu[ring].mean() == pytest.approx(60.0, abs=3.0)
    assert image_hu[ring].std() == pytest.approx(10.0, abs=3.0)


def test_what_cannot_be_seen_is_counted_and_not_measured(sources):
    """Training leaves out a tumour without contrast."""
    places, _ = find_places(scan(), (10.0,), 1, sources.looks, np.random.default_rng(0))
    asked = collection.request(places, "contrast_hu", (0.0, -40.0))
    tissue = {making.GENERATED: TumorSynthesizer(ConstantTissue())}
    unseen, seen = collection.make_at(asked, tissue)
    assert (unseen["is_visible"], unseen["made"], unseen.get("mean_hu")) == (0.0, None, None)
    assert (seen["is_visible"], seen["depth_hu"]) == (1.0, pytest.approx(-40.0, abs=1.5))


def test_requests_are_met_by_the_shift_of_training():
    """A generator that is 15 HU too bright lands where it was asked to."""

    places, _ = find_places(scan(), (10.0,), 1, AppearanceRule(contrast_hu=(-40.0, -40.0)), np.random.default_rng(0))
    (row,) = collection.make_at(places, {making.GENERATED: TumorSynthesizer(TooBright())})
    assert row["depth_hu"] == pytest.approx(-40.0, abs=2.0)


def test_the_last_draw_asks_for_the_real_tumours_own_look(sources):
    tumors = replaced(sources, scan(tumor_hu=37.0))[making.GENERATED]
    assert len(tumors) == SETTINGS.draws_per_case + 1
    assert tumors[-1]["requested_contrast_hu"] == pytest.approx(-23.0, abs=1.5)


def test_the_residual_gives_back_the_fine_texture_of_the_host(sources):
    made = replaced(sources, scan())
    ratio = {method: made[method][0]["highpass_ratio"] for method in making.METHODS}
    assert ratio[making.NO_RESIDUAL] < 0.3  # at the edge the host's own tissue stays
    assert ratio[making.GENERATED] == pytest.approx(ratio[making.REAL], rel=0.15)


def test_a_quilt_keeps_the_variance_and_shows_no_block():
    rng = np.random.default_rng(0)
    noise = rng.normal(0.0, 8.0, (40, 40, 40)).astype(np.float32)
    centres = rng.integers(6, 34, size=(400, 3))
    quilt = FreeTissue(60.0, noise, centres, 6).quilt((30, 31, 32), rng)
    assert quilt.shape == (30, 31, 32)
    assert quilt.std() == pytest.approx(8.0, rel=0.03)
    by_layer = quilt.std(axis=(1, 2))
    assert by_layer.min() > 7.0
    assert by_layer.max() < 9.0


def test_the_noise_comes_from_far_of_the_tumour():
    """A tumour with ten times the noise leaves no trace."""
    host = scan()
    loud = host.image_hu.copy()
    loud[host.target] += np.random.default_rng(1).normal(0.0, 100.0, int(host.target.sum())).astype(np.float32)
    quiet, noisy = free_tissue(host), free_tissue(replace(host, image_hu=loud))
    shape = (20, 20, 20)
    first, second = (item.quilt(shape, np.random.default_rng(2)) for item in (quiet, noisy))
    assert np.allclose(first, second, atol=0.1)


def test_transplants_keep_away_from_the_tumour_and_inside_the_organ():
    host = scan()
    looks = AppearanceRule(contrast_hu=(-40.0, -40.0))
    places, failed = find_places(host, (6.0, 40.0), 3, looks, np.random.default_rng(0))
    assert len(places) == 3
    assert failed == [40.0] * 3
    far_mm = host.distance_to_tumors_mm()
    for row in collection.make_at(places, {making.GENERATED: TumorSynthesizer(ConstantTissue())}):
        made = row["made"]
        changed = made.image_hu != made.host_hu
        assert row["inside_share"] >= 0.98
        assert far_mm[made.box][changed].min() > 5.0
        assert made.organ[made.label].all()
        assert row["volume_ratio"] == pytest.approx(1.0, rel=0.02)


def test_the_soft_rim_of_a_tumour_in_place_stays_in_the_organ():
    host = scan()
    organ = host.organ.copy()
    organ[:, 20:] = False  # the tumour reaches beyond it
    host = replace(host, organ=organ)
    place = place_of(host).asking(Appearance(contrast_hu=-40.0))
    made = making.make(place, TumorSynthesizer(ConstantTissue()))
    rim = (made.image_hu != place.host.image_hu[made.box]) & ~made.label
    assert np.array_equal(made.label, host.target[made.box])
    assert rim.any()
    assert organ[made.box][rim].all()


def many(*radii_mm: float) -> EvaluationScan:
    """Tumours of these radii in a row, 40 mm apart."""
    shape = (24, 24, 20 * len(radii_mm))
    grid = np.moveaxis(np.indices(shape) * 2.0, 0, -1)
    centres = [(24.0, 24.0, 20.0 + 40.0 * index) for index in range(len(radii_mm))]
    tumors = np.zeros(shape, dtype=bool)
    for centre, radius_mm in zip(centres, radii_mm, strict=True):
        tumors |= np.linalg.norm(grid - centre, axis=-1) <= radius_mm
    image_hu = np.where(tumors, 20.0, 60.0) + np.random.default_rng(0).normal(0.0, 5.0, shape)
    organ = np.ones(shape, dtype=bool) & ~tumors
    return EvaluationScan("a", SPACING, image_hu.astype(np.float32), organ, tumors, tumors, WINDOW, patient="p")


def test_every_tumour_is_replaced_and_the_others_stay(sources):
    host = many(12.0, 8.0, 5.0)
    rows = collection.replace_targets(host, sources, SETTINGS, np.random.default_rng(0))
    real = [row for row in rows if row["method"] == making.REAL]
    assert [round(row["diameter_mm"]) for row in real] == [24, 16, 11]
    assert {row["patient"] for row in rows} == {"p"}
    generated = [row for row in rows if row["method"] == making.GENERATED]
    assert len(generated) == 3 * 2, "one look of training tumours each, and its own"
    for number, row in enumerate(real, start=1):
        place = row["of"]
        assert place.name == f"tumour {number}"
        assert place.host.image_hu[place.scan.target].mean() == pytest.approx(60.0, abs=4.0)
        assert np.array_equal(place.host.image_hu[~place.scan.target], place.scan.image_hu[~place.scan.target])
        assert (place.scan.tumors & ~place.scan.target).any(), "the others are still there"
    own = {row["place"]: row["lowpass_sd_hu"] for row in real}
    assert all(row["real_lowpass_sd_hu"] == own[row["place"]] for row in rows)


def test_tumours_beyond_the_limit_are_left_out_over_all_sizes(tmp_path):
    """Of seven from 3 mm radius up, four: the largest, the smallest, and two between; one below 3 mm never counts."""
    host = many(11.0, 10.0, 9.0, 8.0, 7.0, 6.0, 4.5, 2.1)
    target, left_out = scans._targets(host.tumors, SPACING, 4)
    chosen = replace(host, target=target)
    radii_mm = [(3.0 * each.target.sum() * 8.0 / (4.0 * np.pi)) ** (1.0 / 3.0) for each in chosen.targets()]
    assert radii_mm == pytest.approx([11.0, 9.0, 7.0, 4.5], abs=0.4)
    assert left_out == 3
    every, none_out = scans._targets(host.tumors, SPACING, 12)
    assert (len(list(replace(host, target=every).targets())), none_out) == (7, 0)
    assert scans._targets(np.zeros_like(host.tumors), SPACING, 4)[1] == 0


def test_a_sham_has_no_tumour_and_is_kept_though_nobody_could_see_it(sources):
    """What the autoencoder loses comes back with the residual."""
    host = scan()
    (place,), _ = find_places(host, (10.0,), 1, AppearanceRule(contrast_hu=(-40.0, -40.0)), np.random.default_rng(3))
    without_tumors = TumorSynthesizer(sources.generator).without_tumors()
    sham = making.make_sham(place, without_tumors)
    tumor = making.make(place, sources.synthesizers("a")[making.GENERATED])
    assert np.array_equal(sham.label, tumor.label)
    assert (sham.place, sham.scan) == (place.name, host)
    changed = np.abs(sham.image_hu - sham.host_hu)
    assert changed[sham.label].mean() < 1.0
    assert np.array_equal(sham.image_hu != sham.host_hu, (tumor.image_hu != tumor.host_hu) & (changed > 0))
    assert making.make(place.asking(Appearance(contrast_hu=0.0)), without_tumors) is None


def test_a_sham_shows_an_autoencoder_that_darkens_tissue(sources):
    """The residual is limited, and does not hide it."""
    place, *_ = find_places(scan(), (10.0,), 1, AppearanceRule(contrast_hu=(-40.0, -40.0)), np.random.default_rng(0))[0]
    darkening = ConstantTissue()
    darkening.reconstruct = lambda host_hu: blur(host_hu) - 200.0
    sham = making.make_sham(place, TumorSynthesizer(darkening).without_tumors())
    assert (sham.image_hu - sham.host_hu)[sham.label].mean() < -100.0


def test_a_redrawn_sham_has_other_tissue_with_the_mean_of_what_was_there(sources):
    """The constant tissue of the generator, 15 HU too bright, with the scan's own noise."""
    bright = replace(sources, generator=TooBright())
    places, _ = find_places(scan(), (10.0,), 1, AppearanceRule(contrast_hu=(-40.0, -40.0)), np.random.default_rng(0))
    as_it_is, redrawn = (row["made"] for row in collection.make_shams(places, bright))
    assert np.array_equal(as_it_is.label, redrawn.label)
    before_hu, after_hu = redrawn.host_hu[redrawn.label], redrawn.image_hu[redrawn.label]
    assert after_hu.mean() == pytest.approx(before_hu.mean(), abs=0.01)
    assert np.abs(after_hu - before_hu).mean() > 5 * np.abs(as_it_is.image_hu - as_it_is.host_hu)[as_it_is.label].mean()
    far = redrawn.distance_mm > 7.0
    assert np.array_equal(redrawn.image_hu[far], redrawn.host_hu[far])


def test_every_method_gets_the_same_places_and_requests(sources):
    places, _ = find_places(scan(), SETTINGS.radii_mm, 2, sources.looks, np.random.default_rng(0))
    rows = collection.make_at(places, sources.synthesizers("a"))
    methods = (making.GENERATED, making.NO_RESIDUAL, making.COPY_PASTE, making.NO_DIFFUSION, making.TEXTURED_FILL)
    by_method = {method: [row["of"] for row in rows if row["method"] == method] for method in methods}
    assert len(rows) == 4 * len(methods)
    assert all(own == places for own in by_method.values())
    (found,) = collection.diversity(rows, sources, SETTINGS, np.random.default_rng(0))
    assert found["diversity_hu"] < 0.1, "this tissue does not look at its seed"


def test_copy_paste_takes_another_patients_texture_at_the_requested_contrast(sources):
    host = scan()
    place = place_of(host).asking(Appearance(contrast_hu=-35.0), 0)
    pasted = making.make(place, sources.synthesizers(host.identifier)[making.COPY_PASTE])
    inside_hu = pasted.image_hu[pasted.label]
    assert pasted.depth_hu == pytest.approx(-35.0, abs=1.5)
    assert inside_hu.std() == pytest.approx(10.0, rel=0.15)
    own = tuple(donor for donor in sources.donors if donor.identifier == host.identifier)
    assert making.COPY_PASTE not in replace(sources, donors=own).synthesizers(host.identifier)


def test_the_fill_without_diffusion_has_the_requested_contrast_and_no_texture():
    tissue = FilledTissue(ConstantTissue(), flat_fill)
    host = np.full((2, 32, 32, 32), 60.0, dtype=np.float32)
    masks = np.zeros(host.shape, dtype=bool)
    masks[:, 10:22, 10:22, 10:22] = True
    looks = [Appearance(contrast_hu=-30.0), Appearance()]
    regions = tissue.generate(host, masks, looks, [0, 1])
    assert regions.tumor_hu[:, 16, 16, 16] == pytest.approx([30.0, 60.0], abs=0.1)
    assert np.allclose(regions.reconstruction_hu, 60.0, atol=1e-3)


def test_the_textured_fill_is_the_generators_own():
    """Encoding and decoding it is all that is done."""
    host = np.full((2, 32, 32, 32), 60.0, dtype=np.float32)
    masks = np.zeros(host.shape, dtype=bool)
    masks[:, 10:22, 10:22, 10:22] = True
    looks = [Appearance(contrast_hu=-30.0), Appearance()]
    regions = FilledTissue(ConstantTissue(), ConstantTissue().fill).generate(host, masks, looks, [3, 4])
    filled_hu = ConstantTissue().fill(host, masks, looks, [3, 4])
    assert filled_hu[0][masks[0]].std() == pytest.approx(9.0, rel=0.1)
    assert np.array_equal(regions.tumor_hu, blur(filled_hu))
    assert np.array_equal(regions.reconstruction_hu, blur(host))


def test_a_shrunken_tumour_keeps_its_shape_and_loses_its_noise():
    """Halves of 0 and 60 HU: a sphere made half as large still has them, and hardly any noise."""
    whole = scan()
    along = np.indices(whole.target.shape)[1] * 2.0
    whole.image_hu[whole.target] += np.where(along > 32.0, 30.0, -30.0)[whole.target]
    settings = replace(SETTINGS, radii_mm=(6.0, 40.0))
    (row,) = collection.shrunken_target(whole, settings)  # 40 mm: larger than it
    assert row["radius_mm"] == 6.0
    low_hu = row["lowpass_sd_hu"]
    whole_low_hu, _ = split_texture(whole.image_hu, whole.target, SPACING)
    assert 10.0 < low_hu < whole_low_hu < 30.0  # 3 mm smooth a small tumour more


def test_texture_of_a_uniform_tumour_shrinks_to_noise():
    (row, *_) = collection.shrunken_target(scan(), SETTINGS)
    assert row["lowpass_sd_hu"] < 2.0


def test_tumours_in_place_are_as_mottled_as_training_would_make_them(sources):
    """One training tumour in twelve, which is drawn, is far more mottled than the others: none is asked for that."""
    even = [Appearance(contrast_hu=-40.0 + index, heterogeneity_hu=4.0) for index in range(11)]
    odd = replace(sources, looks=AppearanceRule(examples=(*even, Appearance(contrast_hu=-37.5, heterogeneity_hu=30.0))))
    rows = collection.replace_targets(scan(), odd, SETTINGS, np.random.default_rng(0))
    asked_hu = [row["requested_heterogeneity_hu"] for row in rows if row["method"] == making.GENERATED]
    assert len(asked_hu) > 1
    assert max(asked_hu[:-1]) == 4.0  # the last one has the look of the real tumour


def test_a_real_tumour_is_put_back_where_its_edge_reaches_far_out_of_its_outline(sources):
    """The edge decides which region the generator works on, and the real tumour is put back in that region."""

    class FarReaching(ConstantTissue):
        edges = (EdgeStatistics.exactly(offset_mm=5.0, width_mm=4.0),)

    host = scan()
    is_seen = distance_transform_edt(~host.target, sampling=SPACING) <= 5.0
    host = replace(host, image_hu=host.image_hu - np.where(is_seen & host.organ, np.float32(30.0), np.float32(0.0)))
    far = replace(sources, generator=FarReaching())
    rows = collection.replace_targets(host, far, SETTINGS, np.random.default_rng(0))
    (back,) = [row for row in rows if row["method"] == making.AUTOENCODER]
    (real,) = [row for row in rows if row["method"] == making.REAL]
    assert back["mean_hu"] == pytest.approx(real["mean_hu"], abs=12.0)  # a soft edge averages some of the host


def test_published_networks_are_audited_as_other_generators_are(monkeypatch):
    """They know no looks of training tumours, take no contrast or lower type, and have an autoencoder of their own."""
    monkeypatch.setenv(PRECISION_VARIABLE, BFLOAT16)
    autoencoder, early = PublishedAutoencoder().eval(), PublishedDenoiser().eval()
    autoencoder.codebook.embeddings.normal_(generator=torch.Generator().manual_seed(0))
    info = GeneratorInfo(roi_sides=(32,), spacing_range_mm=(2.0, 2.0), margin_voxels=8, preset="published")
    sampler, unknown = PublishedSampler(autoencoder, early), Provenance(diffusion=(), autoencoder=(), is_complete=False)
    tissue = DiffusionTissue(LoadedGenerator(sampler, info, unknown))
    assert tissue.precision == FLOAT32
    published = Sources(tissue, info, AppearanceRule(), ())
    rows = collection.replace_targets(scan(), published, SETTINGS, np.random.default_rng(0))
    made = {row["method"] for row in rows if row["made"] is not None}
    assert {making.REAL, making.GENERATED, making.AUTOENCODER} <= made
