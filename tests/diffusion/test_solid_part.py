from __future__ import annotations

import numpy as np
import pytest

from diffusion.texture import solid_part

MUSCLE_HU, FAT_HU = 50.0, -100.0


def ball(radius: float) -> np.ndarray:
    return np.linalg.norm(np.indices((40, 40, 40)) - 19.5, axis=0) <= radius


@pytest.fixture
def noisy_muscle() -> np.ndarray:
    return np.random.default_rng(0).normal(MUSCLE_HU, 20.0, (40, 40, 40))


def test_fat_under_the_edge_is_left_out_with_what_shows_a_share_of_it(noisy_muscle: np.ndarray) -> None:
    mask = ball(12.0)
    noisy_muscle[:, 28:] -= MUSCLE_HU - FAT_HU
    part = solid_part(noisy_muscle, mask)
    assert not part[:, 28:].any()
    assert (part[:, :26] == mask[:, :26]).all()


def test_what_lies_outside_does_not_matter(noisy_muscle: np.ndarray) -> None:
    mask = ball(12.0)
    noisy_muscle[~mask] = -1000.0
    assert (solid_part(noisy_muscle, mask) == mask).all()


def test_a_fatty_tumor_stays_whole(noisy_muscle: np.ndarray) -> None:
    mask = ball(12.0)
    noisy_muscle[ball(8.0)] = FAT_HU
    assert (solid_part(noisy_muscle, mask) == mask).all()


def test_a_tumor_of_which_hardly_any_would_be_left_stays_whole(noisy_muscle: np.ndarray) -> None:
    mask = ball(3.0)
    noisy_muscle[:, 21:] = FAT_HU
    noisy_muscle[:, :18] = FAT_HU
    assert (solid_part(noisy_muscle, mask) == mask).all()


def test_no_tumor_is_no_part(noisy_muscle: np.ndarray) -> None:
    assert not solid_part(noisy_muscle, np.zeros((40, 40, 40), dtype=bool)).any()
