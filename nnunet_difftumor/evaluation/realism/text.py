"""Figures as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def show(value: Any, decimals: int = 2) -> str:
    """Write a number, text, or mapping with value, low and high: "12.3 (10.1 to 14.8)"; a dash where there is none."""
    if isinstance(value, Mapping):
        text = show(value["value"], decimals)
        if value["value"] is None or value["low"] is None:
            return text
        return f"{text} ({value['low']:.{decimals}f} to {value['high']:.{decimals}f})"
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.{decimals}f}"
