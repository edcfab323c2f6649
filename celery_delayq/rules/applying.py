"""What the rules make of an event: pure, but for what is fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from celery_delayq.errors import shortened

from .model import CeleryMake, Fetch, ListMake, Rule, TaskEvent, Watcher
from .source import Event, Push
from .template import Missing, Template, Variables

#: Gives the objects that a fetch answers with, for these variables.
Fetching = Callable[[Fetch, Variables], list[Mapping[str, Any]]]


class RuleFailed(Exception):
    """A rule could not be applied to an event.

    Attributes:
        rule: its name.
        passing: whether another try may help.
    """

    def __init__(self, rule: str, reason: str, *, passing: bool) -> None:
        super().__init__(rule, reason)
        self.rule = rule
        self.reason = reason
        self.passing = passing

    def __str__(self) -> str:
        return f"rule {self.rule!r}: {self.reason}"


class FetchFailed(Exception):
    """A request has failed.

    Attributes:
        passing: whether another try may help.
    """

    def __init__(self, reason: str, *, passing: bool) -> None:
        super().__init__(reason)
        self.passing = passing


class CeleryTask(NamedTuple):
    """A Celery task to be sent.

    Attributes:
        make: what it is made by: its constant options.
        args, kwargs: with all values filled in.
        filled: those of the make's fields that are templates (``celery``, ``delay``, ``at``, ``task_id``, ``queue``).
    """

    make: CeleryMake
    args: list[Any]
    kwargs: dict[str, Any]
    filled: Mapping[str, str]


class Match(NamedTuple):
    """A rule that speaks of an event, and the variables that it found in it."""

    rule: Rule
    variables: Variables


def matches(watcher: Watcher, event: Event) -> Iterator[Match]:
    """The rules that speak of *event*, in their order."""
    for rule in watcher.rules:
        if isinstance(rule.on, TaskEvent):
            if rule.on.matches(str(event.variables.get("task")), str(event.variables.get("state"))):
                yield Match(rule, {"input_task": event.text, **event.variables})
        elif found := rule.on.search(event.text):
            groups = {name: value for name, value in found.groupdict().items() if value is not None}
            yield Match(rule, {**event.variables, "input_task": event.text, **groups})


def made_of(match: Match, fetching: Fetching) -> list[tuple[Push | CeleryTask, str]]:
    """What a rule makes of an event, each with the words of it for a log.

    Raises:
        RuleFailed: a variable has no value, or a fetch failed.
    """
    rule = match.rule
    try:
        return [
            one
            for variables in _fetched(rule.fetch, match.variables, fetching)
            for make in rule.make
            for one in [_made(make, variables)]
        ]
    except Missing as error:
        raise RuleFailed(rule.name, str(error), passing=bool(rule.fetch)) from None
    except FetchFailed as error:
        raise RuleFailed(rule.name, str(error), passing=error.passing) from None


def _fetched(fetches: Iterable[Fetch], variables: Variables, fetching: Fetching) -> list[Variables]:
    """The variables with the answers: those of one name are added up, those of two are combined."""
    found = [variables]
    by_name: dict[str, list[Fetch]] = {}
    for fetch in fetches:
        by_name.setdefault(fetch.returns, []).append(fetch)
    for name, same in by_name.items():
        found = [{**before, name: answer} for before in found for fetch in same for answer in fetching(fetch, before)]
    return found


def _made(make: ListMake | CeleryMake, variables: Variables) -> tuple[Push | CeleryTask, str]:
    if isinstance(make, ListMake):
        task, queue = make.task.fill(variables), _not_empty(make.queue, variables, "queue")
        set = None if make.set is None else _bytes(_not_empty(make.set, variables, "set"))
        return Push(_bytes(task), _bytes(queue), set), f"{task!r} pushed to queue {queue!r}"
    templates = {name: getattr(make, name) for name in ("celery", "delay", "at", "task_id", "queue")}
    filled = {name: _not_empty(text, variables, name) for name, text in templates.items() if text is not None}
    args, kwargs = _filled(make.args, variables), _filled(make.kwargs, variables)
    return CeleryTask(make, args, kwargs, filled), f"Celery task {filled['celery']!r} sent"


def _not_empty(template: Template, variables: Variables, name: str) -> str:
    text = template.fill(variables)
    if not text:
        raise Missing(f"{name} is empty")
    return text


def _filled(value: Any, variables: Variables) -> Any:
    if isinstance(value, Template):
        return value.value(variables)
    if isinstance(value, list):
        return [_filled(item, variables) for item in value]
    if isinstance(value, dict):
        return {key: _filled(item, variables) for key, item in value.items()}
    return value


def _bytes(text: str) -> bytes:
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # JSON may have "\\ud800"
        raise Missing(f"{shortened(text)} is no text") from None
