"""The learning rate of Swin UNETR: linear warm-up, then half a cosine."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def warmup_cosine(epoch: int, epochs: int, warmup_epochs: int) -> float:
    """Return the share of the highest learning rate for an epoch, in (0, 1].

    Args:
        epoch: From 0.
        warmup_epochs: Epochs in which the rate rises; the last of them has the highest rate.
    """
    if epoch < warmup_epochs:
        return (epoch + 1) / warmup_epochs
    return 0.5 * (1.0 + math.cos(math.pi * (epoch - warmup_epochs) / (epochs - warmup_epochs)))


class WarmupCosine(LRScheduler):
    """Sets the learning rate from the epoch's number alone, so that a training can be gone on with at any epoch."""

    def __init__(self, optimizer: Optimizer, highest_rate: float, epochs: int, warmup_epochs: int) -> None:
        self.highest_rate = highest_rate
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        super().__init__(optimizer)

    def step(self, epoch: int | None = None) -> None:
        """Set the rate of an epoch, from 0; None for the one after the last that was set."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        rate = self.highest_rate * warmup_cosine(self.last_epoch, self.epochs, self.warmup_epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._last_lr = [rate for _ in self.optimizer.param_groups]
