"""Commands that look at what waits, and change nothing."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from itertools import chain, islice
from typing import Any

import click
from celery.bin.base import CeleryOption

from celery_delayq.scheduled import ScheduledTask

from .agenda import Chart, chart_lines
from .filters import filter_of, filtered, queue_option
from .group import NothingDone, WrongUse, command, delayq_of, one_line
from .output import Bar, Column, Table, as_json, is_terminal, safe, write
from .when import LENGTH, WHEN, tell_length, told

#: Rows of a table when nobody says how many.
ROWS = 50

limit_option = click.option(
    "--limit",
    type=click.IntRange(min=0),
    metavar="N",
    cls=CeleryOption,
    help=f"Show so many at most; 0 for all. The default is {ROWS}, with --json all.",
)

json_option = click.option("--json", "as_objects", is_flag=True, cls=CeleryOption, help="One JSON object a line.")


def fields_of(task: ScheduledTask) -> dict[str, Any]:
    """A task as machines get it."""
    return {name: getattr(task, name) for name in task.__dataclass_fields__}


@command("list")
@filtered
@limit_option
@json_option
@click.pass_context
def list_(ctx: click.Context, where: dict[str, Any], limit: int | None, as_objects: bool) -> None:
    """List what waits, in due order.

    Page by page: a million tasks take no more memory than a thousand.
    """
    app = delayq_of(ctx)
    limit = limit if limit is not None else 0 if as_objects else ROWS
    tasks = app.scheduled(**where)
    shown = islice(tasks, limit or None)
    if as_objects:
        write(as_json(fields_of(task)) for task in shown)
        return
    first = next(shown, None)
    if first is None:
        click.echo("nothing waits" if filter_of(where).is_all else "nothing that waits is meant", err=True)
        return
    now, paused = datetime.now(timezone.utc), app.paused()
    table = Table(
        Column("DUE"), Column("IN"), Column("QUEUE", narrows=True), Column("TASK", narrows=True), Column("ID")
    )
    write(table.lines(_row(task, now, paused) for task in chain([first], shown)))
    following = next(tasks, None) if limit else None
    if following is not None:
        count = None if filter_of(where).reads_messages else app.count(**where) - limit
        some = "more" if count is None else f"{max(count, 1):,} more"
        due = following.due.isoformat(timespec="microseconds")
        click.echo(f"… {some}: --from {due} goes on, --limit 0 shows all", err=True)


def _row(task: ScheduledTask, now: datetime, paused: set[str]) -> tuple[str, ...]:
    due = task.due.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"
    return due, told(task.due, now).removeprefix("in "), _queue(task, paused), task.task or "?", task.id


def _queue(task: ScheduledTask, paused: set[str]) -> str:
    return f"{task.queue} (paused)" if task.queue in paused else task.queue


@command("show")
@click.argument("task_id", metavar="ID")
@json_option
@click.pass_context
def show(ctx: click.Context, task_id: str, as_objects: bool) -> None:
    """Show all that is known of one waiting task.

    An id can wait in several queues; each is shown.
    """
    app = delayq_of(ctx)
    found = app.get_all(checked_id(task_id))
    if not found:
        raise NothingDone(f"no task of the id {safe(task_id)} waits")
    if as_objects:
        write(as_json(fields_of(task)) for task in found)
        return
    paused = app.paused()
    now = datetime.now(timezone.utc)
    for number, task in enumerate(found):
        write([""] * bool(number))
        write(_portrait(task, now, paused))


def _portrait(task: ScheduledTask, now: datetime, paused: set[str]) -> Iterator[str]:
    lines = {
        "id": task.id,
        "task": task.task or "? (its message cannot be read)",
        "args": task.argsrepr,
        "kwargs": task.kwargsrepr,
        "queue": _queue(task, paused),
        "priority": task.priority,
        "due": _moment(task.due, now),
        "put": task.put_at and _moment(task.put_at, now),
        "state": task.state,
    }
    for name, value in lines.items():
        if value is not None:
            yield f"{name:10}{safe(str(value))}"
    told_already = {"id", "task", "argsrepr", "kwargsrepr"}
    headers = {name: value for name, value in task.headers.items() if value is not None and name not in told_already}
    for number, (name, value) in enumerate(headers.items()):
        said = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield safe(f"{'' if number else 'headers':10}{name}: {said}")


def _moment(moment: datetime, now: datetime) -> str:
    return f"{moment.isoformat(timespec='microseconds')} ({told(moment, now)})"


def checked_id(task_id: str) -> str:
    """An id as given; an empty one is none.

    Raises:
        WrongUse: it is empty.
    """
    if not task_id:
        raise WrongUse("an id must not be empty")
    return task_id


@command("count")
@filtered
@json_option
@click.pass_context
def count(ctx: click.Context, where: dict[str, Any], as_objects: bool) -> None:
    """Count what waits.

    By queue and time at once; with other filters each message is read.
    """
    app = delayq_of(ctx)
    if filter_of(where).reads_messages:
        with Bar("counting", "stopped: {done} of {total} tasks were looked at") as bar:
            number = app.cancel_where(**where, dry_run=True, progress=bar.progress)
    else:
        number = app.count(**where)
    write([as_json({"count": number}) if as_objects else str(number)])


@command("agenda")
@queue_option("Only of this queue.")
@click.option("--from", "start", type=WHEN, metavar="TIME", cls=CeleryOption, help="Begin then; now by default.")
@click.option("--to", "end", type=WHEN, metavar="TIME", cls=CeleryOption, help="End then; needs --step.")
@click.option(
    "--step", type=LENGTH, metavar="LENGTH", cls=CeleryOption, help="As long as a bar stands for; needs --to."
)
@json_option
@click.pass_context
def agenda(
    ctx: click.Context,
    queue: str | None,
    start: datetime | None,
    end: datetime | None,
    step: timedelta | None,
    as_objects: bool,
) -> None:
    """Draw the coming load by queue.

    The next hour by minute and the next day by hour, or from, to and in steps of what you say.
    """
    app = delayq_of(ctx)
    if (end is None) != (step is None):
        raise WrongUse("give both --to and --step, or neither")
    now = datetime.now(timezone.utc)
    if end is not None and step is not None:
        spans = [Chart("", start or now, end, step)]
    else:
        minute = start or now.replace(second=0, microsecond=0)
        hour = start or minute.replace(minute=0)
        spans = [
            Chart("next hour, by minute", minute, minute + timedelta(hours=1), timedelta(minutes=1)),
            Chart("next day, by hour", hour, hour + timedelta(days=1), timedelta(hours=1)),
        ]
    for number, span in enumerate(spans):
        try:
            steps = app.agenda(span.start, span.end, span.step)
        except ValueError as error:
            raise WrongUse(one_line(error)) from None
        if queue is not None:
            steps = [(at, {queue: loads[queue]} if queue in loads else {}) for at, loads in steps]
        if as_objects:
            write(as_json({"start": at, "end": min(at + span.step, span.end), "queues": loads}) for at, loads in steps)
        else:
            write([""] * bool(number))
            width = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else 80
            write(chart_lines(span, steps, width))
    overdue = 0 if start or as_objects else app.count(queue, end=now)
    if overdue:
        click.echo(f"\n{overdue:,} {'is' if overdue == 1 else 'are'} overdue")


@command("stats")
@json_option
@click.pass_context
def stats(ctx: click.Context, as_objects: bool) -> None:
    """Show what each queue holds and has done.

    WAITING delayed tasks, how many of them are DUE but not handed over yet and for how long the first of them has been
    (OVERDUE), messages READY for workers; and in total those MOVED to the queue, CANCELLED, DROPPED since they came
    too late, and ORPHANS, ids without a message. Where tasks are relayed: how many are RESERVED, being handed over;
    in total REQUEUED, tried again; and DEAD letters.
    """
    found = delayq_of(ctx).stats()
    if as_objects:
        write(as_json({"queue": queue, **asdict(figures)}) for queue, figures in found.items())
        return
    if not found:
        click.echo("nothing waits, and nothing ever has", err=True)
        return
    names = ["waiting", "due", "overdue", "paused", "ready", "moved", "cancelled", "dropped", "orphans"]
    if any(figures.ready is None for figures in found.values()):
        names += ["reserved", "requeued", "dead"]
    table = Table(Column("QUEUE", narrows=True), *(Column(name.upper(), right=True) for name in names))
    rows = []
    for queue, figures in found.items():
        told = asdict(figures)
        told |= {"overdue": tell_length(figures.overdue.total_seconds()) if figures.due else "-"}
        told |= {"paused": "paused" if figures.paused else "-"}
        told |= {"ready": "-"} if figures.ready is None else {}
        rows.append([queue, *(said if isinstance(said := told[name], str) else f"{said:,}" for name in names)])
    write(table.lines(rows))
