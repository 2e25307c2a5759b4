"""Settings as one declaration each: what is read, what errors expect, the reference and the schemas come from it.

A setting is a field of a model with a type, limits, a default and, below it, a docstring that says what it means (in
Markdown, with links from docs/reference).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError, core_schema

from nnunet_difftumor.errors import ConfigurationError, unknown_key_message


class Declared(BaseModel):
    """A mapping whose keys are declared; nothing is converted but lists to tuples.

    Attributes:
        removed: Why there is no such setting, by keys that a user may know from elsewhere.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True, defer_build=True
    )
    removed: ClassVar[Mapping[str, str]] = {}


class DeclaredInYaml(Declared):
    """A mapping in which a key without a value is as if it were not there."""

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {key: value for key, value in data.items() if value is not None or key not in cls.model_fields}


@dataclass(frozen=True)
class Expected:
    """Annotates a type with words for people.

    Attributes:
        text: What errors and the reference say that it must be, where its limits do not tell.
        shown: What the reference shows as default, where the value does not tell.
    """

    text: str
    shown: str | None = None

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> Any:
        shown = {} if self.shown is None else {"shown": self.shown}
        return handler(schema) | {"expected": self.text, **shown}


class OneOf:
    """Annotates a text that must be one of several words."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.literal_schema(list(self.words))


class FromMapping:
    """Annotates a dataclass that may be written as a mapping; its values are as strict as those of a model."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        schema: Any = handler.resolve_ref_schema(handler(source))
        return {key: value for key, value in schema.items() if key != "ref"} | {"strict": False}  # pyright: ignore


class AsWritten:
    """Annotates a value that is checked as a type and stays as it was written."""

    def __init__(self, checked_as: Any) -> None:
        self.checked_as = checked_as

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def keep(value: Any, check: core_schema.ValidatorFunctionWrapHandler) -> Any:
            check(value)
            return value

        return core_schema.no_info_wrap_validator_function(keep, handler.generate_schema(self.checked_as))


def keep_if(holds: bool, value: Any) -> Any:
    """Let a validator keep a value, or say that it is not what its type is expected to be."""
    if not holds:
        raise PydanticCustomError("unexpected", "Input should be as expected")
    return value


def between(least: float = -math.inf, most: float = math.inf) -> AfterValidator:
    """Annotate two numbers [smallest, largest]."""
    return AfterValidator(lambda limits: keep_if(least <= limits[0] <= limits[1] <= most, limits))


DIFFERENT = AfterValidator(lambda values: keep_if(0 < len(values) == len(set(values)), values))
"""Annotates a list of at least one value, and none of them twice."""


def full_path(written: str, folder: Path, what: str) -> Path:
    """Find a path that is written in a file as `what`: from its folder, or with ~ or environment variables.

    Raises:
        ConfigurationError: If nothing is written, or an environment variable is not set.
    """
    if not written.strip():
        raise ConfigurationError(f"{what} must be a path, got {written!r}.")
    expanded = os.path.expanduser(os.path.expandvars(written.strip()))
    if "$" in expanded:
        raise ConfigurationError(f"{what} names an environment variable that is not set: {written}. Export it.")
    return folder.resolve() / expanded


def _to_text(value: Any) -> Any:
    """A number or date as YAML reads it, where a name is meant."""
    return str(value) if isinstance(value, int | float | date) and not isinstance(value, bool) else value


def _place(as_type: Callable[[Path], Any]) -> BeforeValidator:
    """Let a path start from the folder of the file that is read."""

    def place(value: Any, info: ValidationInfo) -> Any:
        if info.context is None or not isinstance(value, str):
            return value
        return as_type(full_path(value, info.context["folder"], str(info.field_name)))

    return BeforeValidator(place)


def _existing(kind: str, exists: Callable[[Path], bool]) -> AfterValidator:
    """Refuse a path that is not there, if a file is read."""

    def require(path: Path, info: ValidationInfo) -> Path:
        if info.context is not None and not exists(path):
            raise ValueError(
                f"{info.field_name} should be a {kind}, but {path} does not exist or is none. Paths start from the "
                "folder of that file."
            )
        return path

    return AfterValidator(require)


AtLeastOne = Annotated[int, Field(ge=1)]
ZeroOrMore = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Text = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1),
    BeforeValidator(_to_text),
    WithJsonSchema({"type": ["string", "number"]}),
    Expected("a text"),
]
DifferentWholes = Annotated[
    tuple[ZeroOrMore, ...], DIFFERENT, Expected("a list of different whole numbers of 0 or more")
]
Rising = Annotated[
    tuple[Positive, ...],
    AfterValidator(lambda values: keep_if(list(values) == sorted(set(values)), values)),
    Expected("a rising list of positive numbers"),
]
Folder = Annotated[Path, _place(Path), _existing("folder", Path.is_dir), Expected("the path of a folder that exists")]
File = Annotated[Path, _place(Path), _existing("file", Path.is_file), Expected("the path of a file that exists")]
PathTemplate = Annotated[str, _place(str), Expected("a path, which may hold a placeholder")]

_Model = TypeVar("_Model", bound=Declared)


def check(content: Any, model: type[_Model], file: str | Path, what: str = "", *, folder: Path | None = None) -> _Model:
    """Read the content of a file as a model.

    Args:
        what: What errors call the whole of it beside the file's name, if anything.
        folder: Folder that paths in it start from, which must then exist; None: paths stay as they are.

    Raises:
        ConfigurationError: If a key is unknown or a value is wrong; names file, key, what was expected and what
            arrived.
    """
    if not isinstance(content, Mapping):
        raise ConfigurationError(f"{_join(file, what)} must hold keys and values, got {content!r}.")
    try:
        return model.model_validate(_frozen(content), context=None if folder is None else {"folder": folder})
    except ValidationError as error:
        raise explained(error, content, model, file, what) from error


