"""Delayed tasks of a broker that is not Redis, or another Redis: they wait at ``delayq_store_url``."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery, group, signals
from kombu import Connection, Exchange, Queue
from kombu.common import Broadcast
from kombu.exceptions import OperationalError

from celery_delayq import AlreadyScheduled, DelayQ, ImproperlyConfigured
from celery_delayq.addresses import name_of
from celery_delayq.embedded import RedisServer, free_port
from celery_delayq.message import DUE_PROPERTY, outgoing

from .conftest import Inside

ONE_REDIS = True

#: A RabbitMQ that is not there.
PORT = free_port()
AWAY = f"amqp://user:secret@127.0.0.1:{PORT}//"

#: Queues that make Celery deliver by RabbitMQ's own means.
QUORUM = {"queue_arguments": {"x-queue-type": "quorum"}}


@pytest.fixture
def make_relayed(make_app: Callable[..., Celery], server: RedisServer) -> Callable[..., Celery]:
    """Makes apps whose broker is away and whose tasks wait in the test's Redis."""

    def make(**conf: Any) -> Celery:
        return make_app(**{"broker_url": AWAY, "delayq_store_url": server.url(), **conf})

    return make


def opened(raw: bytes, *, keeps_properties: bool = False) -> Any:
    return outgoing(raw, datetime.now(timezone.utc), keeps_properties=keeps_properties)


def test_the_broker_need_not_be_there(make_relayed: Callable[..., Celery], inside: Inside) -> None:
    """A web process schedules while RabbitMQ is away: nothing of it is needed before the task is due."""
    app = make_relayed()
    begin = time.monotonic()
    result = app.send_task("add", (1, 2), countdown=60, queue="sums")

    assert time.monotonic() - begin < 5
    job = inside.one()
    assert (job.topic, job.id) == ("sums", result.id)
    assert (
        inside.client.get(inside.keys.serves)
        == f"amqp://localhost:{AWAY.rsplit(':', maxsplit=1)[-1].strip('/')}/".encode()
    )


def test_a_message_holds_all_that_the_broker_gets(make_relayed: Callable[..., Celery], inside: Inside) -> None:
    """Exchange, routing key, and AMQP's properties; the due time in a header, since AMQP knows no such property."""
    app = make_relayed()
    when = datetime.now(timezone.utc) + timedelta(minutes=1)
    result = app.send_task(
        "add", (1,), eta=when, priority=7, delivery_mode=1, reply_to="me", message_id="m", headers={"own": [1, b"x"]}
    )

    message = opened(inside.one().raw)
    assert (message.id, message.exchange, message.routing_key) == (result.id, "", "celery")
    options, headers = message.options, message.options["headers"]
    assert {"priority": 7, "delivery_mode": 1, "reply_to": "me", "message_id": "m"}.items() <= options.items()
    assert options["correlation_id"] == result.id
    assert headers["own"] == [1, b"x"]
    assert headers["eta"] is None
    assert headers[DUE_PROPERTY] == when.isoformat()
    assert opened(inside.one().raw, keeps_properties=True).options[DUE_PROPERTY] == when.isoformat()


def test_an_expiration_counts_from_the_hand_over(make_relayed: Callable[..., Celery], inside: Inside) -> None:
    """What is left of ``expires``; nothing for a task that has expired, which a worker shall see and mark."""
    app = make_relayed()
    app.send_task("add", countdown=5, expires=60)
    raw = inside.one().raw
    now = datetime.now(timezone.utc)

    left = outgoing(raw, now + timedelta(seconds=40), keeps_properties=False).options["expiration"]
    assert left == pytest.approx(20, abs=2)
    assert outgoing(raw, now + timedelta(seconds=61), keeps_properties=False).options["expiration"] is None
    inside.client.flushall()
    app.send_task("add", countdown=5, expiration=1.0011)
    assert int(opened(inside.one().raw).options["expiration"] * 1000) == 1001


@pytest.mark.parametrize("countdown", [0.2, 5, 86_400])
@pytest.mark.parametrize("kind", ["direct", "topic"])
def test_native_delayed_delivery_is_disarmed(
    make_relayed: Callable[..., Celery], inside: Inside, caplog: Any, kind: str, countdown: float
) -> None:
    """With quorum queues a task does not go by way of RabbitMQ's delay exchanges after it has waited with us; parts of
    a second and direct exchanges are as good as any.
    """
    app = make_relayed(task_queues=[Queue("q", Exchange("ex", type=kind), routing_key="key", **QUORUM)])
    app.conf.task_default_queue = "q"
    begin = time.time()
    app.send_task("add", countdown=countdown)
    app.delayq.apply_delayed("add", countdown)

    first, second = inside.waiting()
    for job in (first, second):
        message = opened(job.raw)
        assert (message.exchange, message.routing_key) == (("ex", "key") if kind == "topic" else ("", "q"))
        assert job.topic == "q"
        assert begin + countdown <= job.due_us / 1e6 <= time.time() + countdown
    assert "native delayed delivery" not in caplog.text


