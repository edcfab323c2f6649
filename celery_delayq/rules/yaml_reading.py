"""YAML as its version 1.2 has it, not PyYAML's 1.1: there ``on`` is true, ``10:30`` is 630, a date is no text."""

from __future__ import annotations

import re
from typing import ClassVar

import yaml  # type: ignore[import-untyped]  # it has no types

from .doubles import without_doubles


class _Loader(yaml.SafeLoader):
    """Knows null, booleans, integers and floats of YAML 1.2; everything else is a text."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Refuse doubles here: later, what was merged in is among the names, too."""
        node = super().compose_mapping_node(anchor)
        without_doubles([(name.value, None) for name, _ in node.value if isinstance(name, yaml.ScalarNode)])
        return node


for _tag, _form, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_form})\Z"), _first)


def read_yaml(text: str) -> object:
    """The one document in *text*.

    Raises:
        ValueError: it is no YAML, or has a name twice in one object; the message says where.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
