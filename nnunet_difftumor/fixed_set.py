"""The fixed set of synthetic tumours that a curriculum tries the network on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nnunet_difftumor.curriculum import Trial
from nnunet_difftumor.data_loader import REPORT_KEY, DiffTumorDataLoader

FIXED_SET_RANK = 2**31
"""Stands in the place of a rank in the random streams, so that no training sample has the same stream."""
_TRIES_PER_SAMPLE = 6


@dataclass(frozen=True)
class FixedSample:
    """A patch with one synthetic tumour, not augmented.

    Attributes:
        image: Normalised patch. Shape (1, D, H, W).
        tumor: True in the tumour. Shape (D, H, W).
        target: Number of its target.
        size_class: Name of its size class.
        contrast_hu: Contrast in HU.
    """

    image: torch.Tensor
    tumor: torch.Tensor
    target: int
    size_class: str
    contrast_hu: float

    def trial(self, *, is_found: bool) -> Trial:
        """Return what is kept of one try."""
        return Trial(self.target, self.size_class, self.contrast_hu, is_found)


def collect_fixed_samples(loader: DiffTumorDataLoader, count: int) -> list[FixedSample]:
    """Take patches with exactly one tumour from a loader.

    Args:
        loader: Gives patches, one a batch, of healthy cases with tumours; its transforms are taken away.
        count: How many are wanted; six times as many are tried.

    Returns:
        At most that many.
    """
    loader.inject_only()
    samples: list[FixedSample] = []
    for _ in range(_TRIES_PER_SAMPLE * count):
        if len(samples) == count:
            break
        batch: dict[str, Any] = loader.generate_train_batch()
        placed = [(number, tumor) for number, tumor in batch[REPORT_KEY]["tumors"] if tumor.contrast_hu is not None]
        if len(placed) != 1:
            continue
        (number, tumor) = placed[0]
        is_tumor = batch["target"][0, 0] == loader.tumor_label(number)
        if bool(is_tumor.any()):
            samples.append(
                FixedSample(batch["data"][0], is_tumor, number, tumor.size_class, float(tumor.contrast_hu or 0.0))
            )
    return samples


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Give nnU-Net's global random streams back as they were."""
    numpy_state, torch_state = np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 (nnU-Net's own stream)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
