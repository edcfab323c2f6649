"""What celery_delayq leaves to stock Celery, as documented: broadcasts, protocol 1, eager tasks, other brokers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.app.task import Task
from kombu import Exchange, Queue
from kombu.common import Broadcast

from celery_delayq import ImproperlyConfigured

from .conftest import Inside


def test_a_broadcast_is_sent_at_once_with_its_eta(make_app: Callable[..., Celery], inside: Inside) -> None:
    """A fanout exchange has no queue to wait for: every worker gets the message and holds it, as ever."""
    app = make_app(task_queues=[Broadcast("all"), Queue("celery")])
    with app.producer_or_acquire() as producer:  # as a worker has: Kombu takes an exchange it does not know for direct
        producer.channel.exchange_declare("all", type="fanout")
    with inside.client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.psubscribe("*")
        listener.get_message(timeout=5)
        app.send_task("add", queue="all", countdown=60)
        message = listener.get_message(timeout=5)

    assert b'"eta": "2' in message["data"]
    assert inside.waiting() == []


def test_a_fanout_exchange_by_name(make_app: Callable[..., Celery], inside: Inside) -> None:
    """The same for an exchange that was given with the call."""
    app = make_app(task_queues=[Queue("a", Exchange("news", type="fanout"), routing_key="")])
    app.send_task("add", exchange=Exchange("news", type="fanout"), routing_key="x", queue="a", countdown=60)

    assert inside.waiting() == []


def test_protocol_1(make_app: Callable[..., Celery], inside: Inside) -> None:
    """Its eta stands in the body, which may be signed and which we never open: stock behaviour."""
    app = make_app(task_protocol=1)
    app.send_task("add", countdown=60)
    app.delayq.apply_delayed("add", 60)

    assert inside.waiting() == []
    assert len(inside.ready()) == 2


def test_always_eager(make_app: Callable[..., Celery], inside: Inside) -> None:
    """task_always_eager runs a task at once and in place, delays and our options unheeded."""
    app = make_app(task_always_eager=True)

    @app.task(shared=False, name="add")
    def add(x: int, y: int) -> int:
        return x + y

    assert add.apply_async((1, 2), countdown=60, on_conflict="keep").get() == 3
    assert app.delayq.apply_delayed(add, 60, (1, 2)).get() == 3
    assert inside.waiting() == []


def test_no_queue_is_bound(make_app: Callable[..., Celery], inside: Inside, caplog: Any) -> None:
    """Kombu drops what no queue is bound for; so do we, but say so."""
    app = make_app()
    with caplog.at_level(logging.WARNING, "celery_delayq"):
        app.send_task("add", exchange=Exchange("nobody", type="topic"), routing_key="x.y", countdown=60)

    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "no queue is bound to exchange 'nobody' for routing key 'x.y'"
    ]
    assert inside.waiting() == []


def test_another_broker(make_app: Callable[..., Celery], caplog: Any) -> None:
    """A broker that is not Redis: stock behaviour and one warning; the helpers refuse."""
    app = make_app(broker_url="memory://")
    with caplog.at_level(logging.WARNING, "celery_delayq"):
        app.send_task("add", countdown=60)
        app.send_task("add", countdown=60)

    assert len([record for record in caplog.records if "is not Redis" in record.getMessage()]) == 1
    with app.connection_for_read() as connection:
        message = connection.default_channel.basic_get("celery", no_ack=True)
    assert message.headers["eta"]
    with pytest.raises(ImproperlyConfigured, match="broker_url"):
        app.delayq.apply_delayed("add", 60)
    assert not app.delayq.can_dispatch


def test_the_apps_own_task_class(make_app: Callable[..., Celery], inside: Inside) -> None:
    """A Task class of the user's, with its own apply_async, stays in charge."""

    class Own(Task):  # type: ignore[misc]  # Celery is untyped
        abstract = True

        def apply_async(self, *args: Any, **options: Any) -> Any:
            options.setdefault("headers", {})["own"] = "yes"
            return super().apply_async(*args, **options)

    app = make_app()
    task = app.task(shared=False, name="x", base=Own)(make_app)
    task.apply_async(countdown=60)

    assert inside.one().message["headers"]["own"] == "yes"
