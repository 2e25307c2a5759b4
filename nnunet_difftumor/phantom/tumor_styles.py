"""How tumours of the phantom look: number, size, contrast, texture, core and edge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.tumor.sizes import SizeClass

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class TumorStyle:
    """What is drawn for every tumour; a range of one value draws nothing.

    Attributes:
        most_per_organ: Largest number of tumours in an affected organ; the smallest is 1.
        size_classes: Sizes; the first tumour of a patient is of the first class. None takes those of the organ.
        contrast_share: Share of the organ's contrast.
        texture_mm: Shortest and longest wavelength of the texture in mm.
        texture_hu: Standard deviation of the texture in HU.
        core_hu: Additional difference at the centre in HU.
        core_from_mm: Radius in mm above which a tumour has a core.
        edge_share: Width of the soft edge relative to the radius; it is kept between 1 and 3 mm.
    """

    name: str
    most_per_organ: int = 3
    size_classes: tuple[SizeClass, ...] | None = None
    contrast_share: Range = (1.0, 1.0)
    texture_mm: Range = (7.0, 22.0)
    texture_hu: Range = (5.0, 11.0)
    core_hu: Range = (-18.0, 0.0)
    core_from_mm: float = 9.0
    edge_share: Range = (0.25, 0.25)


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
TUMOR_STYLES: Mapping[str, TumorStyle] = MappingProxyType({style.name: style for style in (MIXED, EARLY)})


def choose_tumor_style(name: str) -> TumorStyle:
    """Look up a style of tumours.

    Args:
        name: A key of `TUMOR_STYLES`.

    Raises:
        ConfigurationError: If there is none of that name.
    """
    if name not in TUMOR_STYLES:
        raise ConfigurationError(f"tumors must be one of {', '.join(TUMOR_STYLES)}, got '{name}'.")
    return TUMOR_STYLES[name]
