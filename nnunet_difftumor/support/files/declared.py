"""Settings as one declaration each: what is read, what errors expect, the reference and the schemas come from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

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
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError, core_schema

from nnunet_difftumor.errors import ConfigurationError, unknown_key_message
from nnunet_difftumor.support.files.entries import full_path


class Declared(BaseModel):
    """A mapping whose keys are declared; nothing is converted but a list to a tuple.

    Attributes:
        removed: Why there is no such setting, by keys that a user may know from elsewhere.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    removed: ClassVar[Mapping[str, str]] = {}


class DeclaredInYaml(Declared):
    """A mapping in which a key without a value is as if it were not there."""

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {key: value for key, value in data.items() if value is not None or key not in cls.model_fields}


def setting(default: Any = ..., *, help: str, shown: str | None = None, **limits: Any) -> Any:
    """Declare a setting; without a default it is required.

    Args:
        help: What it means, for the reference (Markdown, links from docs/reference) and the schemas.
        shown: What the reference shows as default where the value does not tell it.
        limits: Limits of pydantic's `Field`.
    """
    return Field(default, description=help, json_schema_extra=None if shown is None else {"shown": shown}, **limits)


@dataclass(frozen=True)
class Expected:
    """Annotates a type with what errors and the reference say of it, where its limits do not tell."""

    text: str

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> Any:
        """Add the text to the schema."""
        return {**handler(schema), "expected": self.text}


class OneOf:
    """Annotates a text that must be one of several words."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Take the words alone."""
        return core_schema.literal_schema(list(self.words))


class FromMapping:
    """Annotates a dataclass that may be written as a mapping; its values are as strict as those of a model."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Take a mapping in place of an instance."""
        schema: Any = handler.resolve_ref_schema(handler(source))
        return {key: value for key, value in schema.items() if key != "ref"} | {"strict": False}  # pyright: ignore


