"""Train stage one, the autoencoder; the same as `difftumor train-autoencoder` (see --help)."""

from __future__ import annotations

import sys

from nnunet_difftumor.cli import main

if __name__ == "__main__":
    sys.exit(main(["train-autoencoder", *sys.argv[1:]]))
