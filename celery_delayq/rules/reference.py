"""The reference of the configuration, made of the models: ``python -m celery_delayq.rules.reference docs/rules.md``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo

from . import model
from .model import CeleryMake, Fetch, ListMake, Redis, Rule, Rules, TaskEvent, Watcher
from .template import Template

MODELS: list[type[BaseModel]] = [Rules, Redis, Watcher, Rule, TaskEvent, Fetch, ListMake, CeleryMake]

_TABLE = re.compile(r"(<!-- fields: (\w+) -->\n).*?(<!-- /fields -->)", re.DOTALL)


def filled(page: str) -> str:
    """*page* with the table of each model between ``<!-- fields: Model -->`` and ``<!-- /fields -->``."""
    tables = {kind.__name__: table(kind) for kind in MODELS}
    return _TABLE.sub(lambda found: f"{found[1]}{tables[found[2]]}\n{found[3]}", page)


def table(kind: type[BaseModel]) -> str:
    """The fields of a model as a Markdown table."""
    schema = Rules.model_json_schema(by_alias=False)
    properties = (schema if kind is Rules else schema["$defs"][kind.__name__])["properties"]
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, field in kind.model_fields.items():
        cells = (_names(name, field), _type(properties[name], field), _default(field), field.description or "")
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def _names(name: str, field: FieldInfo) -> str:
    choices = field.validation_alias.choices if isinstance(field.validation_alias, AliasChoices) else []
    others = [f"`{other}`" for other in choices if other != name]
    return f"`{name}`" + (f", also {', '.join(others)}" if others else "")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default if field.default_factory is None else cast("Callable[[], Any]", field.default_factory)()
    if value is None or value == "" or isinstance(value, BaseModel):
        return ""
    return f"`{json.dumps(value.text if isinstance(value, Template) else _number(value))}`"


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _type(schema: Mapping[str, Any], field: FieldInfo) -> str:
    if any(getattr(one, "func", None) is model.as_list for one in field.metadata):
        return f"{_words(schema['items'])}; or a list"
    return _words(schema)


def _words(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if any_of := [one for one in _alternatives(schema) if one.get("type") != "null"]:
        return " or ".join(map(_words, any_of))
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if schema["type"] == "array":
        return f"list of {_words(schema['items'])}" if schema["items"] else "list"
    if schema["type"] == "integer":
        most = f" to {schema['maximum']:,}" if "maximum" in schema else " or more"
        return f"whole number, {schema['minimum']}{most}"
    return {"string": str(schema.get("format", "text")), "object": "object"}[schema["type"]]


def _alternatives(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Also of one: with ``allOf``, older versions of Pydantic add a description to a reference."""
    return [*schema.get("oneOf", ()), *schema.get("anyOf", ()), *schema.get("allOf", ())]


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        page.write_text(filled(page.read_text("utf-8")), "utf-8")
