"""How a command that runs other commands ends when it is told to."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """End on SIGTERM as if by Ctrl-C, so that the running command is ended too.

    The handler of before is back afterwards. A process pool of the same process would inherit this one, and a worker
    that is told to end while it starts can lose the exception: its pool then waits for it for ever.

    Yields:
        Nothing; SIGTERM raises `SystemExit` within.
    """
    before: Any = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, frame: Any) -> None:
    sys.exit(128 + number)
