"""The reference of the settings and their JSON schemas are what the declarations give."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from nnunet_difftumor.settings.trainer_settings import TrainerSettings
from nnunet_difftumor.support.files.declared import Declared, expected_of

ROOT = Path(__file__).parents[2]
HOW_TO = ROOT / "docs" / "how-to"


@pytest.fixture
def script(load_file: Callable[[str], ModuleType]) -> ModuleType:
    return load_file("scripts/write_settings_reference.py")


def test_pages_and_schemas_are_what_the_declarations_give(script: ModuleType) -> None:
    stale = [
        path.name
        for path, text in script.made_files().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run python scripts/write_settings_reference.py"


def test_another_declaration_gives_another_table_and_schema(script: ModuleType) -> None:
    class Other(Declared):
        steps: int = 5
        """Something
        else.
        """

    assert "| `steps` | `5` | a whole number | Something else. |\n" in script.table_of(Other)
    assert json.loads(script.schema_of(Other))["properties"] == {
        "steps": {"default": 5, "description": "Something else.", "type": "integer"}
    }


def test_every_setting_has_a_meaning_and_an_expectation(script: ModuleType) -> None:
    for model in (TrainerSettings, *script._SECTIONS.values()):
        for key, field in model.model_fields.items():
            assert field.description, (model, key)
            assert expected_of(model, key) not in ("null", ""), (model, key)


TYPES = {"string": str, "boolean": bool, "array": list, "object": dict, "null": type(None)}


def takes(schema: Mapping[str, Any], value: Any, root: Mapping[str, Any]) -> bool:
    """Whether a schema of the kind that pydantic makes takes a value."""
    if "$ref" in schema and not takes(root["$defs"][schema["$ref"].rsplit("/", 1)[1]], value, root):
        return False
    if "anyOf" in schema and not any(takes(each, value, root) for each in schema["anyOf"]):
        return False
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        return False
    kinds = schema.get("type", [])
    if kinds and not any(is_of(kind, value) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return False
    if isinstance(value, dict):
        known = schema.get("properties", {})
        return (
            set(schema.get("required", ())) <= set(value)
            and (schema.get("additionalProperties", True) or set(value) <= set(known))
            and all(takes(known.get(key, {}), each, root) for key, each in value.items())
        )
    if isinstance(value, list):
        return all(takes(schema.get("items", {}), each, root) for each in value)
    return isinstance(value, str) or value is None or value >= schema.get("minimum", value)


def is_of(kind: str, value: Any) -> bool:
    if kind in ("integer", "number"):
        return isinstance(value, int if kind == "integer" else (int, float)) and not isinstance(value, bool)
    return isinstance(value, TYPES[kind])


STUDIES = [HOW_TO / "study.yaml", *sorted((HOW_TO / "recipes").glob("*.yaml"))]
WRONG = [
    {"fold": [0]},
    {"settings": {"stepz": 3}},
    {"settings": {"size_classes": [{"name": "tiny"}]}},
    {"schedule": {"epochs": 0}},
    {"device": "gpu"},
    {"arms": [{"name": "a"}]},
]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_schema_takes_every_study_of_the_documentation(script: ModuleType, path: Path) -> None:
    schema = json.loads(script.schema_of(script.SCHEMAS["study"]))
    assert takes(schema, yaml.safe_load(path.read_text(encoding="utf-8")), schema)


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_the_schema_refuses_what_the_reader_refuses(script: ModuleType, change: dict[str, Any]) -> None:
    schema = json.loads(script.schema_of(script.SCHEMAS["study"]))
    assert not takes(schema, {**yaml.safe_load(STUDIES[0].read_text(encoding="utf-8")), **change}, schema)
