from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nnunet_difftumor.trainer.short_errors import TRACEBACK_VARIABLE

PROGRAM = """
from nnunet_difftumor.errors import LeakError
from nnunet_difftumor.trainer.short_errors import short_errors

with short_errors("Dataset007_Pancreas", 2):
    raise {error}("Train another generator: difftumor train-diffusion -d ID -f K")
"""


def ended(error: str, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != TRACEBACK_VARIABLE} | variables
    words = [sys.executable, "-c", PROGRAM.format(error=error)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return done.stderr


def test_an_error_of_ours_ends_a_training_with_its_message_alone_and_a_command_that_fits():
    assert ended("LeakError").splitlines() == [
        "",
        "LeakError: Train another generator: difftumor train-diffusion -d 7 -f 2",
        "`difftumor check` tells such things before a training.",
    ]


@pytest.mark.parametrize(("error", "variables"), [("KeyError", {}), ("LeakError", {TRACEBACK_VARIABLE: "1"})])
def test_other_errors_and_whoever_asks_for_it_get_a_traceback(error, variables):
    assert "Traceback (most recent call last)" in ended(error, **variables)
