from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from autoencoder.engine.settings import RunSettings
from diffusion.presets import DIFFUSION_PRESETS


def test_settings_take_what_the_run_chooses():
    settings = DIFFUSION_PRESETS["tiny"].fit_settings(RunSettings(steps=7, seed=3))
    assert (settings.steps, settings.seed) == (7, 3)
    assert settings.learning_rate == DIFFUSION_PRESETS["tiny"].learning_rate


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_probabilities": (0.5, 0.4)}, "summing to 1"),
        ({"crop_sides": (32, 50)}, "multiples of 4"),
        ({"condition_dropout": 1.0}, "condition_dropout"),
    ],
)
def test_inconsistent_presets_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(DIFFUSION_PRESETS["nano"], **changes)


def test_table_can_be_read_without_torch():
    code = "import sys, diffusion.presets; print('torch' in sys.modules, 'diffusers' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["False", "False"]
