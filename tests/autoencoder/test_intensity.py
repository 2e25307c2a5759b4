from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autoencoder.intensity import ABDOMEN_WINDOW, IntensityWindow


@given(st.floats(-175.0, 250.0))
def test_inside_the_window_the_two_maps_are_inverse(value_hu: float) -> None:
    image_hu = np.array([value_hu])
    np.testing.assert_allclose(ABDOMEN_WINDOW.to_hu(ABDOMEN_WINDOW.to_unit(image_hu)), image_hu, atol=1e-9)


def test_air_and_metal_saturate_at_the_ends_of_the_unit_range() -> None:
    image_hu = torch.tensor([-1000.0, -175.0, 37.5, 250.0, 3000.0])
    torch.testing.assert_close(ABDOMEN_WINDOW.to_unit(image_hu), torch.tensor([-1.0, -1.0, 0.0, 1.0, 1.0]))


@pytest.mark.parametrize("image_hu", [np.array([-50, 40], np.int16), torch.tensor([-50, 40]).short()])
def test_stored_integers_give_the_same_floating_point_values_and_stay_unchanged(image_hu) -> None:
    unit = ABDOMEN_WINDOW.to_unit(image_hu)
    np.testing.assert_allclose(np.asarray(unit), [(125 / 425) * 2 - 1, (215 / 425) * 2 - 1], atol=1e-6)
    np.testing.assert_array_equal(np.asarray(image_hu), [-50, 40])


def test_to_hu_does_not_saturate() -> None:
    assert ABDOMEN_WINDOW.to_hu(torch.tensor([1.2])).item() == pytest.approx(250 + 0.2 * 212.5)


@pytest.mark.parametrize(("low_hu", "high_hu"), [(250.0, -175.0), (0.0, 0.0), (float("nan"), 1.0)])
def test_an_empty_window_is_refused_with_the_values_and_a_fix(low_hu: float, high_hu: float) -> None:
    with pytest.raises(ValueError, match=r"low_hu < high_hu.*try low_hu=-175"):
        IntensityWindow(low_hu, high_hu)
