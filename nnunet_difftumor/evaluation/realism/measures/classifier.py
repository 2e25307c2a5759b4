"""A small 3D network that tries to tell synthetic from real patches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from nnunet_difftumor.evaluation.realism.settings import ClassifierSettings

CHANNELS = 3
DISTANCE_LIMIT_MM = 8.0
_SHELLS_MM = ((-9.0, -4.0), (-4.0, 0.0), (0.0, 2.5), (2.5, 9.0))
_SMALLEST_VARIANCE = 1e-6
_DROPOUT = 0.2
_GROUPS = 4
_WEIGHT_DECAY = 1e-2
_WARM_UP_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class PatchPairs:
    """Real and synthetic patches of the same positions.

    Attributes:
        real: Three channels: the image in the generator's window and in one of soft tissue, both brought to
            [-1, 1], and the signed distance to the label's surface, limited to 8 mm, over 8 mm.
            Shape (N, 3, S, S, S).
        synthetic: The same positions with a synthetic tumour. Same shape.
        patients, tumors: Index of each pair's patient and of its synthetic tumour. Shapes (N,).
    """

    real: NDArray[np.float32]
    synthetic: NDArray[np.float32]
    patients: NDArray[np.int64]
    tumors: NDArray[np.int64]


class PatchClassifier(nn.Module):
    """Four convolution blocks, pooled as mean and standard deviation over the patch and over shells of the label.

    The first block works at full resolution, where noise texture lives; each later one halves it. The shells
    (core, inner edge, outer edge, surroundings) let it find a rim of one voxel among large differences elsewhere.
    """

    def __init__(self, width: int) -> None:
        """Create the network; the first block has `width` channels."""
        super().__init__()
        widths = [CHANNELS, width, 2 * width, 3 * width, 4 * width]
        blocks = []
        for index, (channels, wider) in enumerate(pairwise(widths)):
            norm = nn.GroupNorm(_GROUPS, wider) if index else nn.Identity()  # the first keeps the noise's amplitude
            blocks.append(nn.Sequential(nn.Conv3d(channels, wider, 3, 2 if index else 1, 1), norm, nn.SiLU()))
        self.blocks = nn.ModuleList(blocks)
        pooled = 2 * (len(_SHELLS_MM) * (widths[1] + widths[2]) + widths[3] + widths[4])
        self.head = nn.Sequential(nn.BatchNorm1d(pooled), nn.Dropout(_DROPOUT), nn.Linear(pooled, 1))

    def forward(self, patches: Tensor) -> Tensor:
        """Score patches; higher means synthetic. (N, 3, S, S, S) to (N,)."""
        features, distance_mm, pooled = patches, DISTANCE_LIMIT_MM * patches[:, 2:3], []
        for index, block in enumerate(self.blocks):
            features = block(features)
            if index == 1:
                distance_mm = nn.functional.avg_pool3d(distance_mm, 2, ceil_mode=True)
            shells = _shells(distance_mm) if index < 2 else torch.ones_like(features[:, :1])
            pooled.append(_pool(features, shells))
        return self.head(torch.cat(pooled, dim=1))[:, 0]


def _shells(distance_mm: Tensor) -> Tensor:
    """Membership of the voxels in the shells. (N, 1, D, H, W) to (N, shells, D, H, W)."""
    return torch.cat([(distance_mm > low) & (distance_mm <= high) for low, high in _SHELLS_MM], dim=1).float()


def _pool(features: Tensor, shells: Tensor) -> Tensor:
    """Mean and standard deviation of every channel in every shell; 0 in an empty one. Shape (N, 2 C shells)."""
    flat, member = features.flatten(2), shells.flatten(2).transpose(1, 2)  # (N, C, V), (N, V, K)
    count = member.sum(dim=1, keepdim=True).clamp(min=1.0)  # (N, 1, K)
    mean = flat @ member / count
    square = (flat * flat) @ member / count
    sd = (square - mean * mean).clamp(min=0.0).add(_SMALLEST_VARIANCE).sqrt()
    return torch.cat([mean.flatten(1), sd.flatten(1)], dim=1)


def score_held_out(
    pairs: PatchPairs, settings: ClassifierSettings, rng: np.random.Generator, *, heading: str = ""
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Train on some patients, of at least two, and score the others, until every patient was held out once.

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
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(rng.integers(2**31)))  # initial weights and dropout, in a fork of the generator
                network = _train(pairs, np.flatnonzero(~held_out), settings, rng, bar)
            for side, patches in enumerate((pairs.real, pairs.synthetic)):
                scores[side, held_out] = _score(network, patches[held_out])
    return scores[0], scores[1]


@torch.no_grad()
def _score(network: PatchClassifier, patches: NDArray[np.float32]) -> NDArray[np.float64]:
    """Score patches, averaged over the flips along the two axes in the slice. (N, 3, S, S, S) to (N,)."""
    network.eval()
    scores = [
        torch.stack([network(batch.flip(axes)) for axes in ((), (3,), (4,), (3, 4))]).mean(dim=0).double()
        for batch in torch.from_numpy(np.ascontiguousarray(patches)).split(32)
    ]
    return torch.cat(scores).numpy()


def _train(
    pairs: PatchPairs,
    indices: NDArray[np.int64],
    settings: ClassifierSettings,
    rng: np.random.Generator,
    bar: tqdm,
) -> PatchClassifier:
    network, rate = PatchClassifier(settings.width), settings.learning_rate
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=_WEIGHT_DECAY)
    warm_up = max(1, round(_WARM_UP_SHARE * settings.steps))
    network.train()
    for step in range(settings.steps):
        factor = min(1.0, (step + 1) / warm_up) * 0.5 * (1.0 + math.cos(math.pi * step / settings.steps))
        optimizer.param_groups[0]["lr"] = rate * factor
        chosen = _draw_by_patient(pairs.patients, indices, settings.batch_pairs, rng)
        turns = [_draw_turn(rng) for _ in chosen]  # the same for both patches of a pair
        sides = [
            np.stack([turn(patch) for turn, patch in zip(turns, patches[chosen], strict=True)])
            for patches in (pairs.real, pairs.synthetic)
        ]
        scores = network(torch.from_numpy(np.concatenate(sides)))
        loss = _loss(scores[: len(chosen)], scores[len(chosen) :])
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


def _loss(real_scores: Tensor, synthetic_scores: Tensor) -> Tensor:
    """Cross-entropy of single patches, and of the order within pairs, where what both share cancels."""
    softplus = nn.functional.softplus
    single = softplus(real_scores).mean() + softplus(-synthetic_scores).mean()
    return 0.5 * single + softplus(real_scores - synthetic_scores).mean()


def _draw_turn(rng: np.random.Generator) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """A flip along any axis and perhaps a transposition of the slices: thick slices stay thick slices."""
    axes = tuple(int(axis) + 1 for axis in np.flatnonzero(rng.random(3) < 0.5))
    is_transposed = rng.random() < 0.5

    def turn(patch: NDArray[np.float32]) -> NDArray[np.float32]:
        flipped = np.flip(patch, axes)
        return np.ascontiguousarray(flipped.swapaxes(2, 3) if is_transposed else flipped)

    return turn
