"""What a worker holds of waiting tasks: its own memory, and what is unacknowledged in Redis.

Resident memory of the master process and its children (prefork, two), and the size of Kombu's two keys of messages
that a worker has taken and not acknowledged; with no task waiting, with some, and with many. Ours and native side by
side, each with a worker and a server of its own: nothing here is a matter of speed. Native messages are put into the
queue in bulk, due in a day, and the worker takes all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import redis

from .backlog import Backlog
from .conditions import Conditions
from .messages import Mould, send
from .report import Results, Row, Series
from .workers import Bench, Worker, wait_until

MEGABYTE = 1024 * 1024

#: Seconds for which a worker is left alone before its memory is read.
SETTLE = 5.0

DAY = 24 * 3600

#: Where Kombu keeps what a worker has taken, and since when.
UNACKED = ("unacked", "unacked_index")


@dataclass(frozen=True)
class Held:
    """What there was with so many tasks waiting.

    Attributes:
        rss: memory of the worker (MB).
        messages: how many are unacknowledged.
        unacked: what they take in Redis (MB).
    """

    waiting: int
    rss: float
    messages: int
    unacked: float


def _held(bench: Bench, worker: Worker, waiting: int) -> Held:
    broker = bench.broker
    return Held(waiting, worker.rss() / MEGABYTE, int(broker.hlen(UNACKED[0])), _size(broker) / MEGABYTE)


def _size(broker: redis.Redis) -> int:
    """What the unacknowledged messages take (bytes): each counted, none estimated."""
    return sum(int(broker.memory_usage(key, samples=0) or 0) for key in UNACKED)


def _fill_native(bench: Bench) -> Callable[[int], None]:
    mould = Mould(bench, "mark")
    due = time.time() + DAY

    def fill(count: int) -> None:
        before = int(bench.broker.hlen(UNACKED[0]))
        send(bench, (mould.message(number, due) for number in range(count)))
        wait_until(
            lambda: bool(bench.broker.hlen(UNACKED[0]) >= before + count), "the native worker takes all tasks", 1800
        )

    return fill


def run(conditions: Conditions) -> Results:
    steps = (0, 2_000, 20_000) if conditions.quick else (0, 20_000, 200_000)
    ours: list[Held] = []
    native: list[Held] = []
    with conditions.server() as here, conditions.server() as there, ExitStack() as workers:
        benches = Bench(here, 0, delayq=True), Bench(there, 0, delayq=False)
        fills = Backlog(benches[0]).fill, _fill_native(benches[1])
        started = [workers.enter_context(bench.worker("-P", "prefork", "-c", "2")) for bench in benches]
        for before, waiting in zip((0, *steps), steps, strict=False):
            for fill in fills:
                fill(waiting - before)
            time.sleep(SETTLE)
            for held, bench, worker in zip((ours, native), benches, started, strict=True):
                held.append(_held(bench, worker, waiting))
        # A worker that is told to end gives all of it back, one by one, and no figure comes of that.
        started[1].kill()
    return [*_rows(ours, native), *_lines("celery_delayq", ours), *_lines("stock Celery", native)]


def _rows(ours: list[Held], native: list[Held]) -> list[Row]:
    rows = []
    for here, there in zip(ours[1:], native[1:], strict=True):
        growth, native_growth = here.rss - ours[0].rss, there.rss - native[0].rss
        rows += [
            Row(
                "memory",
                f"growth of a worker, MB, with {here.waiting:,} waiting",
                f"{growth:.1f} ({ours[0].rss:.0f} before)",
                f"native {native_growth:.1f} ({native[0].rss:.0f} before)",
                None,
                "< 5 MB",
                growth < 5,
            ),
            Row(
                "memory",
                f"messages held unacknowledged, with {here.waiting:,} waiting; MB of Redis's memory",
                f"{here.messages:,}; {here.unacked:.1f}",
                f"native {there.messages:,}; {there.unacked:.1f}",
                None,
                "0",
                here.messages == 0,
            ),
        ]
    return rows


def _lines(label: str, held: list[Held]) -> list[Series]:
    x = tuple(float(one.waiting) for one in held)
    return [
        Series("memory", label, x, tuple(one.rss for one in held)),
        Series("unacked", label, x, tuple(one.unacked for one in held)),
    ]
