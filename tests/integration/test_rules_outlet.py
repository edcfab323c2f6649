"""Celery tasks that rules make: as Celery makes them, and exactly once where that can be."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

import pytest
import redis
from celery import Celery
from celery.signals import after_task_publish, before_task_publish

from celery_delayq.embedded import RedisServer
from celery_delayq.errors import ImproperlyConfigured
from celery_delayq.keys import Keys
from celery_delayq.message import DUE_PROPERTY
from celery_delayq.rules.outlet import Outlet

from .rules import TREATMENT, killed_at, listening, running, source_of, watch_of, watcher_of
from .worker import handed_over, wait_for

MakeApp = Callable[..., Celery]
EVENT = r"^acq/(?P<process>\w+)/(?P<product>\w+)$"

ONE_REDIS = True


def celery_rule(*makes: dict[str, Any]) -> dict[str, Any]:
    return {"name": "treat", "on": EVENT, "make": [{"celery": "treat", **make} for make in makes]}


def apply(
    server: RedisServer, app: Celery, *makes: dict[str, Any], events: tuple[str, ...] = ("acq/A/1",), **more: Any
) -> Any:
    """Have a watcher apply one rule to some events; what it has counted."""
    watcher = watcher_of(celery_rule(*makes), backoff=0.01, **more)
    watch = watch_of(server, watcher, outlet=Outlet(app, server.url()))
    with server.client() as client, running(watch):
        client.lpush("events", *events)
        wait_for(lambda: watch.counts.events >= len(events) and watch.counts.in_work == 0, "all are done")
    return watch.counts


def messages(server: RedisServer, queue: str = "celery") -> list[dict[str, Any]]:
    with server.client() as client:
        return [json.loads(message) for message in client.lrange(queue, 0, -1)[::-1]]


def waiting(app: Celery) -> dict[str, Any]:
    return {task.id: task for task in app.delayq.scheduled()}


def dead(server: RedisServer) -> list[dict[str, Any]]:
    with server.client() as client:
        return [json.loads(entry) for entry in client.lrange("events/dead", 0, -1)]


def plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message without what differs from one to the next."""
    headers, properties = dict(message["headers"]), dict(message["properties"])
    for name in ("id", "root_id", "stamped_headers", "stamps"):
        headers.pop(name, None)
    for name in ("correlation_id", "delivery_tag", "reply_to", "delayq_put", DUE_PROPERTY):
        properties.pop(name, None)
    return {**message, "headers": headers, "properties": properties}


def test_the_message_is_celerys_own(server: RedisServer, app: Celery) -> None:
    """By name, and with the attributes of a task that the app knows; arguments with their types."""

    app.conf.task_routes = {"known": {"queue": "reports", "priority": 3}}

    @app.task(name="known", serializer="yaml", shared=False)
    def known(number: int, **options: Any) -> None: ...

    arguments = {"args": ["${product:int}"], "kwargs": {"deep": [{"process": "${process}"}]}}
    apply(server, app, {"task_id": "one", **arguments}, {"celery": "known", **arguments})
    (unknown_made,) = messages(server)
    (known_made,) = messages(server, "reports\x06\x163")
    app.send_task("treat", (1,), {"deep": [{"process": "A"}]})
    known.apply_async((1,), {"deep": [{"process": "A"}]})

    assert unknown_made["headers"]["id"] == "one"
    assert plain(unknown_made) == plain(messages(server)[1])
    assert plain(known_made) == plain(messages(server, "reports\x06\x163")[1])
    assert known_made["content-type"] == "application/x-yaml"


