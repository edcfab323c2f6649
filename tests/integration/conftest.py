"""What the tests of publishing share: a look at what waits and at what is ready, as a worker would see it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import redis
from celery import Celery, signals
from kombu.message import Message

from celery_delayq.clock import from_us
from celery_delayq.delivery import Delivery
from celery_delayq.doctor import CHECKS, Finding, Patient, examine
from celery_delayq.embedded import RedisServer
from celery_delayq.keys import Keys
from celery_delayq.store import Store

from .worker import newest_redis


@dataclass
class Waiting:
    """One job as it waits: its place and its message."""

    topic: str
    id: str
    due_us: int
    raw: bytes

    @property
    def message(self) -> dict[str, Any]:
        decoded: dict[str, Any] = json.loads(self.raw)
        return decoded

    @property
    def due(self) -> Any:
        return from_us(self.due_us)


class Inside:
    """Looks into the Redis of a broker."""

    opened: ClassVar[list[redis.Redis]] = []

    def __init__(self, server: RedisServer, global_prefix: str = "", prefix: str = "delayq", database: int = 0) -> None:
        self.client = server.client(database)
        self.opened.append(self.client)
        self.keys = Keys(prefix, global_prefix, database)
        self.store = Store(self.client, self.keys)

    def waiting(self) -> list[Waiting]:
        """Everything that waits, by topic, each in the order in which it leaves."""
        found = []
        for topic in sorted(self.client.zrange(self.keys.index, 0, -1)):
            name = topic.decode()
            for id, due in self.client.zrange(self.keys.schedule(name), 0, -1, withscores=True):
                body = self.client.hget(self.keys.jobs(name), id)
                assert body is not None
                found.append(Waiting(name, id.decode(), int(due), body))
        return found

    def one(self) -> Waiting:
        """The one job that waits."""
        (job,) = self.waiting()
        return job

    def ready(self, key: str = "celery") -> list[dict[str, Any]]:
        """The messages of a ready list, in the order in which consumers pop them."""
        return [json.loads(raw) for raw in self.client.lrange(key, 0, -1)[::-1]]

    def calls(self, command: str) -> int:
        """How often Redis has run a command so far."""
        stats: Any = self.client.info("commandstats")
        return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])

    def hand_over(self) -> int:
        """Move everything that waits, whenever it is due."""
        moved = 0
        late = 2**53 - 1
        for due in self.store.tick(now_us=late).due:
            delivery = due.delivery or Delivery.plain(due.topic)
            moved += self.store.dispatch(due.topic, delivery, 1000, now_us=late).moved
        return moved


@pytest.fixture(autouse=True)
def close_clients() -> Iterator[None]:
    """No test leaves a socket open."""
    yield
    while Inside.opened:
        Inside.opened.pop().close()


@pytest.fixture
def inside(server: RedisServer) -> Inside:
    return Inside(server)


@pytest.fixture
def run_ready(inside: Inside) -> Callable[..., list[Any]]:
    """Runs what is ready, in this process, the way a worker does: ``run_ready(app, "queue")`` -> results."""

    def run(app: Celery, queue: str = "celery") -> list[Any]:
        results = []
        with app.connection_for_read() as connection, connection.channel() as channel:
            channel.queue_declare(queue)
            while (message := channel.basic_get(queue, no_ack=True)) is not None:
                results.append(trace(app, message))
        return results

    return run


def trace(app: Celery, message: Message) -> Any:
    """Run one message's task as Celery's worker does, and return its (possibly wrapped) result."""
    from celery.app.trace import build_tracer
    from celery.worker.request import Request

    task = app.tasks[message.headers["task"]]
    request = Request(message, app=app, task=task, decoded=False, body=message.body, headers=message.headers)
    signals.task_received.send(sender=None, request=request)
    args, kwargs, embed = request._payload
    context = {**request.request_dict, **(embed or {})}
    tracer = build_tracer(task.name, task, app=app)
    return tracer(request.id, args, kwargs, context).retval


@pytest.fixture
def look(app: Celery) -> Callable[..., list[Finding]]:
    """Makes the checks of those names on the app, with its Redis, and gives what they find."""

    def look(*names: str, on: Celery = app, **more: Any) -> list[Finding]:
        delayq = on.delayq
        patient = Patient(on, delayq.settings, delayq.home, lambda: delayq.connect(5.0, claims=False), **more)
        try:
            return examine(patient, [check for check in CHECKS if check.name in names])
        finally:
            patient.close()

    return look


@pytest.fixture(scope="module")
def other() -> Iterator[RedisServer]:
    """A Redis that is the broker, while tasks wait in the test's own."""
    with newest_redis() as server:
        yield server


@pytest.fixture
def broker(other: RedisServer) -> Iterator[Inside]:
    """A look into that one."""
    inside = Inside(other)
    yield inside
    inside.client.flushall()


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    """Talks to the test's server; its replies are bytes."""
    with server.client() as client:
        yield client
