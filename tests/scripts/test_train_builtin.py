from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from nnunet_difftumor.synthesis.tissue.generator_names import BUILTIN_NAMES, BUILTIN_ROOT


def test_the_card_of_the_builtin_says_how_well_it_does_as_the_docs_do(
    tmp_path: Path, load_file: Callable[[str], ModuleType]
) -> None:
    shipped = (BUILTIN_ROOT / BUILTIN_NAMES[0] / "README.md").read_text(encoding="utf-8")
    card, end = tmp_path / "README.md", shipped.index("\n## How well it does")
    card.write_text(shipped[:end], encoding="utf-8")
    load_file("scripts/train_builtin.py").add_measures(card)
    assert card.read_text(encoding="utf-8") == shipped
    assert "](" not in shipped[end:]
