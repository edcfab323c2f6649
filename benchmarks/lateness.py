"""How late delayed tasks start: 100 a second, ours with a million more waiting far in the future.

Lateness is the time at which a task's first line runs, less the time for which it was asked. Native Celery could not
hold a million (they would all be in the worker's memory), so nothing more waits for it. Both workers are of the same
kind and up all the time. One stream of tasks runs through; its seconds belong to the two in turn. So whatever else the
machine does meets both, and the ratio, the median of those of neighbouring seconds, can be had on a busy machine too.
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


def _stream(benches: tuple[Bench, Bench], pairs: int) -> tuple[list[list[float]], list[list[float]]]:
    """Publish *pairs* of seconds, the first of each for the first bench.

    Returns:
        For each bench and each of its seconds, how late (ms) the tasks started.
    """
    dice = random.Random(1)
    first = time.time() + AHEAD + 0.5
    seconds = [first + number for number in range(2 * pairs)]
    # At random within each second, as real ones are: a grid could fall in with a clock of ours or of Celery's.
    dues = [(start, sorted(start + dice.random() for _ in range(RATE))) for start in seconds]
    for number, (_, in_second) in enumerate(dues):
        task = benches[number % 2].task("stamp")
        for due in in_second:
            time.sleep(max(0.0, due - AHEAD - time.time()))
            task.apply_async((due,), eta=datetime.fromtimestamp(due, timezone.utc))
    for bench in benches:
        wait_until(lambda bench=bench: bench.recorded() >= pairs * RATE, f"{bench.name} tasks")  # type: ignore[misc]

    ours, native = (_by_second(bench.take_records(), seconds[which::2]) for which, bench in enumerate(benches))
    return ours, native


def _by_second(records: list[bytes], seconds: list[float]) -> list[list[float]]:
    late: dict[float, list[float]] = {start: [] for start in seconds}
    for record in records:
        due, started = map(float, record.split())
        late[max(start for start in seconds if start <= due)].append((started - due) * 1000)
    return list(late.values())


def _pool(pool: str, ours: Bench, native: Bench, waiting: int, pairs: int) -> list[Row]:
    with ExitStack() as workers:
        for bench in (ours, native):
            workers.enter_context(bench.worker("-P", pool, "-c", "4"))
        here, natively = _stream((ours, native), pairs)
    rows = []
    for percent, limit in ((50, 2.0), (99, 3.0)):
        ratio = Spread.of(percentile(a, percent) / percentile(b, percent) for a, b in zip(here, natively, strict=True))
        rows.append(
            Row(
                "lateness",
                f"p{percent}, ms, {pool} pool, {RATE} tasks a second",
                f"{_typical(here, percent):.2f} with {waiting:,} waiting",
                f"native {_typical(natively, percent):.2f} with none",
                ratio,
                f"ratio <= {limit:g}",
                ratio.median <= limit,
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


def _typical(seconds: list[list[float]], percent: int) -> float:
    """That percentile of a second's tasks, the median of all seconds."""
    return Spread.of(percentile(second, percent) for second in seconds).median


def run(conditions: Conditions) -> list[Row]:
    waiting, pairs = (50_000, 5) if conditions.quick else (1_000_000, 25)
    with conditions.server() as server:
        ours, native = Bench(server, 0, delayq=True), Bench(server, 1, delayq=False)
        Backlog(ours).fill(waiting)
        return [row for pool in ("threads", "prefork") for row in _pool(pool, ours, native, waiting, pairs)]
