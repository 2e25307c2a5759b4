"""Published contrasts of tumours by organ, and the choice of what a tumour's look is drawn from.

All contrasts are tumour minus organ in the portal venous phase, in HU. A number is listed only where a source was
read. Found: liver, pancreas. Looked for and not found: kidney (attenuations of renal cell carcinomas are published
by phase, but no tumour-minus-kidney contrast in the portal venous phase was seen) and, for every organ, the standard
deviation inside a tumour after smoothing away the noise. So heterogeneity is taken from the tumours that the
generator was trained on, also where the contrast is a published one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.tumor.appearance import Appearance, AppearanceRule, Range, TruncatedNormal

TRAINING = "training"
HYPODENSE = "hypodense"


@dataclass(frozen=True, kw_only=True)
class Citation:
    """Where a number was read.

    Attributes:
        source: Title, journal and year.
        address: Where the text was read.
        numbers: What it says, in its own units.
    """

    source: str
    address: str
    numbers: str


@dataclass(frozen=True, kw_only=True)
class TargetPrior:
    """Contrast of the tumours of one organ.

    Attributes:
        words: Words of a label's name that mean the organ.
        contrast_hu: Tumour minus organ in the portal venous phase, in HU.
        derivation: How the numbers follow from the citations.
        citations: Sources of the numbers.
    """

    words: frozenset[str]
    contrast_hu: TruncatedNormal
    derivation: str
    citations: tuple[Citation, ...]


# Limits: two standard deviations below the mean, but not beyond the 80 HU that a generator is conditioned on, and
# -8 HU above, where most tumours would be dropped as invisible (AppearanceRule.smallest_contrast_hu).
TARGET_PRIORS: Mapping[str, TargetPrior] = MappingProxyType(
    {
        "liver": TargetPrior(
            words=frozenset({"liver", "hepatic"}),
            contrast_hu=TruncatedNormal(mean=-32.0, sd=18.0, low=-68.0, high=-8.0),
            derivation=(
                "Mean: contrast-to-noise ratio times noise, both medians, is 36 and 33 HU (hybrid iterative "
                "reconstruction, below and above 10 mm) and 32 and 28 HU (deep learning reconstruction); their mean "
                "is 32 HU. No standard deviation in HU was found: the relative one of the contrast-to-noise ratio, "
                "2.1 / 3.8 = 0.55, times 32 HU is 18 HU, which holds the spread of the noise too."
            ),
            citations=(
                Citation(
                    source=(
                        "Deep Learning-based CT Image Reconstruction: Initial Evaluation Targeting Hypovascular "
                        "Hepatic Metastases, RSNA 2019, abstract"
                    ),
                    address=(
                        "https://discovery.researcher.life/article/deep-learning-based-ct-image-reconstruction-"
                        "initial-evaluation-targeting-hypovascular-hepatic-metastases/"
                        "b085e560d59a37a0b9107625ee54dcaa"
                    ),
                    numbers=(
                        "58 patients; (liver - tumour) / noise: 1.9 (< 10 mm) and 1.7 (> 10 mm) at a noise of 19.2 HU, "
                        "2.5 and 2.2 at 12.8 HU, all medians"
                    ),
                ),
                Citation(
                    source=(
                        "Deep learning-based iodine contrast-augmenting algorithm for low-contrast-dose liver CT to "
                        "assess hypovascular hepatic metastasis, Abdom Radiol (NY) 2023;48(11):3430-3440, abstract"
                    ),
                    address="https://doi.org/10.1007/s00261-023-04039-0",
                    numbers="128 patients, portal phase, 120 kVp images: lesion-to-liver ratio to noise 3.8 +- 2.1",
                ),
                Citation(
                    source="Hu et al., Label-Free Liver Tumor Segmentation, CVPR 2023",
                    address="https://arxiv.org/abs/2303.14869",
                    numbers="no number used; makes hypo-attenuating liver tumours, which gives the sign",
                ),
            ),
        ),
        "pancreas": TargetPrior(
            words=frozenset({"pancreas", "pancreatic"}),
            contrast_hu=TruncatedNormal(mean=-40.5, sd=23.0, low=-80.0, high=-8.0),
            derivation=(
                "Mean and standard deviation as published for tumours that are hypo-attenuating in the pancreatic "
                "phase (49 of 57). The iso-attenuating ones (8 of 57; 7.1 +- 4.7 HU, without sign) are left out: they "
                "are below what is labelled as visible."
            ),
            citations=(
                Citation(
                    source="PubMed 17961951, abstract (57 multidetector CT studies of pancreatic carcinomas, 2007)",
                    address="https://pubmed.ncbi.nlm.nih.gov/17961951/",
                    numbers=(
                        "|tumour - pancreas| in the portal venous phase: 40.5 +- 23.0 HU (hypo-attenuating, n = 49), "
                        "7.1 +- 4.7 HU (iso-attenuating, n = 8)"
                    ),
                ),
            ),
        ),
    }
)

TARGETS = (*TARGET_PRIORS, HYPODENSE, TRAINING)


def check_target(target: str) -> str:
    """Return the target if it is known.

    Args:
        target: Name of an organ in the table, "hypodense" or "training".

    Returns:
        The target.

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
    """Return the organ of the table that a label's name means, or None.

    Args:
        label_name: Name of a label in dataset.json.
    """
    words = set(re.findall(r"[a-z]+", label_name.lower()))
    found = [name for name, prior in TARGET_PRIORS.items() if prior.words & words]
    return found[0] if len(found) == 1 else None


def make_appearance_rule(
    target: str,
    *,
    contrast_hu: Range | None = None,
    heterogeneity_hu: Range | None = None,
    examples: tuple[Appearance, ...] = (),
) -> AppearanceRule:
    """Build the rule that looks are drawn by: the user's range > the published contrast > the training tumours.

    Args:
        target: One of `TARGETS`.
        contrast_hu: The user's range of contrasts in HU, or None.
        heterogeneity_hu: The user's range of standard deviations inside a tumour in HU, or None.
        examples: Looks of the tumours that the generator was trained on.

    Returns:
        The rule.

    Raises:
        ConfigurationError: If the target is unknown.
    """
    prior = TARGET_PRIORS.get(check_target(target))
    return AppearanceRule(
        examples=examples,
        contrast_hu=contrast_hu,
        heterogeneity_hu=heterogeneity_hu,
        contrast_prior_hu=None if prior is None else prior.contrast_hu,
        only_darker=target == HYPODENSE,
    )
