"""What the networks of a generator calculate in: bfloat16 where a CPU is made for it, else float32."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nnunet_difftumor.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

PRECISION_VARIABLE = "nnUNet_difftumor_synthesis_precision"
FLOAT32, BFLOAT16 = "float32", "bfloat16"


def synthesis_precision(device: torch.device) -> str:
    """Choose what the networks of a generator calculate in.

    bfloat16 saves half of the time of a large region on a CPU with matrix units (Intel AMX), and takes more time
    than float32 on others. The tissue differs by a tenth of a HU.

    Returns:
        "float32" or "bfloat16": what the variable nnUNet_difftumor_synthesis_precision says, else bfloat16 on a CPU
        with matrix units.

    Raises:
        ConfigurationError: If the variable holds something else.
    """
    wanted = os.environ.get(PRECISION_VARIABLE, "").strip()
    if wanted not in ("", FLOAT32, BFLOAT16):
        raise ConfigurationError(
            f"{PRECISION_VARIABLE} must be {FLOAT32} or {BFLOAT16}; it is {wanted!r}. Unset it to let the CPU decide."
        )
    return wanted or (BFLOAT16 if device.type == "cpu" and has_matrix_units() else FLOAT32)


def has_matrix_units() -> bool:
    """Whether this CPU has matrix units that PyTorch uses, as far as PyTorch can say (from version 2.6)."""
    import torch

    says = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return says is not None and torch.backends.mkldnn.is_available() and bool(says())
