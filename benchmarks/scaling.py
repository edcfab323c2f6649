"""What one put and one dispatch cost with few jobs waiting, and with many.

Two databases of one server, one with ten thousand jobs and one with a million; blocks on the two alternate. Twice
measured: by the caller's clock, and by Redis's own (``INFO commandstats``), in which nothing but the script counts.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from celery_delayq.clock import SECOND_US

from .backlog import DAY_US, QUEUE, Backlog
from .conditions import Conditions
from .report import Results, Row, Spread
from .workers import Bench

#: Operations in one block.
BLOCK = 200


@dataclass
class Taken:
    """What each operation of the blocks of one kind took on average (us), a value for each block."""

    by_client: list[float] = field(default_factory=list)
    by_server: list[float] = field(default_factory=list)

    def measure(self, backlog: Backlog, operations: list[Callable[[], object]]) -> None:
        client = backlog.store.client
        client.config_resetstat()
        started = time.perf_counter()
        for operation in operations:
            operation()
        self.by_client.append((time.perf_counter() - started) / len(operations) * SECOND_US)
        self.by_server.append(float(client.info("commandstats")["cmdstat_evalsha"]["usec_per_call"]))


def _put_block(backlog: Backlog, taken: Taken, dice: random.Random) -> None:
    now_us = int(time.time() * SECOND_US)
    jobs = [backlog.job(now_us + dice.randrange(DAY_US, 30 * DAY_US)) for _ in range(BLOCK)]
    deliveries = {QUEUE: backlog.delivery}
    taken.measure(backlog, [lambda job=job: backlog.store.put([job], deliveries) for job in jobs])
    backlog.store.delete(QUEUE, [job.id for job in jobs])


def _dispatch_block(backlog: Backlog, taken: Taken) -> None:
    due_us = int(time.time() * SECOND_US) + 1000 * SECOND_US
    backlog.put(due_us + number * 1000 for number in range(BLOCK))

    def dispatch(number: int) -> None:
        done = backlog.store.dispatch(QUEUE, backlog.delivery, 1000, now_us=due_us + number * 1000)
        assert done.moved == 1

    taken.measure(backlog, [lambda number=number: dispatch(number) for number in range(BLOCK)])
    backlog.store.client.delete(*backlog.delivery.lists)


def run(conditions: Conditions) -> Results:
    few, many, rounds = (10_000, 100_000, 10) if conditions.quick else (10_000, 1_000_000, 40)
    dice = random.Random(0)
    puts, dispatches = (Taken(), Taken()), (Taken(), Taken())
    with conditions.server() as server:
        backlogs = Backlog(Bench(server, 0, delayq=True)), Backlog(Bench(server, 1, delayq=True))
        for backlog, count in zip(backlogs, (few, many), strict=True):
            backlog.fill(count)
        for _ in range(rounds):
            for which, backlog in enumerate(backlogs):
                _put_block(backlog, puts[which], dice)
            for which, backlog in enumerate(backlogs):
                _dispatch_block(backlog, dispatches[which])
    rows = []
    for what, (with_few, with_many) in (("put one", puts), ("dispatch one", dispatches)):
        for whose, less, more in (
            ("round trip", with_few.by_client, with_many.by_client),
            ("in Redis", with_few.by_server, with_many.by_server),
        ):
            ratio = Spread.of(b / a for a, b in zip(less, more, strict=True))
            rows.append(
                Row(
                    "scaling",
                    f"{what}, {whose}, us",
                    f"{Spread.of(more).median:.1f} with {many:,} waiting",
                    f"{Spread.of(less).median:.1f} with {few:,}",
                    ratio,
                    "ratio <= 1.5",
                    ratio.median <= 1.5,
                )
            )
    return rows
