"""Adoption where the broker is elsewhere: put, then acknowledged. One delivery at a time; every death in between."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Exchange, Message, Queue
from kombu.common import Broadcast

from celery_delayq import adoption
from celery_delayq.clock import to_us
from celery_delayq.embedded import RedisServer, free_port
from celery_delayq.message import outgoing
from celery_delayq.store import Store

from .conftest import Inside
from .test_adoption import Worker
from .test_parity import OPTIONS, QUEUES, bind_everything
from .test_producing import drained, name
from .worker import newest_redis, wait_for

__all__ = ["name"]  # a fixture

#: Redis is seen through the store, whose own tests run on every version.
ONE_REDIS = True

THEN = datetime(2100, 1, 1, 12, 30, 15, 123456, tzinfo=timezone.utc)

Apps = Callable[..., tuple[Celery, Celery]]


@contextmanager
def worker(app: Celery, *queues: Queue, dispatches: bool = True, accept: Sequence[str] = ("json",)) -> Iterator[Worker]:
    """A consumer that adopts; its unacknowledged messages are given out anew when it ends."""
    with app.connection_for_read() as connection, connection.channel() as channel:
        one = Worker(app, channel, [queue(channel) for queue in queues], dispatches, accept)
        yield one
        one.adoption._take.close()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def other() -> Iterator[RedisServer]:
    """A Redis that is the broker, while tasks wait in the test's own."""
    with newest_redis() as server:
        yield server


@pytest.fixture
def apps(make_app: Callable[..., Celery], server: RedisServer) -> Apps:
    """Makes an app with a DelayQ, and one without, of the same broker and settings."""

    def make(url: str, **conf: Any) -> tuple[Celery, Celery]:
        return (
            make_app(**{"broker_url": url, "delayq_store_url": server.url(), **conf}),
            make_app(**{"joined": False, "broker_url": url, **conf}),
        )

    return make


@pytest.fixture(params=["amqp", "redis"])
def broker_url(request: pytest.FixtureRequest, other: RedisServer) -> Iterator[str]:
    """A RabbitMQ, and a Redis."""
    if request.param == "amqp":
        yield request.getfixturevalue("rabbit_url")
        return
    yield other.url()
    with other.client() as client:
        client.flushall()


def left_in(url: str, queue: str) -> list[Any]:
    """The messages of a queue that nobody has acknowledged and nobody holds."""
    return drained(url, queue)


def stored(inside: Inside) -> dict[str, Any]:
    """The one message that waits, but for what tells one from the next."""
    message = inside.one().message
    for own in ("delivery_tag", "delayq_put", "delivery_info"):
        message["properties"].pop(own, None)
    return message


@pytest.mark.parametrize(
    "options", ["plain", "priority 9", "stamps", "zlib", "pickle", "msgpack", "transient", "property"]
)
def test_an_adopted_message_is_as_our_own_publisher_makes_it(
    apps: Apps, inside: Inside, broker_url: str, name: str, options: str
) -> None:
    """Body, headers and properties; to be published to its own queue, by name. And the broker has it no more."""
    app, stock = apps(broker_url)
    queue = Queue(name, Exchange("celery_delayq.direct", "direct"), name)
    given = {"task_id": "the-id", "reply_to": "us", **OPTIONS[options]}
    with worker(app, queue, accept=["json", "pickle", "msgpack"]) as one:
        stock.send_task("add", (1, "ü"), {}, **given, queue=name, eta=THEN)
        one.work()
        assert (one.held, one.adoption.count) == ([], 1)
    adopted = stored(inside)
    job = inside.one()
    assert (job.topic, job.id, job.due_us) == (name, "the-id", to_us(THEN))
    message = outgoing(job.raw, datetime.now(timezone.utc), keeps_properties=True)
    assert (message.exchange, message.routing_key) == ("", name)
    assert left_in(broker_url, name) == []

    app.delayq.cancel("the-id", mark=False)
    app.send_task("add", (1, "ü"), {}, **given, queue=name, eta=THEN)
    ours = stored(inside)
    ours["headers"]["origin"] = adopted["headers"]["origin"]
    assert adopted == ours


