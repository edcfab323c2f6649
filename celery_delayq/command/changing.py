"""Commands that take back, move and hold up what waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from typing import Any

import click
from celery.bin.base import CeleryOption

from celery_delayq.app import DelayQ

from .filters import Name, complete_queue, filter_of, filtered, queue_option
from .group import NothingDone, WrongUse, command, delayq_of
from .output import Bar, as_json, safe, write
from .reading import checked_id, json_option
from .when import LENGTH, WHEN, told

yes_option = click.option("--yes", "-y", is_flag=True, cls=CeleryOption, help="Do not ask.")
dry_run_option = click.option("--dry-run", is_flag=True, cls=CeleryOption, help="Only count.")

STOPPED = "stopped: {done} of {total} tasks were looked at, and what was {what} stays {what}; the same command goes on"


def tasks(count: int) -> str:
    """How many tasks, in words."""
    return f"{count:,} {'task' if count == 1 else 'tasks'}"


def confirm(question: str) -> None:
    """Ask a person, on stderr; only a yes lets us go on.

    Raises:
        WrongUse: nobody answers.
        NothingDone: no.
    """
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        click.echo(err=True)
        raise WrongUse("nobody answers; --yes goes on without asking") from None
    if not agreed:
        raise NothingDone("nothing was done")


@command("cancel")
@click.argument("task_ids", metavar="[ID]...", nargs=-1)
@filtered
@click.option("--no-mark", is_flag=True, cls=CeleryOption, help="Mark no results as REVOKED, send no events.")
@dry_run_option
@yes_option
@json_option
@click.pass_context
def cancel(
    ctx: click.Context,
    task_ids: tuple[str, ...],
    where: dict[str, Any],
    no_mark: bool,
    dry_run: bool,
    yes: bool,
    as_objects: bool,
) -> None:
    """Take back waiting tasks: those of the ids, or all that the filters mean.

    What was handed over to a queue already runs. With filters it says how many tasks they mean, and asks.
    """
    app = delayq_of(ctx)
    is_all = filter_of(where).is_all
    if task_ids and not is_all:
        raise WrongUse("give ids or filters, not both")
    if not task_ids and is_all:
        raise WrongUse("give ids, or filters such as --queue; for all that waits there is purge")
    if task_ids:
        act = (
            (lambda task_id: any(task.state == "waiting" for task in app.get_all(task_id)))
            if dry_run
            else (lambda task_id: app.cancel(task_id, mark=not no_mark) > 0)
        )
        _each(task_ids, act, "would be cancelled" if dry_run else "cancelled", as_objects)
        return
    if dry_run or not yes:
        with Bar("counting", "stopped: nothing was done") as bar:
            meant = app.cancel_where(**where, dry_run=True, progress=bar.progress)
        if not meant:
            raise NothingDone("nothing that waits is meant")
        if dry_run:
            write([as_json({"would_cancel": meant}) if as_objects else f"{tasks(meant)} would be cancelled"])
            return
        confirm(f"Cancel {tasks(meant)}?")
    with Bar("cancelling", STOPPED.replace("{what}", "cancelled")) as bar:
        cancelled = app.cancel_where(**where, mark=not no_mark, progress=bar.progress)
    _told(cancelled, "cancelled", as_objects)


def _each(task_ids: Iterable[str], act: Callable[[str], bool], done: str, as_objects: bool) -> None:
    """Do something to each id, say of each what became of it, and fail if any does not wait."""
    missing = 0
    for task_id in map(checked_id, dict.fromkeys(task_ids)):
        won = act(task_id)
        missing += not won
        if as_objects:
            write([as_json({"id": task_id, done.replace(" ", "_"): won})])
        else:
            click.echo(f"{safe(task_id)} {done if won else 'does not wait'}", err=not won)
    if missing:
        raise click.exceptions.Exit(1)


def _told(count: int, done: str, as_objects: bool, nothing: str = "nothing that waits is meant") -> None:
    if as_objects:
        write([as_json({done: count})])
    elif count:
        click.echo(f"{tasks(count)} {done}")
    if not count:
        raise NothingDone(nothing)


@command("reschedule")
@click.argument("task_id", metavar="ID")
@click.argument("when", metavar="TIME...", nargs=-1, required=True)
@click.option("--if-due", type=WHEN, metavar="TIME", cls=CeleryOption, help="Only if it is due at this very time.")
@json_option
@click.pass_context
def reschedule(
    ctx: click.Context, task_id: str, when: tuple[str, ...], if_due: datetime | None, as_objects: bool
) -> None:
    """Make a waiting task due at another time: reschedule ID in 2h.

    Its id and its message stay. What is past is due now.
    """
    moment = WHEN.convert(" ".join(when), _parameter(ctx, "when"), ctx)
    app = delayq_of(ctx)
    moved = app.reschedule(checked_id(task_id), moment, if_due=if_due)
    found = None if moved else app.get(task_id)
    if as_objects:
        write([as_json({"id": task_id, "rescheduled": moved, "due": moment if moved else found and found.due})])
    if moved:
        if not as_objects:
            click.echo(f"{safe(task_id)} is due {told(moment, datetime.now(timezone.utc))}: {moment.isoformat()}")
    elif found is None:
        raise NothingDone(f"no task of the id {safe(task_id)} waits")
    else:
        raise NothingDone(f"{safe(task_id)} is due at another time: {found.due.isoformat()}")


def _parameter(ctx: click.Context, name: str) -> click.Parameter | None:
    return next((param for param in ctx.command.params if param.name == name), None)


@command("shift")
@filtered
@click.option(
    "--by",
    type=LENGTH,
    required=True,
    metavar="LENGTH",
    cls=CeleryOption,
    help="Later by '2h' or '1h 30m', earlier by '-30m'.",
)
@dry_run_option
@json_option
@click.pass_context
def shift(ctx: click.Context, where: dict[str, Any], by: timedelta, dry_run: bool, as_objects: bool) -> None:
    """Move all waiting tasks that the filters mean, later or earlier.

    What would become due in the past is due now. If it is broken off, the same command within a day goes on and moves
    nothing twice.
    """
    app = delayq_of(ctx)
    if filter_of(where).is_all:
        raise WrongUse("say which tasks: give filters such as --queue or --from")
    if not by:
        raise WrongUse("--by must be other than 0")
    with Bar("counting" if dry_run else "moving", STOPPED.replace("{what}", "moved")) as bar:
        shifted = app.shift_where(**where, by=by, dry_run=dry_run, progress=bar.progress)
    _told(shifted, ("would_move" if as_objects else "would be moved") if dry_run else "moved", as_objects)


@command("run-now")
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@json_option
@click.pass_context
def run_now(ctx: click.Context, task_ids: tuple[str, ...], as_objects: bool) -> None:
    """Make waiting tasks due now.

    Those of a paused queue go when it is resumed.
    """
    app = delayq_of(ctx)
    _each(task_ids, lambda task_id: app.run_now(task_id) > 0, "is due now" if not as_objects else "due now", as_objects)


@command("pause")
@click.argument("queue", type=Name(), shell_complete=complete_queue)
@json_option
@click.pass_context
def pause(ctx: click.Context, queue: str, as_objects: bool) -> None:
    """Hold back what waits for a queue, until it is resumed.

    More may come. What was handed over already is not touched.
    """
    app = delayq_of(ctx)
    _held(app, queue, as_objects, paused=True, changed=app.pause(queue))


@command("resume")
@click.argument("queue", type=Name(), shell_complete=complete_queue)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    cls=CeleryOption,
    help="So many tasks a second at most, until nothing is overdue; all at once by default.",
)
@json_option
@click.pass_context
def resume(ctx: click.Context, queue: str, rate: float | None, as_objects: bool) -> None:
    """Let a paused queue's tasks go again, in due order."""
    if rate is not None and not rate < float("inf"):  # infinity, or no number
        raise WrongUse("--rate must be a finite number of tasks a second")
    app = delayq_of(ctx)
    _held(app, queue, as_objects, paused=False, changed=app.resume(queue, rate))


def _held(app: DelayQ, queue: str, as_objects: bool, *, paused: bool, changed: bool) -> None:
    if as_objects:
        write([as_json({"queue": queue, "paused": paused, "changed": changed})])
    else:
        state = ("" if changed else "was paused already" if paused else "was not paused") or (
            "is paused" if paused else "goes on"
        )
        count = app.count(queue)
        click.echo(f"queue {safe(queue)} {state}; {tasks(count)} {'waits' if count == 1 else 'wait'} for it")
    if not changed:
        raise click.exceptions.Exit(1)


@command("purge")
@queue_option("Only of this queue; of all by default.")
@yes_option
@json_option
@click.pass_context
def purge(ctx: click.Context, queue: str | None, yes: bool, as_objects: bool) -> None:
    """Take back all that waits, for one queue or for all.

    Says how many tasks that are, and asks. It marks no results and sends no events; 'cancel --queue' does.
    """
    app = delayq_of(ctx)
    if not yes:
        count = app.count(queue)
        if not count:
            raise NothingDone("nothing waits")
        confirm(f"Take back {tasks(count)} of {'all queues' if queue is None else f'queue {safe(queue)}'}?")
    _told(app.purge(queue), "purged", as_objects, "nothing waits")