def test_native_delayed_delivery_keeps_what_is_not_ours(make_relayed: Callable[..., Celery], inside: Inside) -> None:
    """With ``delayq_intercept`` off, Celery's own way is untouched, and only what asks for us by name waits here."""
    queue = Queue("q", Exchange("ex", type="topic"), routing_key="key", **QUORUM)
    app = make_relayed(task_queues=[queue], task_default_queue="q", delayq_intercept=False, task_publish_retry=False)
    seen = []

    def see(exchange: Any, routing_key: str, **_: Any) -> None:
        seen.append((str(getattr(exchange, "name", exchange)), routing_key[-5:]))

    signals.before_task_publish.connect(see)
    try:
        with pytest.raises(OperationalError):
            app.send_task("add", countdown=5, retry=False, connection=Connection(AWAY, connect_timeout=1))
        app.delayq.apply_delayed("add", 5)
    finally:
        signals.before_task_publish.disconnect(see)

    assert seen == [("celery_delayed_27", "1.key"), ("ex", "key")]
    assert len(inside.waiting()) == 1


@pytest.mark.parametrize(
    ("options", "topic"),
    [
        ({}, "celery"),
        ({"queue": "mail"}, "mail"),
        ({"queue": "missing"}, "missing"),
        ({"queue": "logs", "routing_key": "log.error"}, "logs"),
        ({"exchange": "events", "routing_key": "log.error"}, "events/log.error"),
        ({"exchange": Exchange("events", type="topic"), "routing_key": "x"}, "events/x"),
    ],
)
def test_topics(make_relayed: Callable[..., Celery], inside: Inside, options: dict[str, Any], topic: str) -> None:
    """The topic is the queue that Celery routed to; if it was told an exchange alone, that and the routing key."""
    app = make_relayed(
        task_queues=[Queue("celery"), Queue("mail"), Queue("logs", Exchange("events", type="topic"), "log.#")]
    )
    app.send_task("add", countdown=60, **options)

    job = inside.one()
    assert job.topic == topic
    message = opened(job.raw)
    assert topic in (message.routing_key, f"{message.exchange}/{message.routing_key}", "logs")


def test_broadcasts_stay_stock(make_app: Callable[..., Celery], server: RedisServer, inside: Inside) -> None:
    """A fanout exchange has no queue to wait for."""
    app = make_app(
        broker_url="memory://",
        delayq_store_url=server.url(),
        task_queues=[Queue("celery"), Broadcast("all"), Queue("a", Exchange("news", type="fanout"))],
    )
    app.send_task("add", queue="all", countdown=60)
    app.send_task("add", queue="a", countdown=60)
    app.send_task("add", exchange="news", routing_key="x", countdown=60)
    app.send_task("add", exchange=Exchange("other", type="fanout"), routing_key="x", countdown=60)

    assert inside.waiting() == []


def test_signals_and_events(make_relayed: Callable[..., Celery], inside: Inside) -> None:
    """They are sent as ever, the event ``task-sent`` over the broker, at once."""
    app = make_relayed()
    seen = []

    def before(headers: Any, **_: Any) -> None:
        headers["eta"] = (datetime.now(timezone.utc) + timedelta(days=1)).isoformat()

    def after(headers: Any, **_: Any) -> None:
        seen.append(headers["id"])

    signals.before_task_publish.connect(before)
    signals.after_task_publish.connect(after)
    try:
        result = app.send_task("add", countdown=1)
    finally:
        signals.before_task_publish.disconnect(before)
        signals.after_task_publish.disconnect(after)

    assert seen == [result.id]
    assert inside.one().due_us / 1e6 > time.time() + 80_000


def test_task_sent_events(make_app: Callable[..., Celery], server: RedisServer, inside: Inside) -> None:
    """The event goes to the broker when the task is put."""
    app = make_app(broker_url="memory://", delayq_store_url=server.url(), task_send_sent_event=True)
    with app.connection_for_read() as connection:
        events = Queue("events", app.events.Receiver(connection).exchange, routing_key="#")(connection.default_channel)
        events.declare()
        result = app.send_task("add", countdown=60)
        event = events.get(no_ack=True).payload

    assert (event["type"], event["uuid"]) == ("task-sent", result.id)
    assert inside.one().id == result.id