def test_a_foreign_producer(apps: Apps, inside: Inside, rabbit_url: str, name: str) -> None:
    """AMQP's own properties, text of another encoding, what RabbitMQ adds, and a user that nobody else may name."""
    app, stock = apps(rabbit_url)
    headers = {"task": "add", "id": "a", "lang": "js", "eta": "2100-01-01T12:30:15.123456"}
    with worker(app, Queue(name)) as one:
        with stock.producer_or_acquire() as producer:
            producer.publish(
                json.dumps([["ü"], {}, None], ensure_ascii=False).encode("utf-16"),
                exchange="",
                routing_key=name,
                content_type="application/json",
                content_encoding="utf-16",
                headers={**headers, "x-death": [{"count": 1, "reason": "expired"}], "x-first-death-queue": "q"},
                user_id="guest",
                type="t",
                timestamp=1_577_836_800,
                expiration=3600,
            )
        one.work()
        assert one.held == []
    message = outgoing(inside.one().raw, datetime.now(timezone.utc), keeps_properties=False)
    assert json.loads(message.body.decode("utf-16")) == [["ü"], {}, None]
    assert message.options["headers"] == {**headers, "eta": None, "delayq_due": headers["eta"]}
    assert (message.options["type"], "user_id" in message.options) == ("t", False)
    app.delayq.reschedule("a", datetime.now(timezone.utc) - timedelta(seconds=1))
    dispatcher = app.delayq.dispatcher()
    dispatcher.start()
    try:
        wait_for(lambda: dispatcher.counts.moved == 1, "it is published again")
    finally:
        dispatcher.stop()
    (again,) = drained(rabbit_url, name)
    assert (again.properties["type"], again.content_encoding, again.headers["lang"]) == ("t", "utf-16", "js")


@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.parametrize("on_conflict", ["replace", "keep", "error"])
def test_a_death_between_put_and_ack(
    apps: Apps, inside: Inside, rabbit_url: str, name: str, kind: str, on_conflict: str
) -> None:
    """RabbitMQ delivers it again: it is known by its bytes, whatever the task says of conflicts; and so it is while it
    is being handed over.
    """
    app, stock = apps(rabbit_url)

    @app.task(shared=False, name="add", on_conflict=on_conflict)
    def add() -> None: ...

    app.finalize()
    queue = Queue(name, queue_arguments={"x-queue-type": kind})
    with worker(app, queue) as dying:
        stock.send_task("add", queue=queue, eta=THEN, task_id="a")
        message = dying.receive()
        message.ack_log_error = lambda *_: None
        dying.judge(message)
        assert dying.held == []
    first = inside.one()
    assert app.delayq.reschedule("a", THEN + timedelta(days=1))

    with worker(app, queue) as dying:
        message = dying.receive()
        assert message.delivery_info["redelivered"]
        message.ack_log_error = lambda *_: None
        dying.judge(message)
        assert dying.held == []
    assert (inside.one().raw, inside.one().due) == (first.raw, THEN + timedelta(days=1))

    leasing = Store(inside.client, inside.keys, leases=True)
    (job,) = leasing.reserve(name, 1, 60_000_000, until_us=2**52).jobs
    with worker(app, queue) as last:
        last.work()
        assert last.held == []
    assert inside.waiting() == []
    assert leasing.ack(name, [job]) == [True]
    assert left_in(rabbit_url, name) == []


def test_a_redis_that_delivers_again(apps: Apps, inside: Inside, other: RedisServer) -> None:
    """Kombu notes in the headers that it was delivered before: the bytes that wait do not say so."""
    app, stock = apps(other.url())
    with worker(app, Queue("celery")) as one:
        stock.send_task("add", eta=THEN, task_id="a")
        message = one.receive()
        message.ack_log_error = lambda *_: None
        one.judge(message)
        first = inside.one().raw
        one.channel.qos.restore_by_tag(message.delivery_tag)
        again = one.receive()
        assert again.headers["redelivered"] is True
        one.judge(again)
        assert one.held == []
    assert inside.one().raw == first


def test_shards(apps: Apps, rabbit_url: str, name: str) -> None:
    """Each is put into its own, and known there when it is delivered again."""
    app, stock = apps(rabbit_url, delayq_shards=3)
    ids = {f"{number}" for number in range(20)}
    for _ in range(2):
        with worker(app, Queue(name)) as dying:
            for task_id in ids if app.delayq.count() == 0 else ():
                stock.send_task("add", queue=name, eta=THEN, task_id=task_id)
            for _ in ids:
                message = dying.receive()
                message.ack_log_error = lambda *_: None
                dying.judge(message)
            assert dying.held == []
        assert {task.id for task in app.delayq.scheduled()} == ids
    assert app.delayq.count() == 20
    assert len(drained(rabbit_url, name)) == 20


