"""How late delayed tasks start: 100 a second, ours with a million more waiting far in the future.

Lateness is the time at which a task's first line runs, less the time for which it was asked. Native Celery could not
hold a million (they would all be in the worker's memory), so nothing more waits for it. Both workers are of the same
kind and up all the time. One stream of tasks runs through; its seconds belong in turn to

* ours,
* native,
* native *at once*: the task is sent without any delay at the moment when it is due. That is how fast Celery delivers a
  message that is ready, and nothing that keeps a task outside of a worker until it is due can be faster. (A native
  delayed task has been delivered long before, and sits in the worker.)

So whatever else the machine does meets all, and the ratio, the median of those of neighbouring seconds, can be had on
a busy machine too.
"""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from datetime import datetime, timezone

from .backlog import Backlog
from .conditions import Conditions
from .report import Results, Row, Spread, percentile
from .workers import Bench, wait_until

#: Tasks a second.
RATE = 100

#: How far ahead (s) of its due time a delayed task is published. As many seconds as there are turns: so in each second
#: a hundred tasks are published for the one whose turn it is, and nobody has the others' publishing for a burden.
AHEAD = 3.0

#: How late (ms) the tasks of each second started.
Seconds = list[list[float]]


def _stream(ours: Bench, native: Bench, turns: int) -> tuple[Seconds, Seconds, Seconds]:
    """Publish a stream of *turns* times three seconds: ours, native, native at once."""
    dice = random.Random(1)
    first = time.time() + AHEAD + 0.5
    tasks = [
        # At random within each second, as real ones are: a grid could fall in with a clock of ours or of Celery's.
        (first + second + dice.random(), ours if second % 3 == 0 else native, second % 3 == 2)
        for second in range(3 * turns)
        for _ in range(RATE)
    ]
    for due, bench, at_once in sorted(tasks, key=lambda task: task[0] if task[2] else task[0] - AHEAD):
        time.sleep(max(0.0, (due if at_once else due - AHEAD) - time.time()))
        eta = None if at_once else datetime.fromtimestamp(due, timezone.utc)
        bench.task("stamp").apply_async((due,), eta=eta)
    for bench, count in ((ours, turns * RATE), (native, 2 * turns * RATE)):
        wait_until(lambda bench=bench, count=count: bench.recorded() >= count, f"{bench.name} tasks")

    late: Seconds = [[] for _ in range(3 * turns)]
    for bench in (ours, native):
        for record in bench.take_records():
            due, started = map(float, record.split())
            late[int(due - first)].append((started - due) * 1000)
    return late[0::3], late[1::3], late[2::3]


def _pool(pool: str, ours: Bench, native: Bench, waiting: int, turns: int) -> list[Row]:
    with ExitStack() as workers:
        for bench in (ours, native):
            workers.enter_context(bench.worker("-P", pool, "-c", "4"))
        here, natively, at_once = _stream(ours, native, turns)
    rows = []
    for percent, limit in ((50, 2.0), (99, 3.0)):
        for name, other, target in (("native", natively, limit), ("native, sent at once when due,", at_once, None)):
            ratio = Spread.of(percentile(a, percent) / percentile(b, percent) for a, b in zip(here, other, strict=True))
            rows.append(
                Row(
                    "lateness",
                    f"p{percent}, ms, {pool} pool, {RATE} tasks a second",
                    f"{_typical(here, percent):.2f} with {waiting:,} waiting",
                    f"{name} {_typical(other, percent):.2f} with none",
                    ratio,
                    f"ratio <= {target:g}" if target else "",
                    ratio.median <= target if target else None,
                )
            )
    early, late = min(map(min, here)), max(map(max, here))
    rows.append(
        Row(
            "lateness",
            f"earliest and latest of all, ms, {pool} pool",
            f"{early:.2f}, {late:.1f}",
            f"native {min(map(min, natively)):.2f}, {max(map(max, natively)):.1f}",
            None,
            "never early",
            # A due time is a float of seconds here and whole microseconds in the store: one of them is rounding.
            early > -0.001,
        )
    )
    return rows


def _typical(seconds: Seconds, percent: int) -> float:
    """That percentile of a second's tasks, the median of all seconds."""
    return Spread.of(percentile(second, percent) for second in seconds).median


def run(conditions: Conditions) -> Results:
    waiting, turns = (50_000, 5) if conditions.quick else (1_000_000, 20)
    with conditions.server() as server:
        ours, native = Bench(server, 0, delayq=True), Bench(server, 1, delayq=False)
        Backlog(ours).fill(waiting)
        return [row for pool in ("threads", "prefork") for row in _pool(pool, ours, native, waiting, turns)]
