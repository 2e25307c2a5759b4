"""`python -m nnunet_difftumor`: the command `difftumor`, for launchers that take a module."""

from __future__ import annotations

import sys

from nnunet_difftumor.cli import main

if __name__ == "__main__":
    sys.exit(main())
