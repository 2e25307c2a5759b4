"""What is asked of an injection, and what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.synthesis.results import SynthesisResult, SynthesizedTumor
from nnunet_difftumor.tumor.spec import TumorSpec


@dataclass(frozen=True)
class InjectionRequest:
    """The tumours that reach one crop.

    Attributes:
        crop_start: Corner of the crop in the preprocessed case, in voxels; may be negative.
        specs: Tumours that reach the crop, without looks, in mm from its voxel (0, 0, 0).
        labelled: What is labelled: the same tumours, but for the negative control.
        target: Number of the target that is injected.
        stream: Words that the random streams of this sample start from: seed, rank, worker, number of the sample.
    """

    case: str
    crop_start: tuple[int, int, int]
    specs: tuple[TumorSpec, ...]
    labelled: tuple[TumorSpec, ...]
    target: int = 0
    stream: tuple[int, ...] = ()

    def only(self, reaches: Callable[[TumorSpec], bool]) -> InjectionRequest:
        """The same without the tumours that do not reach some place."""
        return replace(self, specs=tuple(filter(reaches, self.specs)), labelled=tuple(filter(reaches, self.labelled)))


@dataclass(frozen=True)
class InjectedTumor:
    """One drawn tumour of a sample, for counts and histograms.

    Attributes:
        drawn_radius_mm: Radius that was drawn, in mm.
        radius_mm: Radius that was put in, in mm; None if it was not.
        requested_hu: Contrast that was asked for, in HU; None if it was left to the generator.
        contrast_hu: Contrast that was reached, in HU; None if it was not put in.
    """

    size_class: str
    drawn_radius_mm: float
    radius_mm: float | None = None
    requested_hu: float | None = None
    contrast_hu: float | None = None


@dataclass(frozen=True)
class InjectedCrop:
    """A crop after an attempt to put tumours into it.

    Attributes:
        image: Normalised image. Shape (D, H, W).
        labels: Labels. Shape (D, H, W).
        placed: Tumours that were put in.
        rejected: Drawn tumours that were not, by reason.
        tumors: What was to be put in, with the look of the last try.
        record: Plain values that replay the tumours on the same crop; None if there are none.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.int16]
    placed: int
    rejected: Mapping[str, int] = field(default_factory=dict)
    tumors: tuple[InjectedTumor, ...] = ()
    record: Mapping[str, Any] | None = None

    @property
    def main_reason(self) -> str:
        """Most frequent reason for a rejection."""
        return max(self.rejected, key=self.rejected.__getitem__, default="unknown")


def describe_tumor(spec: TumorSpec, placed: SynthesizedTumor | None = None) -> InjectedTumor:
    """Return what counts and histograms need of a tumour that was put in, or was not."""
    return InjectedTumor(
        size_class=spec.size_class,
        drawn_radius_mm=spec.radius_mm,
        radius_mm=None if placed is None else placed.record.spec.radius_mm,
        requested_hu=spec.contrast_hu,
        contrast_hu=None if placed is None else placed.record.contrast_hu,
    )


def describe_all(specs: Sequence[TumorSpec], result: SynthesisResult) -> tuple[InjectedTumor, ...]:
    """Say of every tumour that was drawn what became of it."""
    by_seed = {tumor.record.spec.seed: tumor for tumor in result.tumors}
    return tuple(describe_tumor(spec, by_seed.get(spec.seed)) for spec in specs)
