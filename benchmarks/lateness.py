"""How late delayed tasks start: 100 a second, ours with a million more waiting far in the future.

Lateness is the time at which a task's first line runs, less the time for which it was asked. Native Celery could not
hold a million (they would all be in the worker's memory), so nothing more waits for it. Both workers are up all the
time and of the same kind; rounds alternate, so that whatever else the machine does meets both.
"""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from datetime import datetime, timezone

from .backlog import Backlog
from .conditions import Conditions
from .report import Row, Spread, percentile
from .workers import Bench, wait_until

#: Tasks a second.
RATE = 100

#: How far ahead (s) of its due time a task is published.
AHEAD = 2.0


def _round(bench: Bench, seconds: float, dice: random.Random) -> list[float]:
    """Publish a stream of tasks with due times at random, as real ones have; return how late (ms) each started."""
    task = bench.task("stamp")
    count = round(RATE * seconds)
    start = time.time() + AHEAD + 0.1
    for due in sorted(start + dice.uniform(0, seconds) for _ in range(count)):
        time.sleep(max(0.0, due - AHEAD - time.time()))
        task.apply_async((due,), eta=datetime.fromtimestamp(due, timezone.utc))
    wait_until(lambda: bench.recorded() >= count, f"{bench.name} tasks", timeout=AHEAD + 30)
    return [float(record) * 1000 for record in bench.take_records()]


def _pool(pool: str, ours: Bench, native: Bench, waiting: int, rounds: int, seconds: float) -> list[Row]:
    dice = random.Random(1)
    with ExitStack() as workers:
        for bench in (ours, native):
            workers.enter_context(bench.worker("-P", pool, "-c", "4"))
        taken = [(_round(ours, seconds, dice), _round(native, seconds, dice)) for _ in range(rounds)]
    rows = []
    for percent, limit in ((50, 2.0), (99, 3.0)):
        here, natively = (
            percentile([value for one in column for value in one], percent) for column in zip(*taken, strict=True)
        )
        ratio = Spread.of(percentile(a, percent) / percentile(b, percent) for a, b in taken)
        rows.append(
            Row(
                "lateness",
                f"p{percent}, ms, {pool} pool, {RATE} tasks a second",
                f"{here:.2f} with {waiting:,} waiting",
                f"native {natively:.2f} with none",
                ratio,
                f"ratio <= {limit:g}",
                ratio.median <= limit,
            )
        )
    earliest = min(min(a) for a, _ in taken)
    # A due time is a float of seconds here and whole microseconds in the store: a microsecond is rounding.
    rows.append(
        Row("lateness", f"earliest, ms, {pool} pool", f"{earliest:.3f}", "", None, "never early", earliest > -0.001)
    )
    return rows


def run(conditions: Conditions) -> list[Row]:
    waiting, rounds, seconds = (50_000, 2, 3.0) if conditions.quick else (1_000_000, 5, 5.0)
    with conditions.server() as server:
        ours, native = Bench(server, 0, delayq=True), Bench(server, 1, delayq=False)
        Backlog(ours).fill(waiting)
        return [row for pool in ("threads", "prefork") for row in _pool(pool, ours, native, waiting, rounds, seconds)]
