from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import find_objects

from nnunet_difftumor.ct.boxes import as_box, box_of, ends_of, inside, widened

SHAPE = (7, 9, 11)


def test_a_box_has_the_ends_that_it_was_made_from() -> None:
    box = as_box((1, 2, 3), np.array([4, 6, 8]))
    starts, stops = ends_of(box)
    assert starts.tolist() == [1, 2, 3]
    assert stops.tolist() == [4, 6, 8]
    assert np.zeros(SHAPE)[box].shape == (3, 4, 5)


@pytest.mark.parametrize(("margin", "expected"), [(1, ((0, 3, 0), (4, 7, 7))), ((0, 2, 9), ((0, 2, 0), (3, 8, 11)))])
def test_a_margin_ends_at_the_border(margin: object, expected: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    wide = widened(as_box((0, 4, 1), (3, 6, 6)), margin, SHAPE)
    assert tuple(tuple(ends.tolist()) for ends in ends_of(wide)) == expected


def test_a_box_inside_another_shows_the_same_voxels() -> None:
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    box = as_box((0, 4, 1), (3, 6, 6))
    wide = widened(box, 2, SHAPE)
    assert np.array_equal(values[wide][inside(box, wide)], values[box])


def test_the_box_of_some_maps_holds_all_that_is_not_0() -> None:
    rng = np.random.default_rng(0)
    for share in (0.003, 0.01, 0.1):
        for _ in range(30):
            maps = [(rng.random(SHAPE) < share) * np.int16(rng.integers(1, 9)) for _ in range(2)]
            expected = (find_objects(((maps[0] + maps[1]) > 0).astype(np.uint8)) or [as_box((0, 0, 0), (1, 1, 1))])[0]
            assert box_of(maps[0], None, maps[1]) == expected
