"""What is compared: measures of scans and tumours, and how each becomes sums over patients."""

from __future__ import annotations

from dataclasses import dataclass

from nnunet_difftumor.evaluation.statistics import scales
from nnunet_difftumor.evaluation.statistics.scales import Scale

TUMOR_SCANS, HEALTHY_SCANS, ALL_SCANS, TUMORS = "scans with a tumour", "healthy scans", "scans", "tumours"


@dataclass(frozen=True)
class Measure:
    """One measure.

    Attributes:
        key, title: Names in files and in tables.
        of: What it is averaged over within a patient: scans with a tumour, healthy scans, all scans, or tumours.
        column: Column of cases.csv or tumors.csv.
        meaning: One sentence for the report.
    """

    key: str
    title: str
    of: str
    column: str
    meaning: str
    scale: Scale
    difference_scale: Scale
    is_better_high: bool = True

    @property
    def weighs_patients_alike(self) -> bool:
        """Every patient counts 1, whatever the number of scans; otherwise every scan or tumour."""
        return self.of == TUMOR_SCANS


_AMOUNTS = (scales.SHARE, scales.SHARE_DIFFERENCE)
_HITS = (scales.HIT_SHARE, scales.HIT_DIFFERENCE)
_COUNTS = (scales.COUNT, scales.DIFFERENCE)

_PAIRED = "share of the tumours with which a predicted tumour is paired"
_TOUCHED = "share of the tumours with which a predicted tumour shares a voxel"
_MATCHED = (
    "Dice of each tumour with the predicted tumour that is matched to it or overlaps it most, 0 without any; mean over "
    "tumours"
)
_WRONG = "predicted tumours that are paired with none, per scan, healthy or not; lower is better"
_CLEAN = "share of the healthy scans without a predicted tumour"
_AREA = "area under the ROC curve of the largest tumour probability in a scan, scans with a tumour against healthy ones"


def _overlap(key: str, title: str, meaning: str) -> Measure:
    return Measure(key, title, TUMOR_SCANS, key, f"{meaning}; mean over patients", *_AMOUNTS)


DICE = _overlap("dice", "Dice", "Dice of the tumour label in scans with a tumour, 0 where nothing was predicted")
NSD_2MM = _overlap("nsd_2mm", "Surface Dice at 2 mm", "surface Dice at a tolerance of 2 mm")
NSD_1MM = _overlap("nsd_1mm", "Surface Dice at 1 mm", "surface Dice at a tolerance of 1 mm")
PANOPTIC_QUALITY = _overlap("panoptic_quality", "Panoptic quality", "panoptic quality of the tumours of a scan")
SENSITIVITY = Measure("sensitivity", "Sensitivity", TUMORS, "detected", _PAIRED, *_HITS)
TOUCHED = Measure("touched", "Tumours touched", TUMORS, "touched", _TOUCHED, *_HITS)
TUMOR_DICE = Measure("tumor_dice", "Dice per tumour", TUMORS, "dice", _MATCHED, *_AMOUNTS)
FALSE_POSITIVES = Measure(
    "false_positives", "False positives per scan", ALL_SCANS, "false_positives", _WRONG, *_COUNTS, is_better_high=False
)
SPECIFICITY = Measure("specificity", "Specificity", HEALTHY_SCANS, "is_clean", _CLEAN, *_HITS)
AUROC = Measure("auroc", "AUROC", ALL_SCANS, "patient_score", _AREA, *_AMOUNTS)

SIZE_MEASURES = (SENSITIVITY, TOUCHED, TUMOR_DICE)
"""Measures of tumours, by size."""

MEASURES = (DICE, NSD_2MM, NSD_1MM, PANOPTIC_QUALITY, *SIZE_MEASURES, FALSE_POSITIVES, SPECIFICITY, AUROC)
"""All measures, in the order of the tables."""

SUBGROUP_MEASURES = (DICE, NSD_2MM, SENSITIVITY, FALSE_POSITIVES, SPECIFICITY)
"""Measures by hospital, age, sex, phase and scanner; the primary measure joins them."""

EMPTY, TOO_FEW, NOT_MEASURED = "empty", "too few", "not measured"
"""How a cell begins that tells why there is no figure."""

NO_PROBABILITIES = f"{NOT_MEASURED}: the scores need probabilities"


def measure_of(key: str) -> Measure:
    """Find a measure by its key."""
    return next(measure for measure in MEASURES if measure.key == key)


def is_lack(text: str) -> bool:
    """Say whether a cell tells why there is no figure."""
    return text == EMPTY or text.startswith((f"{TOO_FEW}: ", f"{NOT_MEASURED}: "))
