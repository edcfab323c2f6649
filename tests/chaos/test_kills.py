"""Processes are killed at random while tasks fall due: each is still handed over exactly once, and in order."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest
import redis

from celery_delayq.clock import to_us
from celery_delayq.embedded import RedisServer
from celery_delayq.message import DUE_PROPERTY, read_eta
from tests.integration.worker import ROOT, Project, handed_over, newest_redis, put_many, wait_for

QUEUE = "orders"

#: Seconds in which 20,000 tasks can be put on most machines, before the first is due.
LEAD = 6.0


class DispatcherProcess:
    """A dispatcher without a worker."""

    def __init__(self, url: str) -> None:
        self._command = [sys.executable, str(Path(__file__).with_name("dispatch.py")), url]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        """SIGKILL: nothing of it runs any more."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextmanager
def running(*processes: object) -> Iterator[None]:
    """Start all; kill them all at the end."""
    try:
        for process in processes:
            process.start()  # type: ignore[attr-defined]  # a worker or a dispatcher
        yield
    finally:
        for process in processes:
            process.kill()  # type: ignore[attr-defined]  # a worker or a dispatcher


def due_us(message: bytes) -> int:
    """When a task was to be handed over (us)."""
    return to_us(read_eta(json.loads(message)["properties"][DUE_PROPERTY]))


class Watch:
    """Looks at the ready list while it grows, and writes down what it should not have held yet."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._seen = 0
        self.early: list[str] = []

    def look(self) -> int:
        """Check what is new; return how many tasks are on the list."""
        length = self._client.llen(QUEUE)
        with self._client.pipeline() as pipeline:
            # New ones come in from the left; those of this look end where the ones before began.
            pipeline.lrange(QUEUE, -length, -self._seen - 1)
            pipeline.time()
            new, (seconds, micros) = pipeline.execute()
        for message in new if length > self._seen else ():
            if due_us(message) > seconds * 1_000_000 + micros:
                self.early.append(message)
        self._seen = length
        return length


def due_times(client: redis.Redis) -> list[int]:
    """When each task of the ready list was due, in the order in which it was pushed."""
    return [due_us(message) for message in reversed(client.lrange(QUEUE, 0, -1))]


def put_ahead(project: Project, offsets_us: list[int]) -> list[str]:
    """Put a task for each offset from a moment, before the first of them is due."""
    lead = LEAD
    while True:
        project.app.delayq.pause(QUEUE)  # should that take too long, nothing has left
        begin = int((time.time() + lead) * 1_000_000)
        task_ids = put_many(project, QUEUE, [begin + us for us in offsets_us])
        if time.time() * 1_000_000 < begin:
            project.app.delayq.resume(QUEUE)
            return task_ids
        project.app.delayq.purge(QUEUE)
        lead *= 2


def test_kills_of_workers_and_dispatchers_lose_and_double_nothing() -> None:
    """20,000 tasks fall due in 10 seconds, while a worker or dispatcher is killed every 0.3: each handed over once."""
    chance = random.Random(20_000)
    with newest_redis() as server, Project(server.url()) as project, server.client() as client:
        victims = [DispatcherProcess(server.url()) for _ in range(3)]
        victims += [project.worker("--queues=elsewhere") for _ in range(2)]  # type: ignore[misc]  # both start and die
        with running(*victims):
            wait_for(lambda: client.pubsub_numsub("delayq:{0}:fleet:0")[0][1] == len(victims), "all dispatchers listen")
            task_ids = put_ahead(project, chance.sample(range(10_000_000), 20_000))
            watch = Watch(client)
            kills = 0
            while (seen := watch.look()) < len(task_ids) or kills < 10:
                if seen == len(task_ids):  # a machine that starts processes slowly has not killed enough yet
                    task_ids += put_ahead(project, chance.sample(range(2_000_000), 2_000))
                if kills == 40:
                    break
                pause = time.monotonic() + chance.uniform(0.1, 0.5)
                wait_for(lambda: time.monotonic() > pause, "the next kill")  # noqa: B023
                if client.llen(QUEUE) > 0:
                    victim = chance.choice(victims)
                    victim.kill()
                    victim.start()
                    kills += 1
            wait_for(lambda: watch.look() >= len(task_ids), "every task is handed over")

        assert kills >= 10
        assert handed_over(client, QUEUE) == dict.fromkeys(task_ids, 1)
        assert watch.early == []
        assert due_times(client) == sorted(due_times(client))
        assert sorted(client.keys("delayq:*")) == [b"delayq:{0}:beat", b"delayq:{0}:totals", b"delayq:{0}:version"]
        assert int(client.hget("delayq:{0}:totals", f"moved:{QUEUE}") or 0) == len(task_ids)


@pytest.fixture
def lasting_server(redis_server: RedisServer) -> Iterator[RedisServer]:
    """A server of each version that has written to its disk what it has answered."""
    with RedisServer(redis_server._program, ["--appendonly", "yes", "--appendfsync", "always"]) as server:
        yield server


def produce(send: Callable[[], str], stop: Event, sent: list[str]) -> None:
    """Send tasks until told to stop; note those that were accepted."""
    while not stop.is_set():
        sent.append(send())
        stop.wait(0.002)


def test_kills_of_redis_lose_and_double_nothing(lasting_server: RedisServer) -> None:
    """Redis is killed 4 times amid puts and dispatches: every task that it accepted is handed over once."""
    chance = random.Random(4)
    server = lasting_server
    with Project(server.url()) as project, server.client() as client:
        sent: list[str] = []
        stop = Event()
        # Longer than an outage: a put that is sent again finds itself still waiting.
        producer = Thread(target=produce, args=(lambda: project.send(countdown=3, queue=QUEUE), stop, sent))
        with running(DispatcherProcess(server.url()), DispatcherProcess(server.url())):
            producer.start()
            try:
                for _ in range(4):
                    wait_for(lambda: client.llen(QUEUE) > 0 and client.zcard("delayq:{0}:schedule:orders") > 0, "busy")
                    pause = time.monotonic() + chance.uniform(0.5, 1.5)
                    wait_for(lambda: time.monotonic() > pause, "the next kill")  # noqa: B023
                    server.stop()
                    server.start()
            finally:
                stop.set()
                producer.join()
            wait_for(lambda: client.zcard("delayq:{0}:schedule:orders") == 0, "all is handed over")

        assert len(sent) > 200
        counts = handed_over(client, QUEUE)
        assert set(counts.values()) == {1}
        assert set(sent) <= set(counts)
        assert len(counts) - len(sent) <= 1
