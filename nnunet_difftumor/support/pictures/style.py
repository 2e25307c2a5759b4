"""Figures that look the same whatever another package has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_style() -> Iterator[None]:
    """Draw with matplotlib's own settings: nnU-Net makes all text of its process 2.5 times as large for its plot."""
    import matplotlib.style

    with matplotlib.style.context("default"):
        yield
