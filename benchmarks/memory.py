"""By how much a worker's memory grows with the number of waiting tasks.

Resident memory of the master process and its children (prefork, two). The two apps are measured one after the other,
each on a fresh worker.
"""

from __future__ import annotations

import time

from .backlog import Backlog
from .conditions import Conditions
from .report import Results, Row
from .workers import Bench, wait_until

MEGABYTE = 1024 * 1024

#: Seconds for which a worker is left alone before its memory is read.
SETTLE = 5.0


def run(conditions: Conditions) -> Results:
    native_tasks, our_tasks = (2_000, 20_000) if conditions.quick else (20_000, 200_000)
    with conditions.server() as server:
        native, ours = Bench(server, 0, delayq=False), Bench(server, 1, delayq=True)
        native_before, native_after, native_unacked = _native(native, native_tasks)
        ours_before, ours_after, ours_unacked = _ours(ours, our_tasks)
    growth = (ours_after - ours_before) / MEGABYTE
    native_growth = (native_after - native_before) / MEGABYTE
    return [
        Row(
            "memory",
            "growth of a worker, MB",
            f"{growth:.1f} with {our_tasks:,} waiting ({ours_before / MEGABYTE:.0f} before)",
            f"native {native_growth:.1f} with {native_tasks:,} ({native_before / MEGABYTE:.0f} before)",
            None,
            "< 5 MB",
            growth < 5,
        ),
        Row(
            "memory",
            "messages held unacknowledged",
            f"{ours_unacked:,}",
            f"native {native_unacked:,}",
            None,
            "0",
            ours_unacked == 0,
        ),
    ]


def _native(bench: Bench, tasks: int) -> tuple[int, int, int]:
    with bench.worker("-P", "prefork", "-c", "2") as worker:
        time.sleep(SETTLE)
        before = worker.rss()
        for number in range(tasks):
            bench.task("mark").apply_async((number,), countdown=24 * 3600)
        wait_until(lambda: bool(bench.broker.hlen("unacked") >= tasks), "native worker takes all tasks")
        time.sleep(SETTLE)
        return before, worker.rss(), int(bench.broker.hlen("unacked"))


def _ours(bench: Bench, tasks: int) -> tuple[int, int, int]:
    backlog = Backlog(bench)
    with bench.worker("-P", "prefork", "-c", "2") as worker:
        time.sleep(SETTLE)
        before = worker.rss()
        backlog.fill(tasks)
        time.sleep(SETTLE)
        return before, worker.rss(), int(bench.broker.hlen("unacked"))
