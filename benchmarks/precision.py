"""How late due jobs are on the ready list, and how fast a put wakes a dispatcher: on Redis's clock, without Celery.

The real dispatcher, a process of its own as in a worker, on a store in which a million jobs wait. What Redis does, and
when, is read from its MONITOR. Two things are measured:

* *late*: 100 jobs a second fall due at random moments; from the due time to the LPUSH;
* *woken*: a job is put that is due now, while the dispatcher sleeps; from the put to the LPUSH.

Compared with the shortest programs that could do it, on the same server by turns: one that knows what is due next,
sleeps until then, and calls a bare Lua script; and one that subscribes to a channel and pushes whatever it hears.
"""

from __future__ import annotations

import multiprocessing
import random
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import Any

import redis

from celery_delayq.clock import SECOND_US
from celery_delayq.embedded import RedisServer
from celery_delayq.job import Put

from .backlog import QUEUE, Backlog
from .burst import BARE
from .conditions import Conditions
from .report import Results, Row, Spread, percentile
from .workers import Bench, wait_until

#: Jobs a second.
RATE = 100

#: How far ahead (s) of its due time a job is put.
AHEAD = 1.0

#: What every id begins with, and how it is found in a line of MONITOR.
MARK, MARKED = "precise", re.compile(r"precise-\d+")

#: Where the bare program is told what to push.
CHANNEL = "bare"


def _dispatch(server: RedisServer) -> None:
    Bench(server, 0, delayq=True).app.delayq.dispatcher().run()


