"""Outputs appear whole or not at all; facts of files follow the files."""

import gzip
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


def test_containers_with_one_process_number_write_side_by_side(tmp_path):
    """What another one is at, or left behind, stops nothing and stays."""
    left = tmp_path / f".partial-{os.getpid()}-scores.csv"
    left.mkdir()
    for name in ("data", "scores.csv"):
        (tmp_path / f".partial-{os.getpid()}-{name}").mkdir(exist_ok=True)
    with written_whole(tmp_path / "scores.csv") as ours, written_whole(tmp_path / "scores.csv") as theirs:
        theirs.write_text("theirs")
        ours.write_text("ours")
    assert (tmp_path / "scores.csv").read_text() == "ours"
    with folder_written_whole(tmp_path / "data") as ours:
        (ours / "whole").touch()
    assert left.is_dir()


@pytest.mark.parametrize("names", [("pat1", "pat2"), ("site1/pat", "site2/pat")])
def test_facts_of_a_folder_a_patient_are_not_confused(tmp_path, names):
    files = [tmp_path / name / "scan" / "labels" / "ct.nii.gz" for name in names]
    cache = FactCache(tmp_path / "facts.json")
    for number, file in enumerate(files):
        file.parent.mkdir(parents=True)
        file.write_text("a")
        os.utime(file, ns=(0, 10**18))  # as after unpacking
        cache.put(file, "number", number)
    assert [cache.get(file, "number") for file in files] == [0, 1]
    cache.save()
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    files = [moved / file.relative_to(tmp_path) for file in files]
    cache = FactCache(moved / "facts.json")
    assert [cache.get(file, "number") for file in files] == [0, 1]


def test_a_file_of_the_same_size_and_time_is_told_by_its_end(tmp_path):
    file, cache = tmp_path / "ct.nii.gz", FactCache(tmp_path / "facts.json")
    for number, content in enumerate((b"0" * 9000, b"1" * 9000)):
        file.write_bytes(gzip.compress(content, 9, mtime=0))
        os.utime(file, ns=(0, 10**18))  # as copies that keep times, and disks that know seconds only
        assert cache.get(file, "number") is None
        cache.put(file, "number", number)
        assert cache.get(file, "number") == number


def test_two_processes_keep_the_facts_of_one_another(tmp_path):
    files = [tmp_path / name for name in ("a.nii.gz", "b.nii.gz")]
    caches = [FactCache(tmp_path / "facts.json") for _ in files]
    for number, (file, cache) in enumerate(zip(files, caches, strict=True)):
        file.write_text("a")
        cache.put(file, "number", number)
        cache.save()
    kept = FactCache(tmp_path / "facts.json")
    assert [kept.get(file, "number") for file in files] == [0, 1]
