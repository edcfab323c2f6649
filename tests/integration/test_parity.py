"""What is handed over is what stock Celery would have pushed: the same bytes, under the same key."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from kombu import Exchange, Queue

from .certificates import write_certificate
from .conftest import Inside

TOPIC = Exchange("events", type="topic")
DIRECT = Exchange("orders", type="direct")
QUEUES = [
    Queue("celery"),
    Queue("audit", TOPIC, routing_key="order.#"),
    Queue("mail", TOPIC, routing_key="*.paid"),
    Queue("stock", DIRECT, routing_key="stock"),
    Queue("with space ünïcödé", DIRECT, routing_key="odd"),
]

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "queue": {"queue": "stock"},
    "queue object": {"queue": QUEUES[1]},
    "unknown queue": {"queue": "made on the fly"},
    "unicode queue": {"queue": "with space ünïcödé"},
    "direct exchange": {"exchange": "orders", "routing_key": "stock"},
    "topic exchange": {"exchange": TOPIC, "routing_key": "order.paid"},
    "topic exchange by name": {"exchange": "events", "routing_key": "order.new", "exchange_type": "topic"},
    "priority 0": {"priority": 0},
    "priority 4": {"priority": 4},
    "priority 9": {"priority": 9},
    "priority out of range": {"priority": 200},
    "pickle": {"serializer": "pickle"},
    "yaml": {"serializer": "yaml"},
    "msgpack": {"serializer": "msgpack"},
    "zlib": {"compression": "zlib"},
    "gzip and msgpack": {"compression": "gzip", "serializer": "msgpack"},
    "headers": {"headers": {"tenant": "42", "nested": {"n": 12345678901234567890, "empty": []}}},
    "time limits": {"time_limit": 30, "soft_time_limit": 20},
    "shadow": {"shadow": "another.name"},
    "ignored result": {"ignore_result": True},
    "stamps": {"stamped_headers": ["order"], "order": 42},
    "transient": {"delivery_mode": 1},
    "reply to": {"reply_to": "someone"},
    "property": {"app_id": "shop"},
}


def bare(message: dict[str, Any]) -> dict[str, Any]:
    """A message without what differs from one publish to the next, and without the two things that we add."""
    message["properties"].pop("delivery_tag")
    for name in ("delayq_due", "delayq_put"):
        message["properties"].pop(name, None)
    return message


def everything_ready(inside: Inside) -> dict[str, list[dict[str, Any]]]:
    """Every ready list -> its messages."""
    client = inside.client
    lists = [key.decode() for key in client.scan_iter() if client.type(key) == b"list"]
    return {key: [bare(message) for message in inside.ready(key)] for key in sorted(lists)}


def bind_everything(app: Celery) -> None:
    """Bind the queues in Redis, as a worker would; and let the app's producers know the types of the exchanges, which
    Kombu takes for direct ones otherwise. They share connections with those of earlier tests, and what these know.
    """
    with app.connection_for_write() as connection, app.producer_or_acquire() as producer:
        for queue in QUEUES:
            queue(connection.default_channel).declare()
            if queue.exchange.name:
                queue.exchange(producer.channel).declare()


@pytest.mark.parametrize("name", OPTIONS)
def test_a_delayed_message_arrives_as_if_it_had_been_sent_then(
    make_app: Callable[..., Celery], inside: Inside, name: str
) -> None:
    """Queue, key, body, headers and properties are those of stock Celery without a delay."""
    options = {"task_id": "the-id", "reply_to": "us", **OPTIONS[name]}
    pushed = []
    for joined, delay in ((False, {}), (True, {"countdown": 3600})):
        app = make_app(joined=joined, task_queues=QUEUES)
        bind_everything(app)
        app.send_task("tasks.add", (1, 2), {}, **options, **delay)
        if joined:
            assert everything_ready(inside) == {}
            assert inside.hand_over()
        pushed.append(everything_ready(inside))
        inside.client.delete(*pushed[-1])

    assert pushed[0] == pushed[1]
    assert pushed[0]


def test_the_time_of_the_put(app: Celery, inside: Inside) -> None:
    """Beside the time that it is due, a message tells when it was put: microseconds since the epoch, a number."""
    before = time.time_ns() // 1000
    app.send_task("tasks.add", countdown=60)

    assert before <= inside.one().message["properties"]["delayq_put"] <= time.time_ns() // 1000


def test_one_message_to_several_queues(make_app: Callable[..., Celery], inside: Inside) -> None:
    """A topic exchange that routes to two queues makes two jobs of the one message."""
    app = make_app(task_queues=QUEUES)
    bind_everything(app)

    result = app.send_task("tasks.add", exchange=TOPIC, routing_key="order.paid", countdown=60)

    jobs = inside.waiting()
    assert [("audit", result.id), ("mail", result.id)] == [(job.topic, job.id) for job in jobs]
    assert jobs[0].raw == jobs[1].raw


def test_custom_steps_and_separator(make_app: Callable[..., Celery], inside: Inside) -> None:
    """priority_steps and sep of the broker decide which sub-list a job goes to, as in Kombu."""
    options = {"priority_steps": list(range(10)), "sep": ":"}
    app = make_app(broker_transport_options=options)
    app.send_task("tasks.add", priority=7, countdown=60)

    inside.hand_over()

    assert inside.client.llen("celery:7") == 1


def test_global_key_prefix(make_app: Callable[..., Celery], server: Any) -> None:
    """With global_keyprefix every key of ours and every ready list carries it, once."""
    app = make_app(broker_transport_options={"global_keyprefix": "shop."})
    app.send_task("tasks.add", priority=9, countdown=60)
    app.send_task("tasks.add", countdown=60)
    inside = Inside(server, global_prefix="shop.")

    assert len(inside.waiting()) == 2
    assert inside.hand_over() == 2
    keys = {key.decode() for key in inside.client.scan_iter()}
    assert {"shop.celery", "shop.celery\x06\x169"} <= keys
    assert all(key.startswith("shop.") and not key.startswith("shop.shop.") for key in keys)


def test_another_database(make_app: Callable[..., Celery], server: Any) -> None:
    """Jobs wait in the broker's own database."""
    app = make_app(broker_url=server.url(5))
    app.send_task("tasks.add", countdown=60)

    assert len(Inside(server, database=5).waiting()) == 1
    assert Inside(server).waiting() == []


