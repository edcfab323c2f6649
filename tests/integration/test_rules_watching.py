"""A watcher on a list: what comes out of events, whatever happens to it."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import redis

from celery_delayq.embedded import RedisServer
from celery_delayq.errors import DelayQError
from celery_delayq.keys import WatcherKeys
from celery_delayq.rules import list_source, watching
from celery_delayq.rules.applying import FetchFailed
from celery_delayq.rules.source import Conclusion, Evicted, Outcome, Push

from .rules import TREATMENT, killed_at, listening, pushed, running, source_of, watch_of, watcher_of, work_off
from .worker import PATIENCE, wait_for

FETCHING = {
    "name": "children",
    "on": r"^trt/(?P<product>\w+)$",
    "fetch": {"url": "http://localhost/${product}", "returns": "child"},
    "make": {"task": "child/${child.id}", "queue": "trt/children/todo"},
}


def emptied(client: redis.Redis, watcher: str = "events") -> bool:
    return not client.exists(watcher, f"{watcher}/taken")


def test_events_become_tasks(server: RedisServer, client: redis.Redis) -> None:
    """As Resc does it, on the wire too: lists, sorted sets, lines."""
    with listening(client) as read:
        with running(watch_of(server, watcher_of())) as watch:
            client.lpush("events", "acq/A/1", "acq/A/2", "acq/B/1", "nobody's", "acq/A/1", b"acq/\xff/1")
            wait_for(lambda: watch.counts.events == 6 and emptied(client), "all are done")
        lines = read()

    assert client.lrange("trt/A/todo", 0, -1) == [b"trt/A/2", b"trt/A/1"]
    assert client.lrange("trt/B/todo", 0, -1) == [b"trt/B/1"]
    assert abs(client.zscore("trt/A/set", "trt/A/1") - time.time()) < 60
    assert lines[:2] == ["events/taken TRIGGER acq/A/1 -> trt/A/1", "events/taken DONE acq/A/1"]
    assert "events/taken DONE nobody's" in lines
    assert len(lines) == 9
    counts = watch.counts
    assert (counts.events, counts.matches, counts.made, counts.doubles, counts.in_work) == (6, 4, 3, 1, 0)


def test_bytes_that_are_no_text_come_out_as_they_were(server: RedisServer, client: redis.Redis) -> None:
    rule = {"on": "^(?P<all>.*)$", "make": {"task": "<${all}>", "queue": "out"}}
    with running(watch_of(server, watcher_of(rule))):
        client.lpush("events", b"\xff\xfe", "ü", "")
        wait_for(lambda: client.llen("out") == 3, "all are done")
    assert client.lrange("out", 0, -1) == [b"<>", "<ü>".encode(), b"<\xff\xfe>"]


def test_all_rules_that_match_are_applied(server: RedisServer, client: redis.Redis) -> None:
    """In their order; by default the task is the event."""
    rules = [
        {"on": "a", "make": [{"queue": "out"}, {"task": "1 ${input_task}", "queue": "out"}]},
        {"on": "b", "make": {"queue": "out"}},
        {"on": "^a$", "make": {"task": "2", "queue": "out"}},
    ]
    with running(watch_of(server, watcher_of(*rules))):
        client.lpush("events", "a")
        wait_for(lambda: client.llen("out") == 3, "all are done")
    assert client.lrange("out", 0, -1)[::-1] == [b"a", b"1 a", b"2"]


def test_what_is_left_goes_back_at_start(server: RedisServer, client: redis.Redis) -> None:
    """Resc's own left-overs, too, which stand in the list that the rules name."""
    client.lpush("events/taken", "acq/A/1", "acq/A/2")
    client.lpush("events", "acq/A/3")
    with running(watch_of(server, watcher_of())):
        wait_for(lambda: client.llen("trt/A/todo") == 3, "all are done")
    assert client.lrange("trt/A/todo", 0, -1)[::-1] == [b"trt/A/1", b"trt/A/2", b"trt/A/3"]


