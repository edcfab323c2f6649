"""The dispatcher of bare sorted sets, where one Redis may differ from the next."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from time import monotonic

import pytest
import redis

from celery_delayq.embedded import RedisServer
from celery_delayq.errors import DelayQError
from celery_delayq.zset import ZsetDispatcher, ZsetPass
from celery_delayq.zset_program import client_for
from tests.replication import PATIENCE, until

#: What a user must be allowed to do, on the two keys; and what lets Redis tell him of changes.
NEEDED = ("evalsha", "eval", "type", "time", "zcard", "llen", "zrangebyscore", "zremrangebyrank", "rpush")
TO_BE_TOLD = ("client", "subscribe")


def dispatcher(url: str) -> ZsetDispatcher:
    return ZsetDispatcher(client_for(url), b"delayed", b"ready")


@contextmanager
def dispatching(url: str) -> Iterator[list[ZsetPass]]:
    """A dispatcher in a thread; gives its looks."""
    stop, seen = Event(), list[ZsetPass]()
    one = dispatcher(url)
    thread = Thread(target=one.run, args=(stop, lambda done, asleep: seen.append(done)))
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()
    assert one.moved == sum(done.moved for done in seen)


def popped(client: redis.Redis, count: int, key: str = "ready") -> list[bytes]:
    """What a consumer gets, in the order in which it comes."""
    found: list[bytes] = []
    deadline = monotonic() + PATIENCE
    while len(found) < count:
        assert monotonic() < deadline, found
        # Shorter than redis-py waits for any reply: what came on a connection that it gave up would be lost.
        if (answer := client.blpop([key], timeout=1)) is not None:
            found.append(answer[1])
    return found


def in_seconds(client: redis.Redis, seconds: float) -> float:
    second, microseconds = client.time()
    return float(second + microseconds / 1e6 + seconds)


def test_a_full_redis(own_server: RedisServer) -> None:
    """What waits goes out all the same, and nothing is lost."""
    with own_server.client() as client:
        client.zadd("delayed", {f"{number:04}": number for number in range(1000)})
        client.config_set("maxmemory", 1)
        with pytest.raises(redis.ResponseError, match="maxmemory|OOM"):
            client.zadd("delayed", {"more": 1})
        with dispatching(own_server.url()):
            assert popped(client, 1000) == [b"%04d" % number for number in range(1000)]


def test_a_replica(own_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """As a master is that was failed over: it tells, and goes on where it may write."""
    with dispatching(own_server.url()) as seen, own_server.client() as client:
        until(lambda: seen, "a look")
        due = in_seconds(client, 0.5)
        with client.pipeline() as pipe:  # both at once: it must not move it before
            pipe.zadd("delayed", {"a": due}).replicaof("127.0.0.1", 1).execute()
        until(lambda: "trying again" in caplog.text, "it tells")
        client.replicaof("no", "one")
        assert popped(client, 1) == [b"a"]
        until(lambda: "working again" in caplog.text, "it tells that, too")
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


def test_started_on_a_replica(own_server: RedisServer) -> None:
    """It waits for a master, also if it has never worked."""
    with own_server.client() as client:
        client.zadd("delayed", {"a": 0})
        client.replicaof("127.0.0.1", 1)
        with dispatching(own_server.url()):
            until(lambda: client.info("stats")["total_commands_processed"] > 20, "it has tried")
            client.replicaof("no", "one")
            assert popped(client, 1) == [b"a"]


@pytest.mark.parametrize("told", [True, False])
def test_the_rights_that_it_needs(own_server: RedisServer, caplog: pytest.LogCaptureFixture, told: bool) -> None:
    """It works with those that the documentation names; without being told of changes it polls, and says so."""
    caplog.set_level(logging.INFO, "celery_delayq")
    with own_server.client() as client:
        allowed = [f"+{command}" for command in (*NEEDED, *(TO_BE_TOLD if told else ()))]
        keys, channels = ["delayed", "ready"], ["__redis__:invalidate"] if told else []
        client.acl_setuser(
            "mover",
            enabled=True,
            passwords=["+pw"],
            keys=keys,
            reset_channels=True,
            channels=channels,
            commands=allowed,
        )
        with dispatching(f"redis://mover:pw@127.0.0.1:{own_server.port}"):
            for number in range(3):
                client.zadd("delayed", {f"{number}": in_seconds(client, 0.1)})
                popped(client, 1)
    assert [record.levelno for record in caplog.records] == [logging.INFO] * (not told)


def test_the_rights_that_are_documented() -> None:
    """Are those that are tested here."""
    page = (Path(__file__).parents[2] / "docs" / "dispatch-zset.md").read_text()
    assert re.findall(r" \+(\w+)", page) == [*NEEDED, *TO_BE_TOLD]


@pytest.mark.parametrize("missing", NEEDED)
def test_a_right_that_is_missing(own_server: RedisServer, missing: str) -> None:
    """Ends it at once, and nothing has happened."""
    with own_server.client() as client:
        client.zadd("delayed", {"a": 0})
        allowed = [f"+{command}" for command in (*NEEDED, *TO_BE_TOLD) if command != missing]
        client.acl_setuser("mover", enabled=True, passwords=["+pw"], keys=["*"], channels=["*"], commands=allowed)
        with pytest.raises(DelayQError, match="Redis refuses: "):
            dispatcher(f"redis://mover:pw@127.0.0.1:{own_server.port}").run(Event(), lambda done, asleep: None)
        assert (client.zcard("delayed"), client.llen("ready")) == (1, 0)
