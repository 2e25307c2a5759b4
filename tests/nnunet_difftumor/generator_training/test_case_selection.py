from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from diffusion.generator.provenance import CaseFingerprint, hash_file, hash_identifier
from nnunet_difftumor.errors import DatasetError
from nnunet_difftumor.generator_training.case_selection import read_hold_out, select_cases
from nnunet_difftumor.generator_training.crop_cache import CachedCase


def make_cached(identifier: str, content: str | None = None, mask: str | None = None) -> CachedCase:
    fingerprint = CaseFingerprint(
        identifier_hash=hash_identifier(identifier),
        image_hash=hash_identifier(content or f"image of {identifier}"),
        tumor_mask_hash=None if mask is None else hash_identifier(mask),
        tumor_prints=None if mask is None else (),
    )
    return CachedCase(identifier, Path("unused"), (1, 1, 1), (1.0, 1.0, 1.0), fingerprint, (2,), ())


def names(cases: tuple[CachedCase, ...]) -> list[str]:
    return [case.identifier for case in cases]


FOLDER, OTHER = Path("Dataset901"), Path("more_cts")
ABCDE = [make_cached(name) for name in "abcde"]


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([{"train": ["a", "b"], "val": ["c", "d"]}, {"train": ["c", "d"], "val": ["a", "b"]}]))
    return path


def test_a_fold_trains_its_training_cases_only(splits: Path) -> None:
    selected = select_cases([(FOLDER, ABCDE)], read_hold_out(splits, 0, None))
    assert names(selected.training) == ["a", "b"]
    assert names(selected.heldout) == ["c", "d", "e"]  # e is in neither list: a healthy holdout
    assert selected.rule.fold == 0
    assert selected.rule.splits_hash == hash_file(splits)


def test_a_folder_without_any_case_of_the_fold_trains_whole(splits: Path) -> None:
    more = [make_cached("x"), make_cached("y")]
    selected = select_cases([(FOLDER, ABCDE), (OTHER, more)], read_hold_out(splits, 1, None))
    assert names(selected.training) == ["c", "d", "x", "y"]
    assert any("more_cts" in note for note in selected.notes)


@pytest.mark.parametrize("copy", [make_cached("x", content="image of c"), make_cached("x", mask="tumour of c")])
def test_a_copy_of_a_held_out_case_under_another_name_is_held_out(splits: Path, copy: CachedCase) -> None:
    cases = [make_cached("a"), make_cached("c", mask="tumour of c")]
    selected = select_cases([(FOLDER, cases), (OTHER, [copy, make_cached("y")])], read_hold_out(splits, 0, None))
    assert names(selected.training) == ["a", "y"]
    assert names(selected.heldout) == ["c", "x"]


def test_excluded_cases_are_held_out_in_every_folder(tmp_path: Path) -> None:
    for text in ("b\n\nc\n", '["b", "c"]'):
        (tmp_path / "exclude.txt").write_text(text)
        hold_out = read_hold_out(None, None, tmp_path / "exclude.txt")
        selected = select_cases([(FOLDER, ABCDE), (OTHER, [make_cached("b")])], hold_out)
        assert names(selected.training) == ["a", "d", "e"]
        assert names(selected.heldout) == ["b", "c", "b"]


def test_a_byte_order_mark_is_no_part_of_the_first_case(tmp_path: Path) -> None:
    (tmp_path / "exclude.txt").write_bytes(b"\xef\xbb\xbfb\r\nc\r\n")
    assert read_hold_out(None, None, tmp_path / "exclude.txt").identifiers == {"b", "c"}


def test_without_a_rule_a_tenth_is_held_out_whatever_the_order() -> None:
    cases = [make_cached(f"case_{number}") for number in range(30)]
    selected = select_cases([(FOLDER, cases)], read_hold_out(None, None, None))
    again = select_cases([(FOLDER, cases[::-1])], read_hold_out(None, None, None))
    assert len(selected.heldout) == 3
    assert set(names(selected.heldout)) == set(names(again.heldout))


def test_without_a_rule_cases_that_trained_no_earlier_stage_are_held_out_first() -> None:
    """Stage one sees healthy cases too, so that a tenth of its cases is another tenth."""
    healthy, tumors = ([make_cached(f"{kind}_{number}") for number in range(30)] for kind in ("healthy", "tumor"))
    first = select_cases([(FOLDER, healthy + tumors)], read_hold_out(None, None, None))
    trained = frozenset(case.fingerprint.image_hash for case in first.training)
    unseen = set(names(first.heldout)) & set(names(tumors))
    assert 0 < len(unseen) < 6
    rule = replace(read_hold_out(None, None, None), trained_before=trained)
    second = select_cases([(FOLDER, tumors)], rule)
    assert len(second.heldout) == 3
    assert len(unseen & set(names(second.heldout))) == min(3, len(unseen))
    none_unseen = select_cases([(FOLDER, [case for case in tumors if case.identifier not in unseen])], rule)
    (note,) = none_unseen.notes
    assert all(name in note for name in names(none_unseen.heldout))
    assert "little too good" in note


def test_of_four_cases_one_is_held_out_and_of_three_none() -> None:
    assert len(select_cases([(FOLDER, ABCDE[:4])], read_hold_out(None, None, None)).heldout) == 1
    assert not select_cases([(FOLDER, ABCDE[:3])], read_hold_out(None, None, None)).heldout


def test_a_list_of_other_patients_is_refused(splits: Path) -> None:
    with pytest.raises(DatasetError, match="other patients"):
        select_cases([(OTHER, [make_cached("x")])], read_hold_out(splits, 0, None))


def test_no_case_left_to_train_is_refused(tmp_path: Path) -> None:
    (tmp_path / "exclude.txt").write_text("a\nb\n")
    with pytest.raises(DatasetError, match=r"None of the 2 .*Held out: 2 cases \(a, b\)\. Check .*--exclude-cases"):
        select_cases([(FOLDER, ABCDE[:2])], read_hold_out(None, None, tmp_path / "exclude.txt"))


def test_nothing_is_called_held_out_that_is_not(splits: Path) -> None:
    splits.write_text(json.dumps([{"train": ["a", "b"], "val": ["c", "d"]}]))
    cases = [make_cached(name) for name in "cwxyz"]
    with pytest.raises(DatasetError) as caught:
        select_cases([(FOLDER, cases)], read_hold_out(splits, 0, None))
    assert str(caught.value) == (
        "None of the 5 cases is left to train on. Held out: 1 case (c); in neither list of the fold: 4 cases "
        "(w, x, y, z). Check the identifiers in --splits."
    )
    copies = [make_cached(name, content="the same") for name in "abcd"]
    with pytest.raises(DatasetError, match=r"Held out: 1 case \(.\); copies of held-out ones: 3 cases .*different"):
        select_cases([(FOLDER, copies)], read_hold_out(None, None, None))


def test_wrong_rules_are_refused(tmp_path: Path, splits: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    for arguments in ((splits, None, None), (None, 0, None), (splits, 0, splits)):
        with pytest.raises(DatasetError, match="together"):
            read_hold_out(*arguments)
    with pytest.raises(DatasetError, match="0 to 1, not 5"):
        read_hold_out(splits, 5, None)
    with pytest.raises(DatasetError, match="names no case"):
        read_hold_out(None, None, tmp_path / "empty.txt")
    with pytest.raises(DatasetError, match="one case identifier a line"):
        read_hold_out(None, None, tmp_path / "absent.txt")