def test_a_watcher_that_ends_gives_back_what_it_has(server: RedisServer, client: redis.Redis) -> None:
    failing = watcher_of({**FETCHING, "on": "(?P<product>x)"}, backoff=1000)

    def fetch(*_: object) -> list[Mapping[str, Any]]:
        raise FetchFailed("no", passing=True)

    with running(watch_of(server, failing, fetch)) as watch:
        client.lpush("events", "x1", "x2")
        wait_for(lambda: watch.counts.failures == 2, "both failed")
        assert client.lrange("events/taken", 0, -1) == [b"x2", b"x1"]
    assert client.lrange("events", 0, -1) == [b"x2", b"x1"]
    assert client.hgetall(WatcherKeys("events/taken").holders) == {b"0": b""}


@pytest.mark.parametrize("batch", [200, 2])
def test_kill_at_every_step(
    server: RedisServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """Before each command and after each answer; whoever comes next makes each task once, and loses none."""
    monkeypatch.setattr(watching, "BATCH", batch)
    watcher = watcher_of(TREATMENT, {"on": "^acq", "make": {"queue": "trt/seen/todo"}})

    def work() -> None:
        work_off(watch_of(server, watcher))

    step = 0
    while True:
        client.flushall()
        client.lpush("events", *(f"acq/A/{number}" for number in range(5)))
        client.zadd("trt/A/set", {"trt/A/3": 1})  # of which there is one, as its worker will say
        killed = killed_at(step, work)
        work()
        assert pushed(client) == Counter(
            [*(f"trt/A/{number}" for number in (0, 1, 2, 4)), *(f"acq/A/{number}" for number in range(5))]
        ), f"killed at step {step}"
        assert emptied(client)
        if not killed:
            break
        step += 1
    assert step > 2 * 5  # begin, take, conclude, take, end


def test_a_hundred_kills(server: RedisServer, client: redis.Redis) -> None:
    """While events come and two watchers work at once: each task once, none lost."""
    watcher = watcher_of()
    total = 0
    for _ in range(100):
        client.lpush("events", *(f"acq/A/{total + more}" for more in range(50)))
        total += 50
        pids = [_fork(server, watcher) for _ in range(2)]
        wait_for(lambda goal=total - 40: client.llen("trt/A/todo") >= goal, "they work")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    with running(watch_of(server, watcher)):
        wait_for(lambda: client.llen("trt/A/todo") >= total and emptied(client), "the rest is done")
    assert pushed(client) == Counter(f"trt/A/{number}" for number in range(total))


def _fork(server: RedisServer, watcher: Any) -> int:
    pid = os.fork()
    if not pid:
        try:
            watch_of(server, watcher).run(threading.Event())
        finally:
            os._exit(1)
    return pid


def test_two_watchers_share_a_queue(server: RedisServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither gives back what the other has in work, though it looks every second."""
    monkeypatch.setattr(list_source, "PATIENCE", PATIENCE)
    watcher = watcher_of({**TREATMENT, "make": {"task": "trt/${product}", "queue": "trt/A/todo"}})
    events = [f"acq/A/{number}" for number in range(3000)]
    with running(watch_of(server, watcher)) as one, running(watch_of(server, watcher)) as two:
        for start in range(0, 3000, 100):
            client.lpush("events", *events[start : start + 100])
        wait_for(lambda: client.llen("trt/A/todo") >= 3000 and emptied(client), "all are done")
        wait_for(lambda: one.counts.waiting == two.counts.waiting == 0, "both have looked around")
        assert len(client.hgetall(WatcherKeys("events/taken").holders)) == 2
    assert pushed(client) == Counter(f"trt/{number}" for number in range(3000))
    assert (one.counts.returned, two.counts.returned, one.counts.lost, two.counts.lost) == (0, 0, 0, 0)


def test_a_watcher_that_was_taken_for_gone(
    server: RedisServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has goes back, and it changes nothing more, until it begins anew."""
    monkeypatch.setattr(list_source, "PATIENCE", PATIENCE)
    watcher, keys = watcher_of(), WatcherKeys("events/taken")
    sleepy, other = source_of(server, watcher), source_of(server, watcher)
    client.lpush("events", "a", "b")
    sleepy.begin()
    first, second = sleepy.take(10, 0)
    other.begin()
    assert other.beat().returned == 0
    seconds, _ = client.time()
    client.zadd(keys.beats, {"0": (seconds - PATIENCE - 1) * 1_000_000})

    assert other.beat().returned == 2
    assert [event.text for event in other.take(1, 0)] == ["a"]
    answers = sleepy.conclude([Conclusion(event, [Push(b"x", b"q")]) for event in (first, second)])
    assert [answer.outcome for answer in answers] == [Outcome.LOST, Outcome.LOST]
    for call in (sleepy.beat, lambda: sleepy.take(1, 0)):
        with pytest.raises(Evicted):
            call()
    assert sleepy.begin() == 0
    assert [event.text for event in sleepy.take(10, 0)] == ["b"]
    assert not client.exists("q")


def test_an_event_that_came_where_nobody_waited_any_more(server: RedisServer, client: redis.Redis) -> None:
    """A watcher that hangs may still be waiting in Redis: what it gets so is found by who has the place then."""
    watcher, keys = watcher_of(), WatcherKeys("events/taken")
    heir = source_of(server, watcher)
    heir.begin()
    client.lpush("events", "mine")
    heir.take(1, 0)
    client.lpush("events/taken", "stray", "mine")
    assert sorted(event.text for event in heir.beat().found) == ["mine", "stray"]
    assert heir.beat().found == []

    client.hset(keys.holders, "1", "")  # and where nobody has it
    client.lpush("events/taken/1", "lost")
    assert heir.beat().returned == 1
    assert client.lrange("events", 0, -1) == [b"lost"]


def test_a_rule_that_fails_waits_and_others_go_on(server: RedisServer, client: redis.Redis) -> None:
    """Each time twice as long; then the event lies dead, with its error, and nothing was made of it."""
    now = 1000.0
    asked: list[float] = []

    def fetch(*_: object) -> list[Mapping[str, Any]]:
        asked.append(now)
        raise FetchFailed("503 from http://localhost/x", passing=True)

    both = {"name": "both", "on": "^trt/x$", "make": {"queue": "trt/never/todo"}}
    watcher = watcher_of(FETCHING, both, TREATMENT, max_attempts=4, backoff="2s")
    watch = watch_of(server, watcher, fetch, clock=lambda: now)
    watch._begin()
    client.lpush("events", "trt/x", "acq/A/1")
    watch.work_once(0)
    assert pushed(client) == {"trt/A/1": 1}
    for pause in (2, 4, 8):
        wait_for(lambda: watch._again, "it failed, and is to be tried again")
        failed = len(asked)
        now += pause - 0.5
        watch.work_once(0)
        assert len(asked) == failed == watch.counts.failures
        now += 0.5
        watch.work_once(0)
    wait_for(lambda: watch.counts.dead == 1, "it is given up")

    assert [later - earlier for earlier, later in pairwise(asked)] == [2, 4, 8]
    assert watch.counts.failures == 4
    (entry,) = map(json.loads, client.lrange("events/dead", 0, -1))
    assert entry.pop("at").endswith("+00:00")
    assert entry == {
        "event": "trt/x",
        "rule": "children",
        "error": "503 from http://localhost/x",
        "attempts": 4,
    }
    assert pushed(client) == {"trt/A/1": 1}
    assert emptied(client)
    watch._end()


def test_what_no_other_try_can_help(server: RedisServer, client: redis.Redis) -> None:
    """A variable that is not there is told at once."""
    rule = {"name": "optional", "on": r"^a(?P<b>\d)?$", "make": {"task": "${b}", "queue": "out"}}
    with running(watch_of(server, watcher_of(rule))) as watch:
        client.lpush("events", "a", "a1")
        wait_for(lambda: watch.counts.dead == 1 and client.llen("out") == 1, "both are done")
    (entry,) = map(json.loads, client.lrange("events/dead", 0, -1))
    assert (entry["rule"], entry["error"], entry["attempts"]) == ("optional", "${b} has no value", 1)
    assert client.lrange("out", 0, -1) == [b"1"]


def test_a_dead_event_is_told(server: RedisServer, client: redis.Redis) -> None:
    rule = {"on": r"^a(?P<b>\d)?$", "make": {"task": "${b}", "queue": "out"}}
    with listening(client) as read:
        with running(watch_of(server, watcher_of(rule))) as watch:
            client.lpush("events", "a")
            wait_for(lambda: watch.counts.dead == 1, "it is given up")
        assert read() == ["events/taken DEAD a: ${b} has no value"]


def test_a_slow_fetch_holds_nobody_up(server: RedisServer, client: redis.Redis) -> None:
    answered = threading.Event()

    def fetch(*_: object) -> list[Mapping[str, Any]]:
        answered.wait(60)
        return [{"id": 1}, {"id": 2}]

    with running(watch_of(server, watcher_of(FETCHING, TREATMENT), fetch)) as watch:
        client.lpush("events", "trt/x", *(f"acq/A/{number}" for number in range(1000)))
        wait_for(lambda: client.llen("trt/A/todo") == 1000, "the others are done")
        assert client.lrange("events/taken", 0, -1) == [b"trt/x"]
        wait_for(lambda: watch.counts.in_work == 1, "they are counted")
        answered.set()
        wait_for(lambda: emptied(client), "it is done, too")
    assert pushed(client, "trt/children/todo") == {"child/1": 1, "child/2": 1}


def test_a_watcher_holds_so_many_events_and_no_more(server: RedisServer, client: redis.Redis) -> None:
    answered = threading.Event()

    def fetch(*_: object) -> list[Mapping[str, Any]]:
        answered.wait(60)
        return [{"id": 1}]

    with running(watch_of(server, watcher_of(FETCHING, max_in_work=7), fetch)) as watch:
        client.lpush("events", *(f"trt/{number}" for number in range(20)))
        wait_for(lambda: watch.counts.waiting == 13, "it has looked around")
        assert client.llen("events/taken") == 7
        answered.set()
        wait_for(lambda: client.llen("trt/children/todo") == 20, "all are done")


def test_redis_goes_and_comes_back(own_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """It says so once, waits, and goes on."""
    own_server.stop()
    with running(watch_of(own_server, watcher_of())):
        wait_for(lambda: "trying again" in caplog.text, "it says that Redis is away")
        own_server.start()
        with own_server.client() as client:
            client.lpush("events", "acq/A/1")
            wait_for(lambda: pushed(client) == {"trt/A/1": 1} and emptied(client), "it works")
        wait_for(lambda: "working again" in caplog.text, "it says that it works")
        own_server.stop()
        own_server.start()
        with own_server.client() as client:
            client.lpush("events", "acq/A/2")
            wait_for(lambda: pushed(client)["trt/A/2"] == 1 and emptied(client), "it works again")


def test_a_full_redis_loses_nothing(own_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    with own_server.client() as client:
        client.lpush("events", "acq/A/1")
        client.config_set("maxmemory", "1")
        with running(watch_of(own_server, watcher_of())) as watch:
            wait_for(lambda: "trying again" in caplog.text, "it says that Redis is full")
            client.config_set("maxmemory", "0")
            wait_for(lambda: pushed(client) == {"trt/A/1": 1} and emptied(client), "it works")
            assert watch.counts.dead == 0


def test_a_queue_of_another_type_waits_its_attempts_and_is_buried(server: RedisServer, client: redis.Redis) -> None:
    client.set("trt/A/todo", "x")
    with running(watch_of(server, watcher_of(TREATMENT, max_attempts=2, backoff=0))) as watch:
        client.lpush("events", "acq/A/1", "acq/B/1")
        wait_for(lambda: watch.counts.dead == 1, "it is given up")
    (entry,) = map(json.loads, client.lrange("events/dead", 0, -1))
    assert entry["error"] == "trt/A/todo is a string, expected a list"
    assert client.lrange("trt/B/todo", 0, -1) == [b"trt/B/1"]
    assert not client.exists("trt/A/set")


def test_an_input_queue_of_another_type(server: RedisServer, client: redis.Redis) -> None:
    """Nothing that waiting would cure: it ends with a word on it."""
    client.set("events", "x")
    with (
        pytest.raises(DelayQError, match="events is a string, expected a list"),
        running(watch_of(server, watcher_of())),
    ):
        pass
