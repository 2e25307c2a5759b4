"""What holds for every tumour of a target: sizes, looks, places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.injection.intensities import CTIntensities
from nnunet_difftumor.settings.trainer_settings import OrganTarget
from nnunet_difftumor.synthesis.placement import INSIDE, Zone
from nnunet_difftumor.tumor.appearance import AppearanceRule
from nnunet_difftumor.tumor.sizes import SizeClass

BACKGROUND = 0


@dataclass(frozen=True, kw_only=True)
class InjectionRules:
    """What may be put where in the crops of one data set.

    Attributes:
        organ_label: Label in which tumours are placed.
        tumor_label: Label that tumours get.
        exophytic: Tumours may replace background voxels as well.
        spacing_mm: Spacing of the preprocessed data in mm, array order.
        appearances: What contrast and heterogeneity are drawn from; without examples, those of the generator's
            training tumours are taken.
        zone: Where in the organ tumours lie.
        avoid_labels: Labels that tumours keep away from.
        tumor_counts: Numbers of tumours that a case may get, drawn from alike: those of the annotated cases. None: as
            many as the size class that is drawn for the case allows.
        real_tumor_labels: Labels of annotated tumours, which are not touched.
    """

    organ_label: int
    tumor_label: int
    exophytic: bool
    spacing_mm: tuple[float, float, float]
    intensities: CTIntensities
    size_classes: tuple[SizeClass, ...]
    appearances: AppearanceRule = field(default_factory=AppearanceRule)
    zone: Zone = INSIDE
    avoid_labels: tuple[int, ...] = ()
    tumor_counts: tuple[int, ...] | None = None
    real_tumor_labels: tuple[int, ...] = ()

    def replaceable(self, labels: NDArray[np.integer]) -> NDArray[np.bool_]:
        """True where a label may become tumour: organ, and background if tumours may leave it. Shape of the labels."""
        organ = labels == self.organ_label
        return organ | (labels == BACKGROUND) if self.exophytic else organ


def make_rules(
    target: OrganTarget,
    size_classes: Sequence[SizeClass],
    plans: Mapping[str, Any],
    spacing_mm: Sequence[float],
    *,
    tumor_counts: Sequence[int] = (),
    real_tumor_labels: Sequence[int] = (),
    is_kidney: bool = False,
) -> InjectionRules:
    """Derive the rules of one target from its settings and nnU-Net's plans.

    Args:
        size_classes: Its radii in mm; those of the settings, or of the fold's real tumours.
        plans: Content of nnUNetPlans.json.
        spacing_mm: Spacing of the configuration in mm, array order.
        tumor_counts: Numbers of tumours in the fold's annotated cases; none if there are no such cases.
        is_kidney: Shares outside the organ that are not set are those of real kidney tumours.

    Raises:
        ConfigurationError: If the plans do not hold the constants of the normalisation.
    """
    depth, height, width = (float(value) for value in spacing_mm)
    outside = target.outside_share or ("kidney" if is_kidney else None)
    return InjectionRules(
        organ_label=target.organ_label,
        tumor_label=target.tumor_label,
        exophytic=target.exophytic,
        spacing_mm=(depth, height, width),
        intensities=CTIntensities.from_plans(plans),
        size_classes=tuple(size_classes),
        appearances=target.appearances,
        zone=Zone(
            surface_distance_mm=target.surface_distance_mm,
            avoid_distance_mm=target.avoid_distance_mm,
            outside_share=outside if target.exophytic else None,
        ),
        avoid_labels=target.avoid_labels,
        tumor_counts=tuple(tumor_counts) or None,
        real_tumor_labels=tuple(real_tumor_labels),
    )
