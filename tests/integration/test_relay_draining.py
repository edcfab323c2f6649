"""The way out where the broker is elsewhere: reserved, published with its eta, acked; each time that this may end."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError

from celery_delayq import DelayQ, ImproperlyConfigured, draining
from celery_delayq.clock import to_us
from celery_delayq.delivery import Delivery
from celery_delayq.embedded import RedisServer, free_port
from celery_delayq.job import Put
from celery_delayq.producing import ProducerPublisher
from celery_delayq.relay import Fate, Published

from .command import run
from .conftest import Inside
from .test_parity import OPTIONS, QUEUES, bind_everything, everything_ready
from .test_producing import drained, name
from .worker import Project, put_many, wait_for

__all__ = ["name"]  # a fixture

#: Redis is seen through the store, whose own tests run on every version.
ONE_REDIS = True

THEN = datetime(2100, 1, 1, 12, 30, 15, 123456, tzinfo=timezone.utc)


@pytest.fixture
def make_relayed(make_app: Callable[..., Celery], server: RedisServer, other: RedisServer) -> Callable[..., Celery]:
    def make(**conf: Any) -> Celery:
        return make_app(**{"broker_url": other.url(), "delayq_store_url": server.url(), **conf})

    return make


@pytest.mark.parametrize("name", OPTIONS)
def test_a_drained_message_is_what_stock_celery_would_have_sent(
    make_app: Callable[..., Celery], make_relayed: Callable[..., Celery], inside: Inside, broker: Inside, name: str
) -> None:
    """Queue, key, body, headers with the eta, properties: nothing tells that it has waited."""
    options = {"task_id": "the-id", "reply_to": "us", **OPTIONS[name]}
    ours = make_relayed(task_queues=QUEUES)
    stock = make_app(joined=False, broker_url=ours.conf.broker_url, task_queues=QUEUES)
    bind_everything(ours)
    stock.send_task("tasks.add", (1, 2), {}, **options, eta=THEN)
    expected = everything_ready(broker)
    broker.client.delete(*expected)

    ours.send_task("tasks.add", (1, 2), {}, **options, eta=THEN)
    assert len(inside.waiting()) == 1
    done = ours.delayq.drain()

    assert everything_ready(broker) == expected
    assert (done.count, done.unreadable, done.refused, done.paused) == (1, {}, {}, [])
    left = {inside.keys.totals, inside.keys.serves, inside.keys.version}
    assert set(inside.client.scan_iter("delayq:*")) == {key.encode() for key in left}


def test_the_eta_is_when_it_is_due(make_relayed: Callable[..., Celery], broker: Inside) -> None:
    """As it was asked for, or the new time, where a task was moved; what is due, or too late, goes too."""
    app = make_relayed()
    app.send_task("add", eta=THEN, task_id="asked")
    app.send_task("add", eta=THEN, task_id="moved")
    app.send_task("add", countdown=3600, task_id="late", late="drop", grace=5)
    app.delayq.apply_at("add", 1, task_id="past")
    later = THEN + timedelta(days=3, microseconds=7)
    app.delayq.reschedule("moved", later)

    assert app.delayq.drain().count == 4

    etas = {message["headers"]["id"]: message["headers"]["eta"] for message in broker.ready()}
    assert (etas["asked"], datetime.fromisoformat(etas["moved"])) == (THEN.isoformat(), later)
    assert set(etas) == {"asked", "moved", "late", "past"}


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_rabbit(
    make_app: Callable[..., Celery], server: RedisServer, inside: Inside, rabbit_url: str, name: str, kind: str
) -> None:
    """Confirmed, to the exchange and the key that Celery gave; not by way of RabbitMQ's own delays. What has no
    exchange stays, due as it was, and holds up nobody.
    """
    queue = Queue(name, Exchange(f"ex-{name}", "topic"), f"key-{name}", queue_arguments={"x-queue-type": kind})
    app = make_app(broker_url=rabbit_url, delayq_store_url=server.url(), task_queues=[queue], task_default_queue=name)
    ids = [app.send_task("add", eta=THEN + timedelta(seconds=number), queue=name).id for number in range(250)]
    app.send_task("add", eta=THEN, exchange=f"no-{name}", routing_key="k", task_id="lost")

    said = run(app, "drain", "--yes", "--force", "--json")

    assert (said.code, said.objects) == (
        1,
        [{"drained": 250, "unreadable": {}, "refused": {f"no-{name}/k": 1}, "paused": []}],
    )
    assert f"1 task of queue no-{name}/k stay: the broker does not take them" in said.err
    assert "251 of these are due later than RabbitMQ's consumer_timeout, 30m by default" in said.err
    messages = drained(rabbit_url, name)
    assert [message.headers["id"] for message in messages] == ids
    assert messages[0].headers["eta"] == THEN.isoformat()
    assert messages[0].delivery_info["exchange"] == f"ex-{name}"
    assert messages[0].delivery_info["routing_key"] == f"key-{name}"
    assert (inside.one().id, inside.one().due) == ("lost", THEN)
    assert app.delayq.stats()[f"no-{name}/k"].reserved == 0


def test_a_paused_queue_is_left_alone_unless_it_is_named(make_relayed: Callable[..., Celery], broker: Inside) -> None:
    """Whoever has paused it did not want it to run."""
    app = make_relayed()
    for queue in ("a", "b"):
        app.send_task("add", eta=THEN, queue=queue)
    app.delayq.pause("a")

    done = app.delayq.drain()
    assert (done.count, done.paused) == (1, ["a"])
    assert app.delayq.drain("a").count == 1
    assert (len(broker.ready("a")), len(broker.ready("b"))) == (1, 1)
    assert app.delayq.paused() == {"a"}


def test_what_is_no_message_stays(make_relayed: Callable[..., Celery], inside: Inside, broker: Inside) -> None:
    """Somebody else's job cannot get an eta: it waits on as it was, and is met once."""
    app = make_relayed()
    app.send_task("add", eta=THEN, task_id="good")
    bad = {"bytes": b"\xff", "list": b"[]", "bare": b"{}", "odd": b'{"headers": [], "properties": 1}'}
    jobs = [Put("celery", id, body, at_us=to_us(THEN)) for id, body in bad.items()]
    inside.store.put(jobs, {"celery": Delivery.relayed()})
    before = {job.id: job.raw for job in inside.waiting()}
    progress: list[tuple[int, int]] = []

    done = app.delayq.drain(progress=lambda done, total: progress.append((done, total)))

    assert (done.count, done.unreadable) == (1, {"celery": 4})
    assert {job.id: job.raw for job in inside.waiting()} == {id: raw for id, raw in before.items() if id != "good"}
    assert all(0 <= job.due_us - to_us(THEN) <= 999 for job in inside.waiting())
    assert progress[-1] == (1, 5)


