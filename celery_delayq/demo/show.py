"""The demo from beginning to end: the one place that puts its parts together, and takes them away again."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import click
import redis
from kombu.exceptions import OperationalError

from celery_delayq.embedded import RedisServer

from . import DemoError
from .figures import Progress, Report, Run, Summary
from .tasks import QUEUE, READY, REPORTS, app, once, twice
from .view import View, make_view
from .worker import Worker

#: Seconds between two looks at what has happened; and tasks that are sent between two.
LOOK_EVERY, SEND_EACH = 0.1, 25

#: How long (s) the worker may take to start, and how long after the last due time a task may still come.
START_TIMEOUT, LATE_TIMEOUT = 60.0, 30.0

#: The shortest delay (s).
SHORTEST = 0.5

#: What ends the demo early.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: Variables that Celery's command line reads besides CELERY_…
FOREIGN = ("APP", "BROKER_URL", "CONFIG_MODULE", "LOADER", "RESULT_BACKEND")


def main(tasks: int, seconds: float, *, as_json: bool) -> int:
    """Show the demo, print its outcome, and return the exit code."""
    try:
        summary = Show(tasks, seconds, make_view(sys.stdout, quiet=as_json)).run()
    except DemoError as error:
        click.echo(f"Error: {error}", err=True)
        return error.exit_code
    click.echo(summary.as_json() if as_json else summary.as_text())
    return 0 if summary.ok else 1


class Show:
    """One performance.

    Args:
        tasks: how many to schedule.
        seconds: the longest delay.
    """

    def __init__(self, tasks: int, seconds: float, view: View) -> None:
        self._tasks = tasks
        self._seconds = seconds
        self._view = view
        self._signalled: int | None = None
        self._ways: Counter[str] = Counter()
        self._expected: list[Run] = []
        self._reports: list[Report] = []

    def run(self) -> Summary:
        """Show it. Whatever happens, no process, no folder and no signal handler stays behind.

        Raises:
            DemoError: no Redis can be had, it or the worker died, or a signal came.
        """
        try:
            with self._noting_signals(), RedisServer() as server, _celery_pointed_at(server):
                return self._run_on(server)
        except (FileNotFoundError, RuntimeError) as error:  # none to be had; one that does not start
            raise DemoError(str(error)) from None
        except (redis.RedisError, OperationalError) as error:
            raise DemoError(f"the demo's Redis does not answer any more: {error}") from None

    def _run_on(self, server: RedisServer) -> Summary:
        with (
            server.client(0) as broker,
            server.client(1) as results,
            Worker(server.folder) as worker,
            self._view.open(),
        ):
            self._view.say("A Redis is up; a Celery worker starts …")
            self._await_start(worker, results)
            started = time.monotonic()
            for _ in self._send():
                self._look(worker, broker, results, started)
            deadline = time.monotonic() + self._seconds + LATE_TIMEOUT
            while len(self._reports) < len(self._expected) and time.monotonic() < deadline:
                time.sleep(LOOK_EVERY)
                self._look(worker, broker, results, started)
            took = time.monotonic() - started
            worker.stop()  # only a worker that has ended runs nothing twice any more
            self._read_reports(results)
            return Summary.of(took, self._ways, self._expected, self._reports, left=_handed_over(broker))

    @contextmanager
    def _noting_signals(self) -> Iterator[None]:
        """Note signals, and raise nothing: an exception between two lines could leave a process behind."""

        def note(number: int, _frame: object) -> None:
            self._signalled = number

        # What is ignored already stays so: nohup means it.
        before = {number: signal.getsignal(number) for number in SIGNALS}
        before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _check(self, worker: Worker) -> None:
        if self._signalled is not None:
            raise DemoError("stopped early; nothing is left running", exit_code=128 + self._signalled)
        if worker.exit_code is not None:
            raise DemoError(f"the worker died (exit code {worker.exit_code}); its log ends so:\n{worker.log_tail()}")

    def _await_start(self, worker: Worker, results: redis.Redis) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not results.exists(READY):
            self._check(worker)
            if time.monotonic() > deadline:
                raise DemoError(f"the worker did not start in time; its log ends so:\n{worker.log_tail()}")
            time.sleep(LOOK_EVERY / 4)

    def _send(self) -> Iterator[None]:
        """Schedule all tasks, in each of the ways there are; pause after every few."""
        choose = random.Random(0)  # noqa: S311  # no secret; the same delays each time
        for number in range(self._tasks):
            delay = choose.uniform(min(SHORTEST, self._seconds / 2), self._seconds)
            way = ("countdown", "eta", "countdown", "apply_at", "retry")[number % 5]
            if way == "countdown":
                result = once.apply_async(countdown=delay)
            elif way == "eta":
                result = once.apply_async(eta=app.now() + timedelta(seconds=delay))
            elif way == "apply_at":
                result = app.delayq.apply_at(once, time.time() + delay)
            else:
                result = twice.apply_async((delay / 2,), countdown=delay / 2)
                self._expected.append((result.id, 1))
            self._ways[way] += 1
            self._expected.append((result.id, 0))
            if number % SEND_EACH == 0:
                yield

    def _look(self, worker: Worker, broker: redis.Redis, results: redis.Redis, started: float) -> None:
        self._check(worker)
        ready = _handed_over(broker)
        self._read_reports(results)
        self._view.show(Progress.of(time.monotonic() - started, self._expected, self._reports, ready))

    def _read_reports(self, results: redis.Redis) -> None:
        new: Any = results.lrange(REPORTS, len(self._reports), -1)
        self._reports += [Report(**json.loads(text)) for text in new]


@contextmanager
def _celery_pointed_at(server: RedisServer) -> Iterator[None]:
    """Lead Celery, here and in the worker, to *server*: never to what the user's own variables name."""
    before = dict(os.environ)
    for name in before:
        if name in FOREIGN or name.startswith("CELERY_"):
            del os.environ[name]
    os.environ["CELERY_BROKER_URL"] = server.url(0)
    os.environ["CELERY_RESULT_BACKEND"] = server.url(1)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _handed_over(broker: redis.Redis) -> int:
    """Messages that no task has begun with: on Kombu's ready list, and fetched by the worker."""
    with broker.pipeline() as pipe:
        pipe.llen(QUEUE)
        pipe.hlen("unacked")
        return sum(pipe.execute())
