"""``celery-delayq rules run``: all watchers of some files, until a signal comes."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from threading import Event

import click
from celery import Celery
from celery.app.utils import find_app

from celery_delayq.command.output import safe
from celery_delayq.rules.running import Runner
from celery_delayq.rules.watching import Counts

from .checking import loaded

logger = logging.getLogger(__name__)

#: A signal is noticed within so long (s).
NOTICE = 0.05


def run(files: Sequence[str], *, app_name: str | None, level: str, quiet: bool, metrics: tuple[str, int] | None) -> int:
    """Run until SIGINT or SIGTERM; 0, or 1 if a watcher cannot go on.

    Args:
        metrics: the address and port at which to tell them; None: nowhere.

    Raises:
        ImproperlyConfigured: the rules cannot be run.
    """
    rules = loaded(files)
    _log_to_stderr(level)
    signalled = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: signalled.set())
    runner = Runner(rules, None if app_name is None else _app(app_name))
    if metrics is not None:
        _tell_metrics(*metrics)
    runner.start()
    while not (signalled.is_set() or runner.wait(NOTICE)):
        pass
    runner.stop()
    if not quiet:
        click.echo(_total([watch.counts for _, watch in runner.watches]))
    return 0 if runner.failure is None else 1


def _app(name: str) -> Celery:
    """The app, with its tasks: what they say of themselves counts for messages, too."""
    try:
        app = find_app(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise click.BadParameter(safe(f"{name}: {error}"), param_hint="'-A' / '--app'") from None
    app.loader.import_default_modules()
    app.finalize()
    return app


def _tell_metrics(host: str, port: int) -> None:
    try:
        from celery_delayq.contrib import rules_metrics  # noqa: PLC0415  # needs another extra
    except ImportError:
        raise click.UsageError('metrics need what is not installed: pip install "celery-delayq[prometheus]"') from None
    try:
        port = rules_metrics.serve(port, host)
    except OSError as error:
        raise click.ClickException(f"metrics cannot be told at {host}:{port}: {safe(str(error))}") from None
    logger.info("metrics at http://%s:%d/metrics", host, port)


def _log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)-8s %(message)s"))
    logger = logging.getLogger("celery_delayq")
    logger.addHandler(handler)
    logger.setLevel(level.upper())


class _OneLine(logging.Formatter):
    """Events are anybody's: what does not print is escaped. Tracebacks stay as they are."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        record.message = safe(record.message)
        return super().formatMessage(record)


def _total(counts: Sequence[Counts]) -> str:
    sums = {field.name: sum(getattr(one, field.name) or 0 for one in counts) for field in fields(Counts)}
    return "events {events}, tasks made {made}, doubles avoided {doubles}, failures {failures}, dead {dead}".format(
        **sums
    )
