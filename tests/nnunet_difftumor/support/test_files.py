"""Outputs appear whole or not at all; facts of files follow the files."""

import os

import pytest

from nnunet_difftumor.errors import OutputExistsError, list_some
from nnunet_difftumor.support.files.atomic_files import folder_written_whole, write_json, written_whole
from nnunet_difftumor.support.files.fact_cache import FactCache


def break_off(path):
    path.write_text("half")
    raise KeyError


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "scan.nii.gz"
    with pytest.raises(KeyError), written_whole(path) as temporary:
        break_off(temporary)
    assert list(path.parent.iterdir()) == []
    with written_whole(path) as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    with pytest.raises(OutputExistsError, match="exists already"):
        write_json(path, 1)
    write_json(path, [1], overwrite=True)
    assert path.read_text() == "[\n  1\n]\n"
    assert [each.name for each in path.parent.iterdir()] == ["scan.nii.gz"]


def test_a_folder_appears_whole_in_place_of_an_empty_one_and_of_no_other(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    with pytest.raises(KeyError), folder_written_whole(path) as temporary:
        break_off(temporary / "half")
    assert list(path.iterdir()) == []
    with folder_written_whole(path) as temporary:
        (temporary / "whole").touch()
    assert [each.name for each in path.iterdir()] == ["whole"]
    with pytest.raises(OutputExistsError, match="exists already"), folder_written_whole(path):
        pass
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


def test_facts_of_a_file_are_forgotten_when_it_changes(tmp_path):
    file = tmp_path / "labels.nii.gz"
    file.write_text("a")
    cache = FactCache(tmp_path / "facts.json")
    cache.put(file, "one", 1)
    cache.put(file, "two", [2])
    cache.save()
    cache = FactCache(tmp_path / "facts.json")
    assert (cache.get(file, "one"), cache.get(file, "two"), cache.get(file, "three")) == (1, [2], None)
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 10**9))
    cache.put(file, "two", [3])
    assert (cache.get(file, "one"), cache.get(file, "two")) == (None, [3])


def test_lists_of_names_end_after_five():
    assert list_some(["a"]) == "a"
    assert list_some("abcde") == "a, b, c, d, e"
    assert list_some("abcdef") == "a, b, c, d, e, ..."
