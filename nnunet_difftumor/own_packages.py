"""Guard against other distributions that install packages named `autoencoder` or `diffusion`."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from nnunet_difftumor import DISTRIBUTION


def require_own_packages(names: tuple[str, ...] = ("autoencoder", "diffusion")) -> None:
    """Check that the packages found under these names are ours, without importing them.

    Raises:
        ImportError: If a package is missing or belongs to another distribution; the message names the
            foreign file and the fix.
    """
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ImportError(
                f"The package '{name}' of {DISTRIBUTION} was not found. "
                f"Reinstall it: pip install --force-reinstall --no-deps {DISTRIBUTION}"
            )
        if _declared_distribution(Path(spec.origin)) != DISTRIBUTION:
            raise ImportError(
                f"'{name}' is imported from {spec.origin}, which belongs to another distribution and hides the "
                f"package of the same name in {DISTRIBUTION}. Uninstall the other one (or remove that file), "
                f"then: pip install --force-reinstall --no-deps {DISTRIBUTION}"
            )


def _declared_distribution(init_file: Path) -> str | None:
    """Value of the constant DISTRIBUTION in a file, read as text: foreign code is not run."""
    try:
        text = init_file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"""^DISTRIBUTION *= *["'](.*)["']""", text, re.MULTILINE)
    return None if found is None else found[1]
