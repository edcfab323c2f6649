"""Adoption in real workers of a RabbitMQ, into a Redis beside it: old producers, each pool, workers that are killed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Connection, Queue

from celery_delayq.embedded import RedisServer

from .test_producing import name
from .test_relay_workers import conf
from .worker import Project, wait_for

__all__ = ["name"]  # a fixture

ONE_REDIS = True


@contextmanager
def old_producer(url: str, **conf: Any) -> Iterator[Celery]:
    """An app without celery_delayq that sends to the same broker."""
    app = Celery("old", broker=url, set_as_current=False)
    app.conf.update(conf)
    yield app
    app.close()


def send(app: Celery, queue: str, count: int, delay: float) -> list[str]:
    """Send so many tasks the stock way, straight to a queue, all due at the same time."""
    eta = datetime.now(timezone.utc) + timedelta(seconds=delay)
    target = Queue(queue, no_declare=True)
    return [app.send_task("record", eta=eta, queue=target).id for _ in range(count)]


def ready(url: str, queue: str) -> int:
    """How many messages of a queue no consumer holds."""
    with Connection(url) as connection, connection.channel() as channel:
        return int(channel.queue_declare(queue, passive=True).message_count)


def waiting(client: redis.Redis, queue: str) -> set[str]:
    return {id.decode() for id in client.zrange(f"delayq:{{0}}:schedule:{queue}", 0, -1)}


@pytest.mark.parametrize(
    ("kind", "pool", "more"),
    [("classic", "prefork", {}), ("quorum", "threads", {"task_acks_late": True}), ("classic", "gevent", {})],
)
def test_delayed_tasks_of_old_producers(
    rabbit_url: str, server: RedisServer, name: str, kind: str, pool: str, more: dict[str, Any]
) -> None:
    """They wait in Redis and not in the worker, leave its prefetch window alone, and run once each, when due."""
    if pool == "gevent":
        pytest.importorskip(pool)
    queue = {"exchange": f"ex-{name}", "exchange_type": "topic", "queue_arguments": {"x-queue-type": kind}}
    settings = conf(server, name, task_queues={name: {**queue, "routing_key": f"key.{name}"}}, **more)
    with (
        Project(rabbit_url, **settings, worker_prefetch_multiplier=1) as project,
        old_producer(rabbit_url, **settings) as knowing,
        old_producer(rabbit_url) as old,
        server.client() as client,
    ):
        with project.worker(pool=pool) as worker:
            worker.await_ready()
            late = send(old, name, 30, 3600)
            wait_for(lambda: waiting(client, name) == set(late), "what comes is adopted")
            soon = send(old, name, 10, 2)
            # With a quorum queue RabbitMQ holds it back; it is (almost) due when it comes.
            native = knowing.send_task("record", queue=name, countdown=2).id
            plain = project.send(queue=name)
            project.ledger.wait_for([plain, *soon, native])
            wait_for(lambda: waiting(client, name) == set(late), "what was due has left")
            assert worker.said("Traceback") == 0
        wait_for(lambda: ready(rabbit_url, name) == 0, "the broker has nothing back from the worker")
        assert project.ledger.runs() == dict.fromkeys([*soon, plain, native], 1)
        assert not [line for line in project.ledger.lines() if line["due"] and line["at"] < line["due"] - 0.001]


def test_workers_that_are_killed_while_they_adopt(rabbit_url: str, server: RedisServer, name: str) -> None:
    """What was put and not acknowledged is delivered to the next worker, which knows it: in the end each task waits
    once, and the queue is empty.
    """
    settings = conf(server, name)
    with (
        Project(rabbit_url, **settings) as project,
        old_producer(rabbit_url) as old,
        server.client() as client,
    ):
        with project.worker() as worker:
            worker.await_ready()
            ids = send(old, name, 300, 3600)
        kills = 0
        while kills < 2 and len(waiting(client, name)) < 300:
            with project.worker() as worker:
                mark = min(len(waiting(client, name)) + 50, 300)
                wait_for(lambda mark=mark: len(waiting(client, name)) >= mark, "it adopts")  # type: ignore[misc]
                worker.kill()
            kills += 1
        with project.worker() as worker:
            wait_for(lambda: waiting(client, name) == set(ids), "all wait")
            soon = datetime.now(timezone.utc) + timedelta(seconds=1)
            assert all(project.app.delayq.reschedule(task_id, soon) for task_id in ids)
            project.ledger.wait_for(ids)
            wait_for(lambda: ready(rabbit_url, name) == 0, "the queue is empty")
        assert project.ledger.runs() == Counter(ids)
        assert not waiting(client, name)


def test_a_retry_of_an_adopted_task(rabbit_url: str, server: RedisServer, name: str) -> None:
    """It waits as any retry does, for the queue that it came from."""
    with (
        Project(rabbit_url, **conf(server, name)) as project,
        old_producer(rabbit_url) as old,
        project.worker() as worker,
    ):
        worker.await_ready()
        task_id = old.send_task("retry", (0.3,), countdown=1.0, queue=Queue(name, no_declare=True)).id
        wait_for(lambda: len(project.ledger.of(task_id)) == 2, "it runs twice")
        assert [line["retries"] for line in project.ledger.of(task_id)] == [0, 1]
        assert [line["queue"] for line in project.ledger.of(task_id)] == [name, name]