def test_expiring_queue(make_app: Callable[..., Celery], inside: Inside) -> None:
    """x-expires: hand-over renews the life of the ready list, as Kombu's own push does."""
    queue = Queue("brief", expires=60)
    app = make_app(task_queues=[queue])
    app.send_task("tasks.add", queue="brief", countdown=60)
    assert inside.client.ttl(inside.keys.schedule("brief")) == -1

    stock = make_app(joined=False, task_queues=[queue])
    stock.send_task("tasks.add", queue="brief")
    stock_lives = inside.client.pttl("brief") > 0
    inside.client.delete("brief")
    inside.hand_over()

    assert stock_lives == (inside.client.pttl("brief") > 0)  # Kombu before 5.7 has no queues that expire


def test_signed_messages(make_app: Callable[..., Celery], inside: Inside, tmp_path: Any) -> None:
    """Message signing: the signed body is the one that arrives, and it verifies."""
    from kombu.serialization import enable_insecure_serializers, loads

    certificate, key = write_certificate(tmp_path)
    app = make_app(
        security_key=str(key),
        security_certificate=str(certificate),
        security_cert_store=f"{tmp_path}/*.crt",
        task_serializer="auth",
        event_serializer="auth",
        accept_content=["auth"],
    )
    app.set_current()
    try:
        app.setup_security()
        app.send_task("tasks.add", (1, 2), countdown=60)
        inside.hand_over()
        (message,) = inside.ready()
        body = base64.b64decode(message["body"])
        args = loads(body, message["content-type"], message["content-encoding"], accept={"application/data"})[0]
    finally:
        enable_insecure_serializers(["json", "msgpack", "pickle", "yaml"])
        app.set_default()
    assert args == [1, 2]