def test_a_delayed_task_waits(server: RedisServer, app: Celery) -> None:
    """From a length of time, a moment, or seconds since the epoch; as apply_at would have put it."""
    moment = datetime(2040, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    before = time.time()
    apply(
        server,
        app,
        {"task_id": "length", "delay": "1h ${product}m"},
        {"task_id": "number", "delay": "${product}"},
        {"task_id": "iso", "at": "2040-01-02T03:04:0${product}Z", "queue": "mail", "priority": 9},
        {"task_id": "epoch", "at": "${product}000", "on_conflict": "replace", "max_wait": "1d"},
        events=("acq/A/5",),
    )
    after, found = time.time(), waiting(app)

    assert before + 3900 <= found["length"].due.timestamp() <= after + 3900
    assert before + 5 <= found["number"].due.timestamp() <= after + 5
    assert (found["iso"].due, found["iso"].queue) == (moment, "mail")
    assert before <= found["epoch"].due.timestamp() <= after  # it is past: at once
    app.delayq.apply_at("treat", moment, queue="mail", priority=9, task_id="own")
    with server.client() as client:
        made, own = (json.loads(body) for body in client.hmget(Keys("delayq").jobs("mail"), "iso", "own"))
        assert client.hmget(Keys("delayq").steps("mail"), "iso", "own") == [b"9", b"9"]
    assert plain(made) == plain(own)


def test_prefixes_and_priorities(server: RedisServer, make_app: MakeApp) -> None:
    """Kombu's prefix and lists, and our own prefix."""
    app = make_app(broker_transport_options={"global_keyprefix": "mine:"}, delayq_prefix="own")
    counts = apply(server, app, {"priority": 6}, {"delay": "1h"}, {"delay": 0, "priority": 0})

    assert counts.dead == 0
    assert len(messages(server, "mine:celery\x06\x166")) == 1
    assert len(waiting(app)) == 2
    with server.client() as client:
        assert client.hlen(Keys("own", "mine:").jobs("celery")) == 2
        assert all(key.startswith((b"mine:", b"delayq:rules:")) for key in client.keys("*"))


def test_signals_tell_when_it_is_true(server: RedisServer, app: Celery) -> None:
    """``before_task_publish`` may change a message; ``after_task_publish`` comes when the event is cleared."""
    seen: list[tuple[str, int]] = []

    def before(headers: dict[str, Any], **_: Any) -> None:
        headers["mark"] = "here"
        seen.append(("before", len(messages(server)) + len(waiting(app))))

    def after(**_: Any) -> None:
        seen.append(("after", len(messages(server)) + len(waiting(app))))

    before_task_publish.connect(before)
    after_task_publish.connect(after)
    try:
        apply(server, app, {}, {"delay": "1h"})
    finally:
        before_task_publish.disconnect(before)
        after_task_publish.disconnect(after)

    assert seen == [("before", 0), ("before", 0), ("after", 2), ("after", 2)]
    assert messages(server)[0]["headers"]["mark"] == "here"


def test_conflicts(server: RedisServer, app: Celery) -> None:
    """keep, which is the default, replace, and error, which fails the rule at once; then nothing of it is done."""
    app.delayq.apply_at("treat", 3e9, task_id="trt-1", kwargs={"old": True})
    apply(server, app, {"delay": "1h", "task_id": "trt-${product}"})
    assert waiting(app)["trt-1"].due.timestamp() == 3e9

    apply(server, app, {}, {"delay": "1h", "task_id": "trt-${product}", "on_conflict": "error"})
    (entry,) = dead(server)
    assert "'trt-1' waits already" in entry["error"]
    assert entry["attempts"] == 1
    assert waiting(app)["trt-1"].due.timestamp() == 3e9
    assert messages(server) == []

    apply(server, app, {"delay": "1h", "task_id": "trt-${product}", "on_conflict": "replace"})
    assert waiting(app)["trt-1"].due.timestamp() < 3e9
    assert len(waiting(app)) == 1


@pytest.mark.parametrize(
    ("make", "said"),
    [
        ({"delay": "${process}"}, "'soon' is no length of time"),
        ({"at": "${process}"}, "must be a datetime or ISO 8601, not 'soon'"),
        ({"at": "${product}e99"}, "finite time before the year 2255"),
        ({"celery": "picky", "args": [1]}, "TypeError"),
    ],
)
def test_what_cannot_be_sent_is_dead_at_once(server: RedisServer, app: Celery, make: dict[str, Any], said: str) -> None:
    @app.task(name="picky", shared=False)
    def picky() -> None: ...

    counts = apply(server, app, {}, make, events=("acq/soon/1",))

    assert (counts.dead, counts.failures) == (1, 1)
    assert said in dead(server)[0]["error"]
    assert messages(server) == []


def test_lines_on_the_listener_channel(server: RedisServer, app: Celery) -> None:
    with server.client() as client, listening(client) as read:
        apply(server, app, {"task_id": "one"}, {"task_id": "two", "delay": "1h"})
        assert read() == [
            "events/taken TRIGGER acq/A/1 -> treat[two]",
            "events/taken TRIGGER acq/A/1 -> treat[one]",
            "events/taken DONE acq/A/1",
        ]


def both() -> dict[str, Any]:
    return celery_rule({"args": ["${product}"]}, {"delay": "1h", "args": ["${product}"]})


def test_killed_at_every_step(server: RedisServer, make_app: MakeApp) -> None:
    """One Redis for all: each task exactly once."""
    watcher = watcher_of(both(), TREATMENT)
    with server.client() as client:
        step = alive = 0

        def work() -> None:
            watch = watch_of(server, watcher, outlet=Outlet(make_app(), server.url()))
            watch._begin()
            while watch._source.backlog() or watch.counts.in_work:
                watch.work_once(0)
            watch._end()

        while not alive:
            client.flushall()
            client.lpush("events", "acq/A/1")
            alive = not killed_at(step, work)
            step += 1
            work()
            app = make_app()
            assert (len(messages(server)), len(waiting(app)), client.llen("trt/A/todo")) == (1, 1, 1), step
    assert step > 20


def test_nothing_is_put_for_an_event_that_is_anothers(server: RedisServer, app: Celery) -> None:
    """A watcher that was taken for gone comes too late."""
    watcher = watcher_of(both())
    source = source_of(server, watcher)
    source.begin()
    with server.client() as client:
        client.lpush("events", "acq/A/1")
        watch = watch_of(server, watcher, outlet=Outlet(app, server.url()))
        watch._source = source
        take = source.take

        def take_and_sleep(limit: int, wait: float) -> Any:
            taken = take(limit, wait)
            client.rename("events/taken", "events")
            return taken

        source.take = take_and_sleep  # type: ignore[method-assign]
        watch.work_once(0.1)
    assert watch.counts.lost == 1
    assert messages(server) == []
    assert waiting(app) == {}


def test_elsewhere_tasks_are_sent_first(server: RedisServer, make_app: MakeApp) -> None:
    """Another database is another place: at least once. A broker that is away fails the rule, not the watcher."""
    app = make_app(broker_url=server.url(1))
    outlet = Outlet(app, server.url())
    assert not outlet.is_exact
    watch = watch_of(server, watcher_of(both()), outlet=outlet)
    with server.client() as client, server.client(1) as broker_client, running(watch):
        client.lpush("events", "acq/A/1")
        wait_for(lambda: watch.counts.made == 2, "it is done")
        assert sum(handed_over(broker_client, "celery").values()) == 1
        assert len(waiting(app)) == 1


def test_rabbitmq(server: RedisServer, make_app: MakeApp, rabbit_url: str) -> None:
    """Sent and confirmed first; what is delayed waits at delayq_store_url."""
    app = make_app(broker_url=rabbit_url, delayq_store_url=server.url(2))
    queue = f"rules-{uuid4()}"
    rule = celery_rule(
        {"queue": queue, "task_id": "now-${product}"}, {"queue": queue, "delay": "1h", "task_id": "later-${product}"}
    )
    outlet = Outlet(app, server.url())
    watch = watch_of(server, watcher_of(rule), outlet=outlet)
    with server.client() as client, running(watch), app.connection_for_read() as connection:
        for number in (1, 2):  # the second time over a connection that was lost meanwhile
            client.lpush("events", f"acq/A/{number}")
            wait_for(lambda: watch.counts.made == 2 * number, "it is done")  # noqa: B023  # called at once
            message = connection.default_channel.basic_get(queue, no_ack=True)
            assert message.headers["id"] == f"now-{number}"
            outlet._producer.connection.connection.transport.sock.shutdown(socket.SHUT_RDWR)
        connection.default_channel.queue_delete(queue)
    assert watch.counts.failures == 0
    assert set(waiting(app)) == {"later-1", "later-2"}
    outlet.close()


def test_a_broker_that_is_away(server: RedisServer, make_app: MakeApp) -> None:
    app = make_app(broker_url="redis://localhost:1/", task_publish_retry=False)
    counts = apply(server, app, {}, max_attempts=2)
    assert (counts.failures, counts.dead) == (2, 1)
    assert "OperationalError" in dead(server)[0]["error"]


@pytest.mark.parametrize(
    ("broker", "url", "exact"),
    [
        ("redis://localhost", "redis://127.0.0.1:6379/0", True),
        ("redis://:secret@localhost:6379/2", "redis://user:other@localhost/?db=2", True),
        ("redis://localhost/1", "redis://localhost/", False),
        ("redis://localhost", "redis://localhost:6380/", False),
        ("redis://one;redis://two", "redis://one", False),
        ("sentinel://localhost:6379", "redis://localhost", False),
        ("redis+socket:///run/redis.sock?virtual_host=3", "unix:///run/redis.sock?db=3", True),
        ("amqp://localhost", "redis://localhost", False),
    ],
)
def test_which_redis_is_the_same(make_app: MakeApp, broker: str, url: str, exact: bool) -> None:
    assert Outlet(make_app(broker_url=broker), url).is_exact is exact


def test_a_store_elsewhere_is_not_the_same(make_app: MakeApp) -> None:
    app = make_app(broker_url="redis://localhost/", delayq_store_url="redis://localhost/1")
    assert not Outlet(app, "redis://localhost/").is_exact


def test_an_app_without_us_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="has no celery_delayq"):
        Outlet(Celery("plain", set_as_current=False), "redis://localhost/")


