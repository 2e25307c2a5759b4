from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from nnunet_difftumor.evaluation.realism.copy_paste import donor_of_scan, paste
from nnunet_difftumor.evaluation.realism.measures.textures import split_texture
from nnunet_difftumor.evaluation.realism.measures.tumors import measure_tumor
from nnunet_difftumor.evaluation.realism.settings import EvaluationSettings
from nnunet_difftumor.evaluation.realism.tumors import making
from nnunet_difftumor.evaluation.realism.tumors import tumors_of_a_scan as experiments
from nnunet_difftumor.evaluation.realism.tumors.fills import FillTissue, TexturedFillTissue
from nnunet_difftumor.evaluation.realism.tumors.places import find_places, place_of_target
from nnunet_difftumor.evaluation.realism.tumors.residual import FreeResidual, free_residual
from nnunet_difftumor.evaluation.realism.tumors.scans import EvaluationScan
from nnunet_difftumor.evaluation.realism.tumors.tumors_of_a_scan import Sources
from nnunet_difftumor.synthesis.tissue.interface import GeneratedRegions
from nnunet_difftumor.tumor.appearance import Appearance, AppearanceRule
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

    def generate(self, host_hu, tumor_masks, appearances: Sequence[Appearance], seeds: list[int]) -> GeneratedRegions:
        levels = np.array([60.0 + (look.contrast_hu or 0.0) for look in appearances], dtype=np.float32)
        tumor_hu = np.broadcast_to(levels[:, None, None, None], host_hu.shape).copy()
        return GeneratedRegions(tumor_hu, blur(host_hu))

    def fill(self, host_hu, tumor_masks, appearances: Sequence[Appearance], seeds: list[int]):
        noise_hu = [np.random.default_rng(seed).normal(0.0, 9.0, host_hu.shape[1:]) for seed in seeds]
        generated_hu = self.generate(host_hu, tumor_masks, appearances, seeds).tumor_hu
        return np.where(tumor_masks, generated_hu + np.stack(noise_hu), host_hu).astype(np.float32)


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
    return EvaluationScan(identifier, SPACING, image.astype(np.float32), organ & ~target, target, target)


@pytest.fixture(scope="module")
def sources() -> Sources:
    donors = tuple(donor_of_scan(scan(identifier=name, seed=seed), WINDOW) for seed, name in enumerate("ab"))
    return Sources(ConstantTissue(), blur, donors)


def replaced(sources: Sources, host: EvaluationScan) -> dict[str, list[making.MadeTumor]]:
    made = experiments.replace_target(host, sources, SETTINGS, np.random.default_rng(0))
    return {method: [tumor for tumor in made if tumor.method == method] for method in making.METHODS}


def test_nothing_of_the_real_tumour_comes_back(sources):
    """A tumour brighter by 150 HU is replaced by the same voxels but for the blur's tail."""
    faint, bright = (replaced(sources, scan(tumor_hu=hu)) for hu in (30.0, 180.0))
    for method in (making.GENERATED, making.NO_RESIDUAL):
        for one, other in zip(faint[method][:2], bright[method][:2], strict=True):  # the third asks for the own look
            inside = one.place.label
            assert np.abs(one.image_hu[inside] - other.image_hu[inside]).max() < 0.1, method


def test_beyond_the_rim_the_scan_is_unchanged_and_inside_the_request_is_met(sources):
    tumors = replaced(sources, scan())[making.GENERATED]
    for tumor in tumors:
        outside = tumor.place.weight == 0
        assert np.array_equal(tumor.image_hu[outside], np.clip(tumor.place.host_hu, *WINDOW)[outside])
        measures = measure_tumor(tumor, WINDOW, 10.0)
        assert measures.contrast_hu == pytest.approx(tumor.place.spec.contrast_hu, abs=2.0)
        assert measures.beyond_rim_hu == 0.0


def test_the_last_draw_asks_for_the_real_tumours_own_look(sources):
    tumors = replaced(sources, scan(tumor_hu=37.0))[making.GENERATED]
    assert len(tumors) == SETTINGS.draws_per_case + 1
    assert tumors[-1].place.spec.contrast_hu == pytest.approx(-23.0, abs=1.5)


def test_the_residual_gives_back_the_fine_texture_of_the_host(sources):
    made = replaced(sources, scan())
    ratio = {method: measure_tumor(made[method][0], WINDOW, 10.0).highpass_ratio for method in making.METHODS}
    assert ratio[making.NO_RESIDUAL] < 0.1
    assert ratio[making.GENERATED] == pytest.approx(ratio[making.REAL], rel=0.15)


