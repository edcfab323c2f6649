"""How much of Redis's memory a waiting job takes, a task or one of a queue, beside the size of its body."""

from __future__ import annotations

import random
import time
import uuid

import redis

from celery_delayq.clock import SECOND_US
from celery_delayq.queue import DelayQueue

from .backlog import BODY_BYTES, DAY_US, Backlog
from .conditions import Conditions
from .report import Results, Row, Spread
from .workers import Bench

#: Sizes of bodies of a queue besides the one for which there is a target (bytes).
SIZES = (100, 300, 3_000, 10_000)


def run(conditions: Conditions) -> Results:
    # The tables of a hash double at powers of two: more than one count, so that a lucky one does not stand for all.
    counts = (20_000,) if conditions.quick else (100_000, 140_000)
    rows = [_row("tasks", count, BODY_BYTES, _of_task(conditions, count)) for count in counts]
    rows += [_row("jobs of a queue", count, BODY_BYTES, _of_job(conditions, count, BODY_BYTES)) for count in counts]
    for size in SIZES:
        rows.append(_row("jobs of a queue", counts[0], size, _of_job(conditions, counts[0], size)))
    return rows


def _row(what: str, count: int, body_bytes: int, each: float) -> Row:
    ratio = each / body_bytes
    is_target = body_bytes == BODY_BYTES
    return Row(
        "storage",
        f"bytes of Redis memory for each of {count:,} waiting {what}",
        f"{each:.0f}",
        f"body {body_bytes}",
        Spread.of([ratio]),
        "ratio <= 1.40" if is_target else "",
        ratio <= 1.40 if is_target else None,
    )


def _of_task(conditions: Conditions, count: int) -> float:
    """What each of so many tasks takes (bytes)."""
    with conditions.server() as server:
        bench = Bench(server, 0, delayq=True)
        backlog = Backlog(bench)
        before = _used(bench.broker)
        backlog.fill(count)
        assert backlog.waiting() == count
        return (_used(bench.broker) - before) / count


def _of_job(conditions: Conditions, count: int, body_bytes: int) -> float:
    """What each of so many jobs takes (bytes), whose ids are UUIDs as text, like those of tasks."""
    dice = random.Random(count)
    now = time.time()
    days = DAY_US / SECOND_US
    with conditions.server() as server, server.client() as client, DelayQueue(server.url(), "storage") as queue:
        before = _used(client)
        for _ in range(0, count, 1000):
            ats = [now + dice.uniform(days, 30 * days) for _ in range(1000)]
            queue.put_many([(str(uuid.uuid4()), b"x" * body_bytes, at) for at in ats])
        assert len(queue) == count
        return (_used(client) - before) / count


def _used(client: redis.Redis) -> int:
    """Memory in use (bytes), without the buffers of connections, which come and go."""
    time.sleep(1.0)  # buffers shrink and tables finish growing meanwhile
    memory = client.info("memory")
    return int(memory["used_memory"]) - int(memory["mem_clients_normal"])