def test_fifty_events_and_a_watcher_that_is_killed_often(server: RedisServer, make_app: MakeApp) -> None:
    """Whenever that is: each task once."""
    watcher = watcher_of(both())
    with server.client() as client:
        client.lpush("events", *(f"acq/A/{number}" for number in range(50)))
        rounds = 0
        # At whatever place: what a killed watcher has sent last may be done after the next one has begun.
        while client.llen("events") or any(client.llen(key) for key in client.keys("events/taken*")):
            pid = os.fork()
            if not pid:
                try:
                    outlet = Outlet(make_app(), server.url())
                    watch = watch_of(server, watcher, outlet=outlet)
                    watch._begin()
                    while True:
                        for event in watch._source.take(2, 0.1):
                            watch._took([event])
                            watch._handle_all([(event, 0)])
                finally:
                    os._exit(1)
            time.sleep(0.05 + rounds % 7 * 0.01)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            rounds += 1
        ready = Counter(json.dumps(message["body"]) for message in messages(server))
        waits = Counter(json.loads(body)["body"] for body in client.hvals(Keys("delayq").jobs("celery")))
    assert rounds > 1
    assert (len(ready), set(ready.values())) == (50, {1})
    assert (len(waits), set(waits.values())) == (50, {1})


def test_threads_share_an_outlet(server: RedisServer, app: Celery) -> None:
    """A watcher whose rules fetch concludes in several threads."""
    rule = {**both(), "fetch": {"url": "http://localhost/", "returns": "x", "concurrency": 8}}
    watch = watch_of(server, watcher_of(rule), lambda *_: [{"a": 1}], outlet=Outlet(app, server.url()))
    with server.client() as client, running(watch):
        client.lpush("events", *(f"acq/A/{number}" for number in range(100)))
        wait_for(lambda: watch.counts.made == 200, "all are done")
    assert len(messages(server)) == 100
    assert len(waiting(app)) == 100


def test_redis_exceptions_pass(server: RedisServer, app: Celery) -> None:
    """The watcher's own Redis being away is the watcher's matter; no event is buried for it."""
    server_url = server.url()
    app.conf.broker_url = "redis://localhost:1/"
    app.conf.task_publish_retry = False
    watch = watch_of(server, watcher_of(both()), outlet=Outlet(app, "redis://localhost:1/"))
    with redis.Redis.from_url(server_url) as client:
        client.lpush("events", "acq/A/1")
        watch._begin()
        with pytest.raises(redis.ConnectionError):
            watch.work_once(0.1)
        watch._end()
        assert client.lrange("events", 0, -1) == [b"acq/A/1"]
