"""``celery delayq dead``: the tasks that could not be handed over, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from itertools import islice
from typing import Any

import click
from celery.bin.base import CeleryCommand
from click_didyoumean import DYMGroup  # type: ignore[import-untyped]  # it has no types

from .changing import confirm, tasks, yes_option
from .filters import queue_option
from .group import NothingDone, WrongUse, delayq, delayq_of
from .output import Column, Table, as_json, safe, write
from .reading import ROWS, checked_id, json_option, limit_option
from .when import told


@delayq.group("dead", cls=DYMGroup)  # type: ignore[untyped-decorator]  # click-didyoumean's class is
def dead() -> None:
    """Look at dead letters, try them again, or throw them away.

    They are tasks that were due and that the broker did not take, however often that was tried (delayq_max_attempts).
    Only where tasks wait at delayq_store_url, away from the broker.
    """


def _command(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    def register(function: Callable[..., Any]) -> click.Command:
        made: click.Command = dead.command(name, cls=CeleryCommand)(function)
        return made

    return register


@_command("list")
@queue_option("Only of this queue.")
@limit_option
@json_option
@click.pass_context
def list_(ctx: click.Context, queue: str | None, limit: int | None, as_objects: bool) -> None:
    """List dead letters, by queue, the longest dead first."""
    limit = limit if limit is not None else 0 if as_objects else ROWS
    found = delayq_of(ctx).dead(queue)
    shown = islice(found, limit or None)
    if as_objects:
        write(as_json(asdict(letter)) for letter in shown)
        return
    now = datetime.now(timezone.utc)
    names = Column("QUEUE", narrows=True), Column("TASK", narrows=True), Column("ID"), Column("REASON", narrows=True)
    table = Table(Column("DIED"), Column("TRIED", right=True), *names)
    rows = [
        (told(one.died, now), str(one.attempts), one.queue, one.task or "?", one.id, one.reason or "?") for one in shown
    ]
    if not rows:
        click.echo("no dead letters", err=True)
        return
    write(table.lines(rows))
    if limit and next(found, None) is not None:
        click.echo("… more: --limit 0 shows all", err=True)


@_command("retry")
@click.argument("task_ids", metavar="[ID]...", nargs=-1)
@queue_option("All of this queue.")
@json_option
@click.pass_context
def retry(ctx: click.Context, task_ids: tuple[str, ...], queue: str | None, as_objects: bool) -> None:
    """Let dead letters wait again, due now: those of the ids, or all of a queue."""
    app = delayq_of(ctx)
    _change(task_ids, queue, app.retry_dead, "retried", as_objects)


@_command("delete")
@click.argument("task_ids", metavar="[ID]...", nargs=-1)
@queue_option("All of this queue.")
@yes_option
@json_option
@click.pass_context
def delete(ctx: click.Context, task_ids: tuple[str, ...], queue: str | None, yes: bool, as_objects: bool) -> None:
    """Throw dead letters away: those of the ids, or all of a queue, which it asks about.

    Their results are not marked.
    """
    app = delayq_of(ctx)
    if queue is not None and not task_ids and not yes:
        found = sum(1 for _ in app.dead(queue))
        if not found:
            raise NothingDone("no dead letters")
        confirm(f"Delete {tasks(found)}?")
    _change(task_ids, queue, app.delete_dead, "deleted", as_objects)


def _change(
    task_ids: tuple[str, ...], queue: str | None, change: Callable[..., int], done: str, as_objects: bool
) -> None:
    """Do something to each id and say what became of it, or to a queue and say to how many."""
    if bool(task_ids) == (queue is not None):
        raise WrongUse("give ids, or --queue, and not both")
    if queue is not None:
        count = change(queue=queue)
        if as_objects:
            write([as_json({done: count})])
        elif count:
            click.echo(f"{tasks(count)} {done}")
        if not count:
            raise NothingDone("no dead letters")
        return
    missing = 0
    for task_id in map(checked_id, dict.fromkeys(task_ids)):
        won = change(task_id) > 0
        missing += not won
        if as_objects:
            write([as_json({"id": task_id, done: won})])
        else:
            click.echo(f"{safe(task_id)} {done if won else 'is no dead letter'}", err=not won)
    if missing:
        raise click.exceptions.Exit(1)
