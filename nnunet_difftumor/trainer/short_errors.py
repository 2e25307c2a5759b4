"""Errors that say what to mend, shown by nnU-Net's commands without the way to them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from diffusion.generator.folder_check import GeneratorFolderError
from nnunet_difftumor.errors import DiffTumorError

TRACEBACK_VARIABLE = "nnUNet_difftumor_traceback"
OWN_ERRORS = (DiffTumorError, GeneratorFolderError)


@contextmanager
def short_errors(dataset: str, fold: int | str) -> Iterator[None]:
    """Let Python end with the message alone where an error of ours ends the program; others keep their traceback.

    nnU-Net's commands have no place to catch an error. The variable nnUNet_difftumor_traceback shows all of it.

    Args:
        dataset: Name of the data set, for the commands that the message advises.
    """
    try:
        yield
    except OWN_ERRORS as error:
        error.args = (told_for(str(error), dataset, fold), *error.args[1:])
        if not os.environ.get(TRACEBACK_VARIABLE):
            sys.excepthook = _show
        raise


def told_for(text: str, dataset: str, fold: int | str) -> str:
    """Write data set and fold into commands of a text that does not know them."""
    number = dataset.removeprefix("Dataset").partition("_")[0]
    number = str(int(number)) if number.isdecimal() else dataset
    return re.sub(r"(-d) ID\b", rf"\1 {number}", re.sub(r"(-f) K\b", rf"\1 {fold}", text))


def _show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if isinstance(error, OWN_ERRORS):
        print(f"\n{kind.__name__}: {error}\n`difftumor check` tells such things before a training.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)
