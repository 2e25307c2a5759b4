"""The reader of declared settings: what it takes, and how its errors name file, key, expectation and value."""

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import pytest

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.support.files.declared import (
    AsWritten,
    AtLeastOne,
    Declared,
    DeclaredInYaml,
    DifferentWholes,
    Expected,
    File,
    Folder,
    FromMapping,
    OneOf,
    PathTemplate,
    Positive,
    Rising,
    Share,
    Text,
    between,
    check,
    expected_of,
)


@dataclass(frozen=True)
class Pair:
    low: float
    high: float = 1.0

    def __post_init__(self):
        if self.low > self.high:
            raise ConfigurationError(f"low must not be above high, got {self.low} and {self.high}.")


class Inner(Declared):
    steps: AtLeastOne = 4


class Outer(DeclaredInYaml):
    removed = {"shine": "nothing shines"}  # noqa: RUF012

    name: Text = "x"
    share: Share = 0.5
    width: Positive | None = None
    kind: Annotated[str, OneOf("a", "b")] = "a"
    limits: Annotated[tuple[float, float], between(0, 10), Expected("two numbers from 0 to 10")] = (0.0, 1.0)
    folds: DifferentWholes = (0,)
    bins: Rising = ()
    pairs: tuple[Annotated[Pair, FromMapping()], ...] = ()
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    as_written: Annotated[Any, AsWritten(Inner)] = None
    folder: Folder | None = None
    file: File | None = None
    template: PathTemplate | None = None


def read(**content):
    return check(content, Outer, "settings.yaml", "the whole")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"nam": "x"}, "Unknown setting 'nam' in settings.yaml, the whole. Did you mean 'name'?"),
        ({"inner": {"step": 1}}, "Unknown setting 'step' in settings.yaml, inner. Did you mean 'steps'?"),
        ({"as_written": {"step": 1}}, "Unknown setting 'step' in settings.yaml, as_written. Did you mean 'steps'?"),
        ({"shine": 1}, "settings.yaml, the whole: there is no setting shine: nothing shines. Remove it."),
        ({"share": 2}, "settings.yaml, the whole: share must be a number from 0 to 1, got 2."),
        ({"share": True}, "share must be a number from 0 to 1, got True."),
        ({"share": float("nan")}, "share must be a number from 0 to 1, got nan."),
        ({"width": 0}, "width must be a number above 0, got 0."),
        ({"width": "1"}, "width must be a number above 0, got '1'."),
        ({"kind": "c"}, "kind must be one of a, b, got 'c'."),
        ({"limits": [3, 1]}, "limits must be two numbers from 0 to 10, got [3, 1]."),
        ({"limits": [1, 11]}, "limits must be two numbers from 0 to 10, got [1, 11]."),
        ({"limits": [1]}, "limits must be two numbers from 0 to 10, got [1]."),
        ({"folds": [1, 1]}, "folds must be a list of different whole numbers of 0 or more, got [1, 1]."),
        ({"folds": []}, "folds must be a list of different whole numbers of 0 or more, got []."),
        ({"bins": [1, 1]}, "bins must be a rising list of positive numbers, got [1, 1]."),
        ({"bins": [0, 1]}, "bins must be a rising list of positive numbers, got [0, 1] (bins[0]: "),
        ({"pairs": [{"low": "1"}]}, "got [{'low': '1'}] (pairs[0].low: Input should be a valid number)."),
        ({"pairs": [{"low": 2}]}, "settings.yaml, the whole: low must not be above high, got 2.0 and 1.0."),
        ({"inner": 3}, "settings.yaml, inner must hold keys and values, got 3."),
        ({"many": 3}, "settings.yaml, the whole: many must be a list, got 3."),
        ({"many": [{}, 3]}, "settings.yaml, many[1] must hold keys and values, got 3."),
        ({"many": [{}, {"steps": 0}]}, "settings.yaml, many[1]: steps must be a whole number of 1 or more, got 0."),
        ({"name": " "}, "name must be a text, got ' '."),
        ({"name": True}, "name must be a text, got True."),
    ],
)
def test_an_error_names_file_place_key_expectation_and_value(content, message):
    with pytest.raises(ConfigurationError) as caught:
        read(**content)
    assert message in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_an_unknown_key_comes_before_other_errors():
    with pytest.raises(ConfigurationError, match="Unknown setting 'shar'"):
        read(share=2, shar=1)


def test_what_is_no_mapping_is_refused():
    with pytest.raises(ConfigurationError, match=r"settings.yaml, the whole must hold keys and values, got \[1\]"):
        check([1], Outer, "settings.yaml", "the whole")


def test_lists_become_tuples_and_names_may_be_numbers_or_dates():
    outer = read(limits=[1, 2], pairs=[{"low": 0}], name=905, many=[{"steps": 2}])
    assert (outer.limits, outer.pairs, outer.name, outer.many) == ((1.0, 2.0), (Pair(0.0),), "905", (Inner(steps=2),))
    assert read(name=date(2026, 1, 2)).name == "2026-01-02"


def test_what_is_checked_as_written_stays_so():
    assert read(as_written={"steps": 3}).as_written == {"steps": 3}


def test_a_key_without_a_value_is_as_if_it_were_not_there_unless_it_is_unknown():
    assert read(share=None, inner=None) == Outer()
    assert read(share=None).model_fields_set == set()
    with pytest.raises(ConfigurationError, match="Unknown setting 'shar'"):
        read(shar=None)


def test_paths_start_from_the_folder_of_the_file_and_must_exist(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HERE", "here")
    outer = check({"folder": "$HERE", "template": "x/{fold}"}, Outer, "settings.yaml", folder=tmp_path)
    assert (outer.folder, outer.template) == (tmp_path / "here", str(tmp_path / "x" / "{fold}"))
    for content, message in [
        (
            {"folder": "there"},
            f"folder should be a folder, but {tmp_path}/there does not exist or is none. Paths start",
        ),
        ({"file": "here"}, f"file should be a file, but {tmp_path}/here does not exist or is none"),
        ({"folder": ""}, "folder must be a path, got ''"),
        ({"template": "$NOT_SET/x"}, "template names an environment variable that is not set: $NOT_SET/x. Export it."),
        ({"folder": 3}, "folder must be the path of a folder that exists, got 3."),
    ]:
        with pytest.raises(ConfigurationError) as caught:
            check(content, Outer, "settings.yaml", folder=tmp_path)
        assert message in str(caught.value)
    assert Outer(folder=Path("nowhere")).folder == Path("nowhere")


def test_null_is_expected_where_it_means_something():
    class InJson(Declared):
        width: Positive | None = None

    assert expected_of(InJson, "width") == "a number above 0, or null"
    assert expected_of(Outer, "width") == "a number above 0"
