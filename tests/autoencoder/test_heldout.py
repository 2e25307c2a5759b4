from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autoencoder.heldout import body_masks, reconstruction_errors
from autoencoder.intensity import ABDOMEN_WINDOW
from autoencoder.model import AutoencoderKL3D


class _OffsetAutoencoder(AutoencoderKL3D):
    """Reconstructs everything 5 HU too high."""

    def reconstruct(self, image_hu: Tensor) -> Tensor:
        return image_hu + 5.0


@pytest.fixture
def model() -> AutoencoderKL3D:
    return _OffsetAutoencoder(channels=(8, 16), blocks=1)


def _crop(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 30


def test_the_error_of_a_known_offset_is_that_offset(model: AutoencoderKL3D) -> None:
    errors = reconstruction_errors(model, [_crop(5, 1, 16, 16, 16), _crop(1, 1, 8, 12, 16)])
    assert errors.mae_hu == pytest.approx(5.0, abs=1e-4)
    assert errors.voxels == 5 * 16**3 + 8 * 12 * 16


def test_a_constant_crop_is_exact_for_pooling(model: AutoencoderKL3D) -> None:
    errors = reconstruction_errors(model, [torch.full((1, 1, 16, 16, 16), 40.0)])
    assert errors.mae_pool2_hu == pytest.approx(0.0, abs=1e-4)
    assert errors.mae_pool4_hu == pytest.approx(0.0, abs=1e-4)


def test_pooling_noise_keeps_its_mean_only_and_coarser_pooling_errs_more(model: AutoencoderKL3D) -> None:
    errors = reconstruction_errors(model, [_crop(4, 1, 32, 32, 32)])
    noise_mae_hu = 30 * 0.798  # E|x| of a normal variable
    assert 0.85 * noise_mae_hu < errors.mae_pool2_hu < errors.mae_pool4_hu < 1.05 * noise_mae_hu


def test_only_voxels_in_the_mask_count(model: AutoencoderKL3D) -> None:
    crop_hu = _crop(2, 1, 16, 16, 16)
    crop_hu[:, :, :8] = ABDOMEN_WINDOW.high_hu  # an offset beyond the window saturates there
    mask = torch.zeros_like(crop_hu, dtype=torch.bool)
    mask[:, :, :8] = True
    inside, outside = (reconstruction_errors(model, [crop_hu], [m]) for m in (mask, ~mask))
    assert inside.mae_hu == pytest.approx(0.0, abs=1e-4)
    assert outside.mae_hu == pytest.approx(5.0, abs=1e-3)
    assert inside.voxels + outside.voxels == crop_hu.numel()


def test_values_beyond_the_window_are_no_error(model: AutoencoderKL3D) -> None:
    errors = reconstruction_errors(model, [torch.full((1, 1, 16, 16, 16), 3000.0)])
    assert errors.mae_hu == 0.0


def test_the_body_is_what_is_denser_than_the_window(model: AutoencoderKL3D) -> None:
    crop_hu = torch.tensor([-1000.0, -175.0, -100.0, 1000.0]).reshape(1, 1, 1, 1, 4)
    (mask,) = body_masks(model, [crop_hu])
    assert mask.flatten().tolist() == [False, False, True, True]


def test_an_empty_mask_or_one_of_another_shape_is_refused(model: AutoencoderKL3D) -> None:
    crop_hu = _crop(1, 1, 16, 16, 16)
    with pytest.raises(ValueError, match="No voxel"):
        reconstruction_errors(model, [crop_hu], [torch.zeros_like(crop_hu, dtype=torch.bool)])
    with pytest.raises(ValueError, match="mask of its shape"):
        reconstruction_errors(model, [crop_hu], [torch.ones(1, 1, 8, 8, 8, dtype=torch.bool)])
