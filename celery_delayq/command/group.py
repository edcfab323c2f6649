"""The group ``celery delayq``: which app is meant, and how failures are told: in one line, without a traceback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import redis
from celery import Celery
from celery.bin.base import CeleryCommand, handle_preload_options
from click_didyoumean import DYMGroup  # type: ignore[import-untyped]  # it has no types
from kombu.exceptions import OperationalError

from celery_delayq import broker
from celery_delayq.app import DelayQ
from celery_delayq.errors import DelayQError, ImproperlyConfigured

from .output import cut, safe

#: Seconds after which a Redis that does not answer a connection counts as away, where the app sets none.
CONNECT_TIMEOUT = 5.0


class WrongUse(click.ClickException):
    """What was asked for cannot be meant. Unlike click's own, told in one line."""

    exit_code = 2


class NothingDone(click.ClickException):
    """What was asked for is not there, or nothing had to be done."""

    exit_code = 1

    def show(self, file: Any = None) -> None:
        """Say it; it is no error."""
        click.echo(self.format_message(), err=True, file=file)


class DelayQGroup(DYMGroup):
    """Commands that tell what goes wrong in one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and translate what it raises."""
        with _told(ctx):
            return super().invoke(ctx)


@contextmanager
def _told(ctx: click.Context) -> Iterator[None]:
    try:
        yield
    except click.BadParameter as error:  # a value: its name and an example say all
        raise WrongUse(one_line(error.format_message())) from None
    except ImproperlyConfigured as error:
        raise WrongUse(one_line(error)) from None
    except DelayQError as error:
        raise click.ClickException(one_line(error)) from None
    except (OperationalError, redis.RedisError) as error:
        raise click.ClickException(_redis_trouble(ctx.obj.app, error)) from None


def _redis_trouble(app: Celery, error: Exception) -> str:
    home, cause = app.delayq.home, error.__cause__ or error
    where, said = home.url, cut(one_line(error), 200)
    if isinstance(cause, (redis.ConnectionError, redis.TimeoutError, OSError)):
        return f"Redis cannot be reached at {where}: {said} Is it running, and is {home.setting} right?"
    return f"Redis at {where} refuses: {said}"


def one_line(message: object) -> str:
    """A message of anybody's on one line, fit for a terminal."""
    return safe(" ".join(str(message).split()))


def delayq_of(ctx: click.Context) -> DelayQ:
    """The DelayQ of the app that ``celery -A`` names.

    Raises:
        WrongUse: there is none, or its broker is not Redis.
    """
    app = ctx.obj.app
    found = getattr(app, "delayq", None)
    if found is None:
        hint = "" if ctx.find_root().params.get("app") else ", and name it: celery -A proj delayq …"
        raise WrongUse(f"the app {safe(str(app.main))!r} has no celery_delayq: call DelayQ(app) where it is made{hint}")
    delayq: DelayQ = found
    try:
        goes_to_redis = broker.goes_to_redis(app.connection_for_write())
    except Exception as error:  # noqa: BLE001  # whatever Kombu, or a module that a URL names, makes of it
        raise WrongUse(f"broker_url cannot be used: {one_line(error)}") from None
    if delayq.home.is_relayed:
        delayq.home.connect_within(CONNECT_TIMEOUT)
    elif goes_to_redis:
        options = app.conf.broker_transport_options or {}
        app.conf.broker_transport_options = {"socket_connect_timeout": CONNECT_TIMEOUT, **options}
    return delayq


@click.group(
    cls=DelayQGroup,
    epilog="Exits with 0; with 1 if something is not found, nothing was done, or it failed; with 2 for wrong use.",
)
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]  # Celery's
def delayq(ctx: click.Context, **_: Any) -> None:
    """See, move and take back the tasks that wait in Redis until they are due.

    Times are ISO 8601 (UTC without an offset), 'in 2h 30m', '10 minutes ago', 'now' or seconds since 1970. No worker
    has to run for any of this.
    """


def command(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function a command of the group."""

    def register(function: Callable[..., Any]) -> click.Command:
        made: click.Command = delayq.command(name, cls=CeleryCommand)(function)
        return made

    return register
