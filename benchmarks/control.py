"""What it costs to look up and to cancel one waiting task among few and among many, and to walk through all of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from itertools import islice

import psutil

from celery_delayq.clock import SECOND_US

from .backlog import DAY_US, QUEUE, Backlog
from .conditions import Conditions
from .report import Results, Row, Spread
from .workers import Bench

#: Operations in one block.
BLOCK = 50


def _timed(operations: list[Callable[[], object]]) -> float:
    """What one of them takes on average (us)."""
    started = time.perf_counter()
    for operation in operations:
        assert operation()
    return (time.perf_counter() - started) / len(operations) * SECOND_US


def _look_ups(bench: Bench, backlog: Backlog, dice: random.Random) -> tuple[float, float]:
    """What getting and cancelling one task takes (us); none is cancelled that was there before."""
    delayq = bench.app.delayq
    now_us = int(time.time() * SECOND_US)
    jobs = [backlog.job(now_us + dice.randrange(DAY_US, 30 * DAY_US)) for _ in range(BLOCK)]
    backlog.store.put(jobs, {QUEUE: backlog.delivery})
    ids = [job.id.decode() if isinstance(job.id, bytes) else job.id for job in jobs]
    got = _timed([lambda task_id=task_id: delayq.get(task_id) for task_id in ids])
    cancelled = _timed([lambda task_id=task_id: delayq.cancel(task_id) for task_id in ids])
    return got, cancelled


def run(conditions: Conditions) -> Results:
    few, many, rounds = (1_000, 100_000, 10) if conditions.quick else (1_000, 1_000_000, 40)
    dice = random.Random(0)
    with conditions.server() as server:
        benches = Bench(server, 0, delayq=True), Bench(server, 1, delayq=True)
        backlogs = [Backlog(bench) for bench in benches]
        for backlog, count in zip(backlogs, (few, many), strict=True):
            backlog.fill(count)
        pairs = [
            [_look_ups(bench, backlog, dice) for bench, backlog in zip(benches, backlogs, strict=True)]
            for _ in range(rounds)
        ]
        rows = []
        for number, what in enumerate(("get", "cancel")):
            ratio = Spread.of(with_many[number] / with_few[number] for with_few, with_many in pairs)
            less, more = (Spread.of(pair[which][number] for pair in pairs).median for which in (0, 1))
            rows.append(
                Row(
                    "control",
                    f"{what} one by its id, us",
                    f"{more:.0f} with {many:,} waiting",
                    f"{less:.0f} with {few:,}",
                    ratio,
                    "ratio <= 2",
                    ratio.median <= 2,
                )
            )
        rows += _walk(benches[1], many)
    return rows


def _walk(bench: Bench, count: int) -> list[Row]:
    """All that waits, one by one: how fast, and what it adds to this process's memory after its first tenth."""
    process = psutil.Process()
    walk = bench.app.delayq.scheduled()
    started = time.perf_counter()
    walked = sum(1 for _ in islice(walk, count // 10))
    before = process.memory_info().rss
    walked += sum(1 for _ in walk)
    took = time.perf_counter() - started
    grown = (process.memory_info().rss - before) / 2**20
    assert walked == count
    return [
        Row("control", f"walk through {count:,}: tasks a second", f"{count / took:,.0f}", ""),
        Row("control", "walk: growth of memory, MB", f"{grown:.1f}", "", None, "< 5 MB", grown < 5),
    ]
