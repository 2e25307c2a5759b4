"""Train stage two, the diffusion model; the same as `difftumor train-diffusion` (see --help)."""

from __future__ import annotations

import sys

from nnunet_difftumor.cli import main

if __name__ == "__main__":
    sys.exit(main(["train-diffusion", *sys.argv[1:]]))
