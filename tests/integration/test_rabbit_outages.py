"""A RabbitMQ that dies, or hangs, while tasks are handed over to it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from kombu import Queue

from celery_delayq import producing
from celery_delayq.embedded import RedisServer
from celery_delayq.producing import ProducerPublisher
from celery_delayq.relay import Fate, Published
from tests.rabbit import RabbitServer

from .test_producing import OK, Kept, drained, make_publisher, name, publish, reserved
from .test_relay_workers import conf
from .worker import Project, wait_for

__all__ = ["make_publisher", "name"]  # fixtures

ONE_REDIS = True


@pytest.fixture(scope="module")
def own_rabbit() -> Iterator[RabbitServer]:
    with RabbitServer() as rabbit:
        yield rabbit


def test_a_rabbit_that_dies(own_rabbit: RabbitServer, server: RedisServer) -> None:
    """Killed in the midst of handing over and started again, with a classic and a quorum queue: nothing is lost; twice
    comes only what was sent and never confirmed, with the same id; and no task has used an attempt up.
    """
    names = [f"q-{uuid4().hex}" for _ in range(2)]
    queues = {
        name: {"exchange": name, "routing_key": name, "queue_arguments": {"x-queue-type": kind}}
        for name, kind in zip(names, ("classic", "quorum"), strict=True)
    }
    settings = conf(server, names[0], task_queues=queues, delayq_max_attempts=2, delayq_batch_size=200)
    with Project(own_rabbit.url, **settings) as project:
        delayq = project.app.delayq
        task_ids = {project.send(countdown=0.01, queue=name) for name in names}
        dispatcher = delayq.dispatcher()
        publisher = dispatcher._dispatchers[0]._way._publisher
        publish, uncertain = publisher.publish, set()

        def noted(jobs: Any, leases: Any) -> list[Published]:
            done: list[Published] = publish(jobs, leases)
            fates = zip(jobs, done, strict=True)
            uncertain.update(job.id.decode() for job, one in fates if one.fate is Fate.UNKNOWN)
            return done

        publisher.publish = noted
        dispatcher.start()
        try:
            wait_for(lambda: dispatcher.counts.moved == 2, "the queues are there")
            own_rabbit.await_written(names[1])
            base = time.time() + 1
            signatures = [project.app.signature("record", queue=name) for name in names]
            items = [(signatures[number % 2], base + number / 500) for number in range(1500)]
            task_ids |= {result.id for result in delayq.apply_many(items)}
            wait_for(lambda: dispatcher.counts.moved > 400, "it is at it")
            own_rabbit.kill()
            wait_for(lambda: sum(one.due for one in delayq.stats().values()) > 200, "tasks fall due meanwhile")
            own_rabbit.start()
            wait_for(
                lambda: not any(one.waiting + one.reserved for one in delayq.stats().values()), "all are handed over"
            )
        finally:
            dispatcher.stop()
        assert [one.dead for one in delayq.stats().values()] == [0, 0]
        assert dispatcher.counts.errors == 0
        found = Counter(message.headers["id"] for name in names for message in drained(own_rabbit.url, name))
        assert task_ids == set(found)
        assert {task_id for task_id, times in found.items() if times > 1} <= uncertain


def test_a_rabbit_that_is_full(
    own_rabbit: RabbitServer,
    server: RedisServer,  # as below
    make_publisher: Callable[..., ProducerPublisher],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
) -> None:
    """Its memory alarm stops every publisher: we wait with the leases, and do not send it all again."""
    monkeypatch.setattr(producing, "CONFIRM_PATIENCE", 2.0)
    caplog.set_level("INFO")
    publisher = make_publisher(own_rabbit.url, [Queue(name)])
    assert publish(publisher, reserved(name, 2)) == [OK] * 2
    own_rabbit.control("set_vm_memory_high_watermark", "0.000001")
    relaxed: list[bool] = []

    class Tending(Kept):
        def tend(self) -> bool:
            waits = [record.getMessage() for record in caplog.records if "takes no messages" in record.getMessage()]
            if waits and not relaxed:
                relaxed.append(True)
                own_rabbit.control("set_vm_memory_high_watermark", "0.4")
            return True

    jobs = reserved(name, 50)
    assert publish(publisher, jobs, Tending()) == [OK] * 50
    assert relaxed
    assert "takes messages again" in caplog.text
    assert len(drained(own_rabbit.url, name)) == 52


def test_a_rabbit_that_hangs(
    own_rabbit: RabbitServer,
    server: RedisServer,  # only so that pytest runs it beside the test above: one RabbitMQ for both
    make_publisher: Callable[..., ProducerPublisher],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A broker that answers nothing is away after a time, and not for ever waited for."""
    monkeypatch.setattr(producing, "CONFIRM_PATIENCE", 1.0)
    publisher = make_publisher(own_rabbit.url, [Queue(name)])
    assert publish(publisher, reserved(name, 2)) == [OK] * 2
    publisher.reach()
    own_rabbit.pause()
    try:
        fates = [one.fate for one in publisher.publish(reserved(name, 3), Kept())]
    finally:
        own_rabbit.pause(resume=True)
    assert fates == [Fate.UNKNOWN] * 3
    assert publish(publisher, reserved(name, 2)) == [OK] * 2
