"""20,000 tasks due at one instant, in a worker: how long until all are on the ready list, and until all have run.

A worker each of the same kind, up all the time; one has its turn while the other is idle. Ours wait in Redis; a native
worker has taken all of its tasks before the instant, so of those there is no ready list: they are in its memory. What
that took beforehand is told. The third turn has native tasks without a delay, which lie ready when their worker comes
to them: how fast it gets so many out of Redis and runs them, as it must with ours.
"""

from __future__ import annotations

import time
from contextlib import ExitStack

from celery_delayq.clock import SECOND_US

from .backlog import Backlog
from .conditions import Conditions
from .messages import Mould, send
from .report import Results, Row, Spread
from .workers import Bench, wait_until


def _finish(bench: Bench, count: int, instant: float) -> float:
    """Wait until all have run; how long after the instant (s) the last of them started."""
    wait_until(lambda: bench.recorded() >= count, f"{bench.name} tasks", 600)
    records = bench.take_records()
    assert len(records) == count, "a task ran twice"
    started = [float(record.split()[1]) for record in records]
    assert min(started) >= instant, "a task ran early"
    return max(started) - instant


def _ours(bench: Bench, backlog: Backlog, count: int) -> tuple[float, float]:
    """Seconds from the instant until the last is ready, and until the last has started."""
    # What fills the store takes a fraction of a millisecond for each; the instant must not come before it is done.
    instant = time.time() + 2.0 + count / 5000
    backlog.put([int(instant * SECOND_US)] * count)
    assert time.time() < instant, "the filling took longer than expected"
    time.sleep(instant - time.time())
    while backlog.waiting():
        time.sleep(0.005)
    ready = time.time() - instant
    return ready, _finish(bench, count, instant)


def _native(bench: Bench, mould: Mould, count: int, expected: float) -> tuple[float, float]:
    """Seconds for which the worker took its tasks beforehand, and from the instant until the last has started.

    Args:
        expected: how long the taking lasts at most (s). If it lasts longer, all is done again, with more time.
    """
    began = time.time()
    instant = began + expected
    send(bench, (mould.message(due=instant) for _ in range(count)))
    while bench.broker.hlen("unacked") < count:
        if time.time() > instant:
            _finish(bench, count, instant)
            return _native(bench, mould, count, 2 * expected)
        time.sleep(0.05)
    holds = time.time()
    time.sleep(max(0.0, instant - holds))
    return holds - began, _finish(bench, count, instant)


def _at_once(bench: Bench, mould: Mould, count: int) -> float:
    """Seconds from the first message until the last task has started."""
    messages = [mould.message() for _ in range(count)]
    began = time.time()
    send(bench, messages)
    return _finish(bench, count, began)


def run(conditions: Conditions) -> Results:
    count, rounds = (2_000, 2) if conditions.quick else (20_000, 3)
    taken: list[tuple[float, float, float, float, float]] = []
    with conditions.server() as server, ExitStack() as workers:
        ours, native = Bench(server, 0, delayq=True), Bench(server, 1, delayq=False)
        backlog, mould = Backlog(ours), Mould(native, "stamp")
        for bench in (ours, native):
            workers.enter_context(bench.worker("-P", "threads", "-c", "4"))
        for _ in range(rounds):
            expected = 1.5 * taken[-1][2] + 1.0 if taken else 3.0 + count / 500
            here, there = _ours(ours, backlog, count), _native(native, mould, count, expected)
            taken.append((*here, *there, _at_once(native, mould, count)))
    ready, ran, beforehand, natively, at_once = (Spread.of(column) for column in zip(*taken, strict=True))
    until = f"s from the instant until the last of {count:,} tasks has started"
    return [
        Row(
            "worker-burst",
            f"s from the instant until {count:,} tasks are on the ready list",
            str(ready),
            f"native: none; its worker took them beforehand, for {beforehand} s",
        ),
        Row("worker-burst", until, str(ran), f"native {natively}", Spread.of(one[1] / one[3] for one in taken)),
        Row(
            "worker-burst",
            until,
            str(ran),
            f"native, sent at once at the instant, {at_once}",
            Spread.of(one[1] / one[4] for one in taken),
        ),
    ]
