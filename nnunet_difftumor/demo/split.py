"""Which cases of the demo train, which validate, and which healthy ones are kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nnunet_difftumor.cases.healthy import count_label_voxels
from nnunet_difftumor.cases.splits import HOLDOUT_FILE_NAME, SPLITS_FILE_NAME, read_holdout, read_splits
from nnunet_difftumor.ct.datasets import load_raw_dataset
from nnunet_difftumor.ct.label_roles import resolve_label_roles
from nnunet_difftumor.demo.layout import FOLD, DemoFolder
from nnunet_difftumor.support.files.fact_cache import CASE_FACTS_FILE_NAME, FactCache


@dataclass(frozen=True)
class DemoCases:
    """Identifiers by their role in the fold that the demo runs.

    Attributes:
        tumor_training: Training cases with tumours.
        healthy: Cases without tumours, in training or kept apart.
        holdout: Healthy cases that train nothing.
    """

    tumor_training: tuple[str, ...]
    healthy: tuple[str, ...]
    validation: tuple[str, ...]
    holdout: tuple[str, ...]

    @property
    def tested(self) -> tuple[str, ...]:
        """Cases to predict: the validation cases and the healthy holdout."""
        return tuple(sorted({*self.validation, *self.holdout}))


def read_demo_cases(folder: DemoFolder) -> DemoCases:
    """Read the roles from the data set and, once they are written, the splits.

    Args:
        folder: The demo's folder; the raw data set must be there.

    Returns:
        The roles; without splits, no case validates.
    """
    dataset = load_raw_dataset(folder.raw)
    _, tumor_label = resolve_label_roles(dataset.options["labels"])
    label_files = {case.identifier: case.label_path for case in dataset.cases if case.label_path is not None}
    cache = FactCache(folder.preprocessed / CASE_FACTS_FILE_NAME if folder.preprocessed.is_dir() else None)
    voxels = count_label_voxels(label_files, cache)
    healthy = tuple(name for name in sorted(voxels) if voxels[name].get(tumor_label, 0) == 0)
    splits_file = folder.preprocessed / SPLITS_FILE_NAME
    if not splits_file.is_file():
        return DemoCases(_without(sorted(voxels), healthy), healthy, (), ())
    split = read_splits(splits_file)[FOLD]
    holdout = read_holdout(folder.preprocessed / HOLDOUT_FILE_NAME) or ()
    return DemoCases(_without(split.train, healthy), healthy, split.val, holdout)


def _without(names: Sequence[str], left_out: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name not in left_out)
