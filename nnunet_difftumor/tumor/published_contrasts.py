"""Published contrasts of tumours by organ, and the choice of what a tumour's look is drawn from.

All are of the portal venous phase, in HU: the contrast of tumour minus organ, or the level of tumour tissue. A number
is listed only where a source was read; docs/explanation/synthesis.md names the sources and says how the numbers follow
from them. Heterogeneity is taken from the tumours that the generator was trained on, also where the contrast is a
published one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.tumor.appearance import (
    LOWEST_TISSUE_HU,
    Appearance,
    AppearanceRule,
    Range,
    TissueLevel,
    TruncatedNormal,
)

if TYPE_CHECKING:
    from diffusion.generator.info import EdgeStatistics

TRAINING = "training"
HYPODENSE = "hypodense"


PUBLISHED_CONTRASTS_HU: Mapping[str, TruncatedNormal] = {
    # Three patients (docs/explanation/synthesis.md), to two standard deviations above and not below `LOWEST_TISSUE_HU`.
    "liver": TissueLevel(mean=47.0, sd=20.0, low=LOWEST_TISSUE_HU, high=87.0, usual_host_hu=115.0),
    # Source 3 there, the 49 hypo-attenuating tumours: to 80 HU, which is all that a fill shows, and to -8 HU above,
    # where most tumours would be dropped as invisible (AppearanceRule.smallest_contrast_hu).
    "pancreas": TruncatedNormal(mean=-40.5, sd=23.0, low=-80.0, high=-8.0),
}
_WORDS = {"liver": {"liver", "hepatic"}, "pancreas": {"pancreas", "pancreatic"}}
"""Words of a label's name that mean an organ of the table."""

TARGETS = (*PUBLISHED_CONTRASTS_HU, HYPODENSE, TRAINING)


def check_target(target: str) -> str:
    """Return the target if it is one of `TARGETS`.

    Raises:
        ConfigurationError: If it is unknown.
    """
    if target not in TARGETS:
        raise ConfigurationError(
            f"target must be one of {', '.join(TARGETS)}, got {target!r}. For other organs give a range of contrasts "
            'in HU: --contrast-hu LO HI, or "contrast_hu": [LO, HI].'
        )
    return target


def find_target(label_name: str) -> str | None:
    """Return the organ of the table that a label's name means, or None."""
    words = set(re.findall(r"[a-z]+", label_name.lower()))
    found = [organ for organ, meaning in _WORDS.items() if meaning & words]
    return found[0] if len(found) == 1 else None


def published_edges(target: str) -> tuple[EdgeStatistics, ...]:
    """Where readers of a target's tumours draw the outline, for generators that learned from tumours of other organs.

    Liver: two of the three patients of its contrasts, 32 tumours of 8 to 30 mm: half of the depth 2.2 and 3.4 mm inside
    the outline, and 3.3 mm from a quarter to three quarters (docs/explanation/edges.md). The intervals are these two.

    Returns:
        Statistics for all sizes alike; none for other targets.
    """
    from diffusion.generator.info import EdgeStatistics  # prediction imports this module too

    if target != "liver":
        return ()
    return (
        EdgeStatistics(
            from_diameter_mm=0.0,
            tumors=32,
            offset_mm=-2.5,
            offset_sd_mm=0.6,
            offset_interval_mm=(-3.4, -2.2),
            width_mm=3.3,
            width_sd_mm=0.5,
            width_interval_mm=(3.2, 3.4),
        ),
    )


def edges_in_use(target: str, measured: tuple[EdgeStatistics, ...], *, is_own: bool) -> tuple[EdgeStatistics, ...]:
    """Edges that a generator's tumours get: those of its training tumours, if it is the user's own.

    A builtin one learned from tumours of other organs, so published edges of the target are better, if there are any.
    """
    return measured if is_own and measured else published_edges(target) or measured


def make_appearance_rule(
    target: str,
    *,
    contrast_hu: Range | None = None,
    heterogeneity_hu: Range | None = None,
    examples: tuple[Appearance, ...] = (),
) -> AppearanceRule:
    """Build the rule that looks are drawn by: the user's range > the published contrast > the training tumours.

    Args:
        examples: Looks of the tumours that the generator was trained on.

    Raises:
        ConfigurationError: If the target is unknown.
    """
    return AppearanceRule(
        examples=examples,
        contrast_hu=contrast_hu,
        heterogeneity_hu=heterogeneity_hu,
        contrast_prior_hu=PUBLISHED_CONTRASTS_HU.get(check_target(target)),
        only_darker=target == HYPODENSE,
    )
