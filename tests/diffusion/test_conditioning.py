from __future__ import annotations

import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from diffusion.conditioning import (
    dilate,
    fill_tumor_region,
    latent_mask_share,
    measure_contrast,
    measure_heterogeneity,
    rim_median_hu,
    smooth,
    smooth_texture,
    unshuffle_mask,
    without_radial_profile,
)

SIDE = 16
CENTRE = 8


def distance_from_centre() -> Tensor:
    """Chebyshev distance of each voxel from the centre voxel. Shape (1, 1, 16, 16, 16)."""
    axis = (torch.arange(SIDE) - CENTRE).abs()
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    return grid.amax(dim=0)[None, None]


@pytest.fixture
def one_voxel() -> tuple[Tensor, Tensor]:
    """A tumour of one voxel; 500 HU where the fill goes, 40 HU in the rim, -20 HU beyond it."""
    distance = distance_from_centre()
    image_hu = torch.where(distance <= 1, 500.0, torch.where(distance <= 4, 40.0, -20.0))
    return image_hu, distance == 0


@pytest.mark.parametrize(
    ("contrast", "expected_hu"), [(-30.0, 10.0), (25.0, 65.0), (200.0, 120.0), (-200.0, -40.0), (float("nan"), 40.0)]
)
def test_fill_is_rim_median_plus_limited_contrast(one_voxel, contrast, expected_hu):
    image_hu, mask = one_voxel
    filled_hu = fill_tumor_region(image_hu, mask, torch.tensor([contrast]))
    region = distance_from_centre() <= 1
    assert (filled_hu[region] == expected_hu).all()
    assert region.sum() == 27
    assert torch.equal(filled_hu[~region], image_hu[~region])


def test_fill_without_contrast_is_the_rim_median(one_voxel):
    image_hu, mask = one_voxel
    filled_hu = fill_tumor_region(image_hu, mask, None)
    assert torch.equal(filled_hu, fill_tumor_region(image_hu, mask, torch.tensor([torch.nan])))


def test_fill_leaves_its_input_alone(one_voxel):
    image_hu, mask = one_voxel
    copies = image_hu.clone(), mask.clone()
    fill_tumor_region(image_hu, mask, torch.tensor([-30.0]))
    assert torch.equal(image_hu, copies[0])
    assert torch.equal(mask, copies[1])


def test_what_lay_under_the_mask_does_not_reach_the_fill(one_voxel):
    image_hu, mask = one_voxel
    other_hu = torch.where(distance_from_centre() <= 1, -900.0, image_hu)
    contrast_hu = torch.tensor([-30.0])
    assert torch.equal(fill_tumor_region(image_hu, mask, contrast_hu), fill_tumor_region(other_hu, mask, contrast_hu))


def test_texture_is_added_inside_the_fill_only(one_voxel):
    image_hu, mask = one_voxel
    texture_hu = torch.full_like(image_hu, 7.0)
    filled_hu = fill_tumor_region(image_hu, mask, torch.tensor([0.0]), texture_hu=texture_hu)
    region = distance_from_centre() <= 1
    assert (filled_hu[region] == 47.0).all()
    assert torch.equal(filled_hu[~region], image_hu[~region])


def test_rim_prefers_soft_tissue_over_a_majority_of_air(one_voxel):
    image_hu, mask = one_voxel
    image_hu[:, :, CENTRE - 1 :] = -900.0  # more than half of the rim
    assert rim_median_hu(image_hu, mask).item() == 40.0


def test_rim_of_air_only_counts_as_it_is(one_voxel):
    image_hu, mask = one_voxel
    assert rim_median_hu(torch.full_like(image_hu, -900.0), mask).item() == -900.0