def _bare_dispatch(server: RedisServer, schedule: str, jobs: str) -> None:
    client = server.client()
    script = client.register_script(BARE)
    while True:
        script([schedule, jobs, QUEUE], [time.time_ns() // 1000])
        ((_, due),) = client.zrange(schedule, 0, 0, withscores=True)
        # Jobs are put in the order of their due times, and long before: none comes earlier than what is next now.
        time.sleep(max(0.0, min(due / SECOND_US - time.time(), AHEAD / 2)))


def _bare_wake(server: RedisServer) -> None:
    client = server.client()
    pubsub = client.pubsub(ignore_subscribe_messages=True)
    pubsub.subscribe(CHANNEL)
    for message in pubsub.listen():
        client.lpush(QUEUE, message["data"])


@contextmanager
def _process(target: Any, *arguments: Any) -> Iterator[None]:
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


class Witness:
    """A context manager that reads MONITOR.

    Attributes:
        seen: command and id -> when (us) Redis ran it.
    """

    def __init__(self, server: RedisServer) -> None:
        self._client = redis.Redis(port=server.port, socket_timeout=None)  # it may be silent for long
        self.seen: dict[tuple[str, str], float] = {}

    def __enter__(self) -> Witness:
        self._monitor = self._client.monitor().__enter__()
        Thread(target=self._read, daemon=True).start()
        return self

    def _read(self) -> None:
        try:
            for line in self._monitor.listen():
                name, at_us = line["command"].split(" ", 1)[0], line["time"] * SECOND_US
                for id in MARKED.findall(line["command"]):  # several, where jobs are pushed together
                    self.seen.setdefault((name, id), at_us)
        except (redis.RedisError, OSError, ValueError, AttributeError):
            pass  # closed

    def await_pushes(self, ids: Sequence[str]) -> list[float]:
        """When (us) each id came to the ready list."""
        wait_until(lambda: all(("LPUSH", id) in self.seen for id in ids), f"{len(ids)} jobs are ready")
        return [self.seen["LPUSH", id] for id in ids]

    def __exit__(self, *exc_info: object) -> None:
        self._client.close()


class _Meter:
    """Puts marked jobs into a backlog, and says how long they took (ms)."""

    def __init__(self, backlog: Backlog, server: RedisServer) -> None:
        self._backlog = backlog
        self._server = server
        self._dice = random.Random(1)
        self._count = 0

    def _job(self, at_us: int) -> Put:
        self._count += 1
        id = f"{MARK}-{self._count}"
        job = self._backlog.job(at_us)
        return Put(QUEUE, id, job.body.replace(job.id, id.encode()), at_us=at_us)

    def late(self, seconds: int) -> list[float]:
        """A stream of jobs that fall due at random moments."""
        begin = time.time_ns() // 1000 + int((AHEAD + 0.2) * SECOND_US)
        dues = sorted(begin + self._dice.randrange(seconds * SECOND_US) for _ in range(seconds * RATE))
        jobs = [self._job(due) for due in dues]
        with Witness(self._server) as witness:
            for due, job in zip(dues, jobs, strict=True):
                time.sleep(max(0.0, due / SECOND_US - AHEAD - time.time()))
                self._backlog.store.put([job], {QUEUE: self._backlog.delivery})
            arrivals = witness.await_pushes([str(job.id) for job in jobs])
        return [(arrival - due) / 1000 for arrival, due in zip(arrivals, dues, strict=True)]

    def woken(self, count: int) -> list[float]:
        """Jobs that are due when they are put, one after the other."""
        ids = []
        with Witness(self._server) as witness:
            for _ in range(count):
                time.sleep(self._dice.uniform(0.02, 0.1))
                job = self._job(0)
                self._backlog.store.put([job], {QUEUE: self._backlog.delivery})
                ids.append(str(job.id))
            arrivals = witness.await_pushes(ids)
        return [(arrival - witness.seen["ZADD", id]) / 1000 for arrival, id in zip(arrivals, ids, strict=True)]

    def bare_woken(self, count: int) -> list[float]:
        """Messages to the bare program."""
        ids = []
        with Witness(self._server) as witness:
            for _ in range(count):
                time.sleep(self._dice.uniform(0.02, 0.1))
                self._count += 1
                ids.append(f"{MARK}-{self._count}")
                self._backlog.store.client.publish(CHANNEL, ids[-1])
            arrivals = witness.await_pushes(ids)
        return [(arrival - witness.seen["PUBLISH", id]) / 1000 for arrival, id in zip(arrivals, ids, strict=True)]


def _rows(name: str, waiting: int, ours: list[list[float]], bare: list[list[float]], limit: float) -> list[Row]:
    rows = []
    for percent in (50, 99):
        here, there = (Spread.of(percentile(turn, percent) for turn in turns) for turns in (ours, bare))
        rows.append(
            Row(
                "precision",
                f"{name}, p{percent}, ms",
                f"{here} with {waiting:,} waiting",
                f"bare loop {there}",
                Spread.of(percentile(a, percent) / percentile(b, percent) for a, b in zip(ours, bare, strict=True)),
                f"< {limit:g} ms" if percent == 99 else "",
                here.median < limit if percent == 99 else None,
            )
        )
    return rows


def run(conditions: Conditions) -> Results:
    waiting, seconds, count, turns = (50_000, 3, 50, 3) if conditions.quick else (1_000_000, 10, 200, 6)
    late: tuple[list[list[float]], list[list[float]]] = ([], [])
    woken: tuple[list[list[float]], list[list[float]]] = ([], [])
    with conditions.server() as server:
        bench = Bench(server, 0, delayq=True)
        backlog = Backlog(bench)
        backlog.fill(waiting)
        client, keys = backlog.store.client, backlog.store.keys
        meter = _Meter(backlog, server)

        def listening(channel: str) -> None:
            wait_until(lambda: client.pubsub_numsub(channel)[0][1] == 1, f"somebody listens on {channel}")

        for _ in range(turns):
            with _process(_dispatch, server):
                listening(keys.wake)
                late[0].append(meter.late(seconds))
                woken[0].append(meter.woken(count))
            with _process(_bare_dispatch, server, keys.schedule(QUEUE), keys.jobs(QUEUE)):
                late[1].append(meter.late(seconds))
            with _process(_bare_wake, server):
                listening(CHANNEL)
                woken[1].append(meter.bare_woken(count))
            client.delete(QUEUE)
    early = min(min(turn) for turn in late[0])
    return [
        *_rows(f"late on the ready list, {RATE} a second", waiting, *late, 5.0),
        Row("precision", "earliest of all, ms", f"{early:.3f}", "", None, "never early", early >= 0),
        *_rows("from a put to the ready list, the dispatcher asleep", waiting, *woken, 5.0),
    ]
