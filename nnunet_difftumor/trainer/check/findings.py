"""Named checks, each of which finds one line: fine, a warning, or a fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nnunet_difftumor.trainer.short_errors import told_for

OK, WARNING, FAULT = "ok", "warning", "fault"
SPOKEN_ERRORS = (ImportError, OSError, ValueError)
"""Errors whose message alone tells what is wrong and what to do; DiffTumorError is one of them."""


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        level: `OK`, `WARNING` or `FAULT`.
        text: One line; of a warning or a fault with what to do.
    """

    level: str
    text: str

    def about(self, dataset: str, fold: int | str) -> Finding:
        """Write data set and fold into the commands of errors that do not know them."""
        return replace(self, text=told_for(self.text, dataset, fold))


@dataclass(frozen=True)
class Check:
    """A named check.

    Attributes:
        look: Looks at a subject and raises, or returns a fault, for what a training would end in.
    """

    name: str
    look: Callable[[Any], Finding]


def ok(text: str) -> Finding:
    """Say that all is well."""
    return Finding(OK, text)


def warning(text: str) -> Finding:
    """Say what a training can be started with all the same."""
    return Finding(WARNING, text)


def fault(text: str) -> Finding:
    """Say what a training must not be started with."""
    return Finding(FAULT, text)


def run_checks(checks: Sequence[Check], subject: Any) -> Iterator[tuple[str, Finding]]:
    """Make checks in turn, and yield the name and the finding of each.

    A check that ends in an error that was told already, because it needs what another one found missing, is left out.
    """
    told: set[str] = set()
    for check in checks:
        try:
            finding = check.look(subject)
        except Exception as error:  # nnU-Net's own errors too: a check says what it met and goes on
            finding = fault(_describe(error))
            if finding.text in told:
                continue
            told.add(finding.text)
        yield check.name, Finding(finding.level, " ".join(finding.text.split()))


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, SPOKEN_ERRORS) else f"{type(error).__name__}: {error}"
