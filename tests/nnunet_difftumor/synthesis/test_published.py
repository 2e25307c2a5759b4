"""The published way of blending, against the outputs of the published function and in a host."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from nnunet_difftumor.synthesis.host import Host
from nnunet_difftumor.synthesis.published import MOST_BLUR_MM, PublishedSynthesizer, blurred_mask, mix_in_window
from nnunet_difftumor.synthesis.synthesizer import TumorSynthesizer
from nnunet_difftumor.synthesis.tissue.interface import GeneratedRegions
from nnunet_difftumor.tumor.region import RoiRule
from nnunet_difftumor.tumor.spec import TumorSpec

WINDOW = (-175.0, 250.0)


def test_it_blends_what_the_published_function_blends(official):
    known = {name: value.numpy() for name, value in official.items()}
    image_hu, decoded = (425.0 * known[name] - 175.0 for name in ("img_ct01", "img_final_pancreas"))
    weight = blurred_mask(known["img_tumour"].squeeze() > 0, [float(known["img_sigma"])] * 3)
    mixed_hu = mix_in_window(image_hu.squeeze(), decoded.squeeze(), weight, WINDOW)
    assert np.abs((mixed_hu + 175.0) / 425.0 - known["img_final_liver"].squeeze()).max() < 1e-4
    assert weight.max() > 0.1


@pytest.fixture
def host() -> Host:
    shape = (40, 48, 48)
    image_hu = np.random.default_rng(0).normal(100.0, 10.0, shape).astype(np.float32)
    everywhere = np.ones(shape, dtype=bool)
    return Host(image_hu, (2.0, 1.5, 1.5), everywhere, everywhere, everywhere)


def spec(seed: int) -> TumorSpec:
    where = {"centre_mm": (40.0, 36.0, 36.0), "radius_mm": 9.0, "axis_ratios": (1.0, 1.0, 1.0), "roughness": 0.0}
    return TumorSpec(**where, seed=seed, contrast_hu=None)


class Darker:
    """Tissue 60 HU darker than the host, and no noise."""

    roi_rule = RoiRule(sides=(64,), margin_voxels=8, spacing_range_mm=(1.0, 1.0))
    window_hu = WINDOW
    appearances = ()
    edges = ()

    def generate(self, host_hu, tumor_masks, appearances, seeds):
        return GeneratedRegions(np.full_like(host_hu, 40.0), host_hu)


def test_the_label_is_the_same_and_the_image_is_the_blurred_masks_mixture(host):
    own, published = TumorSynthesizer(Darker()), PublishedSynthesizer(Darker())
    shape, changed, depths_hu = host.image_hu.shape, [], []
    for seed in range(8):
        made, mixed = (each.synthesize(host, [spec(seed)]) for each in (own, published))
        label = mixed.label_mask(shape)
        assert np.array_equal(made.label_mask(shape), label)
        image_hu = mixed.apply_to(host.image_hu)
        changed.append(int((image_hu != host.image_hu).sum()))
        depths_hu.append(float((image_hu - host.image_hu)[label].mean()))
        reach_mm = 3.0**0.5 * (4.0 * MOST_BLUR_MM + 2.0)  # 4 standard deviations and a voxel along each axis
        is_far = distance_transform_edt(~label, sampling=host.spacing_mm) > reach_mm
        assert np.array_equal(image_hu[is_far], host.image_hu[is_far])
    assert max(changed) > 2 * min(changed)  # each tumour has a blur of its own
    assert min(depths_hu) == pytest.approx(-60.0, abs=4.0)
    assert max(depths_hu) > -50.0  # a wide blur leaves less of the tissue
    again = published.synthesize(host, [spec(0)]).apply_to(host.image_hu)
    assert np.array_equal(again, published.synthesize(host, [spec(0)]).apply_to(host.image_hu))
