"""A watcher on a stream: a consumer group shares its entries, and none is lost with a consumer."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from typing import Any

import redis

from celery_delayq.embedded import RedisServer
from celery_delayq.keys import WatcherKeys
from celery_delayq.plain_client import client_at
from celery_delayq.rules import Watcher
from celery_delayq.rules.list_source import token_of
from celery_delayq.rules.source import Conclusion, Outcome, Push
from celery_delayq.rules.stream_source import StreamSource
from celery_delayq.rules.watching import Watch

from .rules import TREATMENT, killed_at, listening, nothing_fetched, pushed, running, watcher_of, work_off
from .worker import wait_for


def source_of(server: RedisServer, watcher: Watcher) -> StreamSource:
    return StreamSource(
        client_at(server.url()),
        WatcherKeys(watcher.taken),
        watcher.input_queue,
        watcher.group,
        token_of(uuid.uuid4().hex),
        watcher.field,
        watcher.claim_after,
        "channel",
    )


def stream_watcher(*rules: Any, **more: Any) -> Watcher:
    return watcher_of(*rules, source="stream", **more)


def watch_of(server: RedisServer, watcher: Watcher) -> Watch:
    return Watch(watcher, source_of(server, watcher), nothing_fetched)


def pending(client: redis.Redis) -> int:
    count: int = client.xpending("events", "delayq")["pending"]
    return count


def done(client: redis.Redis, count: int) -> bool:
    return sum(pushed(client).values()) >= count and not pending(client)


def test_entries_become_tasks(server: RedisServer, client: redis.Redis) -> None:
    """Those that were there before the group, too; all their fields are variables."""
    rule = {**TREATMENT, "make": {"task": "trt/${product}/${fields.who}", "queue": "trt/${process}/todo"}}
    client.xadd("events", {"event": "acq/A/1", "who": "me"})
    with listening(client) as read:
        with running(watch_of(server, stream_watcher(rule))) as watch:
            client.xadd("events", {"event": "acq/A/2", "who": "you"})
            client.xadd("events", {"event": "nobody's"})
            wait_for(lambda: watch.counts.events == 3 and not pending(client), "all are done")
        lines = read()
    assert client.lrange("trt/A/todo", 0, -1) == [b"trt/2/you", b"trt/1/me"]
    assert lines[:2] == ["events TRIGGER acq/A/1 -> trt/1/me", "events DONE acq/A/1"]
    assert watch.counts.lag is not None
    assert 0 <= watch.counts.lag < 60
    assert client.xlen("events") == 3


def test_an_entry_without_the_field(server: RedisServer, client: redis.Redis) -> None:
    with running(watch_of(server, stream_watcher(field="text"))) as watch:
        client.xadd("events", {"event": "acq/A/1"})
        client.xadd("events", {"text": "acq/A/2"})
        wait_for(lambda: watch.counts.dead == 1 and done(client, 1), "both are done")
    (entry,) = map(json.loads, client.lrange("events/dead", 0, -1))
    assert entry["error"] == "has no field 'text'"
    assert pushed(client) == {"trt/A/2": 1}


def test_kill_at_every_step(server: RedisServer, client: redis.Redis) -> None:
    """Who comes next on this machine takes over at once what a killed one has left."""
    watcher = stream_watcher()

    def work() -> None:
        work_off(watch_of(server, watcher))

    step = 0
    while True:
        client.flushall()
        for number in range(3):
            client.xadd("events", {"event": f"acq/A/{number}"})
        killed = killed_at(step, work)
        work()
        assert pushed(client) == Counter(f"trt/A/{number}" for number in range(3)), f"killed at step {step}"
        assert pending(client) == 0
        if not killed:
            break
        step += 1
    assert step > 2 * 5


def test_two_consumers_share_a_stream(server: RedisServer, client: redis.Redis) -> None:
    watcher = stream_watcher({**TREATMENT, "make": {"task": "${product}", "queue": "trt/A/todo"}})
    with running(watch_of(server, watcher)) as one, running(watch_of(server, watcher)) as two:
        for number in range(1000):
            client.xadd("events", {"event": f"acq/A/{number}"})
        wait_for(lambda: done(client, 1000), "all are done")
        assert one.counts.events + two.counts.events == 1000
    assert pushed(client) == Counter(map(str, range(1000)))


def test_what_a_consumer_elsewhere_has_left_is_taken_over_in_time(server: RedisServer, client: redis.Redis) -> None:
    """And if it comes back, it changes nothing."""
    watcher = stream_watcher(claim_after="60s")
    sleepy, other = source_of(server, watcher), source_of(server, watcher)
    client.xadd("events", {"event": "a"})
    client.xadd("events", {"event": "b"})
    sleepy.begin()
    first, second = sleepy.take(10, 0)
    other.begin()
    assert other.beat().found == []
    client.xclaim("events", "delayq", sleepy._token, 0, [first.key], idle=61_000)

    assert [event.key for event in other.beat().found] == [first.key]
    assert other.beat().found == []
    made = [Conclusion(event, [Push(b"x", b"q")]) for event in (first, second)]
    assert [answer.outcome for answer in sleepy.conclude(made)] == [Outcome.LOST, Outcome.DONE]
    assert [answer.outcome for answer in other.conclude(made[:1])] == [Outcome.DONE]
    assert client.llen("q") == 2


def test_what_is_in_work_for_long_stays(server: RedisServer, client: redis.Redis) -> None:
    """A beat says that it is."""
    watcher = stream_watcher(claim_after="60s")
    busy, other = source_of(server, watcher), source_of(server, watcher)
    client.xadd("events", {"event": "a"})
    busy.begin()
    (event,) = busy.take(10, 0)
    client.xclaim("events", "delayq", busy._token, 0, [event.key], idle=61_000)
    busy.beat()
    other.begin()
    assert other.beat().found == []
    assert busy.beat().found == []
    assert [answer.outcome for answer in busy.conclude([Conclusion(event)])] == [Outcome.DONE]
