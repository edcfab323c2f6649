"""``celery-delayq rules dead``: the events that could not be handled, and how they get another chance."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from itertools import islice
from typing import Any, NamedTuple

import click
import redis

from celery_delayq.command import when
from celery_delayq.command.output import Column, Table, as_json, safe, write
from celery_delayq.plain_client import client_at
from celery_delayq.rules import Rules, Watcher
from celery_delayq.scripts import Value, script

from . import ROWS
from .checking import loaded
from .testing import chosen

#: Entries that are read at once.
PAGE = 500


class Dead(NamedTuple):
    """One dead event.

    Attributes:
        client: of the Redis that it is in; open while the next one is not asked for.
        entry: its bytes in the dead list.
        told: what they say; only the event itself, if somebody else has put it there.
    """

    watcher: Watcher
    client: redis.Redis
    entry: bytes
    told: Mapping[str, Any]


def run(file: str, *, watcher: str | None, revives: bool, limit: int | None, as_objects: bool) -> int:
    """List or revive; 1 if there is none to revive, else 0."""
    (rules,) = loaded([file])
    watchers = chosen(rules, watcher)
    if revives:
        return _revive(rules, watchers, limit or 0, as_objects)
    found = _all(rules, watchers)
    if as_objects:
        write(as_json({"watcher": one.watcher.input_queue, **one.told}) for one in islice(found, limit or None))
        return 0
    rows = ROWS if limit is None else limit
    now = datetime.now(timezone.utc)
    shown = [_row(one, now) for one in islice(found, rows or None)]
    if not shown:
        click.echo("no dead events", err=True)
    names = [Column(title, narrows=True) for title in ("WATCHER", "EVENT", "RULE", "ERROR")]
    write(Table(Column("DIED"), Column("TRIED", right=True), *names).lines(shown))
    if next(found, None) is not None:
        click.echo("… more: --limit 0 shows all", err=True)
    return 0


def _revive(rules: Rules, watchers: list[Watcher], limit: int, as_objects: bool) -> int:
    revived, left = 0, Counter[str]()
    for one in _all(rules, watchers, left):
        if limit and revived == limit:
            break
        words = _words(one)
        if words is None:
            left[one.watcher.dead] += 1
            click.echo(f"left, as it does not say what the event was: {safe(_text(one.entry))}", err=True)
            continue
        won = script("rules/revive")(one.client, [one.watcher.dead, one.watcher.input_queue], words)
        revived += won
        if won and as_objects:
            write([as_json({"watcher": one.watcher.input_queue, "event": one.told["event"], "revived": True})])
    if not revived and not left:
        click.echo("no dead events", err=True)
    elif not as_objects:
        click.echo(f"{revived} {'event' if revived == 1 else 'events'} revived")
    return 0 if revived and not left else 1


def _words(dead: Dead) -> list[Value] | None:
    """The event as the script wants it; None: the entry is not a watcher's."""
    event, fields = dead.told.get("event"), dead.told.get("fields")
    if not isinstance(event, str):
        return None
    whole = fields if isinstance(fields, dict) and fields else {dead.watcher.field: event}
    in_stream = dead.watcher.source == "stream"
    words = [str(word) for pair in whole.items() for word in pair] if in_stream else [event]
    try:
        return [
            "stream" if in_stream else "list",
            dead.entry,
            *(word.encode(errors="surrogateescape") for word in words),
        ]
    except UnicodeEncodeError:
        return None


def _all(rules: Rules, watchers: list[Watcher], left: Mapping[str, int] | None = None) -> Iterator[Dead]:
    """What is in each dead list now, the oldest first, page by page.

    Args:
        left: how many of those that were given are still in each list; None: all. Those that die meanwhile come to the
            head, where nobody looks any more.
    """
    for (url, key), watcher in {(rules.url_of(one), one.dead): one for one in watchers}.items():
        with client_at(url) as client:
            seen, there = 0, client.llen(key)
            while seen < there:
                offset = seen if left is None else left[key]
                page = client.lrange(key, -offset - min(PAGE, there - seen), -offset - 1)
                if not page:
                    break
                yield from (Dead(watcher, client, entry, _read(entry)) for entry in reversed(page))
                seen += len(page)


def _read(entry: bytes) -> Mapping[str, Any]:
    try:
        told = json.loads(entry)
    except ValueError:
        told = None
    return told if isinstance(told, dict) else {"entry": _text(entry)}


def _row(dead: Dead, now: datetime) -> tuple[str, ...]:
    said = dead.told
    try:
        died = when.told(datetime.fromisoformat(str(said.get("at")).replace("Z", "+00:00")), now)
    except (ValueError, TypeError):
        died = "?"
    event = said.get("event", _text(dead.entry))
    names = (dead.watcher.input_queue, event, said.get("rule") or "", said.get("error") or "?")
    return (died, str(said.get("attempts", "?")), *map(str, names))


def _text(value: bytes) -> str:
    return value.decode(errors="surrogateescape")
