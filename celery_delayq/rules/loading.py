"""From a file to rules: JSON, Hjson or YAML, read whole, and every fault named with its place."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import AliasChoices, BaseModel, ValidationError

from celery_delayq.errors import ImproperlyConfigured

from .doubles import without_doubles
from .model import CeleryMake, Fetch, ListMake, Redis, Rule, Rules, TaskEvent, Watcher, templates_in
from .template import Template

logger = logging.getLogger(__name__)

_Model = TypeVar("_Model", bound=BaseModel)

#: The way to a value: names of fields and positions in lists.
Place = Sequence["str | int"]

#: What there is besides the names of an expression's groups, and what may be asked for within it.
_OF_TASKS = ("task", "id", "state", "args", "kwargs", "result", "error")


@dataclass(frozen=True)
class Fault:
    """What is wrong in one place.

    Attributes:
        place: file, watcher, rule and field, as far as they can be told.
        reason: and what to do.
    """

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


class InvalidRules(ImproperlyConfigured):
    """Rules that cannot work.

    Attributes:
        faults: all of them.
    """

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(list(faults))
        self.faults = list(faults)

    def __str__(self) -> str:
        return "\n".join(map(str, self.faults))


def load(path: str | Path) -> Rules:
    """The rules in a file: ``.json``, ``.hjson``, ``.yaml`` or ``.yml``.

    Raises:
        InvalidRules: it cannot be read, or says what cannot work; with all faults.
    """
    path = Path(path)
    return validated(_read(path), str(path))


def validated(data: object, name: str = "rules") -> Rules:
    """The rules in a mapping, or in a :class:`~celery_delayq.rules.Rules` that was made of Python objects.

    Args:
        name: stands for the file in the faults.

    Raises:
        InvalidRules: what they say cannot work; with all faults.
    """
    rules, faults = None, list[tuple[Place, str]]()
    try:
        faults += _discrepancies(data)
        rules = Rules.model_validate(data)
    except ValidationError as error:
        faults += [(path, _reason(one, path)) for one in error.errors() for path in [_real_path(data, one["loc"])]]
    except RecursionError:
        faults = [((), "is nested too deeply")]
    if rules is None or faults:
        faults.sort(key=lambda fault: [part for part in fault[0] if isinstance(part, int)][:2])  # watcher and rule
        raise InvalidRules([Fault(_place(name, data, path), reason) for path, reason in faults])
    if rules.task_set is not None:
        logger.warning(
            "%s: task_set is ignored, as by Resc since 0.2: give each make a set, and have the workers remove the task "
            "from it",
            name,
        )
    return rules


def _read(path: Path) -> object:
    readers = {".json": _read_json, ".hjson": _read_hjson, ".yaml": _read_yaml, ".yml": _read_yaml}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InvalidRules([Fault(str(path), f"its name must end with one of {', '.join(readers)}")])
    try:
        text = path.read_text("utf-8-sig")
        if not text.strip():
            raise ValueError("it is empty")
        return reader(text)
    except OSError as error:
        reason = error.strerror or str(error)
    except ImportError as error:
        package = {"yaml": "PyYAML"}.get(error.name or "", error.name)
        reason = f"{package} is not here: pip install {package}"
    except UnicodeDecodeError as error:
        reason = f"cannot be read: it is not UTF-8 at byte {error.start + 1}"
    except (ValueError, RecursionError) as error:
        reason = f"cannot be read: {error}"
    raise InvalidRules([Fault(str(path), reason)])


def _read_json(text: str) -> object:
    return json.loads(text, object_pairs_hook=without_doubles)


def _read_hjson(text: str) -> object:
    import hjson  # type: ignore[import-untyped]  # noqa: PLC0415  # has no types; only for files that need it

    return hjson.loads(text, object_pairs_hook=without_doubles)


def _read_yaml(text: str) -> object:
    from .yaml_reading import read_yaml  # noqa: PLC0415  # PyYAML may not be there

    return read_yaml(text)


#: What pydantic finds, in words of a file's fields.
_WORDS = {
    "missing": "is missing",
    "string_type": "must be a text",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "invalid_key": "must have texts for names",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be {ge:g} or more",
    "less_than_equal": "must be {le:g} or less",
    "literal_error": "must be {expected}",
}

_FIELDS: dict[str, Any] = {
    name: field
    for kind in (Rules, Watcher, Rule, Fetch, ListMake, CeleryMake, Redis, TaskEvent)
    for name, field in kind.model_fields.items()
}

#: What a field may be called, by its name.
_ALIASES = {
    name: [str(alias) for alias in field.validation_alias.choices]
    for name, field in _FIELDS.items()
    if isinstance(field.validation_alias, AliasChoices)
}


def _reason(error: Any, path: Place) -> str:
    if error["type"] == "extra_forbidden":
        return _reason_of_unknown(str(path[-1]))
    if error["type"] in _WORDS:
        return _WORDS[error["type"]].format(**error.get("ctx", {}))
    return str(error["msg"]).removeprefix("Value error, ")


def _reason_of_unknown(name: str) -> str:
    for main, aliases in _ALIASES.items():
        if name in aliases:
            return f"is another name of {main}, which is there already"
    if name in _FIELDS:
        return "does not belong here"
    near = difflib.get_close_matches(name, _FIELDS, n=1)
    return f"is unknown; did you mean {near[0]!r}?" if near else "is unknown"


def _real_path(data: object, loc: Place) -> Place:
    """The place in *data* that *loc* speaks of: without tags of unions, single objects as they stand, by the names in
    the file.
    """
    path: list[str | int] = []
    for part in loc:
        is_tag = isinstance(part, str) and part.startswith("<")
        if is_tag or (isinstance(part, int) and not isinstance(data, (list, tuple))):
            continue
        names = _ALIASES.get(part, []) if isinstance(part, str) else []
        path.append(next((name for name in names if _item(data, name) is not None), part))
        data = _item(data, path[-1])
    return path


def _place(name: str, data: object, path: Place) -> str:
    """Words for a place: file, watcher, rule, field."""
    words, rest, here = [name], list(path), data
    for kind, plural, title in (("watcher", "watchers", "input_queue"), ("rule", "rules", "name")):
        if len(rest) >= 2 and rest[0] == plural and isinstance(rest[1], int):
            here = _item(_item(here, plural), rest[1])
            known = _item(here, title)
            words.append(f"{kind} {known!r}" if known and isinstance(known, str) else f"{kind} {rest[1] + 1}")
            del rest[:2]
    if rest:
        words.append("field " + ".".join(map(str, rest)))
    return ", ".join(words)


def _item(data: object, key: str | int) -> Any:
    if isinstance(data, Mapping):
        return data.get(key)
    if isinstance(data, (list, tuple)):
        return data[key] if isinstance(key, int) and key < len(data) else None
    return getattr(data, key, None) if isinstance(key, str) else None


def _discrepancies(data: object) -> Iterator[tuple[Place, str]]:
    """What no field shows alone, in all watchers and rules that are sound in themselves: the path to it, the reason."""
    taken: dict[tuple[str, str], int] = {}
    inputs: dict[tuple[str, str], str] = {}
    for w, raw in _listed(data, "watchers"):
        watcher = _sound(Watcher, raw)
        if watcher:
            redis = watcher.redis or _sound(Redis, _item(data, "redis")) or Redis()
            first = taken.setdefault((redis.url, watcher.taken), w)
            if first != w:
                yield ["watchers", w, "taken_queue"], f"is that of watcher {first + 1}: give each its own"
            # Whoever revives a dead event must know where to.
            if inputs.setdefault((redis.url, watcher.dead), watcher.input_queue) != watcher.input_queue:
                yield ["watchers", w, "dead_queue"], "is that of another input_queue: give each its own"
        source = str(_item(raw, "source") or "list")
        for r, raw_rule in _listed(raw, "rules"):
            rule = _sound(Rule, raw_rule)
            for loc, reason in _faults_of(rule, source) if rule else ():
                yield ["watchers", w, "rules", r, *_real_path(raw_rule, loc)], reason


def _listed(data: object, field: str) -> Iterator[tuple[int, object]]:
    items = _item(data, field)
    return iter(enumerate(items if isinstance(items, (list, tuple)) else ()))


def _sound(kind: type[_Model], data: object) -> _Model | None:
    try:
        return kind.model_validate(data)
    except ValidationError:
        return None


def _faults_of(rule: Rule, source: str) -> Iterator[tuple[Place, str]]:
    if isinstance(rule.on, TaskEvent) and source != "task":
        yield ["on"], 'a task and its state need source: "task"'
    elif not isinstance(rule.on, TaskEvent) and source == "task":
        yield ["on"], 'an expression needs source: "list" or "stream"'
    else:
        known = _known_variables(rule, source)
        for f, fetch in enumerate(rule.fetch):
            for reason in _unknown(fetch.url, known | set(rule.variables_of(fetch))):
                yield ["fetch", f, "url"], reason
        known.update(fetch.returns for fetch in rule.fetch)
        for m, make in enumerate(rule.make):
            for field in type(make).model_fields:
                for template in templates_in(getattr(make, field)):
                    for reason in _unknown(template, known):
                        yield ["make", m, field], reason


def _known_variables(rule: Rule, source: str) -> set[str]:
    """The names that a rule's templates may begin with, besides answers."""
    if isinstance(rule.on, TaskEvent):
        return {"input_task", *_OF_TASKS}
    return {"input_task", *rule.on.groupindex} | ({"fields"} if source == "stream" else set())


def _unknown(template: Template, known: set[str]) -> Iterator[str]:
    for name in template.names:
        first = name.partition(".")[0]
        if first not in known:
            near = difflib.get_close_matches(first, known, n=1)
            hint = f"did you mean ${{{near[0]}}}?" if near else f"there are {', '.join(sorted(known))}"
            yield f"${{{name}}} is unknown; {hint}"