def test_a_queue_that_the_broker_refuses_is_given_up(
    make_relayed: Callable[..., Celery], inside: Inside, broker: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many that there is no hope for the rest; the other queues are drained."""
    monkeypatch.setattr(draining, "ENOUGH", 150)
    app = make_relayed()
    with_no_queue = app.signature("add", exchange="nowhere", routing_key="k")
    app.delayq.apply_many([(with_no_queue, THEN + timedelta(seconds=number)) for number in range(300)])
    app.send_task("add", eta=THEN, queue="z")

    done = app.delayq.drain()

    assert (done.count, done.refused) == (1, {"nowhere/k": 200})
    assert len(broker.ready("z")) == 1
    assert {job.due - THEN for job in inside.waiting()} == {timedelta(seconds=number) for number in range(300)}


def test_a_broker_that_is_away(make_relayed: Callable[..., Celery], inside: Inside) -> None:
    """It is said, and all waits as it did."""
    app = make_relayed(broker_url=f"amqp://127.0.0.1:{free_port()}//")
    app.send_task("add", eta=THEN)
    before = inside.waiting()
    with pytest.raises(OperationalError, match="the broker is away.* 0 tasks were given back"):
        app.delayq.drain()
    said = run(app, "drain", "--yes", "--force")
    assert (said.code, "the broker is away" in said.err) == (1, True)
    assert inside.waiting() == before


def test_a_broker_that_goes_away(
    make_relayed: Callable[..., Celery], inside: Inside, broker: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is open waits again, due as it was; what is confirmed is gone; the same call goes on."""
    app = make_relayed()
    for number in range(4):
        app.send_task("add", eta=THEN + timedelta(seconds=number), task_id=f"{number}")
    publish = ProducerPublisher.publish

    def lose(publisher: ProducerPublisher, jobs: Any, leases: Any) -> list[Published]:
        lost = [Published(Fate.UNKNOWN, "reset by peer"), Published(Fate.UNSENT, "reset by peer")]
        return publish(publisher, jobs[:2], leases) + lost

    with monkeypatch.context() as patch:
        patch.setattr(ProducerPublisher, "publish", lose)
        with pytest.raises(OperationalError, match="reset by peer; 2 tasks were given back"):
            app.delayq.drain()
    assert [(job.id, job.due) for job in inside.waiting()] == [
        ("2", THEN + timedelta(seconds=2)),
        ("3", THEN + timedelta(seconds=3)),
    ]
    assert app.delayq.drain().count == 2
    assert [message["headers"]["id"] for message in broker.ready()] == ["0", "1", "2", "3"]


def test_what_is_put_anew_meanwhile(
    make_relayed: Callable[..., Celery], broker: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that replaces the one that is being published is published, too: it is another message."""
    app = make_relayed()
    app.send_task("add", ("old",), eta=THEN, task_id="a")
    publish = ProducerPublisher.publish
    again = iter([True])

    def put_anew(publisher: ProducerPublisher, jobs: Any, leases: Any) -> list[Published]:
        if next(again, False):
            app.send_task("add", ("new",), eta=THEN, task_id="a")
        return publish(publisher, jobs, leases)

    monkeypatch.setattr(ProducerPublisher, "publish", put_anew)
    app.delayq.drain()
    assert [message["headers"]["argsrepr"] for message in broker.ready()] == ["('old',)", "('new',)"]


def test_what_waits_for_another_broker(make_relayed: Callable[..., Celery], inside: Inside, broker: Inside) -> None:
    """It is not published to ours."""
    app = make_relayed()
    app.send_task("add", eta=THEN)
    inside.client.set(inside.keys.serves, "amqp://elsewhere:5672/")
    stranger = make_relayed()
    with pytest.raises(ImproperlyConfigured, match="are for the broker amqp://elsewhere"):
        stranger.delayq.drain()
    assert len(inside.waiting()) == 1


def test_shards(make_relayed: Callable[..., Celery], broker: Inside) -> None:
    """All of them, each to its end."""
    app = make_relayed(delayq_shards=3)
    results = app.delayq.apply_many([(app.signature("add"), THEN + timedelta(seconds=number)) for number in range(300)])

    assert app.delayq.drain().count == 300
    assert Counter(one["headers"]["id"] for one in broker.ready()) == Counter(result.id for result in results)
    assert app.delayq.count() == 0


# With real processes.


def _drain(broker: str, store: str) -> None:
    app = Celery("drainer", broker=broker, set_as_current=False)
    app.conf.update(delayq_store_url=store, delayq_lease=1)
    DelayQ(app).drain()


def test_a_drain_that_is_killed_loses_nothing(server: RedisServer, other: RedisServer, broker: Inside) -> None:
    """Killed at any moment, with a dispatcher at work: each task comes; twice at most those of the batches that were
    under way; and what was reserved then waits for its own time, not for now.
    """
    spawn = multiprocessing.get_context("spawn")
    settings = {"delayq_store_url": server.url(), "delayq_lease": 1}
    with Project(other.url(), **settings) as project, server.client() as client:
        now = time.time_ns() // 1000
        soon = put_many(project, "idle", [now + 1_000_000 + number * 10_000 for number in range(200)])
        far = put_many(project, "idle", [to_us(THEN) + number for number in range(1_500)])

        def left() -> int:
            return int(client.zcount("delayq:{0}:schedule:idle", to_us(THEN), "+inf"))

        dispatcher = project.app.delayq.dispatcher()
        dispatcher.start()
        try:
            for _ in range(2):
                process = spawn.Process(target=_drain, args=(other.url(), server.url()))
                process.start()
                enough = left() - 200
                wait_for(lambda enough=enough: left() < enough, "it drains")  # type: ignore[misc]
                os.kill(process.pid or 0, signal.SIGKILL)
                process.join()
            wait_for(lambda: not project.app.delayq.stats()["idle"].reserved, "what it had under a lease is given back")
            wait_for(lambda: not client.zcount("delayq:{0}:schedule:idle", 0, to_us(THEN) - 1), "what is due has left")
            early = [json.loads(raw)["headers"] for raw in broker.client.lrange("idle", 0, -1)]
            assert not [one["id"] for one in early if one["eta"] is None and one["id"] in set(far)]
            project.app.delayq.drain("idle")
        finally:
            dispatcher.stop()
        times = Counter(json.loads(raw)["headers"]["id"] for raw in broker.client.lrange("idle", 0, -1))

    assert set(times) == set(soon + far)
    assert sum(times.values()) - len(times) <= 2 * draining.BATCH
    assert project.app.delayq.stats() == {} or not project.app.delayq.stats()["idle"].waiting
