"""100,000 jobs of a queue that become due together: how long until all are acked.

Four consumers sleep in a program of their own: threads that ``reserve`` and ``ack``, the threads of one ``Worker``, or
threads that know when it begins and call bare Lua scripts, which move bodies under a lease and forget them, and
nothing else. From the moment when the last job is due until Redis holds none of them any more, by Redis's clock. To be
due at one instant is the harder way to be due within a second. Rounds alternate.
"""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event

import redis

from celery_delayq.clock import SECOND_US
from celery_delayq.job import Job, OnConflict, Put
from celery_delayq.queue import DelayQueue
from celery_delayq.queue_protocol import DELIVERY, QueueProtocol
from celery_delayq.store import Store
from celery_delayq.worker import Worker

from .conditions import Conditions
from .report import Results, Row, Spread
from .verbs import BARE_ACK, BARE_RESERVE

BODY = b"x" * 1000
TOPIC = "consumers"
CONSUMERS = 4

#: Jobs that a consumer takes at once, and that a worker holds beyond those that its threads work on.
LIMIT, PREFETCH = 1000, 4000


#: The jobs are due so long (s) after the first was put, and longer if they were not put by then: for each, and for all.
FILLING, LEAD = 50e-6, 2.0


def _reserving(url: str, ready: Event, done: Event, _: int) -> None:
    """Threads that reserve and ack, until told to end."""

    def consume(queue: DelayQueue) -> None:
        while not done.is_set():
            if jobs := queue.reserve(limit=LIMIT, wait=0.5):
                queue.ack(*jobs)

    with DelayQueue(url, TOPIC) as queue:
        _in_threads(lambda: consume(queue), ready)


def _working(url: str, ready: Event, done: Event, _: int) -> None:
    """A worker whose function does nothing."""

    def run(job: Job) -> None:
        """It is the way here that is measured."""

    with DelayQueue(url, TOPIC) as queue, Worker(queue, run, threads=CONSUMERS, prefetch=PREFETCH):
        ready.set()
        done.wait()


def _bare(url: str, ready: Event, _: Event, last_us: int) -> None:
    """Threads that sleep until all is due, and then call bare scripts until nothing is left."""
    keys = QueueProtocol(TOPIC, "delayq", 1).keys(0)
    places = [keys.schedule(TOPIC), keys.jobs(TOPIC), keys.leases(TOPIC), keys.reserved(TOPIC)]

    def consume() -> None:
        with redis.Redis.from_url(url) as client:
            reserve, ack = client.register_script(BARE_RESERVE), client.register_script(BARE_ACK)
            time.sleep(max(last_us / SECOND_US - time.time(), 0))
            while taken := reserve(places, [last_us, LIMIT, last_us + 60 * SECOND_US])[0]:
                ack(places[2:], taken)

    _in_threads(consume, ready)


def _in_threads(consume: Callable[[], None], ready: Event) -> None:
    threads = [threading.Thread(target=consume) for _ in range(CONSUMERS)]
    for thread in threads:
        thread.start()
    ready.set()
    for thread in threads:
        thread.join()


Consumers = Callable[[str, Event, Event, int], None]


def _seconds(url: str, consumers: Consumers, count: int, spread_us: int, lead: float = 0.0) -> float:
    """Put, have the consumers sleep, and look until all is acked: seconds after the last due time."""
    lead = lead or LEAD + FILLING * count
    dice = random.Random(count)
    processes = multiprocessing.get_context("spawn")
    ready, done = processes.Event(), processes.Event()
    with redis.Redis.from_url(url) as client, DelayQueue(client, TOPIC) as queue:
        client.flushdb()
        store = Store(client, queue.protocol.keys(0), leases=True)
        assert len(queue) == 0
        last_us = store.now_us() + round(lead * SECOND_US) + spread_us
        dues_us = [last_us, *(last_us - (dice.randrange(spread_us) if spread_us else 0) for _ in range(count - 1))]
        process = processes.Process(target=consumers, args=(url, ready, done, last_us))
        process.start()
        try:
            for first in range(0, count, 1000):
                jobs = [Put(TOPIC, b"%d" % at, BODY, at_us=dues_us[at]) for at in range(first, first + 1000)]
                store.restore(jobs, {TOPIC: DELIVERY}, OnConflict.ERROR)
            assert ready.wait(60)
            was_in_time = store.now_us() < last_us - spread_us
            time.sleep(max(last_us - store.now_us(), 0) / SECOND_US)
            while (load := queue.stats()).waiting or load.reserved:
                time.sleep(0.01)
            taken = (store.now_us() - last_us) / SECOND_US
        finally:
            done.set()
            process.join()
    return taken if was_in_time else _seconds(url, consumers, count, spread_us, 2 * lead)


def run(conditions: Conditions) -> Results:
    count, rounds = (50_000, 1) if conditions.quick else (100_000, 3)
    ways: list[tuple[str, Consumers]] = [
        (f"{CONSUMERS} threads, reserve(limit={LIMIT}) and ack", _reserving),
        (f"Worker(threads={CONSUMERS}, prefetch={PREFETCH})", _working),
    ]
    whens = [("at one instant", 0), ("within a second", SECOND_US)]
    rows = []
    with conditions.server() as server:
        for when, spread_us in whens:
            turns = [
                [_seconds(server.url(), consumers, count, spread_us) for consumers in (*dict(ways).values(), _bare)]
                for _ in range(rounds)
            ]
            *ours, bare = zip(*turns, strict=True)
            for (what, _), taken in zip(ways, ours, strict=True):
                rows.append(
                    Row(
                        "consumers",
                        f"s until {count:,} jobs, due {when}, are acked: {what}",
                        str(Spread.of(taken)),
                        f"bare Lua {Spread.of(bare)}",
                        Spread.of(b / a for a, b in zip(taken, bare, strict=True)),
                        "<= 3 s for 100,000",
                        Spread.of(taken).median <= 3.0 * count / 100_000,
                    )
                )
    return rows