def test_a_quilt_keeps_the_variance_and_shows_no_block():
    rng = np.random.default_rng(0)
    noise = rng.normal(0.0, 8.0, (40, 40, 40)).astype(np.float32)
    centres = rng.integers(6, 34, size=(400, 3))
    quilt = FreeResidual(noise, centres, 6).quilt((30, 31, 32), rng)
    assert quilt.shape == (30, 31, 32)
    assert quilt.std() == pytest.approx(8.0, rel=0.03)
    by_layer = quilt.std(axis=(1, 2))
    assert by_layer.min() > 7.0
    assert by_layer.max() < 9.0


def test_the_residual_comes_from_far_of_the_tumour():
    """A tumour with ten times the noise leaves no trace."""
    host = scan()
    loud = host.image_hu.copy()
    loud[host.target] += np.random.default_rng(1).normal(0.0, 100.0, int(host.target.sum())).astype(np.float32)
    quiet = free_residual(host, 32, 1.5, blur, WINDOW, np.random.default_rng(0))
    noisy = free_residual(replace(host, image_hu=loud), 32, 1.5, blur, WINDOW, np.random.default_rng(0))
    shape = (20, 20, 20)
    first, second = (item.quilt(shape, np.random.default_rng(2)) for item in (quiet, noisy))
    assert np.allclose(first, second, atol=0.1)


def test_transplants_keep_away_from_the_tumour_and_inside_the_organ():
    host = scan()
    rule = ConstantTissue.roi_rule
    places, failed = find_places(host, (6.0, 40.0), 3, AppearanceRule(), rule, np.random.default_rng(0))
    assert len(places) == 3
    assert failed["40 mm"] == 3
    far_mm = host.distance_to_tumors_mm()
    for place in places:
        assert place.inside_share >= 0.98
        assert far_mm[place.box][place.weight > 0].min() > 5.0
        assert place.organ[place.label].all()
        assert place.drawn_mm3 == pytest.approx(place.requested_mm3, rel=0.02)


def test_the_soft_rim_of_a_tumour_in_place_stays_in_the_organ():
    host = scan()
    organ = host.organ.copy()
    organ[:, 20:] = False  # the tumour reaches beyond it
    place = place_of_target(replace(host, organ=organ), ConstantTissue.roi_rule)
    rim = (place.weight > 0) & ~place.label
    assert rim.any()
    assert organ[place.box][rim].all()
    assert (place.weight[place.label] == 1.0).all()


def test_every_method_gets_the_same_places_and_requests(sources):
    made, _ = experiments.transplant(scan(), sources, SETTINGS, np.random.default_rng(0))
    first = [tumor for tumor in made if experiments.is_first_draw(tumor)]
    by_method = {
        method: [(id(t.place), t.place.spec) for t in first if t.method == method]
        for method in (
            making.GENERATED,
            making.NO_RESIDUAL,
            making.COPY_PASTE,
            making.NO_DIFFUSION,
            making.TEXTURED_FILL,
        )
    }
    assert len(by_method[making.GENERATED]) == 4
    assert all(places == by_method[making.GENERATED] for places in by_method.values())
    assert len(made) - len(first) == SETTINGS.diversity_seeds - 1


def test_copy_paste_takes_another_patients_texture_at_the_requested_contrast(sources):
    host = scan()
    place = place_of_target(host, ConstantTissue.roi_rule).asking(Appearance(contrast_hu=-35.0), 0)
    pasted = paste(place, sources.donors, WINDOW, np.random.default_rng(0))
    assert pasted is not None
    assert pasted[place.label].mean() == pytest.approx(25.0, abs=1.5)
    assert pasted[place.label].std() == pytest.approx(10.0, rel=0.15)
    own = [donor for donor in sources.donors if donor.identifier == host.identifier]
    assert paste(place, own, WINDOW, np.random.default_rng(0)) is None


def test_the_fill_without_diffusion_has_the_requested_contrast_and_no_texture():
    tissue = FillTissue(ConstantTissue(), blur)
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
    regions = TexturedFillTissue(ConstantTissue(), blur).generate(host, masks, looks, [3, 4])
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
    ((radius_mm, low_hu, high_hu),) = experiments.shrunken_target(whole, settings, WINDOW)  # 40 mm: larger than it
    assert radius_mm == 6.0
    whole_low_hu, _ = split_texture(whole.image_hu, whole.target, SPACING)
    assert 10.0 < low_hu < whole_low_hu < 30.0  # 3 mm smooth a small tumour more
    assert high_hu < whole_low_hu


def test_texture_of_a_uniform_tumour_shrinks_to_noise():
    ((_, low_hu, _), *_) = experiments.shrunken_target(scan(), SETTINGS, WINDOW)
    assert low_hu < 2.0
