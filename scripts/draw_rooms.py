"""Draw the rooms of docs/explanation/architecture.md from the import contract in pyproject.toml."""

from __future__ import annotations

import argparse
import ast
import sys
import textwrap
import tomllib
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "rooms.svg"
CONTRACT = "One direction: ct, tumor, synthesis, injection, trainer, evaluation"


def floors() -> list[list[str]]:
    """Rooms that stand side by side, from the top of the house to its ground."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["name"] == CONTRACT)
    return [layer.split(" | ") for layer in layers]


def first_line(room: str) -> str:
    """First line of what a room, or a file that stands alone, says of itself."""
    path = ROOT / "nnunet_difftumor" / room
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    documentation = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return documentation.split("\n")[0].removesuffix(".")


def draw(picture: Path) -> None:
    """Draw one box a room; what a room needs stands below it."""
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "rooms"})
    stack = [*floors(), ["diffusion"], ["autoencoder"]]
    figure, axes = plt.subplots(figsize=(10, 0.62 * len(stack)))
    for height, rooms in enumerate(reversed(stack)):
        for place, room in enumerate(rooms):
            width = 1 / len(rooms)
            gap = 0.012 if place < len(rooms) - 1 else 0.0
            is_own = room not in ("diffusion", "autoencoder")
            colour = "#dbe8f4" if is_own else "#f4e8d6"
            box = plt.Rectangle((place * width, height), width - gap, 0.86, facecolor=colour, edgecolor="#555")
            axes.add_patch(box)
            text = textwrap.shorten(first_line(room if is_own else f"../{room}"), 132 // len(rooms), placeholder=" ...")
            middle = (place + 0.5) * width
            axes.text(middle, height + 0.55, room, ha="center", va="center", weight="bold", fontsize=9)
            axes.text(middle, height + 0.24, text, ha="center", va="center", fontsize=7)
    axes.set(xlim=(-0.005, 1.005), ylim=(-0.05, len(stack)))
    axes.axis("off")
    figure.savefig(picture, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path, default=PICTURE, metavar="FILE", help="default: docs/images/rooms.svg")
    draw(parser.parse_args().picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
