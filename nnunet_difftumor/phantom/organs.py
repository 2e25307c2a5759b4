"""Organs of the phantom that carry tumours: their labels, and what tumours look like in each contrast phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.tumor.sizes import SizeClass

PORTAL_VENOUS, ARTERIAL, UNENHANCED = "portal-venous", "arterial", "unenhanced"
"""Contrast phases."""


@dataclass(frozen=True, kw_only=True)
class OrganRule:
    """How tumours of one organ are drawn.

    Attributes:
        name: Name of the organ, and of its field in `TissueValues`.
        size_classes: Sizes of the tumours; the first tumour of a patient is always of the first class.
        contrast_hu: Lowest and highest contrast against the organ in HU, by phase.
        exophytic_share: Share of the tumours that are centred near the organ's surface and grow out of it.
    """

    name: str
    size_classes: tuple[SizeClass, ...]
    contrast_hu: Mapping[str, tuple[float, float]]
    exophytic_share: float = 0.0

    @property
    def is_exophytic(self) -> bool:
        """Whether tumours may lie outside the organ."""
        return self.exophytic_share > 0


def _contrasts(portal: tuple[float, float], arterial: tuple[float, float], unenhanced: tuple[float, float]) -> Mapping:
    return MappingProxyType({PORTAL_VENOUS: portal, ARTERIAL: arterial, UNENHANCED: unenhanced})


LIVER = OrganRule(
    name="liver",
    size_classes=(
        SizeClass(name="medium", radius_mm=(11.0, 20.0), probability=0.4),
        SizeClass(name="small", radius_mm=(6.0, 11.0), probability=0.35),
        SizeClass(name="tiny", radius_mm=(4.0, 6.0), probability=0.25),
    ),
    contrast_hu=_contrasts((-60.0, -30.0), (-35.0, -12.0), (-28.0, -12.0)),
)
PANCREAS = OrganRule(
    name="pancreas",
    size_classes=(
        SizeClass(name="small", radius_mm=(6.0, 10.0), probability=0.6),
        SizeClass(name="tiny", radius_mm=(4.0, 6.0), probability=0.4),
    ),
    contrast_hu=_contrasts((-60.0, -30.0), (-70.0, -35.0), (-16.0, -8.0)),
)
KIDNEY = OrganRule(
    name="kidney",
    size_classes=(
        SizeClass(name="medium", radius_mm=(11.0, 18.0), probability=0.5),
        SizeClass(name="small", radius_mm=(6.0, 11.0), probability=0.5),
    ),
    contrast_hu=_contrasts((-100.0, -55.0), (-110.0, -50.0), (6.0, 14.0)),
    exophytic_share=0.6,
)
ORGANS: Mapping[str, OrganRule] = MappingProxyType({rule.name: rule for rule in (LIVER, PANCREAS, KIDNEY)})


def choose_organs(names: tuple[str, ...]) -> tuple[OrganRule, ...]:
    """Look up organs by name.

    Args:
        names: Names, each once.

    Returns:
        Their rules, in the same order.

    Raises:
        ConfigurationError: If a name is unknown or given twice, or there is none.
    """
    unknown = [name for name in names if name not in ORGANS]
    if unknown or not names or len(set(names)) != len(names):
        given = ", ".join(names) or "none"
        raise ConfigurationError(f"organs must be some of {', '.join(ORGANS)}, each once, got {given}.")
    return tuple(ORGANS[name] for name in names)


def labels_of(organs: tuple[OrganRule, ...]) -> dict[str, int]:
    """Label names and values of a data set: organ and tumour in turn.

    Returns:
        {"background": 0, "liver": 1, "tumor": 2} for one organ; for several, tumours are named "liver_tumor".
    """
    labels = {"background": 0}
    for index, organ in enumerate(organs):
        labels[organ.name] = 2 * index + 1
        labels["tumor" if len(organs) == 1 else f"{organ.name}_tumor"] = 2 * index + 2
    return labels
