"""Write the reference pages and JSON schemas of all settings from their declarations: docs/reference."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_difftumor.evaluation.comparison.inputs.plan import (
    ComparisonSettings,
    Hospital,
    Model,
    PredictionSettings,
    SharedSettings,
    StatisticsSettings,
)
from nnunet_difftumor.settings.trainer_settings import TrainerSettings
from nnunet_difftumor.study.settings import ArmSettings, GeneratorSettings, ScheduleSettings, StudySettings
from nnunet_difftumor.support.files.declared import Declared, DeclaredInYaml, expected_of

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference"
SCHEMAS = {"settings": TrainerSettings, "study": StudySettings, "comparison": ComparisonSettings}
_MADE_TABLE = re.compile(r"(?<=<!-- made by scripts/write_settings_reference.py -->\n).*?(?=<!-- end -->)", re.DOTALL)
_STUDY_PAGE = "studies.md"
_SECTIONS: Mapping[str, type[Declared]] = {
    "A study": StudySettings,
    "Its `schedule`": ScheduleSettings,
    "One of its `arms`": ArmSettings,
    "Its `generators`": GeneratorSettings,
    "Its `compare`": SharedSettings,
    "A comparison": ComparisonSettings,
    "One of the `models` of a comparison": Model,
    "One of the `hospitals` of a study or comparison": Hospital,
    "`prediction` of a study or comparison": PredictionSettings,
    "`statistics` of a study or comparison": StatisticsSettings,
}
_STUDY_INTRODUCTION = """# Settings of studies and comparisons

`difftumor experiment` reads a study, [which has a guide](../how-to/experiment.md); `difftumor compare` a comparison, \
[which has one too](../how-to/compare.md). Both are YAML. Paths start from the file's folder; `~` and environment \
variables are replaced. A key without a value is as if it were not there; an unknown key or a wrong value is an error \
that names the key. An editor that knows JSON schemas completes and checks keys with [study.schema.json]\
(study.schema.json) and [comparison.schema.json](comparison.schema.json). `scripts/write_settings_reference.py` makes \
this page from the declarations in the code.
"""


def made_files() -> dict[Path, str]:
    """What the declarations give, by the files that hold it; text around a table that is made stays."""
    configuration = (REFERENCE / "configuration.md").read_text(encoding="utf-8")
    table = table_of(TrainerSettings)
    sections = "".join(f"\n## {title}\n\n{_sentence(model)}\n\n{table_of(model)}" for title, model in _SECTIONS.items())
    return {
        REFERENCE / "configuration.md": _MADE_TABLE.sub(lambda _: table, configuration),
        REFERENCE / _STUDY_PAGE: _STUDY_INTRODUCTION + sections,
        **{REFERENCE / f"{name}.schema.json": schema_of(model) for name, model in SCHEMAS.items()},
    }


def table_of(model: type[Declared]) -> str:
    """One row for each setting: key, default, what it must be, and what it means."""
    rows = ["| key | default | value | meaning |", "|---|---|---|---|"]
    properties = model.model_json_schema()["properties"]
    for key, field in model.model_fields.items():
        default = "needed" if field.is_required() else _default(properties[key], model)
        meaning = " ".join((field.description or "").split())
        rows.append(f"| `{key}` | {default} | {expected_of(model, key)} | {meaning} |")
    return "\n".join(rows) + "\n"


def _default(schema: Mapping[str, Any], model: type[Declared]) -> str:
    shown = next((each["shown"] for each in (schema, *schema.get("anyOf", ())) if "shown" in each), None)
    if shown is not None:
        return shown
    default = schema.get("default")
    if issubclass(model, DeclaredInYaml) and (default in (None, "", [], {}) or isinstance(default, dict)):
        return "none"
    return f"`{json.dumps(default)}`"


def _sentence(model: type[Declared]) -> str:
    return (model.__doc__ or "").split("\n\n")[0].replace("\n    ", " ")


def schema_of(model: type[Declared]) -> str:
    """The JSON schema of a file, for editors."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
    return json.dumps(_for_editors(schema), indent=2, ensure_ascii=False) + "\n"


def _for_editors(schema: Any) -> Any:
    """The schema without words for the reference alone; descriptions in one line and without links."""
    if isinstance(schema, list):
        return [_for_editors(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: _for_editors(value) for key, value in schema.items() if not _is_for_reference(key, value)}
    if isinstance(kept.get("description"), str):
        kept["description"] = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join(kept["description"].split()))
    return kept


def _is_for_reference(key: str, value: Any) -> bool:
    return key in ("expected", "shown", "title") and isinstance(value, str)


def main() -> None:
    """Write all files."""
    for path, text in made_files().items():
        path.write_text(text, encoding="utf-8")
        print(f"Wrote {path}")


if __name__ == "__main__":
    main()
