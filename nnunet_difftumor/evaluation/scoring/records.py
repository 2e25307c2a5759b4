"""What is known about one case after scoring. The fields of these records are the columns of the tables of scores."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TumorScore:
    """One reference tumour: a row of tumors.csv.

    Attributes:
        tumor: Number within case and label, from 1.
        axial_diameter_mm: Largest diameter in an axial slice.
        size_bin: Bin of the equivalent diameter (see `rules.SIZE_BINS_MM`).
        detected: A predicted tumour is paired with it.
        touched: A predicted tumour shares a voxel with it.
        iou: Intersection over union with its pair, or without one with the predicted tumour that overlaps most.
        dice: Dice with the same predicted tumour.
        score: Score of the pair; NaN without a pair or without probabilities.
    """

    case: str
    label: str
    tumor: int
    volume_mm3: float
    equivalent_diameter_mm: float
    axial_diameter_mm: float
    size_bin: str
    detected: bool
    touched: bool
    iou: float
    dice: float
    score: float


@dataclass(frozen=True, kw_only=True)
class PredictionScore:
    """One predicted tumour: a row of predictions.csv.

    Attributes:
        component: Number within case and label, from 1.
        matched_tumor: Number of its reference tumour; None for a false positive.
        iou: Intersection over union with its pair, or without one with the reference tumour that overlaps most.
        score: Largest or mean probability; NaN without probabilities.
        touches_tumor: It shares a voxel with a reference tumour.
    """

    case: str
    label: str
    component: int
    volume_mm3: float
    matched_tumor: int | None
    iou: float
    score: float
    touches_tumor: bool


@dataclass(frozen=True, kw_only=True)
class LabelScores:
    """One label of one case: a row of cases.csv, and the tumours and predicted tumours that count.

    Attributes:
        label: Name in dataset.json.
        dice: Dice; NaN if the label is in neither map.
        nsd_1mm: Normalised surface distance at 1 mm; NaN likewise.
        nsd_2mm: Normalised surface distance at 2 mm; NaN likewise.
        reference_tumors: How many; None, as are the other numbers, for a label that is no tumour.
        detected_tumors: Reference tumours with a pair.
        touched_tumors: Reference tumours that share a voxel with a predicted one.
        false_positives: Predicted tumours without a pair.
        panoptic_quality: Panoptic quality; NaN without any tumour and for a label that is no tumour.
        patient_score: Largest tumour probability in the scan; NaN without probabilities.
    """

    case: str
    label: str
    is_healthy: bool
    dice: float
    nsd_1mm: float
    nsd_2mm: float
    reference_ml: float
    predicted_ml: float
    reference_tumors: int | None = None
    detected_tumors: int | None = None
    touched_tumors: int | None = None
    predicted_tumors: int | None = None
    false_positives: int | None = None
    panoptic_quality: float = math.nan
    patient_score: float
    tumors: tuple[TumorScore, ...] = ()
    predictions: tuple[PredictionScore, ...] = ()

    @property
    def is_tumor(self) -> bool:
        """The label is a tumour: its components are counted and paired."""
        return self.reference_tumors is not None


@dataclass(frozen=True, kw_only=True)
class CaseScores:
    """All labels of one case.

    Attributes:
        is_healthy: The reference has no voxel of any tumour label, not even a speck, and none of the ignore label.
        labels: Scores in the order of dataset.json.
    """

    case: str
    is_healthy: bool
    labels: tuple[LabelScores, ...]

    def of_label(self, name: str) -> LabelScores:
        """Return the scores of a label; KeyError if the case has no such label."""
        for scores in self.labels:
            if scores.label == name:
                return scores
        raise KeyError(f"{self.case} has no label {name!r}; it has {', '.join(each.label for each in self.labels)}.")


@dataclass(frozen=True)
class CaseError:
    """Why a case has no scores: a row of errors.csv.

    Attributes:
        message: What is wrong, and how to fix it.
    """

    case: str
    error: str
    message: str