class AsWritten:
    """Annotates a value that is checked as a type and stays as it was written."""

    def __init__(self, checked_as: Any) -> None:
        self.checked_as = checked_as

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Check, and give back what came."""

        def keep(value: Any, check: core_schema.ValidatorFunctionWrapHandler) -> Any:
            check(value)
            return value

        return core_schema.no_info_wrap_validator_function(keep, handler.generate_schema(self.checked_as))


def refuse_unless(holds: bool) -> None:
    """Let a validator say that a value is not what its type is expected to be."""
    if not holds:
        raise PydanticCustomError("unexpected", "Input should be as expected")


def _to_text(value: Any) -> Any:
    """A number or date as YAML reads it, where a name is meant."""
    return str(value) if isinstance(value, int | float | date) and not isinstance(value, bool) else value


def _place(value: Any, info: ValidationInfo) -> Any:
    """A path from the folder of the file that is read."""
    if info.context is None or not isinstance(value, str):
        return value
    return full_path(value, info.context["folder"], str(info.field_name))


def _place_text(value: Any, info: ValidationInfo) -> Any:
    placed = _place(value, info)
    return str(placed) if isinstance(placed, Path) else placed


def _require_folder(path: Path, info: ValidationInfo) -> Path:
    if info.context is not None and not path.is_dir():
        raise ValueError(_no_such(path, info, "folder"))
    return path


def _require_file(path: Path, info: ValidationInfo) -> Path:
    if info.context is not None and not path.is_file():
        raise ValueError(_no_such(path, info, "file"))
    return path


def _no_such(path: Path, info: ValidationInfo, kind: str) -> str:
    return (
        f"{info.field_name} should be a {kind}, but {path} does not exist or is none. Paths start from the folder of "
        "that file."
    )


def _rising(values: tuple[float, ...]) -> tuple[float, ...]:
    refuse_unless(all(low < high for low, high in zip(values, values[1:], strict=False)) and min(values, default=1) > 0)
    return values


def _different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    refuse_unless(len(values) > 0 and len(set(values)) == len(values))
    return values


AtLeastOne = Annotated[int, Field(ge=1)]
ZeroOrMore = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Text = Annotated[
    str, BeforeValidator(_to_text), StringConstraints(strip_whitespace=True, min_length=1), Expected("a text")
]
DifferentWholes = Annotated[
    tuple[ZeroOrMore, ...],
    AfterValidator(_different),
    Expected("a list of different whole numbers of 0 or more"),
]
Rising = Annotated[tuple[float, ...], AfterValidator(_rising), Expected("a rising list of positive numbers")]
Folder = Annotated[
    Path, BeforeValidator(_place), AfterValidator(_require_folder), Expected("the path of a folder that exists")
]
File = Annotated[
    Path, BeforeValidator(_place), AfterValidator(_require_file), Expected("the path of a file that exists")
]
PathTemplate = Annotated[
    str, BeforeValidator(_place_text), Expected("a path, which may hold a placeholder")
]

_Model = TypeVar("_Model", bound=Declared)


def check(content: Any, model: type[_Model], file: str | Path, what: str = "", *, folder: Path | None = None) -> _Model:
    """Read the content of a file as a model.

    Args:
        content: What JSON or YAML holds.
        file: The file, for errors.
        what: What errors call the whole of it; empty: by the file alone.
        folder: Folder that paths in it start from, which must then exist; None: paths stay as they are.

    Raises:
        ConfigurationError: If a key is unknown or a value is wrong; names file, key, what was expected and what
            arrived.
    """
    if not isinstance(content, Mapping):
        raise ConfigurationError(f"{_join(file, what)} must hold keys and values, got {content!r}.")
    context = None if folder is None else {"folder": folder}
    try:
        return model.model_validate(_frozen(content), context=context)
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
    """Tuples for lists and texts for keys: else, strict models take nothing but the type that is declared."""
    if isinstance(content, Mapping):
        return {str(key): _frozen(value) for key, value in content.items()}
    return tuple(map(_frozen, content)) if isinstance(content, list | tuple) else content


@dataclass(frozen=True)
class _Spot:
    """Where an error is: a key of a model, and below it what the model does not declare."""

    owner: type[Declared]
    container: str
    key: str | None
    value: Any
    below: tuple[int | str, ...]


def _explain(error: ErrorDetails, content: Any, model: type[Declared], file: str | Path, what: str) -> str:
    spot = _find(error["loc"], content, model, what)
    place = _join(file, spot.container)
    if error["type"] == "extra_forbidden":
        key = str(error["loc"][-1])
        if key in spot.owner.removed:
            return f"{place}: there is no setting {key}: {spot.owner.removed[key]}. Remove it."
        return unknown_key_message(key, spot.owner.model_fields, place)
    if error["type"] == "value_error":
        return f"{place}: {error['ctx']['error']}"  # pyright: ignore[reportTypedDictNotRequiredAccess]
    if error["type"] in ("model_type", "model_attributes_type") and not spot.below:
        key = spot.key if spot.container == what else f"{spot.container}.{spot.key}"
        return f"{_join(file, key or what)} must hold keys and values, got {error['input']!r}."
    if spot.key is None:
        return f"{place}: {error['msg']}, got {error['input']!r}."
    below = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in spot.below)
    detail = f" ({spot.key}{below}: {error['msg']})" if below else ""
    return f"{place}: {spot.key} must be {expected_of(spot.owner, spot.key)}, got {spot.value!r}{detail}."


def _join(file: str | Path, what: str) -> str:
    return f"{file}, {what}" if what else str(file)


def _find(loc: tuple[int | str, ...], content: Any, model: type[Declared], what: str) -> _Spot:
    """Follow the place of an error through models, as far as they declare it."""
    owner, container, below = model, what, list(loc)
    while below and isinstance(below[0], str) and below[0] in owner.model_fields:
        key = below.pop(0)
        value = content.get(key) if isinstance(content, Mapping) else None
        inner, name = _model_of(owner.model_fields[key]), key
        content = value
        if below and isinstance(below[0], int) and isinstance(value, list | tuple) and inner is not None:
            name, content = f"{key}[{below[0]}]", value[below.pop(0)]
        if inner is None or not isinstance(content, Mapping):
            is_inner_type = inner is not None and not below
            return _Spot(owner, container, name if is_inner_type else key, value, _known_parts(below, value))
        owner, container = inner, name if container == what else f"{container}.{name}"
    return _Spot(owner, container, None, content, ())


def _model_of(field: FieldInfo) -> type[Declared] | None:
    as_written = [each.checked_as for each in field.metadata if isinstance(each, AsWritten)]
    return _model_in(as_written[0] if as_written else field.annotation)


def _model_in(annotation: Any) -> type[Declared] | None:
    """The model that a type holds, also in a tuple or beside None."""
    if isinstance(annotation, type) and issubclass(annotation, Declared):
        return annotation
    return next((found for each in get_args(annotation) if (found := _model_in(each)) is not None), None)


def _known_parts(below: list[int | str], value: Any) -> tuple[int | str, ...]:
    """Indices and keys, without the names that pydantic gives to the members of a union."""
    known: list[int | str] = []
    for part in below:
        is_index = isinstance(part, int) and isinstance(value, list | tuple) and part < len(value)
        if is_index or (isinstance(value, Mapping) and part in value):
            known.append(part)
            value = value[part]
    return tuple(known)


def expected_of(model: type[Declared], key: str) -> str:
    """Say in words what a setting must be."""
    schema = model.model_json_schema()
    text = describe(schema["properties"][key], schema.get("$defs", {}))
    return text.removesuffix(", or null") if issubclass(model, DeclaredInYaml) else text


def describe(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Say in words what a JSON schema takes.

    Args:
        definitions: Schemas by the names that references in the schema give.
    """
    if "expected" in schema:
        return schema["expected"]
    if "$ref" in schema:
        return describe(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
    if "anyOf" in schema:
        return ", or ".join(describe(each, definitions) for each in schema["anyOf"])
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