def test_measured_contrast_is_the_one_that_was_filled():
    image_hu = 50.0 + 20.0 * torch.randn(3, 1, SIDE, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    mask = (distance_from_centre() <= 2).expand(3, -1, -1, -1, -1)
    contrast_hu = torch.tensor([-40.0, 0.0, 33.0])
    measured_hu = measure_contrast(fill_tumor_region(image_hu, mask, contrast_hu), mask)
    torch.testing.assert_close(measured_hu, contrast_hu, atol=1e-3, rtol=0.0)


def test_measured_contrast_by_hand(one_voxel):
    image_hu, mask = one_voxel
    assert measure_contrast(image_hu, mask).item() == 500.0 - 40.0


def test_empty_mask_has_no_contrast_and_fills_nothing(one_voxel):
    image_hu, mask = one_voxel
    empty = torch.zeros_like(mask)
    assert measure_contrast(image_hu, empty).isnan().all()
    assert torch.equal(fill_tumor_region(image_hu, empty, torch.tensor([20.0])), image_hu)


def test_mask_at_the_border_has_a_rim_inside_the_crop():
    image_hu = torch.full((1, 1, SIDE, SIDE, SIDE), 30.0)
    mask = torch.zeros_like(image_hu, dtype=torch.bool)
    mask[..., :3, :3, :3] = True
    assert rim_median_hu(image_hu, mask).item() == 30.0


def test_mask_that_leaves_no_rim_uses_what_is_outside():
    image_hu = torch.full((1, 1, 8, 8, 8), 100.0)
    mask = torch.ones_like(image_hu, dtype=torch.bool)
    mask[..., 0] = False
    image_hu[..., 0] = 30.0
    assert rim_median_hu(image_hu, mask).item() == 30.0


def test_samples_of_a_batch_do_not_mix(make_crops):
    image_hu, mask = make_crops(3)
    image_hu = image_hu + torch.tensor([0.0, 70.0, -300.0]).view(3, 1, 1, 1, 1)
    contrast_hu = torch.tensor([10.0, torch.nan, -20.0])
    together = fill_tumor_region(image_hu, mask, contrast_hu)
    for i in range(3):
        alone = fill_tumor_region(image_hu[i : i + 1], mask[i : i + 1], contrast_hu[i : i + 1])
        assert torch.equal(together[i : i + 1], alone)


def test_dilation_is_a_cube_of_the_asked_size():
    distance = distance_from_centre()
    for voxels in (0, 1, 4):
        assert torch.equal(dilate(distance == 0, voxels), distance <= voxels)


def test_unshuffled_mask_can_be_put_back_together():
    mask = torch.rand(2, 1, 8, 12, 16, generator=torch.Generator().manual_seed(1)) > 0.7
    unshuffled = unshuffle_mask(mask)
    assert unshuffled.shape == (2, 64, 2, 3, 4)
    restored = torch.zeros(mask.shape)
    for channel in range(64):
        d, h, w = channel // 16, channel // 4 % 4, channel % 4
        restored[:, 0, d::4, h::4, w::4] = unshuffled[:, channel]
    assert torch.equal(restored, mask.float())


def test_no_single_voxel_is_lost_by_unshuffling():
    voxels = torch.eye(8**3).reshape(8**3, 1, 8, 8, 8)  # each possible mask of one voxel
    unshuffled = unshuffle_mask(voxels)
    assert (unshuffled.flatten(1).sum(dim=1) == 1).all()
    assert len(torch.unique(unshuffled.flatten(1).argmax(dim=1))) == 8**3


def test_latent_share_is_the_covered_volume():
    mask = torch.zeros(1, 1, 8, 8, 8, dtype=torch.bool)
    mask[..., 0:4, 0:4, 0:2] = True  # half of the first block
    mask[..., 7, 7, 7] = True  # one voxel of the last block
    share = latent_mask_share(mask)
    assert share[0, 0, 0, 0, 0] == 0.5
    assert share[0, 0, 1, 1, 1] == 1 / 64
    assert share.sum() == 0.5 + 1 / 64


def test_label_map_is_refused(one_voxel):
    image_hu, mask = one_voxel
    with pytest.raises(ValueError, match="0 and 1 only"):
        fill_tumor_region(image_hu, mask.to(torch.int16) * 2, None)
    with pytest.raises(ValueError, match="0 and 1 only"):
        measure_contrast(image_hu, mask.float() * 0.7)


def test_shapes_that_do_not_fit_are_named(one_voxel):
    image_hu, mask = one_voxel
    with pytest.raises(ValueError, match=r"tumor_mask .* and image_hu .* must share one shape"):
        fill_tumor_region(image_hu, mask[..., :8], None)
    with pytest.raises(ValueError, match="one value per crop"):
        fill_tumor_region(image_hu, mask, torch.zeros(2))
    with pytest.raises(ValueError, match="multiples of 4"):
        unshuffle_mask(mask[..., :10])
    with pytest.raises(ValueError, match=r"\(B, 1, D, H, W\)"):
        measure_contrast(image_hu[0, 0], mask[0, 0])


@pytest.mark.parametrize("sigma_voxels", [1.0, 2.0, 8.0])
def test_smoothing_is_scipys_gaussian_without_anything_beyond_the_edge(sigma_voxels):
    volume = torch.randn(1, 1, 40, 48, 56, generator=torch.Generator().manual_seed(0))
    expected = gaussian_filter(volume[0, 0].double().numpy(), sigma_voxels, mode="constant", truncate=8.0)
    smoothed = smooth(volume, sigma_voxels)[0, 0]
    ratio = smoothed[20, 24, 28] / expected[20, 24, 28]  # at 8 voxels the middle of a side of 40 misses a hundredth
    assert float(ratio) == pytest.approx(1.0, abs=0.05)
    torch.testing.assert_close(smoothed, ratio * torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-6)


def test_heterogeneity_by_hand():
    """Two flat halves, far apart: 10 HU to each side of the mean; the smoothing only blurs the border."""
    mask = torch.zeros(1, 1, 64, 16, 16, dtype=torch.bool)
    mask[..., 4:12, 4:12] = True
    image_hu = torch.full(mask.shape, 30.0)
    image_hu[:, :, 32:] = 50.0
    assert measure_heterogeneity(image_hu, mask).item() == pytest.approx(10.0, abs=0.5)
    outside_hu = torch.where(mask, image_hu, torch.full_like(image_hu, -1000.0))
    assert measure_heterogeneity(outside_hu, mask).item() == pytest.approx(measure_heterogeneity(image_hu, mask).item())


def test_smooth_texture_is_what_heterogeneity_measures():
    mask = torch.zeros(1, 1, 24, 24, 24, dtype=torch.bool)
    mask[..., 4:20, 4:20, 4:20] = True
    noise_hu = 30.0 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(0))
    image_hu = torch.where(torch.arange(24) < 12, 20.0, 60.0) + noise_hu
    texture_hu = smooth_texture(image_hu, mask)
    inside_hu = texture_hu[mask]
    assert inside_hu.mean().abs() < 1e-3
    beside_profile_hu = smooth_texture(without_radial_profile(image_hu, mask), mask)[mask]
    measured_hu = measure_heterogeneity(image_hu, mask).item()
    assert beside_profile_hu.std(correction=0).item() == pytest.approx(measured_hu, rel=1e-4)
    assert texture_hu[..., 3, 12, 6].item() < -10.0 < 10.0 < texture_hu[..., 3, 12, 17].item()  # one voxel outside
    assert not texture_hu[..., 2, :, :].any()
    changed_hu = torch.where(mask, image_hu, -1000.0)
    torch.testing.assert_close(smooth_texture(changed_hu, mask), texture_hu)  # nothing from outside enters


def test_heterogeneity_leaves_the_profile_of_the_edge_out():
    """A dome of 60 HU is the look of a tumour's edge and no texture; a plane across it is."""
    axis = torch.arange(40) - 19.5
    radius = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()[None, None]
    mask = radius <= 12.0
    dome_hu = 60.0 - 60.0 * (radius / 12.0) ** 2
    assert measure_heterogeneity(dome_hu, mask).item() < 2.0  # 14 with the profile
    plane_hu = dome_hu + 2.0 * axis
    alone_hu = measure_heterogeneity((2.0 * axis).expand(mask.shape), mask).item()
    assert measure_heterogeneity(plane_hu, mask).item() == pytest.approx(alone_hu, rel=0.05)


def test_heterogeneity_leaves_noise_out():
    mask = torch.zeros(1, 1, 32, 32, 32, dtype=torch.bool)
    mask[..., 8:24, 8:24, 8:24] = True
    noise_hu = 20.0 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(0))
    assert measure_heterogeneity(noise_hu, mask).item() < 3.0
    assert measure_heterogeneity(noise_hu, torch.zeros_like(mask)).isnan().item()
