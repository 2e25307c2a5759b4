"""Whether each aim is reached, in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunet_difftumor.evaluation.realism.settings import FEWEST_PATIENTS
from nnunet_difftumor.evaluation.statistics.intervals import Estimate

REACHED, NOT_REACHED, NOT_DECIDABLE, NOT_MEASURED = "reached", "not reached", "not decidable", "not measured"


@dataclass(frozen=True)
class Aim:
    """What a figure of the summary should be.

    Attributes:
        key: Its name in the summary.
        meaning: Subject of the sentence.
        low, high: Ends of what is aimed at, both within it.
    """

    key: str
    meaning: str
    low: float = -math.inf
    high: float = math.inf

    @property
    def text(self) -> str:
        """The aim in words."""
        if math.isinf(self.low):
            return f"at most {self.high:.2f}"
        return f"at least {self.low:.2f}" if math.isinf(self.high) else f"{self.low:.2f} to {self.high:.2f}"

    def verdict(self, found: Estimate) -> str:
        """Reached if the whole interval is within the aim, not reached if none of it is, else not decidable."""
        if not math.isfinite(found.value):
            return NOT_MEASURED
        if not (math.isfinite(found.low) and math.isfinite(found.high)):
            return NOT_DECIDABLE
        if self.low <= found.low and found.high <= self.high:
            return REACHED
        return NOT_REACHED if found.high < self.low or found.low > self.high else NOT_DECIDABLE


AIMS = (
    Aim("two_sample_auc", "Two-sample classifier, area under the curve", high=0.70),
    Aim("rim_probe_auc", "Rim probe, area under the curve", high=0.60),
    Aim("transplant_plausible_share", "Share of transplants with a plausible mean", low=0.9),
    Aim("mean_spread_ratio", "Spread of the transplants' means over that of real tumours", 0.8, 1.25),
    Aim("lowpass_ratio_in_place", "Low-pass sd in place over that of the real tumours", 0.8, 1.2),
    Aim("depth_reached", "Depth reached over depth requested", 0.9, 1.1),
    Aim("sham_two_sample_auc", "Shams against untouched tissue, area under the curve", high=0.55),
    Aim("sham_rim_probe_auc", "Shams with the inside hidden, area under the curve", high=0.55),
    Aim("redrawn_sham_two_sample_auc", "Redrawn shams against untouched tissue, area under the curve", high=0.55),
)

_NEEDS_PATIENTS = ("transplant_plausible_share", "mean_spread_ratio")


def judge(figures: Mapping[str, Any]) -> list[dict[str, str]]:
    """Say of each aim whether it is reached.

    Args:
        figures: What `summarize` returned.

    Returns:
        For each aim its `key`, the `verdict` ("reached", "not reached", "not decidable": the interval crosses the end
        of the aim, "not measured") and a `sentence`.
    """
    rows = []
    for aim in AIMS:
        found: Estimate = figures[aim.key]
        verdict = aim.verdict(found)
        sentence = f"{aim.meaning}: {_said(aim, found, verdict, figures['plausible_range_patients'])}"
        rows.append({"key": aim.key, "verdict": verdict, "sentence": sentence})
    return rows


def _said(aim: Aim, found: Estimate, verdict: str, patients: int) -> str:
    if verdict == NOT_MEASURED:
        is_few = aim.key in _NEEDS_PATIENTS and patients < FEWEST_PATIENTS
        reason = f": {patients} patient{'s' * (patients != 1)}, {FEWEST_PATIENTS} needed" if is_few else ""
        return f"{verdict}{reason}. Aim: {aim.text}."
    if not math.isfinite(found.low):
        return f"{found.value:.2f}, without an interval ({found.method}); aim {aim.text}: {verdict}."
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f}); aim {aim.text}: {verdict}."
