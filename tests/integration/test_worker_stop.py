"""A worker with a dispatcher stops as promptly as one without, on every signal, with Redis there or gone."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator
from datetime import datetime

import pytest

from celery_delayq.embedded import RedisServer

from .worker import PATIENCE, Project, Worker, newest_redis, wait_for

#: Seconds that stopping the dispatcher may take: it looks every 0.2 s whether it should, and is left behind after 1.
PROMPT = 0.9

#: Seconds by which whole workers may differ: Celery's own stop takes 1 to 6, in steps of its loop's ticks.
SLACK = 5.0

#: What a stop begins with. An impatient one has a second SIGINT follow, which the worker sends itself.
SIGNALS = {"warm": signal.SIGTERM, "cold": signal.SIGQUIT, "impatient": signal.SIGINT}


def stop(worker: Worker, how: str) -> float:
    """Stop it; return the seconds that it took."""
    worker.signal(SIGNALS[how])
    return worker.wait()


def seconds_between(worker: Worker, first: str, second: str) -> float:
    """By the log's own times, the seconds from the line that matches *first* to the one that matches *second*."""
    times = []
    for pattern in (first, second):
        (found,) = re.findall(rf"^\[([-0-9]+ [0-9:,]+): .*{pattern}", worker.log(), re.MULTILINE)
        times.append(datetime.strptime(found, "%Y-%m-%d %H:%M:%S,%f"))
    return (times[1] - times[0]).total_seconds()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with newest_redis() as server:
        yield server


@pytest.mark.parametrize(("pool", "how"), [("prefork", "warm"), ("threads", "cold"), ("solo", "impatient")])
def test_an_idle_worker_stops_as_fast_as_a_stock_one(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, pool: str, how: str
) -> None:
    """On a warm, a cold and an impatient stop the dispatcher ends within a second, and delays nothing else."""
    if how == "impatient":
        monkeypatch.setenv("PROJ_IMPATIENT", "1")
    with Project(server.url(), joined=False) as project, project.worker(pool=pool, concurrency=1) as worker:
        worker.await_ready(dispatcher=False)
        stock = stop(worker, how)

    with Project(server.url()) as project, project.worker("--loglevel=DEBUG", pool=pool, concurrency=1) as worker:
        worker.await_ready()
        ours = stop(worker, how)
        kind = "Stopping" if how == "warm" else "Terminating"
        assert seconds_between(worker, f"Worker: {kind} DelayQ", f"Worker: {kind} Pool") < PROMPT
        assert ours < stock + SLACK


@pytest.mark.parametrize("how", ["warm", "cold"])
def test_a_worker_stops_while_redis_is_gone(how: str) -> None:
    """With the broker's Redis gone, the dispatcher's attempts to get back to it hold up no stop."""
    with (
        newest_redis() as server,
        Project(server.url()) as project,
        project.worker("--loglevel=DEBUG", concurrency=1) as worker,
    ):
        worker.await_ready()
        server.stop()
        worker.await_log("delayq dispatcher: ConnectionError")
        worker.await_log("Cannot connect to redis")

        stop(worker, how)

        kind = "Stopping" if how == "warm" else "Terminating"
        assert seconds_between(worker, f"Worker: {kind} DelayQ", f"Worker: {kind} Pool") < PROMPT


def test_a_dispatcher_stops_while_redis_does_not_answer() -> None:
    """A Redis that hangs holds a stop up by a second: the call that is under way is left behind, in a daemon thread."""
    with newest_redis() as server, Project(server.url()) as project:
        dispatcher = project.app.delayq.dispatcher()
        dispatcher.start()
        wait_for(lambda: dispatcher.counts.passes > 1, "the dispatcher works")
        thread = next(thread for thread in threading.enumerate() if thread.name == "delayq-dispatcher")
        assert server._process is not None
        server._process.send_signal(signal.SIGSTOP)
        try:
            hung = time.monotonic()
            wait_for(lambda: time.monotonic() - hung > 1.5, "the next poll hangs")  # longer than the poll interval
            begin = time.monotonic()
            dispatcher.stop()
            took = time.monotonic() - begin
            assert thread.is_alive(), "it was not in a call: this proved nothing"
        finally:
            server._process.send_signal(signal.SIGCONT)
            thread.join(PATIENCE)

        assert took < 2 * PROMPT
        assert not thread.is_alive()