def explained(
    error: ValidationError, content: Any, model: type[Declared], file: str | Path, what: str = ""
) -> ConfigurationError:
    """Turn pydantic's errors about the content of a file into the one error of this package."""
    found = error.errors(include_url=False)
    first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
    return ConfigurationError(_explain(first, content, model, file, what))


def _frozen(content: Any) -> Any:
    """Tuples for lists, which are all that a strict model takes for them, and texts for keys."""
    if isinstance(content, Mapping):
        return {str(key): _frozen(value) for key, value in content.items()}
    return tuple(map(_frozen, content)) if isinstance(content, list | tuple) else content


class _Spot(NamedTuple):
    """Where an error is: a key of a model, and below it what no model declares."""

    owner: type[Declared]
    container: str
    key: str | None
    value: Any
    below: str


def _explain(error: ErrorDetails, content: Any, model: type[Declared], file: str | Path, what: str) -> str:
    spot = _find(list(error["loc"]), content, model, what)
    place = _join(file, spot.container)
    if error["type"] == "extra_forbidden":
        key = str(error["loc"][-1])
        if key in spot.owner.removed:
            return f"{place}: there is no setting {key}: {spot.owner.removed[key]}. Remove it."
        return unknown_key_message(key, spot.owner.model_fields, place)
    if error["type"] == "value_error":
        return f"{place}: {error['msg'].removeprefix('Value error, ')}"
    if error["type"] == "model_type" and not spot.below:
        key = spot.key if spot.container == what else f"{spot.container}.{spot.key}"
        return f"{_join(file, key or what)} must hold keys and values, got {spot.value!r}."
    if spot.key is None:
        return f"{place}: {error['msg']}, got {error['input']!r}."
    detail = f" ({spot.key}{spot.below}: {error['msg']})" if spot.below else ""
    return f"{place}: {spot.key} must be {expected_of(spot.owner, spot.key)}, got {spot.value!r}{detail}."


def _join(file: str | Path, what: str) -> str:
    return f"{file}, {what}" if what else str(file)


def _find(loc: list[int | str], content: Any, model: type[Declared], what: str) -> _Spot:
    """Follow the place of an error through models, as far as they declare it."""
    owner, container = model, what
    while loc and loc[0] in owner.model_fields:
        key = name = str(loc.pop(0))
        value = content.get(key) if isinstance(content, Mapping) else None
        inner, content = _model_of(owner.model_fields[key]), value
        if inner is not None and loc and isinstance(loc[0], int) and isinstance(value, list | tuple):
            name, content = f"{key}[{loc[0]}]", value[loc[0]]
            loc.pop(0)
        if inner is None or not isinstance(content, Mapping):
            return _Spot(owner, container, name, content, _known_parts(loc, value))
        owner, container = inner, name if container == what else f"{container}.{name}"
    return _Spot(owner, container, None, content, "")


def _model_of(annotation: Any) -> type[Declared] | None:
    """The model that a field or type holds, also in a tuple or beside None."""
    if isinstance(annotation, FieldInfo):
        as_written = [each.checked_as for each in annotation.metadata if isinstance(each, AsWritten)]
        return _model_of((as_written or [annotation.annotation])[0])
    if isinstance(annotation, type) and issubclass(annotation, Declared):
        return annotation
    return next(filter(None, map(_model_of, get_args(annotation))), None)


def _known_parts(loc: list[int | str], value: Any) -> str:
    """Indices and keys as one writes them, without the names that pydantic gives to the members of a union."""
    written = ""
    for part in loc:
        if isinstance(part, int) and isinstance(value, list | tuple) and part < len(value):
            written, value = f"{written}[{part}]", value[part]
        elif isinstance(value, Mapping) and part in value:
            written, value = f"{written}.{part}", value[part]
    return written


def expected_of(model: type[Declared], key: str) -> str:
    """Say in words what a setting must be."""
    schema = model.model_json_schema()
    text = _describe(schema["properties"][key], schema.get("$defs", {}))
    return text.removesuffix(", or null") if issubclass(model, DeclaredInYaml) else text


def _describe(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "expected" in schema:
        return schema["expected"]
    if "$ref" in schema:
        return _describe(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
    if "anyOf" in schema:
        return ", or ".join(_describe(each, definitions) for each in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return f"one of {', '.join(map(str, schema.get('enum', [schema.get('const')])))}"
    words = {"boolean": "true or false", "string": "a text", "array": "a list", "object": "keys and values"}
    kind = schema.get("type", "null")
    return _describe_number(schema) if kind in ("integer", "number") else words.get(kind, "null")


def _describe_number(schema: Mapping[str, Any]) -> str:
    noun = "a whole number" if schema["type"] == "integer" else "a number"
    if "maximum" in schema:
        return f"{noun} from {schema['minimum']:g} to {schema['maximum']:g}"
    if "exclusiveMaximum" in schema:
        return f"{noun} of at least {schema['minimum']:g} and below {schema['exclusiveMaximum']:g}"
    if "exclusiveMinimum" in schema:
        return f"{noun} above {schema['exclusiveMinimum']:g}"
    return f"{noun} of {schema['minimum']:g} or more" if "minimum" in schema else noun
