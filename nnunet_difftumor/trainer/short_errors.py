"""Errors that say what to mend, shown by nnU-Net's commands without the way to them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from nnunet_difftumor.errors import DiffTumorError

TRACEBACK_VARIABLE = "nnUNet_difftumor_traceback"


@contextmanager
def short_errors() -> Iterator[None]:
    """Let Python end with the message alone where an error of ours ends the program; others keep their traceback.

    nnU-Net's commands have no place to catch an error. The variable nnUNet_difftumor_traceback shows all of it.
    """
    try:
        yield
    except DiffTumorError:
        if not os.environ.get(TRACEBACK_VARIABLE):
            sys.excepthook = _show
        raise


def _show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if isinstance(error, DiffTumorError):
        print(f"\n{kind.__name__}: {error}\n`difftumor check` tells such things before a training.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)
