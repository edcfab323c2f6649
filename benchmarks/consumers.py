"""100,000 jobs of a queue that become due together: how long until all are acked.

Four consumers wait in a program of their own, each for itself with ``reserve`` and ``ack``, or as the threads of one
``Worker``; the jobs are put by another. From the moment when the last job is due until Redis holds none of them any
more, by that. "At one instant" is the harder of the two ways to be due within a second.
"""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event

from celery_delayq.clock import SECOND_US
from celery_delayq.job import Job, OnConflict, Put
from celery_delayq.queue import DelayQueue
from celery_delayq.queue_protocol import DELIVERY
from celery_delayq.store import Store
from celery_delayq.worker import Worker

from .conditions import Conditions
from .report import Row, Spread

BODY = b"x" * 1000
TOPIC = "consumers"
CONSUMERS = 4

#: Jobs that a consumer takes at once, and that a worker holds beyond those that its threads work on.
LIMIT = 250


def _reserving(url: str, ready: Event, done: Event) -> None:
    """Four threads that reserve and ack, until told to end."""

    def consume(queue: DelayQueue) -> None:
        while not done.is_set():
            if jobs := queue.reserve(limit=LIMIT, wait=0.5):
                queue.ack(*jobs)

    with DelayQueue(url, TOPIC) as queue:
        threads = [threading.Thread(target=consume, args=(queue,)) for _ in range(CONSUMERS)]
        for thread in threads:
            thread.start()
        ready.set()
        for thread in threads:
            thread.join()


def _working(url: str, ready: Event, done: Event) -> None:
    """A worker with four threads whose function does nothing."""

    def run(job: Job) -> None:
        """It is the way here that is measured."""

    with DelayQueue(url, TOPIC) as queue, Worker(queue, run, threads=CONSUMERS, prefetch=CONSUMERS * LIMIT):
        ready.set()
        done.wait()


Consumers = Callable[[str, Event, Event], None]


def _seconds(url: str, consumers: Consumers, count: int, spread_us: int) -> float:
    """Put, have the consumers sleep, and look until all is acked: seconds after the last due time."""
    dice = random.Random(count)
    processes = multiprocessing.get_context("spawn")
    ready, done = processes.Event(), processes.Event()
    with DelayQueue(url, TOPIC) as queue:
        store = Store(queue._link.client(0, queue.protocol), queue.protocol.keys(0), leases=True)
        assert len(queue) == 0
        last_us = store.now_us() + 20 * SECOND_US
        dues_us = [last_us - (dice.randrange(spread_us) if spread_us else 0) for _ in range(count)]
        dues_us[-1] = last_us
        for first in range(0, count, 1000):
            jobs = [Put(TOPIC, b"%d" % number, BODY, at_us=dues_us[number]) for number in range(first, first + 1000)]
            store.restore(jobs, {TOPIC: DELIVERY}, OnConflict.ERROR)
        process = processes.Process(target=consumers, args=(url, ready, done))
        process.start()
        try:
            assert ready.wait(60)
            assert store.now_us() < last_us - spread_us - SECOND_US, "the filling took longer than expected"
            time.sleep((last_us - store.now_us()) / SECOND_US)
            while (load := queue.stats()).waiting or load.reserved:
                time.sleep(0.01)
            return (store.now_us() - last_us) / SECOND_US
        finally:
            done.set()
            process.join()


def run(conditions: Conditions) -> list[Row]:
    count, rounds = (20_000, 2) if conditions.quick else (100_000, 5)
    ways: list[tuple[str, Consumers]] = [
        (f"{CONSUMERS} threads, reserve(limit={LIMIT}) and ack", _reserving),
        (f"Worker(threads={CONSUMERS}, prefetch={CONSUMERS * LIMIT})", _working),
    ]
    whens = [("at one instant", 0), ("within a second", SECOND_US)]
    rows = []
    with conditions.server() as server:
        for what, consumers in ways:
            for when, spread_us in whens:
                taken = Spread.of(_seconds(server.url(), consumers, count, spread_us) for _ in range(rounds))
                limit = 3.0 * count / 100_000
                rows.append(
                    Row(
                        "consumers",
                        f"s until {count:,} jobs, due {when}, are acked: {what}",
                        str(taken),
                        "",
                        None,
                        "<= 3 s for 100,000",
                        taken.median <= limit,
                    )
                )
    return rows
