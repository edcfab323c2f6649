"""Jobs handed over a second: by 1 to 50 dispatchers, and from 1 to 500 queues; and what a dispatcher's look costs then.

Jobs of 955 bytes in equal numbers for each queue, all due at one instant; from that until none waits. The dispatchers
are in processes of their own, up to ten, and were up before. Of a fleet one is active and the others stand by, so more
of them are there for the takeover and not for speed; what is to be seen is that they cost none. A look is the script
that says what is due, while nothing is. Turns go from number to number.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass

from celery_delayq.clock import SECOND_US
from celery_delayq.delivery import Delivery
from celery_delayq.embedded import RedisServer
from celery_delayq.job import Put
from celery_delayq.keys import Keys
from celery_delayq.store import Store

from .backlog import BODY_BYTES
from .conditions import Conditions
from .fleet import fleet_of
from .report import Results, Row, Series, Spread
from .workers import wait_until

DISPATCHERS = (1, 2, 5, 10, 20, 50)
QUEUES = (1, 5, 20, 100, 500)

#: Jobs of one put.
BATCH = 500

#: Looks of one block.
LOOKS = 200


@dataclass
class Load:
    """A number of jobs that are due at one instant.

    Attributes:
        filling: how long (s) it may take at most to put them.
    """

    store: Store
    jobs: int
    filling: float = 5.0

    def rate(self, queues: int) -> float:
        """Put the jobs, have them handed over, throw them away; jobs a second."""
        store = self.store
        names = [f"queue-{number}" for number in range(queues)]
        instant_us = self._put(names)
        while instant_us < store.now_us():  # some left before the last was there: not what is to be measured
            self._throw_away(names)
            self.filling *= 2
            instant_us = self._put(names)
        time.sleep((instant_us - store.now_us()) / SECOND_US)
        # The index holds the queues for which a job waits: one short command, whatever their number.
        while store.client.zcard(store.keys.index):
            time.sleep(0.002)
        seconds = (store.now_us() - instant_us) / SECOND_US
        ready = self._throw_away(names)
        assert ready == self.jobs, f"{ready} of {self.jobs} jobs are ready"
        return self.jobs / seconds

    def _put(self, names: list[str]) -> int:
        """Put the jobs; when they are due (us since the epoch)."""
        store = self.store
        began = time.time()
        instant_us = store.now_us() + int(self.filling * SECOND_US)
        size = min(BATCH, self.jobs // len(names))
        # Batch by batch to one queue after the other: a put touches one, as those of real callers mostly do.
        for number, start in enumerate(range(0, self.jobs, size)):
            name = names[number % len(names)]
            jobs = [Put(name, f"{start + one}", b"x" * BODY_BYTES, at_us=instant_us) for one in range(size)]
            store.put(jobs, {name: Delivery.plain(name)})
        self.filling = max(1.5 * (time.time() - began) + 0.5, self.filling / 2)
        return instant_us

    def _throw_away(self, names: list[str]) -> int:
        """Once none waits, forget those that are ready; how many those were."""
        client = self.store.client
        wait_until(lambda: not client.zcard(self.store.keys.index), "all are handed over")
        ready = sum(client.llen(name) for name in names)
        client.delete(*names)
        return ready


def run(conditions: Conditions) -> Results:
    quick = conditions.quick
    dispatchers = (1, 10, 50) if quick else DISPATCHERS
    queues = (1, 20, 500) if quick else QUEUES
    jobs, rounds = (20_000, 2) if quick else (50_000, 4)
    with conditions.server() as server:
        store = Store(server.client(), Keys("delayq"))
        load = Load(store, jobs)
        by_fleet: dict[int, list[float]] = {size: [] for size in dispatchers}
        for _ in range(rounds):
            for size in dispatchers:
                with fleet_of(store, size):
                    by_fleet[size].append(load.rate(1))
        by_queues: dict[int, list[float]] = {count: [] for count in queues}
        with fleet_of(store, 1):
            for _ in range(rounds):
                for count in queues:
                    by_queues[count].append(load.rate(count))
    with conditions.server() as server:
        looks = _looks(server, queues, 10 * rounds)
    return [
        *_rows("dispatchers", by_fleet),
        *_rows("queues", by_queues),
        *(_look_row(count, looks) for count in queues[1:]),
        _line("dispatchers", by_fleet),
        _line("queues", by_queues),
    ]


def _looks(server: RedisServer, queues: tuple[int, ...], rounds: int) -> dict[int, list[float]]:
    """What a look takes (us) by the caller's clock, with a job far ahead in each of so many queues; for each block."""
    taken: dict[int, list[float]] = {count: [] for count in queues}
    with ExitStack() as clients:
        stores = {
            count: Store(clients.enter_context(server.client(number)), Keys("delayq"))
            for number, count in enumerate(queues)
        }
        for count, store in stores.items():
            at_us = store.now_us() + 3600 * SECOND_US
            for number in range(count):
                name = f"queue-{number}"
                store.put([Put(name, "job", b"", at_us=at_us)], {name: Delivery.plain(name)})
        for _ in range(rounds):
            for count, store in stores.items():
                started = time.perf_counter()
                for _ in range(LOOKS):
                    store.tick()
                taken[count].append((time.perf_counter() - started) / LOOKS * SECOND_US)
    return taken


def _rows(what: str, rates: dict[int, list[float]]) -> list[Row]:
    (one, alone), *others = rates.items()
    return [
        Row(
            "throughput",
            f"jobs handed over a second, {number} {what}",
            f"{Spread.of(rate).median:,.0f}",
            f"{one}: {Spread.of(alone).median:,.0f}",
            Spread.of(a / b for a, b in zip(rate, alone, strict=True)),
        )
        for number, rate in others
    ]


def _look_row(count: int, looks: dict[int, list[float]]) -> Row:
    return Row(
        "throughput",
        f"a dispatcher's look at {count} queues, us",
        f"{Spread.of(looks[count]).median:.0f}",
        f"1: {Spread.of(looks[1]).median:.0f}",
        Spread.of(a / b for a, b in zip(looks[count], looks[1], strict=True)),
    )


def _line(plot: str, rates: dict[int, list[float]]) -> Series:
    return Series(
        plot, "celery_delayq", tuple(map(float, rates)), tuple(Spread.of(rate).median for rate in rates.values())
    )
