"""The measured app, in two forms that differ in one line: with ``DelayQ(app)``, and without it ("native").

A worker process gets its app from here too: ``celery -A benchmarks.apps worker``, with the arguments of
:func:`make_app` as JSON in an environment variable.
"""

from __future__ import annotations

import json
import os
import time
from functools import cache
from typing import Any

import redis
from celery import Celery

from celery_delayq import DelayQ

#: Environment variable: arguments of :func:`make_app`, for worker processes.
ENVIRONMENT = "BENCHMARKED_APP"

#: Name of the list, in the database of records, to which tasks append what they saw.
RECORDS = "records"


@cache
def _records(url: str, _process: int) -> redis.Redis:
    # One client for each process: the children of a prefork pool must not share a socket.
    return redis.Redis.from_url(url)


def make_app(broker_url: str, records_url: str, *, delayq: bool, conf: dict[str, Any] | None = None) -> Celery:
    """Make an app.

    Args:
        broker_url: its broker.
        records_url: a Redis database for what the tasks record; not the broker's.
        delayq: whether celery_delayq is installed into it.
        conf: more of its configuration.
    """
    app = Celery("delayq" if delayq else "native", broker=broker_url, set_as_current=False)
    app.conf.update(task_ignore_result=True, **(conf or {}))
    if delayq:
        DelayQ(app)

    # Not shared: else the tasks of the app that is made first would serve all apps of this process.
    @app.task(name="benchmarks.stamp", shared=False)
    def stamp(due: float) -> None:
        """Record when this task was due and when it started."""
        started = time.time()
        _records(records_url, os.getpid()).rpush(RECORDS, f"{due!r} {started!r}")

    @app.task(name="benchmarks.mark", shared=False)
    def mark(number: int) -> None:
        """Record that this task has run."""
        _records(records_url, os.getpid()).rpush(RECORDS, number)

    return app


if ENVIRONMENT in os.environ:
    app = make_app(**json.loads(os.environ[ENVIRONMENT]))
