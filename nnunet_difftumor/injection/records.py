"""What is drawn for a sample, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.ct.boxes import Box, ends_of
from nnunet_difftumor.synthesis.results import SynthesizedTumor
from nnunet_difftumor.tumor.spec import Triple, TumorSpec
from nnunet_difftumor.tumor.surface import TumorSurface


@dataclass(frozen=True)
class CaseTumors:
    """The synthetic tumours of one case, or those of them that reach a crop.

    Attributes:
        specs: Where and what they are, without looks, in mm from the voxel (0, 0, 0) of case or crop.
        labelled: Where they are labelled: the same, but for the negative control.
        given_up: Drawn tumours that no place has room for.
    """

    specs: tuple[TumorSpec, ...] = ()
    labelled: tuple[TumorSpec, ...] = ()
    given_up: tuple[TumorSpec, ...] = ()

    @property
    def is_empty(self) -> bool:
        """True if no tumour is put in and none is labelled."""
        return not (self.specs or self.labelled)

    def reaching(self, box: Box, spacing_mm: Triple, corner: Sequence[int] = (0, 0, 0)) -> CaseTumors:
        """Return the tumours whose labels may reach into a box of voxels.

        Args:
            box: Counted from `corner`.
            corner: Voxel from which the places of the returned tumours are measured.
        """
        offset_mm = np.multiply(corner, spacing_mm)

        def chosen(specs: Sequence[TumorSpec]) -> tuple[TumorSpec, ...]:
            moved = (spec.moved_to(np.subtract(spec.centre_mm, offset_mm)) for spec in specs)
            return tuple(spec for spec in moved if _reaches(spec, box, spacing_mm))

        return CaseTumors(chosen(self.specs), chosen(self.labelled))


@dataclass(frozen=True)
class SampleDraw:
    """What was drawn for one sample before its crop was cut.

    Attributes:
        target: Number of the target that is injected.
        stream: Words that the random streams of this sample start from: seed, rank, worker, number of the sample.
        tumors: The tumours of the whole case, those that no place has room for included.
        refusal: Why the case carries none although it was drawn; None if there is no such reason.
        crop_start: Corner of the crop in the preprocessed case, in voxels; may be negative.
        in_crop: Those of the tumours that reach the crop.
        shams: Unlabelled shams of the case in place of tumours; those that reach the crop, once it is chosen.
    """

    case: str
    target: int = 0
    stream: tuple[int, ...] = ()
    tumors: CaseTumors = field(default_factory=CaseTumors)
    refusal: str | None = None
    crop_start: tuple[int, int, int] = (0, 0, 0)
    in_crop: CaseTumors = field(default_factory=CaseTumors)
    shams: CaseTumors = field(default_factory=CaseTumors)

    @property
    def is_carrying(self) -> bool:
        """True if the case carries synthetic tumours."""
        return bool(self.tumors.labelled)

    def rng(self, purpose: int) -> np.random.Generator:
        """Return the generator of one purpose, independent of the others; the same in every run with this stream."""
        return np.random.default_rng(np.random.SeedSequence(list(self.stream), spawn_key=(purpose,)))

    def to_json(self) -> dict[str, Any]:
        """Return where and by which random streams the sample was made."""
        stream, crop_start = list(self.stream), list(self.crop_start)
        return {"case": self.case, "stream": stream, "target": self.target, "crop_start": crop_start}


@dataclass(frozen=True)
class InjectedTumor:
    """One drawn tumour of a sample, for counts and histograms.

    Attributes:
        radius_mm: Radius that was put in; None if the tumour was not.
        requested_hu: Depth that was asked for; None if it was left to the generator.
        contrast_hu: Depth that was reached; None if the tumour was not put in.
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
        placed: Tumours, or shams, that were put in.
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


def describe_tumor(spec: TumorSpec, placed: SynthesizedTumor | None = None) -> InjectedTumor:
    """Say what became of a tumour, for counts and histograms."""
    if placed is None:
        return InjectedTumor(spec.size_class, spec.radius_mm, requested_hu=spec.contrast_hu)
    record = placed.record
    return InjectedTumor(spec.size_class, spec.radius_mm, record.spec.radius_mm, spec.contrast_hu, record.depth_hu)


def _reaches(spec: TumorSpec, box: Box, spacing_mm: Triple) -> bool:
    """True if the box that holds a tumour's label reaches into a box of voxels."""
    spacing, half_mm = np.asarray(spacing_mm), TumorSurface(spec).half_extent_mm
    low, high = (np.asarray(spec.centre_mm) + sign * half_mm for sign in (-1.0, 1.0))
    starts, stops = ends_of(box)
    return bool(np.all(high >= (starts - 0.5) * spacing) and np.all(low <= (stops - 0.5) * spacing))
