"""Errors that say what to mend, shown by nnU-Net's commands without the way to them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from nnunet_difftumor.errors import DiffTumorError

TRACEBACK_VARIABLE = "nnUNet_difftumor_traceback"
_FOLDER_CHECK = "diffusion.generator.folder_check"


@contextmanager
def short_errors(dataset: str, fold: int | str) -> Iterator[None]:
    """Let Python end with the message alone where an error of ours ends the program; others keep their traceback.

    nnU-Net's commands have no place to catch an error. The variable nnUNet_difftumor_traceback shows all of it.

    Args:
        dataset: Name of the data set, for the commands that the message advises.
    """
    try:
        yield
    except Exception as error:
        if is_own(error):
            error.args = (told_for(str(error), dataset, fold), *error.args[1:])
            if not os.environ.get(TRACEBACK_VARIABLE):
                sys.excepthook = _show
        raise


def is_own(error: BaseException) -> bool:
    """Whether an error is one of those that say what to mend, of this package or of a generator's folder."""
    folder_check = sys.modules.get(_FOLDER_CHECK)  # whoever raised such an error imported it; prediction needs none
    return isinstance(error, DiffTumorError) or (
        folder_check is not None and isinstance(error, folder_check.GeneratorFolderError)
    )


def told_for(text: str, dataset: str, fold: int | str) -> str:
    """Write data set and fold into commands of a text that does not know them."""
    number = dataset.removeprefix("Dataset").partition("_")[0]
    number = str(int(number)) if number.isdecimal() else dataset
    return re.sub(r"(-d) ID\b", rf"\1 {number}", re.sub(r"(-f) K\b", rf"\1 {fold}", text))


def _show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if is_own(error):
        print(f"\n{kind.__name__}: {error}\n`difftumor check` tells such things before a training.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)
