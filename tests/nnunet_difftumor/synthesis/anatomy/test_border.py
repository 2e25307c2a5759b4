"""Tumours at the organ's border: a voxel that holds fat too keeps its fat."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from diffusion.generator.info import GeneratorInfo
from nnunet_difftumor.synthesis.anatomy.border import find_border
from nnunet_difftumor.synthesis.host import Host
from nnunet_difftumor.synthesis.pasted import CopyPasteSynthesizer
from nnunet_difftumor.synthesis.synthesizer import TumorSynthesizer
from nnunet_difftumor.synthesis.tissue.donors import make_donor
from nnunet_difftumor.synthesis.tissue.handcrafted import HandcraftedTissue
from nnunet_difftumor.tumor.spec import TumorSpec

SPACING = (2.0, 2.0, 2.0)
ORGAN_HU, FAT_HU = 60.0, -100.0
SHAPE = (40, 40, 40)
INFO = GeneratorInfo(roi_sides=(32, 48), margin_voxels=8, training_tumors=(), preset="nano", data_note="")


def border_at(row: float, noise_hu: float = 0.0, other_hu: float = FAT_HU) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Organ up to a plane between voxels of the second axis, and other tissue beyond: image, share, organ mask."""
    share = np.clip(row + 0.5 - np.arange(SHAPE[1]), 0.0, 1.0)[None, :, None] * np.ones(SHAPE)
    noise = gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 0.6)
    image_hu = other_hu + share * (ORGAN_HU - other_hu) + noise_hu * noise / noise.std()
    return image_hu.astype(np.float32), share, share >= 0.5


@pytest.mark.parametrize("row", [29.1, 29.3, 29.5])
def test_the_share_of_organ_in_a_voxel_is_found(row):
    image_hu, share, organ = border_at(row)
    border = find_border(image_hu, organ, ~organ, SPACING)
    np.testing.assert_allclose(border.share[organ], share[organ], atol=0.02)
    assert border.organ_hu[border.mask].mean() == pytest.approx(ORGAN_HU, abs=1.0)
    assert border.mask[:, 28, :].all()
    assert not border.mask[:, :26, :].any()


def test_noise_is_no_other_tissue_and_neither_is_a_like_organ():
    image_hu, _, organ = border_at(29.0, noise_hu=12.0)
    border = find_border(image_hu, organ, ~organ, SPACING)
    assert (border.share[:, :29, :] < 1.0).mean() < 0.01
    assert border.share[:, :29, :].min() > 0.8
    image_hu, _, organ = border_at(29.3, other_hu=ORGAN_HU - 30.0)
    like = find_border(image_hu, organ, ~organ, SPACING)
    assert (like.share == 1.0).all()
    assert not (like.other | like.mask).any()
    alone = find_border(image_hu, np.ones_like(organ), np.zeros_like(organ), SPACING)
    assert (alone.share == 1.0).all()
    assert not alone.mask.any()


@pytest.mark.parametrize("way", ["handcrafted", "copy-paste"])
def test_a_tumour_takes_the_place_of_the_organs_share_alone(way):
    """Half of the voxels beside fat are fat: they change by half of the contrast, others by all of it."""
    image_hu, share, organ = border_at(29.3, noise_hu=2.0)  # a share of 0.8 in the last row of the organ
    host = Host(image_hu, SPACING, organ, organ, np.ones(SHAPE, dtype=bool))
    all_of_it = {"edge_offset_mm": 3.0, "edge_width_mm": 1.0}
    spec = TumorSpec(centre_mm=(40.0, 54.0, 40.0), radius_mm=12.0, contrast_hu=-30.0, seed=1, **all_of_it)
    ball = np.linalg.norm(np.indices(SHAPE) - 20.0, axis=0) <= 8.0
    donor_hu = np.random.default_rng(1).normal(20.0, 2.0, SHAPE).astype(np.float32)
    donors = [make_donor("a", donor_hu, ball, ~ball, SPACING)]
    copies = way == "copy-paste"
    synthesizer = CopyPasteSynthesizer(INFO, donors) if copies else TumorSynthesizer(HandcraftedTissue(INFO))
    (tumor,) = synthesizer.synthesize(host, [spec]).tumors
    change_hu = tumor.image_hu - image_hu[tumor.box]
    here, last = share[tumor.box], np.zeros(SHAPE, dtype=bool)
    last[:, 29, :] = True
    mixed = tumor.label & last[tumor.box]
    inside = tumor.label & (here == 1.0)
    assert mixed.sum() > 30
    assert change_hu[inside].mean() == pytest.approx(-30.0, abs=2.0)
    assert change_hu[mixed].mean() == pytest.approx(-30.0 * 0.8, abs=4.0)
    assert tumor.record.contrast_hu == pytest.approx(-30.0, abs=3.0)  # of its tissue, not of the fat in its label
    beside = inside & (np.indices(SHAPE)[1][tumor.box] == 28)
    assert change_hu[beside].mean() == pytest.approx(-30.0, abs=4.0)  # smooth tissue does not take on fat's level
