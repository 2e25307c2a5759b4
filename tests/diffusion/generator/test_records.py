from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import pytest

from diffusion.generator.records import read_record, require_numbers


class BadRecordError(ValueError):
    pass


@dataclass(frozen=True)
class Part:
    size: float

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size must be 0 or more, got {self.size}.")


@dataclass(frozen=True)
class Whole:
    name: str
    range_mm: tuple[float, float]
    first: Part
    parts: tuple[Part, ...] | None


WHOLE = Whole("a", (1.0, 2.0), Part(0.0), (Part(1.0), Part(2.0)))


@pytest.mark.parametrize("parts", [WHOLE.parts, (), None])
def test_a_record_with_records_in_it_survives_json(parts):
    whole = Whole("a", (1.0, 2.0), Part(0.0), parts)
    assert read_record(Whole, json.loads(json.dumps(asdict(whole))), "file.json", BadRecordError) == whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": [{"size": 1.0}, {"size": -1.0}]}, r"file\.json: parts\[1\]: size must be 0 or more"),
        ({"parts": [3]}, r"file\.json: parts\[0\] must be a JSON object, got int"),
        ({"parts": {}}, r"file\.json: parts must be a JSON list, got dict"),
        ({"first": {"size": 1.0, "colour": 2}}, r"file\.json: first must have exactly .* unknown: \['colour'\]"),
        ({"range_mm": 3.0}, r"file\.json: range_mm must be a JSON list, got float"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(changes, message):
    with pytest.raises(BadRecordError, match=message):
        read_record(Whole, {**json.loads(json.dumps(asdict(WHOLE))), **changes}, "file.json", BadRecordError)


def test_numbers_are_those_of_json():
    require_numbers(whole=1, part=0.5)
    for value in (True, float("nan"), float("inf"), "1", None):
        with pytest.raises(ValueError, match=rf"part must be a finite number, got {value!r}"):
            require_numbers(whole=1, part=value)


def test_another_version_is_refused_before_its_entries_are_looked_at():
    @dataclass(frozen=True)
    class Versioned:
        name: str
        format_version: int = 3

    with pytest.raises(BadRecordError, match=r"file\.json has format_version 4, this release reads 3"):
        read_record(Versioned, {"label": "a", "format_version": 4}, "file.json", BadRecordError)
    assert read_record(Versioned, {"name": "a", "format_version": 3}, "file.json", BadRecordError) == Versioned("a")
