"""Producers of a broker elsewhere that find no dispatcher: with ``delayq_fallback="native"`` they go the stock way."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery, group, signals
from kombu import Exchange, Queue

from celery_delayq.embedded import RedisServer

from .conftest import Inside
from .test_parity import OPTIONS, QUEUES, bind_everything, everything_ready
from .test_producing import drained, name

__all__ = ["name"]  # a fixture

#: Redis is seen through the store, whose own tests run on every version.
ONE_REDIS = True

THEN = datetime(2100, 1, 1, 12, 30, 15, 123456, tzinfo=timezone.utc)


@pytest.fixture
def native(make_app: Callable[..., Celery], server: RedisServer) -> Callable[..., Celery]:
    """Makes apps that publish the stock way while no dispatcher lives; and none does."""

    def make(url: str, **conf: Any) -> Celery:
        return make_app(broker_url=url, delayq_store_url=server.url(), delayq_fallback="native", **conf)

    return make


@pytest.mark.parametrize("options", OPTIONS)
def test_the_stock_way_is_that_of_stock_celery(
    make_app: Callable[..., Celery], native: Callable[..., Celery], inside: Inside, broker: Inside, options: str
) -> None:
    """Queue, key, body, headers with their eta and properties: sent alone, or in a batch that was made already."""
    given = {"task_id": "the-id", "reply_to": "us", **OPTIONS[options]}
    ours = native(broker_url(broker), task_queues=QUEUES)
    stock = make_app(joined=False, broker_url=broker_url(broker), task_queues=QUEUES)
    bind_everything(ours)
    pushed = []
    for send in (
        lambda: stock.send_task("tasks.add", (1, 2), {}, **given, eta=THEN),
        lambda: ours.send_task("tasks.add", (1, 2), {}, **given, eta=THEN),
        lambda: ours.delayq.apply_many([(ours.signature("tasks.add", (1, 2), {}, **given), THEN)]),
    ):
        send()
        pushed.append(everything_ready(broker))
        broker.client.delete(*pushed[-1])

    assert pushed[0] == pushed[1] == pushed[2]
    assert inside.waiting() == []


def broker_url(broker: Inside) -> str:
    where = broker.client.connection_pool.connection_kwargs
    return f"redis://{where['host']}:{where['port']}/0"


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_rabbit(native: Callable[..., Celery], inside: Inside, rabbit_url: str, name: str, kind: str) -> None:
    """A batch declares its queue, as each publish does; each message comes there once, with its eta, and its signals
    are sent once.
    """
    queue = Queue(name, Exchange(f"ex-{name}", "topic"), f"key-{name}", queue_arguments={"x-queue-type": kind})
    app = native(rabbit_url, task_queues=[queue], task_default_queue=name)
    after = []
    signals.after_task_publish.connect(seen := lambda **_: after.append(1))
    try:
        items = [(app.signature("add"), THEN + timedelta(seconds=number)) for number in range(120)]
        ids = [result.id for result in app.delayq.apply_many(items, batch_size=50)]
        app.delayq.apply_at(group(app.signature("add", task_id="one"), app.signature("add", task_id="two")), THEN)
        app.delayq.apply_at("add", THEN, task_id="alone")
    finally:
        signals.after_task_publish.disconnect(seen)

    messages = drained(rabbit_url, name)
    assert [message.headers["id"] for message in messages] == [*ids, "one", "two", "alone"]
    etas = [datetime.fromisoformat(message.headers["eta"]) for message in messages[:120]]
    assert etas == [when for _, when in items]
    assert not any("delayq_due" in message.headers for message in messages)
    assert len(after) == 123
    assert inside.waiting() == []
    assert app.delayq.unattended == 123


def test_while_a_dispatcher_lives(native: Callable[..., Celery], inside: Inside, rabbit_url: str, name: str) -> None:
    """Everything waits in the store."""
    inside.client.set(inside.keys.beat, time.time_ns() // 1000)
    app = native(rabbit_url, task_default_queue=name)
    app.delayq.apply_many([(app.signature("add"), THEN)] * 3)
    app.send_task("add", countdown=60)
    assert len(inside.waiting()) == 4
