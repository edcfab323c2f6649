"""A worker with a dispatcher stops as promptly as one without, on every signal, with Redis there or gone."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from celery_delayq.embedded import RedisServer

from .worker import Project, newest_redis, wait_for

#: Seconds that the dispatcher may add, on a machine that does much else. It adds 0.2 when nothing else runs.
SLACK = 2.0

WARM = [signal.SIGTERM]
COLD = [signal.SIGQUIT]
TWICE = [signal.SIGINT, signal.SIGINT]


def seconds_to_stop(server: RedisServer, signals: list[signal.Signals], *, joined: bool, pool: str) -> float:
    """Start a worker, signal it when it is ready and idle, and time its end."""
    with Project(server.url(), joined=joined) as project, project.worker(pool=pool, concurrency=1) as worker:
        worker.await_ready(dispatcher=joined)
        for number, which in enumerate(signals):
            worker.signal(which)
            if number + 1 < len(signals):
                worker.await_log("shutdown")
        return worker.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with newest_redis() as server:
        yield server


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
@pytest.mark.parametrize("signals", [WARM, COLD, TWICE], ids=["warm", "cold", "sigint-twice"])
def test_an_idle_worker_stops_as_fast_as_a_stock_one(
    server: RedisServer, signals: list[signal.Signals], pool: str
) -> None:
    """From the signal to the end the dispatcher costs less than its slack, against the same worker without it."""
    stock = seconds_to_stop(server, signals, joined=False, pool=pool)

    ours = seconds_to_stop(server, signals, joined=True, pool=pool)

    assert ours < stock + SLACK
