"""The versions that the runs of a study are trained with, which must not mix: augmentation differs between them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from nnunet_difftumor import __version__
from nnunet_difftumor.errors import OutputExistsError, list_some
from nnunet_difftumor.support.processes.steps import FINISHED, NOT_STARTED, Step

VERSIONS_FILE = "versions.json"
_MUST_NOT_MIX = ("nnunetv2", "batchgeneratorsv2")  # batchgeneratorsv2 0.3.4 turned rotations round


def installed_versions() -> dict[str, str]:
    """Versions of what trains, by name of the package."""
    return {**{name: version(name) for name in (*_MUST_NOT_MIX, "torch")}, "nnunet-difftumor": __version__}


def check_versions(runs: Sequence[Step], *, trains: bool) -> None:
    """Refuse a study whose runs are trained with several versions of nnU-Net or of its augmentation.

    Runs without a record of their versions are accepted, with one warning.

    Args:
        trains: Runs that are not finished are to be trained, with the versions that are installed.

    Raises:
        OutputExistsError: If versions mix; names runs and versions.
    """
    states = {run.name: run.state() for run in runs}
    found: dict[str, list[str]] = {}
    for run in runs:
        if states[run.name] == FINISHED or (trains and states[run.name] != NOT_STARTED):
            found.setdefault(_recorded(run), []).append(run.name)
    unknown = found.pop("", [])
    if unknown:
        print(
            f"Warning: {len(unknown)} runs have no {VERSIONS_FILE}; {' and '.join(_MUST_NOT_MIX)} must have been the "
            f"same in all runs: {list_some(unknown)}",
            file=sys.stderr,
        )
    if found and trains and any(state != FINISHED for state in states.values()):
        found.setdefault(_text(installed_versions()), []).append("what is installed")
    if len(found) > 1:
        lines = "\n".join(f"  {versions}: {list_some(names)}" for versions, names in found.items())
        raise OutputExistsError(
            f"Runs of one study were or would be trained with different versions:\n{lines}\nInstall the versions of "
            "the finished runs, move the folders of the other runs away, or name another --output."
        )


def _recorded(run: Step) -> str:
    path = run.work_folder / VERSIONS_FILE
    return _text(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else ""


def _text(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {versions.get(name, '?')}" for name in _MUST_NOT_MIX)
