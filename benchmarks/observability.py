"""What it costs to be watched: a dispatch that tells more, and who listens; a put that is timed; events of a batch.

Each with the same unwatched, by turns, by the caller's clock. The dispatcher is driven by hand, so that only its own
steps and the script count.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry

from celery_delayq.clock import SECOND_US
from celery_delayq.contrib import prometheus
from celery_delayq.direct import Direct
from celery_delayq.dispatcher import Dispatcher
from celery_delayq.events import Dispatches
from celery_delayq.observers import Observers
from celery_delayq.scripts import Script
from celery_delayq.store import Upcoming

from .backlog import QUEUE, Backlog
from .conditions import Conditions
from .report import Results, Row, Spread
from .workers import Bench

#: Jobs that are dispatched one by one in one turn.
BLOCK = 200

Turn = Callable[[], float]


def _dispatching(backlog: Backlog, observers: Observers, count: int, limit: int) -> Turn:
    """Hands *count* jobs over, *limit* a call; gives us for each job."""
    way = Direct(batch_size=limit)
    dispatcher = Dispatcher(lambda: backlog.store, way, observers=observers)

    def turn() -> float:
        due_us = int(time.time() * SECOND_US) + 1000 * SECOND_US
        backlog.put(due_us + number * 1000 for number in range(count))
        started = time.perf_counter()
        for first in range(0, count, limit):
            last_us = due_us + (first + limit - 1) * 1000
            way._batch_limit = limit  # on a busy machine it takes less at a time after a slow call
            done = dispatcher._dispatch(backlog.store, Upcoming(due_us, QUEUE, backlog.delivery), now_us=last_us)
            assert done is not None
            assert done.moved == limit
        took = time.perf_counter() - started
        backlog.store.client.delete(*backlog.delivery.lists)
        return took / count * SECOND_US

    return turn


def _putting(backlog: Backlog, *, timed: bool) -> Turn:
    """Puts jobs one by one, as a producer does; gives us for each."""
    timers = Script.timers

    def turn() -> float:
        Script.timers = timers if timed else ()
        due_us = int(time.time() * SECOND_US) + 1000 * SECOND_US
        jobs = [backlog.job(due_us + number * 1000) for number in range(BLOCK)]
        started = time.perf_counter()
        for job in jobs:
            backlog.store.put([job], {QUEUE: backlog.delivery})
        took = time.perf_counter() - started
        Script.timers = ()
        backlog.store.delete(QUEUE, [job.id for job in jobs])
        return took / BLOCK * SECOND_US

    return turn


def _cancelling(bench: Bench, backlog: Backlog, *, events: bool) -> Turn:
    """Cancels what waits in masses; gives us for each task."""

    def turn() -> float:
        bench.app.conf.task_send_sent_event = events
        due_us = int(time.time() * SECOND_US) + 1000 * SECOND_US
        backlog.put(due_us + number * 1000 for number in range(1000))
        started = time.perf_counter()
        assert bench.app.delayq.cancel_where(task="*", mark=False) == 1000
        return (time.perf_counter() - started) / 1000 * SECOND_US

    return turn


def _compare(figure: str, watched: Turn, plain: Turn, rounds: int) -> Row:
    pairs = [(watched(), plain()) for _ in range(rounds)]
    return Row(
        "observability",
        f"{figure}, us",
        f"{Spread.of(pair[0] for pair in pairs).median:.1f}",
        f"unwatched: {Spread.of(pair[1] for pair in pairs).median:.1f}",
        Spread.of(watched / plain for watched, plain in pairs),
    )


def run(conditions: Conditions) -> Results:
    rounds = 10 if conditions.quick else 50
    with conditions.server() as server:
        bench = Bench(server, 0, delayq=True)
        backlog = Backlog(bench)
        app: Any = bench.app
        prometheus.register(app, CollectorRegistry())
        idle, eager = Observers(), Observers()
        off = Dispatches(app, "worker@host", lambda: False)
        on = Dispatches(app, "worker@host", lambda: True)
        idle.add(off)
        eager.add(on)
        watches = (("events off", idle), ("metrics", app.delayq.observers), ("events", eager))
        rows = []
        for what, count, limit in (("dispatch one", BLOCK, 1), ("dispatch a thousand, each", 1000, 1000)):
            plain = _dispatching(backlog, Observers(), count, limit)
            for whose, observers in watches:
                watched = _dispatching(backlog, observers, count, limit)
                rows.append(_compare(f"{what}, {whose}", watched, plain, rounds))
        on.stop(60)
        rows.append(_compare("put one, timed", _putting(backlog, timed=True), _putting(backlog, timed=False), rounds))
        both = [_cancelling(bench, backlog, events=events) for events in (True, False)]
        rows.append(_compare("cancel_where of a thousand, each, events", *both, rounds))
    return rows
