"""What a generator's networks calculate in, on this CPU and when asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.synthesis.tissue.diffusion import (
    PRECISION_VARIABLE,
    DiffusionTissue,
    has_matrix_units,
    synthesis_precision,
)
from nnunet_difftumor.synthesis.tissue.interface import GeneratedRegions
from nnunet_difftumor.tumor.appearance import Appearance

CPU = torch.device("cpu")


@pytest.mark.parametrize(("has_units", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_a_cpu_with_matrix_units_takes_bfloat16(
    monkeypatch: pytest.MonkeyPatch, has_units: bool, expected: str
) -> None:
    monkeypatch.delenv(PRECISION_VARIABLE, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_units, raising=False)
    assert synthesis_precision(CPU) == expected
    assert synthesis_precision(torch.device("cuda")) == "float32"


def test_a_pytorch_that_cannot_say_takes_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert not has_matrix_units()


def test_an_unknown_precision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PRECISION_VARIABLE, "half")
    with pytest.raises(ConfigurationError, match="must be float32 or bfloat16; it is 'half'"):
        synthesis_precision(CPU)


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch, nano_generator_folder: Path) -> None:
    rng = np.random.default_rng(0)
    host_hu = rng.normal(50.0, 20.0, (1, 16, 16, 16)).astype(np.float32)
    mask = np.zeros(host_hu.shape, dtype=bool)
    mask[:, 5:11, 5:11, 5:11] = True

    def generate(precision: str) -> GeneratedRegions:
        monkeypatch.setenv(PRECISION_VARIABLE, precision)
        tissue = DiffusionTissue.from_folder(nano_generator_folder)
        assert tissue.precision == precision
        return tissue.generate(host_hu, mask, [Appearance(contrast_hu=-30.0, heterogeneity_hu=8.0)], [7])

    float32, bfloat16, again = (generate(precision) for precision in ("float32", "bfloat16", "bfloat16"))
    assert 0.0 < np.abs(bfloat16.tumor_hu - float32.tumor_hu).max() < 5.0
    np.testing.assert_array_equal(bfloat16.tumor_hu, again.tumor_hu)