def test_a_message_that_went_to_several_queues(apps: Apps, inside: Inside, rabbit_url: str, name: str) -> None:
    """Each queue has its own copy, and gets that one back, and no other."""
    exchange = Exchange(f"ex-{name}", "topic")
    queues = [Queue(f"{name}-{number}", exchange, key) for number, key in enumerate(["#", "order.*"])]
    app, stock = apps(rabbit_url, task_queues=queues)
    with worker(app, *queues) as one:
        stock.send_task("add", exchange=exchange, routing_key="order.paid", eta=THEN, task_id="a")
        one.work()
        one.work()
        assert one.held == []
    assert {(job.topic, job.id) for job in inside.waiting()} == {(queue.name, "a") for queue in queues}
    app.delayq.run_now("a")
    dispatcher = app.delayq.dispatcher()
    dispatcher.start()
    try:
        wait_for(lambda: dispatcher.counts.moved == 2, "both are published again")
    finally:
        dispatcher.stop()
    assert [len(drained(rabbit_url, queue.name)) for queue in queues] == [1, 1]


def test_several_queues_of_a_redis(apps: Apps, inside: Inside, other: RedisServer) -> None:
    """There nobody can tell which of them a message came from: held."""
    app, stock = apps(other.url(), task_queues=QUEUES)
    bind_everything(app)
    stock.send_task("add", exchange="events", exchange_type="topic", routing_key="order.paid", eta=THEN)
    with worker(app, QUEUES[1]) as one:
        one.work()
        assert len(one.held) == 1
    assert inside.waiting() == []


@pytest.mark.parametrize("kind", ["broadcast", "auto_delete", "exclusive"])
def test_a_queue_of_one_worker_alone(apps: Apps, inside: Inside, rabbit_url: str, name: str, kind: str) -> None:
    """It goes with the worker, and nothing can come back to it: held."""
    app, _ = apps(rabbit_url)
    exchange = Exchange(f"ex-{name}", "direct")
    queue = {
        "broadcast": Broadcast(f"ex-{name}", queue=name, unique=False, auto_delete=False),
        "auto_delete": Queue(name, exchange, "k", auto_delete=True),
        "exclusive": Queue(name, exchange, "k", exclusive=True),
    }[kind]
    with worker(app, queue) as one:
        headers = {"task": "add", "id": "a", "eta": THEN.isoformat()}
        with app.amqp.Producer(one.channel) as producer:
            target = {"exchange": f"ex-{name}", "routing_key": "k"}
            producer.publish([[], {}, {}], **target, serializer="json", headers=headers, retry=False)
        message = one.work()
        assert one.held == [message]
        message.ack()
        queue(one.channel).delete()
    assert inside.waiting() == []


