"""Figures as text: the same in tables, captions and the methods paragraph."""

from __future__ import annotations

import math
from collections.abc import Iterable

from nnunet_difftumor.evaluation.statistics.intervals import Estimate

DASH = "-"
_DECIMALS = 3


def show_value(value: float, *, signed: bool = False) -> str:
    """Write a figure: "0.712", "+0.031"; a dash where there is none."""
    if math.isnan(value):
        return DASH
    text = f"{value:+.{_DECIMALS}f}" if signed else f"{value:.{_DECIMALS}f}"
    return text.lstrip("+-") if signed and not float(text) else text


def show_interval(estimate: Estimate | None, *, signed: bool = False) -> str:
    """Write the ends of an interval: "0.680 to 0.741"; empty where there is none."""
    if estimate is None or math.isnan(estimate.low):
        return ""
    return f"{show_value(estimate.low, signed=signed)} to {show_value(estimate.high, signed=signed)}"


def show_estimate(estimate: Estimate, *, signed: bool = False) -> str:
    """Write a figure with its interval in brackets, or say why there is none."""
    value, interval = show_value(estimate.value, signed=signed), show_interval(estimate, signed=signed)
    return estimate.method if value == DASH else f"{value} ({interval or estimate.method})"


def show_p_value(p_value: float) -> str:
    """Write a p-value: "0.012", "<0.001"; a dash where nothing was tested."""
    if math.isnan(p_value):
        return DASH
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def listing(names: Iterable[str]) -> str:
    """Write names as in a sentence: "a, b and c"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def counted(number: int, noun: str) -> str:
    """Write a number of things: "1 tumour", "2 tumours"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
