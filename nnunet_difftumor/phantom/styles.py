"""What a phantom may look like: organs, hospitals, tumours and sizes, each chosen by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.tumor.appearance import Range
from nnunet_difftumor.tumor.sizes import SizeClass

ChoiceT = TypeVar("ChoiceT")

PORTAL_VENOUS, ARTERIAL, UNENHANCED = "portal-venous", "arterial", "unenhanced"
"""Contrast phases."""

MOST_EDGE_OFFSET_MM = 5.0


@dataclass(frozen=True, kw_only=True)
class OrganRule:
    """How tumours of one organ are drawn."""

    name: str  # also of its field in `TissueValues`
    size_classes: tuple[SizeClass, ...]  # the first tumour of a patient is always of the first class
    contrast_hu: Mapping[str, Range]  # against the organ, by phase
    exophytic_share: float = 0.0  # of the tumours: centred near the organ's surface, and growing out of it


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """How one hospital scans: scanner, reconstruction and phase; values are drawn from ranges for every patient."""

    name: str
    about: str  # what it stands for, in a few words
    phase: str = PORTAL_VENOUS
    noise_hu: Range = (8.0, 13.0)  # standard deviation
    noise_grain: Range = (0.55, 0.9)  # width of the noise's grain in voxels
    sharpness: Range = (0.35, 0.6)  # standard deviation of the in-plane blur in voxels: a sharp kernel blurs less
    slice_mm: Range | None = None  # thickness; None takes that of the scan's size


@dataclass(frozen=True, kw_only=True)
class TumorStyle:
    """What is drawn for every tumour; a range of one value draws nothing."""

    name: str
    most_per_organ: int = 3  # in an affected organ; the smallest number is 1
    size_classes: tuple[SizeClass, ...] | None = None  # None takes those of the organ
    contrast_share: Range = (1.0, 1.0)  # of the organ's contrast
    texture_mm: Range = (7.0, 22.0)  # shortest and longest wavelength
    texture_hu: Range = (5.0, 11.0)  # standard deviation
    core_hu: Range = (-18.0, 0.0)  # additional difference at the centre
    core_from_mm: float = 9.0  # radius above which a tumour has a core
    edge_share: Range = (0.25, 0.25)  # width of the soft edge relative to the radius, kept between 1 and 3 mm
    # where half of the depth is reached against the label's outline: negative for a generous reader, who draws too wide
    edge_offset_mm: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ScanSize:
    """How finely a phantom patient is scanned, in mm; the slices touch, and the margin is air beside the body."""

    in_plane_mm: Range
    slice_mm: Range
    margin_mm: float


LIVER = OrganRule(
    name="liver",
    size_classes=(
        SizeClass(name="medium", radius_mm=(11.0, 20.0), probability=0.4),
        SizeClass(name="small", radius_mm=(6.0, 11.0), probability=0.35),
        SizeClass(name="tiny", radius_mm=(4.0, 6.0), probability=0.25),
    ),
    contrast_hu={PORTAL_VENOUS: (-60.0, -30.0), ARTERIAL: (-35.0, -12.0), UNENHANCED: (-28.0, -12.0)},
)
PANCREAS = OrganRule(
    name="pancreas",
    size_classes=(
        SizeClass(name="small", radius_mm=(6.0, 10.0), probability=0.6),
        SizeClass(name="tiny", radius_mm=(4.0, 6.0), probability=0.4),
    ),
    contrast_hu={PORTAL_VENOUS: (-60.0, -30.0), ARTERIAL: (-70.0, -35.0), UNENHANCED: (-16.0, -8.0)},
)
KIDNEY = OrganRule(
    name="kidney",
    size_classes=(
        SizeClass(name="medium", radius_mm=(11.0, 18.0), probability=0.5),
        SizeClass(name="small", radius_mm=(6.0, 11.0), probability=0.5),
    ),
    contrast_hu={PORTAL_VENOUS: (-100.0, -55.0), ARTERIAL: (-110.0, -50.0), UNENHANCED: (6.0, 14.0)},
    exophytic_share=0.6,
)
ORGANS: Mapping[str, OrganRule] = {organ.name: organ for organ in (LIVER, PANCREAS, KIDNEY)}

_HOSPITALS = (
    Hospital(name="standard", about="portal venous, mixed slice thickness, soft kernel"),
    Hospital(
        name="thin-sharp",
        about="portal venous, thin slices, sharp and noisy kernel",
        noise_hu=(16.0, 22.0),
        noise_grain=(0.45, 0.6),
        sharpness=(0.15, 0.25),
        slice_mm=(1.5, 2.5),
    ),
    Hospital(
        name="thick-smooth",
        about="portal venous, thick slices, smooth reconstruction with little noise",
        noise_hu=(4.0, 7.0),
        noise_grain=(0.9, 1.3),
        sharpness=(0.7, 1.0),
        slice_mm=(4.5, 6.0),
    ),
    Hospital(name="arterial", about="late arterial phase, otherwise standard", phase=ARTERIAL),
    Hospital(
        name="low-dose",
        about="unenhanced CT of a PET/CT: thick slices, much noise",
        phase=UNENHANCED,
        noise_hu=(18.0, 28.0),
        noise_grain=(0.7, 1.0),
        sharpness=(0.5, 0.8),
        slice_mm=(4.0, 5.0),
    ),
)
HOSPITALS: Mapping[str, Hospital] = {hospital.name: hospital for hospital in _HOSPITALS}

MIXED = TumorStyle(name="mixed")
EARLY = TumorStyle(
    name="early",
    most_per_organ=1,
    size_classes=(SizeClass(name="early", radius_mm=(5.0, 12.0), probability=1.0),),
    contrast_share=(0.9, 1.3),
    texture_mm=(5.0, 22.0),
    texture_hu=(2.0, 8.0),
    core_hu=(-20.0, 5.0),
    core_from_mm=6.0,
    edge_share=(0.15, 0.4),
)
TUMOR_STYLES: Mapping[str, TumorStyle] = {style.name: style for style in (MIXED, EARLY)}

SCAN_SIZES: Mapping[str, ScanSize] = {
    "small": ScanSize(in_plane_mm=(2.1, 2.6), slice_mm=(2.5, 5.0), margin_mm=4.0),
    "full": ScanSize(in_plane_mm=(0.68, 0.85), slice_mm=(1.5, 5.0), margin_mm=30.0),
}


@dataclass(frozen=True)
class PhantomStyle:
    """What all patients of a phantom data set share: organs with tumours, and hospitals that they come from in turn."""

    organs: tuple[OrganRule, ...] = (LIVER,)
    hospitals: tuple[Hospital, ...] = (HOSPITALS["standard"],)
    size: ScanSize = SCAN_SIZES["small"]
    tumors: TumorStyle = MIXED

    @classmethod
    def named(
        cls,
        *,
        organs: Sequence[str],
        hospitals: Sequence[str],
        size: str,
        tumors: str = MIXED.name,
        edge_offset_mm: float = 0.0,
    ) -> PhantomStyle:
        """Look up a style by names: keys of `ORGANS`, `HOSPITALS`, `SCAN_SIZES` and `TUMOR_STYLES`.

        Raises:
            ConfigurationError: If a name is unknown, the organs are none or one twice, or the edge lies too far off.
        """
        if not abs(edge_offset_mm) <= MOST_EDGE_OFFSET_MM:
            raise ConfigurationError(
                f"edge_offset_mm must be from {-MOST_EDGE_OFFSET_MM:g} (a generous reader) to {MOST_EDGE_OFFSET_MM:g} "
                f"(a tight one), got {edge_offset_mm:g}. Readers of real scans are within about 3 mm."
            )
        if not organs or not set(organs) <= set(ORGANS) or len(set(organs)) != len(organs):
            given = ", ".join(organs) or "none"
            raise ConfigurationError(f"organs must be some of {', '.join(ORGANS)}, each once, got {given}.")
        return cls(
            tuple(ORGANS[name] for name in organs),
            tuple(_choose("hospital", name, HOSPITALS) for name in hospitals),
            _choose("size", size, SCAN_SIZES),
            replace(_choose("tumors", tumors, TUMOR_STYLES), edge_offset_mm=edge_offset_mm),
        )

    @property
    def labels(self) -> dict[str, int]:
        """Label names and values, organ and tumour in turn; of several organs, tumours are named "liver_tumor"."""
        labels = {"background": 0}
        for index, organ in enumerate(self.organs):
            labels[organ.name] = 2 * index + 1
            labels["tumor" if len(self.organs) == 1 else f"{organ.name}_tumor"] = 2 * index + 2
        return labels


def _choose(what: str, name: str, choices: Mapping[str, ChoiceT]) -> ChoiceT:
    if name not in choices:
        raise ConfigurationError(f"{what} must be one of {', '.join(choices)}, got '{name}'.")
    return choices[name]


STANDARD = PhantomStyle()
