"""What the verbs cost with ten thousand tasks waiting, and with up to three million.

A database of one server for each number of tasks; the same block of calls is made on one after the other, so that
neighbouring blocks differ in nothing but what waits. Twice measured: by the caller's clock; and by the processor time
of Redis, in which a client that is slow on either side hides nothing.

What is got and cancelled is chosen at random among all that waits; for each that is cancelled a new one has been put
before. A page begins at random. What is dispatched becomes due before all others.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from celery_delayq.clock import SECOND_US

from .backlog import DAY_US, QUEUE, Backlog
from .conditions import Conditions
from .report import Results, Row, Series, Spread
from .workers import Bench

#: Calls of one block.
PUTS = GETS = CANCELS = 50
PAGES = 20

#: Tasks of a page, and of one dispatch.
PAGE = 100
BATCH = 1000

#: How much dearer the verb may be among a million than among ten thousand; None: the figure only informs.
LIMITS: dict[str, float | None] = {"put": 1.5, "dispatch": 1.5, "get": 1.5, "cancel": 1.5, "page": None}

NAMES = {
    "put": "put one",
    "dispatch": f"dispatch, each of {BATCH:,} in a call",
    "get": "get one by its id",
    "cancel": "cancel one by its id",
    "page": f"page of {PAGE}",
}

LABELS = {
    "put": "put",
    "dispatch": f"dispatch of {BATCH:,}",
    "get": "get",
    "cancel": "cancel",
    "page": f"page of {PAGE}",
}


@dataclass
class Taken:
    """What one operation of each block took (us).

    Attributes:
        by_caller: by the caller's clock.
        in_redis: of Redis's processor.
    """

    by_caller: list[float] = field(default_factory=list)
    in_redis: list[float] = field(default_factory=list)


class Site:
    """A database in which so many tasks wait."""

    def __init__(self, bench: Bench, waiting: int) -> None:
        self.waiting = waiting
        self.backlog = Backlog(bench)
        self.taken = {verb: Taken() for verb in LIMITS}
        self._delayq = bench.app.delayq
        self._dice = random.Random(waiting)

    def fill(self) -> None:
        self.backlog.fill(self.waiting)

    def _measure(self, verb: str, calls: list[Callable[[], object]], each: int = 1) -> None:
        """Make the calls, of which each does so many operations."""
        before = self._processor()
        started = time.perf_counter()
        for call in calls:
            assert call(), f"{verb} did nothing"
        seconds = time.perf_counter() - started
        count = len(calls) * each
        self.taken[verb].by_caller.append(seconds / count * SECOND_US)
        self.taken[verb].in_redis.append((self._processor() - before) / count * SECOND_US)

    def _processor(self) -> float:
        """Processor time (s) that Redis has used."""
        used = self.backlog.store.client.info("cpu")
        return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])

    def _later_us(self) -> int:
        """Some time at which tasks of the backlog are due."""
        return int(time.time() * SECOND_US) + self._dice.randrange(DAY_US, 30 * DAY_US)

    def _some(self, count: int) -> list[str]:
        store = self.backlog.store
        return [id.decode() for id in store.client.zrandmember(store.keys.schedule(QUEUE), count)]

    def put(self) -> None:
        store, deliveries = self.backlog.store, {QUEUE: self.backlog.delivery}
        jobs = [self.backlog.job(self._later_us()) for _ in range(PUTS)]
        self._measure("put", [lambda job=job: store.put([job], deliveries) for job in jobs])

    def get(self) -> None:
        self._measure("get", [lambda task_id=task_id: self._delayq.get(task_id) for task_id in self._some(GETS)])

    def cancel(self) -> None:
        self._measure(
            "cancel", [lambda task_id=task_id: self._delayq.cancel(task_id) for task_id in self._some(CANCELS)]
        )

    def page(self) -> None:
        store = self.backlog.store
        first_us = int(time.time() * SECOND_US)
        starts = [first_us + self._dice.randrange(20 * DAY_US) for _ in range(PAGES)]  # so that none is the last
        self._measure("page", [lambda at=at: store.page(QUEUE, start_us=at, limit=PAGE).jobs for at in starts])

    def dispatch(self) -> None:
        store, delivery = self.backlog.store, self.backlog.delivery
        due_us = int(time.time() * SECOND_US) + 1000 * SECOND_US
        self.backlog.put(due_us + number for number in range(BATCH))
        self._measure(
            "dispatch",
            [lambda: store.dispatch(QUEUE, delivery, BATCH, now_us=due_us + BATCH).moved == BATCH],
            BATCH,
        )
        store.client.delete(*delivery.lists)


def run(conditions: Conditions) -> Results:
    # The verdict is on the third.
    sizes, rounds = ((1_000, 10_000, 100_000), 8) if conditions.quick else ((10_000, 100_000, 1_000_000, 3_000_000), 30)
    with conditions.server() as server:
        sites = [Site(Bench(server, number, delayq=True), waiting) for number, waiting in enumerate(sizes)]
        with ThreadPoolExecutor(len(sites)) as threads:
            list(threads.map(Site.fill, sites))
        for number in range(rounds + 1):
            for verb in LIMITS:
                for site in sites:
                    getattr(site, verb)()
            if number == 0:  # the scripts are loaded now, and connections open
                for site in sites:
                    site.taken = {verb: Taken() for verb in LIMITS}
        assert all(site.backlog.waiting() == site.waiting for site in sites)
    return [*(row for verb in LIMITS for row in _rows(verb, sites)), *(_line(verb, sites) for verb in LIMITS)]


def _rows(verb: str, sites: list[Site]) -> list[Row]:
    rows = []
    few, *many = sites
    for site in many[1:]:
        limit = LIMITS[verb] if site is many[1] else None
        for whose, less, more in (
            ("by the caller's clock", few.taken[verb].by_caller, site.taken[verb].by_caller),
            ("of Redis's processor", few.taken[verb].in_redis, site.taken[verb].in_redis),
        ):
            ratio = Spread.of(b / a for a, b in zip(less, more, strict=True))
            rows.append(
                Row(
                    "scaling",
                    f"{NAMES[verb]}, us {whose}",
                    f"{Spread.of(more).median:.1f} with {site.waiting:,} waiting",
                    f"{Spread.of(less).median:.1f} with {few.waiting:,}",
                    ratio,
                    f"ratio <= {limit:g}" if limit else "",
                    ratio.median <= limit if limit else None,
                )
            )
    return rows


def _line(verb: str, sites: list[Site]) -> Series:
    rates = tuple(SECOND_US / Spread.of(site.taken[verb].by_caller).median for site in sites)
    return Series("rate", LABELS[verb], tuple(float(site.waiting) for site in sites), rates)
