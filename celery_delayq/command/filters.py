"""The options that say which of the waiting tasks are meant."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import wraps
from io import StringIO
from typing import Any

import click
from celery.app.utils import find_app
from celery.bin.base import CeleryOption

from celery_delayq.scheduled import Filter

from .group import WrongUse, one_line
from .when import WHEN

#: Seconds that the completion of a queue's name may wait for Redis.
PATIENCE = 0.5

GROUP = "Filter Options"

Command = Callable[..., Any]


class Pair(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """``NAME=VALUE``."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Split it at the first equals sign."""
        if isinstance(value, tuple):
            return value
        name, equals, said = str(value).partition("=")
        if not (name and equals):
            self.fail(f"{value!r} is no NAME=VALUE, as in user=42", param, ctx)
        return name, said


class Name(click.ParamType):  # type: ignore[type-arg]  # generic in newer clicks only
    """A name, which is not empty."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse the empty one."""
        if not value:
            self.fail("it must not be empty", param, ctx)
        return str(value)


def complete_queue(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of queues for the shell. Whatever goes wrong, there are none: a shell wants no message."""
    try:
        named = ctx.find_root().params.get("app")
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # a project may print something
            app: Any = find_app(named) if isinstance(named, str) else named
        soon = {"socket_connect_timeout": PATIENCE, "socket_timeout": PATIENCE, "retry_on_timeout": False}
        app.conf.broker_transport_options = {**(app.conf.broker_transport_options or {}), **soon}
        app.conf.task_publish_retry_policy = {"max_retries": 0}
        return [queue for queue in app.delayq.queues() if queue.startswith(incomplete) and queue.isprintable()]
    except Exception:  # noqa: BLE001  # whatever an app's configuration raises: it is only for completion
        return []


def queue_option(text: str) -> Callable[[Command], Command]:
    """The option ``--queue``."""
    return click.option(
        "--queue",
        cls=CeleryOption,
        type=Name(),
        metavar="QUEUE",
        shell_complete=complete_queue,
        help_group=GROUP,
        help=text,
    )


def _option(*names: str, **more: Any) -> Callable[[Command], Command]:
    return click.option(*names, cls=CeleryOption, help_group=GROUP, **more)


def filtered(command: Command) -> Command:
    """Give *command* all filters; it gets what they say as the mapping *where*, for the methods of DelayQ."""
    options = (
        queue_option("Only of this queue."),
        _option("--task", type=Name(), help="Only of this task; * stands for anything."),
        _option("--from", "start", type=WHEN, metavar="TIME", help="Only what is due from then on."),
        _option("--to", "end", type=WHEN, metavar="TIME", help="Only what is due before."),
        _option("--header", type=Pair(), multiple=True, metavar="NAME=VALUE", help="With this header; repeatable."),
        _option("--stamp", type=Pair(), multiple=True, metavar="NAME=VALUE", help="With this stamp; repeatable."),
    )

    @wraps(command)
    def caller(*args: Any, queue: Any, task: Any, start: Any, end: Any, header: Any, stamp: Any, **more: Any) -> Any:
        where = {"queue": queue, "task": task, "start": start, "end": end}
        where |= {"headers": dict(header) or None, "stamps": dict(stamp) or None}
        filter_of(where)
        return command(*args, where=where, **more)

    made: Command = caller
    for option in reversed(options):
        made = option(made)
    return made


def filter_of(where: dict[str, Any]) -> Filter:
    """What the options mean, as the store's readers take it.

    Raises:
        WrongUse: they contradict each other.
    """
    try:
        return Filter.of(**where)
    except (TypeError, ValueError) as error:
        raise WrongUse(one_line(error)) from None