def test_without_a_dispatcher(apps: Apps, inside: Inside, rabbit_url: str, name: str, caplog: Any) -> None:
    """A worker without one adopts only while another lives; and makes no noise of it."""
    app, stock = apps(rabbit_url)
    with worker(app, Queue(name), dispatches=False) as one:
        for task_id in ("a", "b"):
            stock.send_task("add", queue=name, eta=THEN, task_id=task_id)
        one.work()
        assert len(one.held) == 1
        inside.client.set(inside.keys.beat, time.time_ns() // 1000)
        one.work()
        assert len(one.held) == 1
        one.held.pop().ack()
    assert inside.one().id == "b"
    assert app.delayq.unattended == 0
    assert caplog.records == []


def test_a_store_that_is_away(
    apps: Apps, inside: Inside, broker_url: str, name: str, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker holds messages as stock Celery does, says so once, and tries again when a pause is over; the error is
    never taken for one of the broker's connection.
    """
    app, stock = apps(broker_url, delayq_store_url=f"redis://127.0.0.1:{free_port()}/0")
    queue = Queue(name, Exchange("celery_delayq.direct", "direct"), name)
    with worker(app, queue) as one:
        for _ in range(3):
            stock.send_task("add", queue=name, eta=THEN)
        one.work()
        monkeypatch.setattr(one.adoption._take, "_connect", lambda: pytest.fail("it is left alone"))
        one.work()
        one.adoption._take._away_until = 0.0  # type: ignore[attr-defined]
        monkeypatch.setattr(one.adoption._take, "_connect", lambda: Store(inside.client, inside.keys, leases=True))
        one.work()
        assert (len(one.held), one.adoption.count) == (2, 1)
        for message in one.held:
            message.ack()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "this worker holds delayed tasks in memory" in caplog.text
    assert "the store of delayed tasks: ConnectionError" in caplog.text


@pytest.mark.parametrize("times", [1, 2])
def test_a_connection_that_breaks_in_a_put(
    apps: Apps, inside: Inside, rabbit_url: str, name: str, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Nobody knows whether it was stored: put again over a new one. If that breaks, too, the worker holds the message:
    then it may run twice.
    """
    app, stock = apps(rabbit_url)
    put, breaks = Store.put, iter(range(times))

    def broken(store: Store, *args: Any, **options: Any) -> int:
        count = put(store, *args, **options)
        if next(breaks, None) is not None:
            raise redis.ConnectionError("reset by peer")
        return count

    with worker(app, Queue(name)) as one:
        stock.send_task("add", queue=name, eta=THEN, task_id="a")
        monkeypatch.setattr(Store, "put", broken)
        message = one.work()
        assert one.held == ([message] if times == 2 else [])
        if one.held:
            message.ack()
    assert inside.one().id == "a"


def test_replicas_that_are_missing(apps: Apps, inside: Inside, rabbit_url: str, name: str, caplog: Any) -> None:
    """The broker keeps a message more safely than a master alone: nothing waits, and the worker holds it."""
    app, stock = apps(rabbit_url)
    app.conf.delayq_wait_replicas = 1
    with worker(app, Queue(name)) as one:
        stock.send_task("add", queue=name, eta=THEN, task_id="a")
        message: Message = one.work()
        assert one.held == [message]
        message.ack()
    assert inside.waiting() == []
    assert "only 0 of 1 replicas" in caplog.text


def test_what_the_store_refuses(apps: Apps, inside: Inside, rabbit_url: str, name: str, caplog: Any) -> None:
    """It is full, or holds the tasks of another broker: held."""
    app, stock = apps(rabbit_url)
    with worker(app, Queue(name)) as one:
        for _ in range(2):
            stock.send_task("add", queue=name, eta=THEN)
        inside.client.config_set("maxmemory", "1")
        try:
            one.work()
        finally:
            inside.client.config_set("maxmemory", "0")
        one.adoption._take.close()  # type: ignore[attr-defined]
        one.adoption._take._away_until = 0.0  # type: ignore[attr-defined]
        inside.client.set(inside.keys.serves, "amqp://elsewhere:5672/")
        one.work()
        assert len(one.held) == 2
        for message in one.held:
            message.ack()
    assert inside.waiting() == []


def test_a_store_that_hangs_does_not_stop_a_worker(
    apps: Apps, own_server: RedisServer, rabbit_url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives up in time, and leaves it alone for a while."""
    app, stock = apps(rabbit_url, delayq_store_url=own_server.url())
    with worker(app, Queue(name)) as one:
        for _ in range(2):
            stock.send_task("add", queue=name, eta=THEN)
        with own_server.client() as client:
            client.execute_command("CLIENT", "PAUSE", "20000", "ALL")
            begin = time.monotonic()
            one.work()
            one.work()
            assert time.monotonic() - begin < 15
            assert len(one.held) == 2
            for message in one.held:
                message.ack()
    assert adoption.AWAY > 5


def test_more_shards(
    apps: Apps, make_app: Callable[..., Celery], server: RedisServer, other: RedisServer, name: str, monkeypatch: Any
) -> None:
    """A worker that was there before finds the ids that wait in new shards, and puts none of them a second time."""
    monkeypatch.setattr(adoption, "REOPENED", 0.0)
    app, stock = apps(other.url(), task_default_queue=name)
    ids = [f"id-{number}" for number in range(8)]
    with worker(app, Queue(name)) as one:
        stock.send_task("add", eta=THEN, task_id="first")
        one.work()
        new = make_app(broker_url=other.url(), delayq_store_url=server.url(), delayq_shards=5, task_default_queue=name)
        for id in ids:
            new.send_task("add", eta=THEN, task_id=id)
            stock.send_task("add", eta=THEN + timedelta(hours=1), task_id=id)
            one.work()

    found = [new.delayq.get_all(id) for id in ids]
    assert [len(tasks) for tasks in found] == [1] * 8
    assert min(tasks[0].due for tasks in found) == THEN + timedelta(hours=1)
    assert len(new.delayq.get_all("first")) == 1
