"""The files of a scoring, and their columns."""

from __future__ import annotations

SUMMARY_FILE = "summary.json"
CASES_FILE = "cases.csv"
TUMORS_FILE = "tumors.csv"
PREDICTIONS_FILE = "predictions.csv"
ERRORS_FILE = "errors.csv"
FROC_FILE = "froc.csv"
SPECIFICITY_FILE = "specificity.csv"
ROC_FILE = "roc.csv"
FILTERED_FOLDER = "organ_filter"

CASE_COLUMNS = tuple(
    "case label is_healthy dice nsd_1mm nsd_2mm reference_ml predicted_ml reference_tumors detected_tumors "
    "touched_tumors predicted_tumors false_positives panoptic_quality patient_score".split()
)
COUNT_COLUMNS = CASE_COLUMNS[8:13]
"""Columns of `CASE_COLUMNS` that are empty for a label that is no tumour."""