def test_many_at_once(make_relayed: Callable[..., Celery], inside: Inside) -> None:
    """apply_many and groups are stored in batches, without the broker; each message as if it were alone."""
    app = make_relayed()

    @app.task(shared=False, name="add")
    def add(x: int) -> int:
        return x

    base = time.time() + 60
    calls = inside.calls("evalsha")
    app.delayq.apply_many([(add.s(number), base + number) for number in range(250)], batch_size=100)
    assert inside.calls("evalsha") - calls <= 5  # three puts, the version, and what Redis did not know yet
    jobs = inside.waiting()
    assert [json.loads(opened(job.raw).body)[0] for job in jobs] == [[number] for number in range(250)]
    app.delayq.apply_at(group(add.s(1), add.s(2)), base)
    group(add.s(1), add.s(2)).apply_async(countdown=60)
    add.apply_async((1,), eta=jobs[0].due, task_id="alone")
    assert len(inside.waiting()) == 255
    alone = next(job for job in inside.waiting() if job.id == "alone")
    first, other = jobs[0].message, alone.message
    for message in (first, other):
        for name in ("id", "root_id"):
            message["headers"].pop(name)
        for name in ("correlation_id", "delivery_tag", "delayq_put", "delayq_due"):
            message["properties"].pop(name)
    first["body"] = other["body"]
    first["headers"]["argsrepr"] = other["headers"]["argsrepr"]
    assert first == other


def test_kombus_own_batches(make_app: Callable[..., Celery], server: RedisServer, inside: Inside) -> None:
    """Inside of ``producer.batch()`` a delayed task is put at once."""
    app = make_app(broker_url="memory://", delayq_store_url=server.url())
    with app.producer_or_acquire() as producer:
        if not hasattr(producer, "batch"):
            pytest.skip("new in Kombu 5.7")
        with producer.batch():
            app.send_task("add", countdown=60, producer=producer)
            assert len(inside.waiting()) == 1


def test_conflicts_and_control(make_relayed: Callable[..., Celery], inside: Inside) -> None:
    """What can be said of a waiting task and done to it is the same, without the broker; what is ready is unknown."""
    app = make_relayed()
    delayq = app.delayq
    delayq.apply_delayed("add", 60, task_id="one")
    with pytest.raises(AlreadyScheduled):
        delayq.apply_delayed("add", 60, task_id="one")
    delayq.apply_delayed("add", 90, task_id="one", on_conflict="replace")
    task = delayq.get("one")
    assert task is not None
    assert delayq.reschedule("one", task.due + timedelta(hours=1), if_due=task.due)
    assert [task.id for task in delayq.scheduled(queue="celery", task="add")] == ["one"]
    assert delayq.pause("celery")
    assert delayq.resume("celery")
    stats = delayq.stats()["celery"]
    assert (stats.waiting, stats.ready) == (1, None)
    assert delayq.cancel("one", mark=False) == 1
    assert inside.waiting() == []


def test_a_retry_inherits_no_due_time(make_relayed: Callable[..., Celery], inside: Inside) -> None:
    """The header that a message has for its way is not copied into the next one."""
    app = make_relayed()
    app.send_task("add", countdown=60, headers={DUE_PROPERTY: "2020-01-01T00:00:00+00:00", "own": 1})
    headers = inside.one().message["headers"]
    assert DUE_PROPERTY not in headers
    assert headers["own"] == 1


def test_the_store_is_away(make_app: Callable[..., Celery]) -> None:
    """A put that reaches no Redis raises what a publish raises, after its retries and not later."""
    app = make_app(broker_url=AWAY, delayq_store_url=f"redis://127.0.0.1:{free_port()}/0")
    policy = {"max_retries": 2, "interval_start": 0, "interval_step": 0.01, "interval_max": 0.01}
    for options in ({"retry_policy": policy}, {"retry": False}):
        with pytest.raises(OperationalError):
            app.send_task("add", countdown=60, **options)


def test_a_store_that_is_the_broker(make_app: Callable[..., Celery], server: RedisServer, inside: Inside) -> None:
    """The same server, database and prefix: no relay, the ready list is right there."""
    for url in (server.url(), server.url().replace("127.0.0.1", "localhost"), server.url().removesuffix("/0")):
        app = make_app(delayq_store_url=url)
        assert not app.delayq.home.is_relayed
        app.send_task("add", countdown=60)
        assert inside.hand_over() == 1
        assert len(inside.ready()) == 1
        inside.client.flushall()
    for url in (server.url(1), f"{server.url()}?global_keyprefix=other"):
        assert make_app(delayq_store_url=url).delayq.home.is_relayed


@pytest.mark.parametrize(
    "url", ["http://h", "amqp://h", "nonsense://user:secret@h", "filesystem://", "redis://:secret@h:port"]
)
def test_a_store_that_is_no_redis(make_app: Callable[..., Celery], url: str) -> None:
    """It is refused by name, without its password."""
    app = make_app(broker_url=AWAY, delayq_store_url=url)
    with pytest.raises(ImproperlyConfigured, match="delayq_store_url") as caught:
        app.send_task("add", countdown=60)
    assert "secret" not in str(caught.value)


def test_a_store_of_another_broker(make_relayed: Callable[..., Celery], inside: Inside) -> None:
    """Tasks of two brokers under one prefix would be handed over to the wrong one: refused, with what to change."""
    make_relayed().send_task("add", countdown=60)
    other = make_relayed(broker_url="amqp://user:secret@elsewhere//")
    with pytest.raises(ImproperlyConfigured, match="delayq_store_url or delayq_prefix") as caught:
        other.send_task("add", countdown=60)
    assert "secret" not in str(caught.value)
    with pytest.raises(ImproperlyConfigured, match="delayq_prefix"):
        other.delayq.connect()
    assert len(inside.waiting()) == 1
    inside.client.delete(inside.keys.serves)
    other.send_task("add", countdown=60)


def test_a_direct_dispatcher_keeps_away(
    make_relayed: Callable[..., Celery], make_app: Callable[..., Celery], inside: Inside
) -> None:
    """A worker whose broker is that very Redis would push the tasks of RabbitMQ into its lists."""
    make_relayed().send_task("add", countdown=60)
    with pytest.raises(ImproperlyConfigured, match="delayq_prefix"):
        make_app().delayq.connect()


def test_a_publish_to_another_broker(make_relayed: Callable[..., Celery], inside: Inside, caplog: Any) -> None:
    """What is sent over a connection to another broker goes the stock way: the dispatchers know only their own."""
    app = make_relayed()
    with Connection("memory://") as other, caplog.at_level(logging.WARNING, "celery_delayq"):
        app.send_task("add", countdown=60, connection=other)
        app.send_task("add", countdown=60, connection=other)
        with pytest.raises(ImproperlyConfigured, match="an app of its own"):
            app.delayq.apply_delayed("add", 60, connection=other)
    assert inside.waiting() == []
    assert len([record for record in caplog.records if "go the stock way" in record.getMessage()]) == 1


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("amqp://u:p@h1//;amqp://u:p@h2:5673/v", "amqp://h1:5672/,amqp://h2:5673/v"),
        ("amqp://u:p@h2:5673/v;amqp://u:p@h1//", "amqp://h1:5672/,amqp://h2:5673/v"),
        ("pyamqp://u:p@127.0.0.1", "amqp://localhost:5672/"),
        ("redis://:p@h/3", "redis://h:6379/3"),
        ("redis://h", "redis://h:6379/0"),
        ("redis+socket:///tmp/r.sock?virtual_host=2", "redis+socket:///tmp/r.sock?virtual_host=2"),
        ("memory://", "memory://localhost/"),
    ],
)
def test_names_of_brokers(url: str, name: str) -> None:
    """A broker is known by its transport, hosts and virtual host, in whatever order, and without credentials."""
    with Connection(url) as connection:
        assert name_of(connection) == name


def test_an_app_may_be_pickled_and_subclassed(make_relayed: Callable[..., Celery], inside: Inside) -> None:
    """An app class with a send_task of its own stays in charge."""

    class Own(Celery):  # type: ignore[misc]  # Celery is untyped
        def send_task(self, name: str, *args: Any, **options: Any) -> Any:
            options.setdefault("headers", {})["own"] = "yes"
            return super().send_task(name, *args, **options)

    app = Own("own", broker=AWAY, set_as_current=False)
    app.conf.delayq_store_url = make_relayed().conf.delayq_store_url
    app.conf.task_queues = [Queue("celery", Exchange("ex", type="topic"), "key", **QUORUM)]
    DelayQ(app)
    DelayQ(app)
    app.send_task("add", countdown=60)
    assert inside.one().message["headers"]["own"] == "yes"
    assert opened(inside.one().raw).exchange == "ex"


def test_no_dispatcher_lives(make_app: Callable[..., Celery], server: RedisServer, inside: Inside) -> None:
    """With ``delayq_fallback="native"`` delayed tasks go to the broker with their eta, one by one or many at once."""
    app = make_app(broker_url="memory://", delayq_store_url=server.url(), delayq_fallback="native")
    app.conf.task_default_queue = "unattended"  # Kombu's memory is one for all tests of a process
    first = app.send_task("add", countdown=60)
    (second,) = app.delayq.apply_many([(app.signature("add"), time.time() + 60)])

    assert inside.waiting() == []
    assert app.delayq.unattended == 2
    with app.connection_for_read() as connection:
        found = [connection.default_channel.basic_get("unattended", no_ack=True) for _ in range(2)]
    assert [message.headers["id"] for message in found] == [first.id, second.id]
    assert all(message.headers["eta"] and DUE_PROPERTY not in message.headers for message in found)
