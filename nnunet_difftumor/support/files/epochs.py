"""What each epoch of a training added, in a file that goes on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_difftumor.support.files.atomic_files import written_whole


def add_epoch(path: Path, epoch: int, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Write what an epoch added, after the epochs before it, one line of JSON each, and return all of them.

    Later epochs are dropped: a training that continues from a checkpoint trains them again. So is half a line, which
    a killed process left of an epoch without a checkpoint.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    rows = [*(row for row in rows if row["epoch"] < epoch), {"epoch": epoch, **content}]
    with written_whole(path, overwrite=True) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows
