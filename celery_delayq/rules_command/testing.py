"""``celery-delayq rules test``: what would be made of an event."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any
from urllib.parse import quote

import click

from celery_delayq.command.output import as_json, safe, write
from celery_delayq.errors import shortened
from celery_delayq.rules import Fetch, Rules, Watcher
from celery_delayq.rules.applying import CeleryTask, Fetching, RuleFailed, made_of, matches
from celery_delayq.rules.fetching import Fetchers
from celery_delayq.rules.list_source import event_of
from celery_delayq.rules.source import Event, Push
from celery_delayq.rules.task_events import read as read_task_event
from celery_delayq.rules.template import Left, Unknown, Variables

from .checking import loaded


def run(file: str, texts: Sequence[str], *, watcher: str | None, fetches: bool, as_objects: bool) -> int:
    """Tell what would be made of each of *texts*; 0 if something would, and no rule fails, else 1."""
    (rules,) = loaded([file])
    watchers = chosen(rules, watcher)
    fetching: Fetching = Fetchers() if fetches else _nobody_knows
    outcomes = []
    for text in texts:
        events = [(one, event) for one in watchers if (event := _event(one, text)) is not None]
        if not events:
            raise click.UsageError(
                f"{shortened(text)} is no event of a Celery task, which is a JSON object, as "
                '{"task": "proj.add", "state": "success", "args": [1, 2], "result": 3}'
            )
        outcomes += [outcome for one, event in events for outcome in _outcomes(one, event, fetching)]
    if as_objects:
        write(map(as_json, outcomes))
    else:
        write(
            chain.from_iterable(
                _lines(text, [o for o in outcomes if o["event"] == text]) for text in dict.fromkeys(texts)
            )
        )
    return 0 if outcomes and not any("error" in outcome for outcome in outcomes) else 1


def chosen(rules: Rules, queue: str | None) -> list[Watcher]:
    """The watchers of that queue, or all.

    Raises:
        click.UsageError: there is none.
    """
    found = [watcher for watcher in rules.watchers if queue in (None, watcher.input_queue)]
    if not found:
        queues = ", ".join(dict.fromkeys(watcher.input_queue for watcher in rules.watchers))
        raise click.UsageError(safe(f"no watcher has the input_queue {queue!r}; there are {queues}"))
    return found


def _outcomes(watcher: Watcher, event: Event, fetching: Fetching) -> Iterator[dict[str, Any]]:
    """What each matching rule would do."""
    for match in matches(watcher, event):
        asked: list[str] = []
        outcome: dict[str, Any] = {
            "event": _text(event.key),
            "watcher": watcher.input_queue,
            "rule": match.rule.name,
            "variables": {name: value for name, value in match.variables.items() if name != "input_task"},
            "would_fetch" if fetching is _nobody_knows else "fetched": asked,
            "makes": [],
        }
        try:
            outcome["makes"] = [_made(one) for one, _ in made_of(match, _noting(asked, fetching))]
        except RuleFailed as error:
            outcome["error"] = error.reason
        yield outcome


def _event(watcher: Watcher, text: str) -> Event | None:
    """As the watcher's source would read it; None: it gets no such event."""
    line = text.encode(errors="surrogateescape")
    if watcher.source == "list":
        return event_of(line)
    if watcher.source == "task":
        event = read_task_event(line)
        return None if event.fault else event
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    fields = found if isinstance(found, dict) else {watcher.field: text}
    return Event(line, str(fields.get(watcher.field, "")), {"fields": fields})


def _noting(asked: list[str], fetching: Fetching) -> Fetching:
    def fetch(fetch: Fetch, variables: Variables) -> list[Mapping[str, Any]]:
        url = fetch.url.fill(variables, _quoted)
        if url not in asked:
            asked.append(url)
        return fetching(fetch, variables)

    return fetch


def _quoted(value: str) -> str:
    return value if isinstance(value, Left) else quote(value, safe="", errors="surrogateescape")


def _nobody_knows(_fetch: Fetch, _variables: Variables) -> list[Any]:
    """One answer of which everything is unknown."""
    return [Unknown()]


def _made(one: Push | CeleryTask) -> dict[str, Any]:
    if isinstance(one, Push):
        made = {"push": _text(one.task), "queue": _text(one.queue)}
        return made if one.set is None else {**made, "set": _text(one.set)}
    options: dict[str, Any] = {name: value for name, value in one.filled.items() if name != "celery"}
    for name in ("on_conflict", "max_wait", "priority"):
        value = getattr(one.make, name)
        if value is not None and (name != "on_conflict" or "task_id" in options):
            options[name] = value
    return {"celery": one.filled["celery"], "args": one.args, "kwargs": one.kwargs, **options}


def _lines(text: str, outcomes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What people read of one event."""
    yield safe(text)
    if not outcomes:
        yield "  no rule matches"
    for outcome in outcomes:
        yield safe(f"  {outcome['watcher']}: {outcome['rule']}")
        for name, value in outcome["variables"].items():
            yield safe(f"    ${{{name}}} = {json.dumps(value)}")
        for url in outcome.get("would_fetch", ()):
            yield safe(f"    would fetch {url}")
        for url in outcome.get("fetched", ()):
            yield safe(f"    fetched {url}")
        for made in outcome["makes"]:
            yield safe(f"    {_told(made)}")
        if "error" in outcome:
            yield safe(f"    fails: {outcome['error']}")


def _told(made: Mapping[str, Any]) -> str:
    if "push" in made:
        unless = f", unless it is in {made['set']!r}" if "set" in made else ""
        return f"push {made['push']!r} to {made['queue']!r}{unless}"
    options = {name: value for name, value in made.items() if name not in ("celery", "args", "kwargs")}
    when = (
        f"in {options.pop('delay')}" if "delay" in options else f"at {options.pop('at')}" if "at" in options else "now"
    )
    arguments = [*(repr(arg) for arg in made["args"]), *(f"{name}={value!r}" for name, value in made["kwargs"].items())]
    return ", ".join(
        [
            f"send {made['celery']}({', '.join(arguments)}) {when}",
            *(f"{name} {value!r}" for name, value in options.items()),
        ]
    )


def _text(value: bytes) -> str:
    return value.decode(errors="surrogateescape")
