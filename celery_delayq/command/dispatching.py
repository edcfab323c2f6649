"""``celery delayq dispatch``: a dispatcher that is a process of its own, and no worker."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import click
from celery import Celery
from celery.bin.base import COMMA_SEPARATED_LIST, LOG_LEVEL, CeleryOption
from celery.platforms import create_pidlock

from celery_delayq.app import DelayQ
from celery_delayq.crew import Crew
from celery_delayq.dispatcher import Dispatcher
from celery_delayq.endpoint import Answer, Endpoint, Route
from celery_delayq.health import Health, HealthFile

from .filters import complete_queue
from .group import WrongUse, command, delayq_of, one_line
from .output import as_json, is_terminal

logger = logging.getLogger(__name__)

#: Seconds that Redis may take to answer a probe. Those who probe wait a second as a rule.
PROBE_TIMEOUT = 0.8

#: Seconds after which a dispatcher that has not looked, in spite of a shorter poll interval, counts as stuck.
STUCK = 5.0

#: As many queues can be named; who serves more serves all.
MOST_QUEUES = 1000

#: Seconds between two looks whether the dispatcher's thread still lives.
WATCH = 1.0


@command("dispatch")
@click.option(
    "--queues",
    "-Q",
    type=COMMA_SEPARATED_LIST,
    metavar="QUEUES",
    cls=CeleryOption,
    shell_complete=complete_queue,
    help="Only what waits for these, separated by commas. Somebody else must serve the others.",
)
@click.option(
    "--health-port",
    type=click.IntRange(0, 65_535),
    metavar="PORT",
    cls=CeleryOption,
    help="Answer /healthz there, and /metrics if the extra prometheus is installed; 0: any port.",
)
@click.option(
    "--health-host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    cls=CeleryOption,
    help="Listen there; 0.0.0.0 or :: for all addresses.",
)
@click.option(
    "--health-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PATH",
    cls=CeleryOption,
    help="Touch this file every second while all is well; it is removed at the end.",
)
@click.option("--loglevel", "-l", type=LOG_LEVEL, default="INFO", show_default=True, cls=CeleryOption)
@click.option("--logfile", "-f", metavar="PATH", cls=CeleryOption, help="Log there; to stderr by default.")
@click.option(
    "--pidfile", metavar="PATH", cls=CeleryOption, help="Write the process id there, and refuse a second one."
)
@click.pass_context
def dispatch(
    ctx: click.Context,
    queues: list[str] | None,
    health_port: int | None,
    health_host: str,
    health_file: Path | None,
    loglevel: int,
    logfile: str | None,
    pidfile: str | None,
) -> None:
    """Move due tasks to their queues, as workers do, in a process that is no worker.

    For fleets whose workers have something else to do (--no-delayq-dispatch), and so that tasks are handed over while
    no worker runs. Any number may run. SIGTERM and SIGINT end it, with status 0; SIGHUP starts it anew, with the code
    and the configuration of then, or ends it on a terminal.
    """
    delayq = delayq_of(ctx)
    if queues is not None and (not all(queues) or len(queues) > MOST_QUEUES):
        raise WrongUse(f"--queues must name queues, separated by commas, {MOST_QUEUES} at most")
    if not delayq.can_dispatch:
        url = delayq.app.connection_for_read().as_uri()
        raise WrongUse(f"workers of this app read from {url}, which is not Redis: there is nothing to dispatch to")
    signals = _Signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    if pidfile:
        create_pidlock(pidfile)
    on_terminal = is_terminal(sys.stdout)  # and not later: a terminal that hangs up is none any more
    app = delayq.app
    app.loader.init_worker()  # its tasks, as beat does it: who is dropped may have a backend or a chord of his own
    app.finalize()
    app.log.setup(loglevel, logfile, colorize=None if ctx.obj.no_color is None else not ctx.obj.no_color)

    dispatcher = delayq.dispatcher(queues)
    with _health_told(delayq, dispatcher, health_port, health_host, health_file):
        number = _run(delayq, dispatcher, signals)
    if number is None:
        logger.critical("delayq dispatch: the dispatcher's thread has ended on its own account")
        raise click.exceptions.Exit(1)
    if number == signal.SIGHUP and not on_terminal:
        logging.shutdown()
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606  # as Celery's worker does


def _run(delayq: DelayQ, dispatcher: Dispatcher | Crew, signals: _Signals) -> int | None:
    """Dispatch until a signal comes, and return it; None: it has ended without one."""
    dispatcher.start()
    number = None
    while number is None and dispatcher.running:
        number = signals.wait(WATCH)
    if number is not None:
        logger.info("delayq dispatch: %s, stopping", signal.Signals(number).name)
    dispatcher.stop()
    delayq.finisher.stop()
    return number


@contextmanager
def _health_told(
    delayq: DelayQ, dispatcher: Dispatcher | Crew, port: int | None, host: str, path: Path | None
) -> Iterator[None]:
    """Tell how *dispatcher* is, by HTTP, by a file, by both or not at all."""
    max_age = 3 * delayq.settings.max_poll_interval + STUCK
    health = Health(dispatcher, lambda: delayq.connect(PROBE_TIMEOUT), max_age)
    with ExitStack() as stack:
        stack.callback(health.close)
        try:
            if port is not None:
                routes = {"/healthz": lambda _: _healthz(dispatcher, health), **_metrics(delayq.app)}
                endpoint = Endpoint(routes, host, port)
                endpoint.start()
                stack.callback(endpoint.stop)
                logger.info("delayq dispatch: listening at %s", endpoint.url)
            if path is not None:
                file = HealthFile(path, health)
                file.start()
                stack.callback(file.stop)
        except OSError as error:
            where = f"{host}:{port}" if error.filename is None else path
            raise click.ClickException(f"health cannot be told at {where}: {one_line(error)}") from None
        yield


def _healthz(dispatcher: Dispatcher | Crew, health: Health) -> Answer:
    verdict = health.check()
    told = {**asdict(verdict), "active": dispatcher.active, **asdict(dispatcher.counts)}
    return Answer(200 if verdict.healthy else 503, "application/json", f"{as_json(told)}\n".encode())


def _metrics(app: Celery) -> dict[str, Route]:
    try:
        from celery_delayq.contrib import prometheus  # noqa: PLC0415  # needs the extra
    except ImportError:
        return {}
    prometheus.register(app)

    def metrics(accept: str) -> Answer:
        return Answer(200, *prometheus.page(accept=accept))

    return {"/metrics": metrics}


class _Signals:
    """Signals as something to wait for: nothing of ours runs in the middle of something else."""

    def __init__(self, *numbers: int) -> None:
        self._numbers = numbers
        self._told, telling = os.pipe()
        os.set_blocking(telling, False)
        for number in numbers:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(telling, warn_on_full_buffer=False)

    def wait(self, timeout: float) -> int | None:
        """The next one, if it comes within *timeout* seconds."""
        if not select.select([self._told], [], [], timeout)[0]:
            return None
        (number,) = os.read(self._told, 1)
        return number if number in self._numbers else None
