"""Sizes of rooms, files and functions, and no block of code in two places."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PRODUCT = ("autoencoder", "diffusion", "nnunet_difftumor", "scripts")

MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60
MOST_FILES_OF_A_ROOM = 15
EQUAL_LINES = 6


def _files() -> list[Path]:
    return sorted(file for folder in PRODUCT for file in (ROOT / folder).rglob("*.py"))


def _functions(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _lines(file: Path) -> int:
    return len(file.read_text().splitlines())


def test_no_room_is_crowded():
    rooms = defaultdict(int)
    for file in _files():
        rooms[file.parent.relative_to(ROOT)] += 1
    assert {str(room): files for room, files in rooms.items() if files > MOST_FILES_OF_A_ROOM} == {}
    assert rooms[Path("nnunet_difftumor")] <= 6


def test_no_file_is_long():
    assert {str(file.relative_to(ROOT)): _lines(file) for file in _files() if _lines(file) > MOST_LINES_OF_A_FILE} == {}


def test_no_function_is_long():
    long = {
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for file in _files()
        for node in _functions(file)
        if node.end_lineno - node.lineno + 1 > MOST_LINES_OF_A_FUNCTION
    }
    assert long == {}


def _blocks(file: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Runs of lines of code; imports, signatures (an override repeats its own), comments and blank lines left out."""
    text = file.read_text()
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            left_out.update(range(node.lineno, node.end_lineno + 1))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            left_out.update(range(node.lineno, node.body[0].lineno))
    lines = [
        (number, line.strip())
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and number not in left_out and not line.strip().startswith("#")
    ]
    for start in range(len(lines) - EQUAL_LINES + 1):
        block = lines[start : start + EQUAL_LINES]
        yield block[0][0], tuple(line for _, line in block)


def test_no_block_of_code_is_in_two_places():
    places = defaultdict(set)
    for file in _files():
        for number, block in _blocks(file):
            places[block].add(f"{file.relative_to(ROOT)}:{number}")
    twice = sorted(sorted(where) for where in places.values() if len(where) > 1)
    assert twice == [], "\n".join(" = ".join(where) for where in twice)


@pytest.mark.parametrize("copies", [1, 2])
def test_a_copied_block_is_seen(tmp_path, copies):
    text = "\n".join(f"value_{i} = {i}" for i in range(EQUAL_LINES))
    seen = defaultdict(int)
    for copy in range(copies):
        (tmp_path / f"{copy}.py").write_text(text)
        for _, block in _blocks(tmp_path / f"{copy}.py"):
            seen[block] += 1
    assert max(seen.values()) == copies
