from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from autoencoder.engine.files import replaced_folder, write_json


def test_a_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    with replaced_folder(tmp_path / "model") as folder:
        (folder / "weights").write_text("new")
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model" / "weights").read_text() == "new"


def test_the_old_folder_stays_if_writing_the_new_one_fails(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("old")

    def fail() -> None:
        with replaced_folder(tmp_path / "model") as folder:
            (folder / "weights").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert (tmp_path / "model" / "weights").read_text() == "old"


def test_a_replaced_folder_holds_nothing_of_the_old_one(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with replaced_folder(tmp_path / "model") as folder:
            (folder / name).touch()
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_files_made_for_their_owner_only_become_readable_as_the_umask_says(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        with replaced_folder(tmp_path / "model") as folder:
            (folder / "weights").touch(mode=0o600)
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "model" / "weights").stat().st_mode) == 0o644


def test_json_is_replaced_whole_and_refuses_nan(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["values.json"]


@pytest.mark.parametrize("leftover", [".unfinished_{}", ".unfinished-1-{}"])
def test_what_another_process_writes_or_left_behind_stops_nothing(tmp_path: Path, leftover: str) -> None:
    for name in ("values.json", "model"):
        (tmp_path / leftover.format(name)).mkdir()
        (tmp_path / leftover.format(name) / "theirs").touch()
    write_json(tmp_path / "values.json", [1])
    with replaced_folder(tmp_path / "model") as outer, replaced_folder(tmp_path / "other") as folder:
        (folder / "weights").touch()
        with replaced_folder(tmp_path / "model") as inner:  # two processes at once
            (inner / "first").touch()
        (outer / "second").touch()
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["second"]
    assert (tmp_path / leftover.format("model") / "theirs").exists()
