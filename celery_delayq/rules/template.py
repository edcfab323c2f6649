"""Texts with variables: ``trt/${process_id}/${child.productId}``.

``${name}`` stands for a variable, ``${child.address.city}`` for a value inside it, ``${list.0}`` for the first of a
list. ``${n:int}`` reads it as a type (``str``, ``int``, ``float``, ``bool``, ``json``: a text as JSON, and anything as
JSON into a text), and ``$${`` stands for ``${`` itself.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from celery_delayq.errors import shortened

Variables = Mapping[str, Any]

_PIECE = re.compile(r"\$\$\{|\$\{([^}]*)\}?")
_NAME = re.compile(r"[^\W\d]\w*(?:\.[^.:{}]+)*")
_INTEGER = re.compile(r"[+-]?[0-9]+")


class Missing(Exception):
    """A variable has no value."""


class Unknown:
    """Stands for a value that nobody knows yet: templates leave it, and all that is in it, as they are written."""


class Left(str):
    """A ``${…}`` that was left as it is written."""

    __slots__ = ()


class _Variable(NamedTuple):
    """One ``${…}``."""

    path: tuple[str, ...]
    type: str

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def left(self) -> Left:
        return Left(f"${{{self.name}{self.type and ':'}{self.type}}}")


class Template:
    """A text with variables, parsed.

    Args:
        text: as the file has it.

    Raises:
        ValueError: a ``${…}`` in it is none; the message says how to write one.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._parts: list[str | _Variable] = list(_parts(text))

    def __repr__(self) -> str:
        return f"Template({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    @property
    def names(self) -> list[str]:
        """The variables in it, with their dots."""
        return [part.name for part in self._parts if isinstance(part, _Variable)]

    @property
    def begins_with(self) -> str:
        """The text before the first variable."""
        first = self._parts[0] if self._parts else ""
        return first if isinstance(first, str) else ""

    def fill(self, variables: Variables, quote: Callable[[str], str] = str) -> str:
        """The text with the variables' values.

        Args:
            quote: is applied to each value.

        Raises:
            Missing: a variable has no value, or a value that cannot be read as its type or written into a text.
        """
        return "".join(
            part if isinstance(part, str) else quote(_written(_value(part, variables), part)) for part in self._parts
        )

    def value(self, variables: Variables) -> Any:
        """As :meth:`fill`; only that a text which is nothing but one variable with a type is a value of that type."""
        if len(self._parts) == 1 and isinstance(self._parts[0], _Variable):
            variable = self._parts[0]
            value = _value(variable, variables)
            return _written(value, variable) if variable.type in ("", "str") else value
        return self.fill(variables)


def _parts(text: str) -> Iterator[str | _Variable]:
    position, literal = 0, ""
    for found in _PIECE.finditer(text):
        literal += text[position : found.start()]
        position = found.end()
        if found.group() == "$${":
            literal += "${"
            continue
        if literal:
            yield literal
            literal = ""
        yield _variable(found)
    literal += text[position:]
    if literal:
        yield literal


def _variable(found: re.Match[str]) -> _Variable:
    name, colon, type_name = found.group(1).partition(":")
    if not found.group().endswith("}") or not _NAME.fullmatch(name):
        raise ValueError(f"{shortened(found.group())} is no variable: write ${{name}}, or $${{ for ${{ itself")
    if colon and type_name not in _TYPES:
        raise ValueError(f"{found.group()} has an unknown type: there are {', '.join(_TYPES)}")
    return _Variable(tuple(name.split(".")), type_name)


def _value(variable: _Variable, variables: Variables) -> Any:
    """Its value, of its type.

    At each step the whole rest of a dotted name is looked up first: a fetched key may itself have dots.
    """
    path = variable.path
    value: Any = variables
    for depth, key in enumerate(path):
        if isinstance(value, Mapping):
            rest = ".".join(path[depth:])
            if rest in value:
                value = value[rest]
                break
            value = value.get(key)
        elif isinstance(value, (list, tuple)):
            value = value[int(key)] if key.isdecimal() and int(key) < len(value) else None
        elif isinstance(value, Unknown):
            return variable.left
        else:
            value = None
    if value is None:
        raise Missing(f"${{{variable.name}}} has no value")
    if isinstance(value, Unknown):
        return variable.left
    if not variable.type:
        return value
    try:
        return _TYPES[variable.type](value)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise Missing(f"${{{variable.name}:{variable.type}}} is {shortened(value)}") from None


def _written(value: Any, variable: _Variable) -> str:
    """A value within a text."""
    if isinstance(value, str) and (variable.type != "json" or isinstance(value, Left)):
        return value
    if variable.type == "json" or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value, separators=(",", ":"))
    raise Missing(f"${{{variable.name}}} is {shortened(value)}: write ${{{variable.name}:json}} for it as JSON")


def _read_bool(value: Any) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}
    if str(value).lower() not in known:
        raise ValueError
    return known[str(value).lower()]


def _read_json(value: Any) -> Any:
    return json.loads(value, parse_constant=_read_float) if isinstance(value, str) else value


def _read_int(value: Any) -> int:
    if isinstance(value, str):
        if not _INTEGER.fullmatch(value):  # int() would take 1_000 and other scripts' digits, too
            raise ValueError
    elif isinstance(value, bool) or int(value) != value:
        raise ValueError
    return int(value)


def _read_float(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool) or not math.isfinite(number) or "_" in str(value):
        raise ValueError
    return number


_TYPES: dict[str, Callable[[Any], Any]] = {
    "str": lambda value: value,
    "int": _read_int,
    "float": _read_float,
    "bool": _read_bool,
    "json": _read_json,
}
