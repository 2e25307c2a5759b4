"""A small 3D network that tries to tell synthetic from real patches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from nnunet_difftumor.evaluation.settings import ClassifierSettings

_GROUPS = 4
_WEIGHT_DECAY = 1e-2
_WARM_UP_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class PatchPairs:
    """Real and synthetic patches of the same positions.

    Attributes:
        real: Image in [-1, 1] and label. Shape (N, 2, S, S, S).
        synthetic: The same positions with a synthetic tumour. Same shape.
        patients: Index of each pair's patient. Shape (N,).
        tumors: Index of each pair's synthetic tumour. Shape (N,).
    """

    real: NDArray[np.float32]
    synthetic: NDArray[np.float32]
    patients: NDArray[np.int64]
    tumors: NDArray[np.int64]


class PatchClassifier(nn.Module):
    """Four convolution blocks, then the mean and standard deviation of every channel over the patch.

    The first block works at full resolution, where noise texture lives; each later one halves it.
    """

    def __init__(self, width: int) -> None:
        """Create the network.

        Args:
            width: Channels of the first block.
        """
        super().__init__()
        widths = [2, width, 2 * width, 3 * width, 4 * width]
        blocks = []
        for index, (channels, wider) in enumerate(pairwise(widths)):
            stride = 1 if index == 0 else 2
            blocks += [nn.Conv3d(channels, wider, 3, stride, 1), nn.GroupNorm(_GROUPS, wider), nn.SiLU()]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(8 * width, 1)

    def forward(self, patches: Tensor) -> Tensor:
        """Score patches; higher means synthetic. (N, 2, S, S, S) to (N,)."""
        features = self.blocks(patches).flatten(2)  # (N, C, voxels)
        pooled = torch.cat([features.mean(dim=2), features.std(dim=2)], dim=1)
        return self.head(pooled)[:, 0]


def score_held_out(
    pairs: PatchPairs, settings: ClassifierSettings, rng: np.random.Generator, *, heading: str = ""
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Train on some patients and score the others, until every patient was held out once.

    Args:
        pairs: Patches of at least two patients.
        settings: Training.
        rng: Random generator.
        heading: What the progress bar says.

    Returns:
        Scores of the real and of the synthetic patches, each by a network that never saw the patient.
        Shapes (N,).
    """
    patients = rng.permutation(np.unique(pairs.patients))
    folds = np.array_split(patients, min(settings.most_folds, len(patients)))
    scores = np.zeros((2, len(pairs.patients)))
    with tqdm(total=len(folds) * settings.steps, desc=heading, unit="step", leave=False) as bar:
        for fold in folds:
            held_out = np.isin(pairs.patients, fold)
            network = _train(pairs, np.flatnonzero(~held_out), settings, rng, bar)
            for side, patches in enumerate((pairs.real, pairs.synthetic)):
                scores[side, held_out] = score_patches(network, patches[held_out])
    return scores[0], scores[1]


@torch.no_grad()
def score_patches(network: PatchClassifier, patches: NDArray[np.float32]) -> NDArray[np.float64]:
    """Score patches, averaged over the flips along the two axes in the slice.

    Args:
        network: A trained network.
        patches: Image and label. Shape (N, 2, S, S, S).

    Returns:
        Scores, higher means synthetic. Shape (N,).
    """
    network.eval()
    total = np.zeros(len(patches))
    flips: tuple[tuple[int, ...], ...] = ((), (3,), (4,), (3, 4))
    for start in range(0, len(patches), 32):
        batch = torch.from_numpy(np.ascontiguousarray(patches[start : start + 32]))
        views = [network(batch.flip(axes) if axes else batch) for axes in flips]
        total[start : start + 32] = torch.stack(views).mean(dim=0).double().numpy()
    return total


def _train(
    pairs: PatchPairs,
    indices: NDArray[np.int64],
    settings: ClassifierSettings,
    rng: np.random.Generator,
    bar: tqdm,
) -> PatchClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))  # only for the initial weights, in a fork of the generator
        network = PatchClassifier(settings.width)
    decay, rate = _WEIGHT_DECAY, settings.learning_rate
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)
    warm_up = max(1, round(_WARM_UP_SHARE * settings.steps))
    network.train()
    for step in range(settings.steps):
        factor = min(1.0, (step + 1) / warm_up) * 0.5 * (1.0 + math.cos(math.pi * step / settings.steps))
        optimizer.param_groups[0]["lr"] = rate * factor
        chosen = _draw_by_patient(pairs.patients, indices, settings.batch_pairs, rng)
        patches = np.concatenate([pairs.real[chosen], pairs.synthetic[chosen]])
        patches = np.stack([_turned(patch, rng) for patch in patches])
        is_synthetic = torch.arange(len(patches)) >= len(chosen)
        loss = nn.functional.binary_cross_entropy_with_logits(network(torch.from_numpy(patches)), is_synthetic.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.update()
    return network


def _draw_by_patient(
    patients: NDArray[np.int64], indices: NDArray[np.int64], count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Indices of pairs, every patient as often as the others."""
    names = np.unique(patients[indices])
    drawn = names[rng.integers(len(names), size=count)]
    return np.array([rng.choice(indices[patients[indices] == name]) for name in drawn])


def _turned(patch: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """A patch flipped along any axis, and its slices transposed: thick slices stay thick slices."""
    axes = tuple(int(axis) + 1 for axis in np.flatnonzero(rng.random(3) < 0.5))
    patch = np.flip(patch, axes)
    return np.ascontiguousarray(patch.swapaxes(2, 3) if rng.random() < 0.5 else patch)
