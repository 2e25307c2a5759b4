"""Environment variables that hold within a block only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def temporary_environment(**values: str | None) -> Iterator[None]:
    """Set environment variables within the block.

    Args:
        values: Values by name; None removes a variable.

    Yields:
        Nothing; afterwards every variable is as it was.
    """
    before = {name: os.environ.get(name) for name in values}
    try:
        _set(values)
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
