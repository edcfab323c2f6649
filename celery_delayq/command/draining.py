"""The command that gives what waits back to stock Celery."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta, timezone

import click
from celery.bin.base import CeleryOption

from celery_delayq.app import DelayQ
from celery_delayq.broker import visibility_timeout

from .changing import STOPPED, confirm, tasks, yes_option
from .filters import queue_option
from .group import NothingDone, command, delayq_of
from .output import Bar, as_json, safe, write
from .reading import json_option
from .when import tell_length

#: RabbitMQ's own (s): then it takes back what a worker has not acknowledged, and closes the worker's channel.
CONSUMER_TIMEOUT = 1800

#: How many names one line takes.
SOME = 5


@command("drain")
@queue_option("Only of this queue, also if it is paused; of all that are not paused by default.")
@click.option("--force", is_flag=True, cls=CeleryOption, help="Also while workers would put the tasks back.")
@yes_option
@json_option
@click.pass_context
def drain(ctx: click.Context, queue: str | None, force: bool, yes: bool, as_objects: bool) -> None:
    """Give what waits back to stock Celery: the way out.

    Every task is published now, with its eta, to its queue. Workers hold it in memory until it is due. Before that,
    set delayq_intercept = False and restart producers and workers: else what they send waits again, and workers put
    back what they receive.
    """
    app = delayq_of(ctx)
    count = app.count(queue)
    if not count:
        raise NothingDone("nothing waits")
    adopters = [] if force else app.adopters()
    if adopters:
        raise click.ClickException(
            f"{_some(adopters)} would put the tasks back: stop these workers, or restart them with "
            "delayq_intercept = False (or delayq_adopt = False); --force drains all the same"
        )
    if not yes:
        confirm(f"Give {tasks(count)} of {'all queues' if queue is None else f'queue {safe(queue)}'} back to Celery?")
    twice = _due_too_late(app, queue)
    with Bar("draining", STOPPED.replace("{what}", "drained")) as bar:
        done = app.drain(queue, progress=bar.progress)
    if as_objects:
        write([as_json({"drained" if name == "count" else name: value for name, value in asdict(done).items()})])
    else:
        click.echo(f"{tasks(done.count)} drained")
    if app.settings.intercept:
        click.echo("delayq_intercept is on in this app: what it sends from now on waits again", err=True)
    if done.count and twice:
        click.echo(twice, err=True)
    for name in done.paused:
        click.echo(f"queue {safe(name)} is paused, and stays as it is; --queue {safe(name)} drains it", err=True)
    for name, number in done.unreadable.items():
        click.echo(f"{tasks(number)} of queue {safe(name)} stay: their messages cannot be read", err=True)
    for name, number in done.refused.items():
        click.echo(f"{tasks(number)} of queue {safe(name)} stay: the broker does not take them", err=True)
    if done.paused or done.unreadable or done.refused or not done.count:
        raise click.exceptions.Exit(1)


def _some(names: list[str]) -> str:
    more = len(names) - SOME
    return ", ".join(map(safe, names[:SOME])) + (f" and {more} more" if more > 0 else "")


def _due_too_late(app: DelayQ, queue: str | None) -> str:
    """What stock Celery will do with those that are due after the visibility timeout; "" if there are none."""
    connection = app.app.connection_for_read()
    timeout = visibility_timeout(connection)
    if timeout is not None:
        limit = f"the broker's visibility timeout of {tell_length(timeout)}"
        then = "stock Celery may run such a task twice; broker_transport_options can raise it"
    elif connection.get_transport_cls().driver_type == "amqp":
        timeout = CONSUMER_TIMEOUT
        limit = f"RabbitMQ's consumer_timeout, {tell_length(timeout)} by default"
        then = "it closes the channel of a worker that holds such a task, and delivers it again; raise it there"
    else:
        return ""
    count = app.count(queue, start=datetime.now(timezone.utc) + timedelta(seconds=timeout))
    return f"{count:,} of these {'is' if count == 1 else 'are'} due later than {limit}: {then}" if count else ""
