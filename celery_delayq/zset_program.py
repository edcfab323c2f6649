"""What ``celery-delayq dispatch-zset`` does: a dispatcher of a bare sorted set, until a signal comes."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Sequence
from threading import Event, Thread
from time import monotonic

import click
import redis

from .errors import DelayQError
from .plain_client import client_at
from .zset import ZsetDispatcher, ZsetPass

#: How long (s) the end waits for a call that is under way.
PATIENCE = 0.7

COLUMNS = ("dispatched", "delayed", "ready", "backing_off")

#: Columns of a terminal that a column of the table takes, and the rows after which the head is shown again.
WIDTH, ROWS = 15, 50

#: Rows that tell of nothing but others' changes come this often (s) at most.
SELDOM = 1.0


def run(
    url: str, delayed: bytes, ready: bytes, *, batch_size: int, unit: str, verbose: bool, as_json: bool = False
) -> int:
    """Dispatch until SIGINT or SIGTERM, and print how many members that were.

    Returns:
        The exit status: 0, or 1 if it could not go on; then stderr says why.

    Raises:
        click.BadParameter: *url* cannot be used.
    """
    output = Lines() if as_json else Table() if verbose else Silence()
    dispatcher = ZsetDispatcher(client_for(url), delayed, ready, batch_size=batch_size, unit=unit)
    _log_to_stderr(logging.INFO if verbose else logging.WARNING)
    stop, ended = Event(), Event()
    failures: list[BaseException] = []

    def dispatch() -> None:
        try:
            dispatcher.run(stop, output)
        except BaseException as error:  # noqa: BLE001  # raised again below, where somebody hears of it
            failures.append(error)
        finally:
            ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    # In a thread, so that a signal need not wait for a Redis that hangs.
    thread = Thread(target=dispatch, name="delayq-dispatch-zset", daemon=True)
    thread.start()
    ended.wait()
    stop.set()
    thread.join(PATIENCE)
    for failure in failures:
        if not isinstance(failure, DelayQError):
            raise failure
        click.echo(f"Error: {_printable(failure)}", err=True)
    output.end(dispatcher.moved)
    return 1 if failures else 0


def client_for(url: str) -> redis.Redis:
    """A client as :class:`~celery_delayq.zset.ZsetDispatcher` wants it; it has not connected yet.

    Raises:
        click.BadParameter: there can be no such Redis.
    """
    try:
        return client_at(url)
    except (ValueError, TypeError, redis.RedisError) as error:
        raise click.BadParameter(_printable(error), param_hint="'-u' / '--redis-url'") from None


def _printable(error: object) -> str:
    """What an error says, fit for a terminal."""
    text = str(error)
    return text if text.isprintable() else repr(text)


def _log_to_stderr(level: int) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(message)s"))
    root = logging.getLogger("celery_delayq")
    root.addHandler(handler)
    root.setLevel(level)


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _printable(super().format(record))


class Silence:
    """Prints the total only."""

    def __call__(self, done: ZsetPass, asleep: float) -> None:
        """Say nothing."""

    def end(self, moved: int) -> None:
        """Print how many were moved in all."""
        click.echo(f"dispatched {moved} in total")


class _Rows(Silence):
    """Chooses the looks that make a row: each that moved something; of the others those that differ, now and then."""

    def __init__(self) -> None:
        self._last: tuple[int, int] | None = None
        self._at = 0.0

    def __call__(self, done: ZsetPass, asleep: float) -> None:
        now = monotonic()
        left = done.delayed, done.ready
        if done.moved or (left != self._last and now - self._at >= SELDOM):
            self._last, self._at = left, now
            self.row(done.moved, *left, round(asleep, 3))

    def row(self, *values: float) -> None:
        raise NotImplementedError


class Table(_Rows):
    """Prints a table for people, ruled, with its head every so many rows."""

    RULE = f"+{'-' * WIDTH}" * len(COLUMNS) + "+"

    def __init__(self) -> None:
        super().__init__()
        self._rows = 0

    def row(self, *values: float) -> None:
        """Add a row."""
        if self._rows % ROWS == 0:
            click.echo(f"{self.RULE}\n{self._line(COLUMNS)}\n{self.RULE}")
        self._rows += 1
        click.echo(self._line([f"{value:.12g}" for value in values]))

    def end(self, moved: int) -> None:
        """Close the table; the total."""
        if self._rows:
            click.echo(self.RULE)
        super().end(moved)

    @staticmethod
    def _line(cells: Sequence[str]) -> str:
        return "".join(f"|{cell:^{WIDTH}}" for cell in cells) + "|"


class Lines(_Rows):
    """Prints a JSON object for each row, and one for the total."""

    def row(self, *values: float) -> None:
        """Add a row."""
        click.echo(json.dumps(dict(zip(COLUMNS, values, strict=True))))

    def end(self, moved: int) -> None:
        """Print how many were moved in all."""
        click.echo(json.dumps({"total": moved}))
