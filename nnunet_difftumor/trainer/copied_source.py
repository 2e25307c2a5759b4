"""Whether nnU-Net still has the method that the trainer's data loading is an explicit copy of."""

from __future__ import annotations

import hashlib
import inspect
from importlib.metadata import version

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

COPIED_FROM = "2.8.1"
COPIED_SHA256 = "5f59e2b907cfa2d1"
"""First digits of the hash of the source of `nnUNetTrainer.get_dataloaders`."""


def changed_source_notes() -> tuple[str, ...]:
    """One line for the log if nnU-Net's `get_dataloaders` is another than the one that was copied, else none."""
    source = inspect.getsource(nnUNetTrainer.get_dataloaders)
    if hashlib.sha256(source.encode()).hexdigest().startswith(COPIED_SHA256):
        return ()
    return (
        f"nnU-Net {version('nnunetv2')} makes its data loaders in another way than {COPIED_FROM}, which this trainer "
        "follows: samples may differ from stock nnU-Net's in more than the tumours. For a comparison with stock "
        f"nnU-Net, train both with nnunetv2=={COPIED_FROM} (pip install nnunetv2=={COPIED_FROM}).",
    )
