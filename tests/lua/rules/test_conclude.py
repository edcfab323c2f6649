"""conclude.lua: all that is made of an event is pushed and the event cleared; or nothing is done of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from redis.exceptions import OutOfMemoryError, ResponseError

from celery_delayq.delivery import Delivery
from celery_delayq.errors import DelayQError
from celery_delayq.job import OnConflict, Origin, Put
from celery_delayq.keys import Keys
from celery_delayq.rules.list_source import written
from celery_delayq.rules.source import Conclusion, Event, Push
from celery_delayq.scripts import Value, script
from celery_delayq.verbs import Verbs

from .conftest import NO_COUNT, NOW, events

#: What put makes of its call here.
KEYS = Keys("delayq")

Puts = tuple[Sequence[str | bytes], Sequence[Value]]


def putting(id: str, body: bytes = b"body", on_conflict: OnConflict = OnConflict.ERROR, topic: str = "mail") -> Puts:
    """A call of put, for one job."""
    jobs = [Put(topic, id, body, in_us=5)]
    call = Verbs(KEYS, leases=False).put(jobs, {topic: Delivery.plain(topic)}, on_conflict, Origin.NEW, now_us=NOW)
    return call.prepared.within(call.args)


def concluding(event: bytes, *pushes: Push, puts: Sequence[Puts] = ()) -> Conclusion:
    return Conclusion(Event(event, event.decode(errors="surrogateescape"), {}), list(pushes), puts=list(puts))


def conclude(
    client: redis.Redis,
    *conclusions: Conclusion,
    token: str = "me",
    group: str = "",
    last: bytes = b"DONE",
    why: str = "",
) -> list[list[Any]]:
    keys: dict[bytes | str, int] = {"taken": 1, "holders": 2}
    args: list[Value] = [0, token, group, "channel", "taken", NOW + 999_999]
    for conclusion in conclusions:
        args += written(conclusion, keys, last, why.encode(), told=True)
    reply: list[list[Any]] = script("rules/conclude", "put")(client, list(keys), args)
    return reply


@pytest.fixture(autouse=True)
def working(client: redis.Redis) -> None:
    """A watcher has taken a, a and b."""
    client.hset("holders", "0", "me")
    client.lpush("taken", "a", "a", "b")


@contextmanager
def told(client: redis.Redis) -> Iterator[Callable[[], list[bytes]]]:
    with client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe("channel")
        listener.get_message(timeout=5)

        def read() -> list[bytes]:
            client.publish("channel", "end")
            lines = []
            while (message := listener.get_message(timeout=5)) and message["data"] != b"end":
                lines.append(message["data"])
            return lines

        yield read


def as_user(client: redis.Redis, name: str) -> redis.Redis:
    port = client.connection_pool.connection_kwargs["port"]
    return redis.Redis(port=port, username=name, password="any")  # its own reads "nopass"


def test_all_is_done(client: redis.Redis) -> None:
    """Tasks go to the heads of their lists, one after the other; one event is cleared, not its equal."""
    with told(client) as read:
        replies = conclude(
            client, concluding(b"a", Push(b"1", b"q"), Push(b"2", b"q", b"s"), Push(b"3", b"r", told=b"x"))
        )
        assert read() == [b"taken TRIGGER a -> 1", b"taken TRIGGER a -> 2", b"taken TRIGGER a -> x", b"taken DONE a"]
    assert replies == [[b"DONE"]]
    assert (events(client, "q"), events(client, "r")) == ([b"1", b"2"], [b"3"])
    assert client.zrange("s", 0, -1, withscores=True) == [(b"2", NOW // 1_000_000)]
    assert events(client, "taken") == [b"a", b"b"]


def test_a_task_that_its_set_knows_is_left_out(client: redis.Redis) -> None:
    """Also if the same event makes it twice; its time stays."""
    client.zadd("s", {"1": 5})
    with told(client) as read:
        made = concluding(
            b"a", Push(b"1", b"q", b"s"), Push(b"2", b"q", b"s"), Push(b"2", b"r", b"s"), Push(b"1", b"q")
        )
        assert conclude(client, made) == [[b"DONE", 0, 2]]
        assert read() == [b"taken TRIGGER a -> 2", b"taken TRIGGER a -> 1", b"taken DONE a"]
    assert events(client, "q") == [b"2", b"1"]
    assert not client.exists("r")
    assert client.zscore("s", "1") == 5


def test_nothing_made(client: redis.Redis) -> None:
    assert conclude(client, concluding(b"b")) == [[b"DONE"]]
    assert events(client, "taken") == [b"a", b"a"]


def test_the_last_line(client: redis.Redis) -> None:
    with told(client) as read:
        conclude(client, concluding(b"a", Push(b"{}", b"dead", told=b"")), last=b"DEAD", why=": it is")
        assert read() == [b"taken DEAD a: it is"]


@pytest.mark.parametrize("token", ["you", "nobody"])
def test_another_watchers_place(client: redis.Redis, token: str) -> None:
    before = client.dump("taken")
    assert conclude(client, concluding(b"a", Push(b"1", b"q")), token=token) == [[b"LOST"]]
    assert client.dump("taken") == before
    assert not client.exists("q")


def test_an_event_that_is_not_in_work(client: redis.Redis) -> None:
    """As often as it is, and no more."""
    made = [concluding(b"a", Push(b"%d" % number, b"q")) for number in range(3)]
    assert conclude(client, *made, concluding(b"c", Push(b"c", b"q"))) == [[b"DONE"], [b"DONE"], [b"LOST"], [b"LOST"]]
    assert events(client, "q") == [b"0", b"1"]


def test_jobs_are_put_in_the_same_step(client: redis.Redis) -> None:
    """One or several calls for each event, as put would do them alone."""
    replies = conclude(
        client,
        concluding(b"a", Push(b"1", b"q"), puts=[putting("x")]),
        concluding(
            b"b", puts=[putting("y", b"1"), putting("y", b"2", OnConflict.REPLACE), putting("z", topic="other")]
        ),
    )
    assert replies == [[b"DONE"], [b"DONE"]]
    assert client.hgetall(KEYS.jobs("mail")) == {b"x": b"body", b"y": b"2"}
    assert client.zrange(KEYS.schedule("mail"), 0, -1) == [b"x", b"y"]
    assert client.hgetall(KEYS.jobs("other")) == {b"z": b"body"}
    assert client.zrange(KEYS.index, 0, -1, withscores=True) == [(b"mail", NOW + 5), (b"other", NOW + 5)]
    assert events(client, "taken") == [b"a"]


def test_a_refused_put_refuses_its_event_alone(client: redis.Redis) -> None:
    client.hset(KEYS.jobs("mail"), "x", "waits")
    client.set(KEYS.schedule("other"), "x")
    replies = conclude(
        client,
        concluding(b"a", Push(b"1", b"q"), puts=[putting("x")]),
        concluding(b"a", Push(b"2", b"q"), puts=[putting("x", on_conflict=OnConflict.KEEP)]),
        concluding(b"b", Push(b"3", b"q"), puts=[putting("z", topic="other")]),
    )
    assert replies[:2] == [[b"EXISTS", b"x"], [b"DONE"]]
    assert replies[2][0] == b"REFUSED"
    assert b"is a string, expected a zset" in replies[2][1]
    assert client.hgetall(KEYS.jobs("mail")) == {b"x": b"waits"}
    assert events(client, "q") == [b"2"]
    assert events(client, "taken") == [b"a", b"b"]


def test_nothing_is_put_for_an_event_that_is_lost_or_refused(client: redis.Redis) -> None:
    client.set("string", "x")
    replies = conclude(
        client,
        concluding(b"gone", puts=[putting("x")]),
        concluding(b"a", Push(b"1", b"string"), puts=[putting("y")]),
    )
    assert [reply[0] for reply in replies] == [b"LOST", b"REFUSED"]
    assert conclude(client, concluding(b"a", puts=[putting("z")]), token="other") == [[b"LOST"]]
    assert not client.keys("delayq:*")


def test_a_target_that_holds_something_else_refuses_its_event_alone(client: redis.Redis) -> None:
    client.set("string", "x")
    replies = conclude(
        client,
        concluding(b"a", Push(b"1", b"q"), Push(b"1", b"string")),
        concluding(b"a", Push(b"2", b"q", b"string")),
    )
    assert [reply[0] for reply in replies] == [b"REFUSED"] * 2
    assert all(b"string is a string" in reply[1] for reply in replies)
    assert not client.exists("q")
    assert conclude(client, concluding(b"a", Push(b"4", b"q"))) == [[b"DONE"]]


def test_one_key_as_queue_and_set(client: redis.Redis) -> None:
    ((word, reason),) = conclude(client, concluding(b"a", Push(b"1", b"q"), Push(b"2", b"r", b"q")))
    assert (word, reason) == (b"REFUSED", b"q is named as a queue and as a set")
    assert not client.exists("q", "r")
    assert conclude(client, concluding(b"a", Push(b"1", b"x")), concluding(b"b", Push(b"1", b"r", b"x"))) == [
        [b"DONE"],
        [b"REFUSED", b"x is a list, expected a zset"],
    ]


def test_a_full_redis_changes_nothing(client: redis.Redis) -> None:
    client.config_set("maxmemory", "1")
    try:
        with pytest.raises(OutOfMemoryError):
            conclude(client, concluding(b"a", Push(b"1", b"q", b"s"), Push(b"2", b"q")))
    finally:
        client.config_set("maxmemory", "0")
    assert events(client, "taken") == [b"a", b"a", b"b"]
    assert not client.exists("q", "s")


def test_who_may_not_publish_gets_the_tasks(client: redis.Redis) -> None:
    client.execute_command("ACL", "SETUSER", "mute", "on", "nopass", "~*", "&*", "+@all", "-publish")
    try:
        with as_user(client, "mute") as mute:
            assert conclude(mute, concluding(b"a", Push(b"1", b"q"))) == [[b"DONE"]]
    finally:
        client.execute_command("ACL", "DELUSER", "mute")
    assert events(client, "q") == [b"1"]


def test_who_may_not_write_one_of_the_keys_changes_nothing(client: redis.Redis) -> None:
    client.execute_command("ACL", "SETUSER", "shy", "on", "nopass", "~taken", "~holders", "~q", "&*", "+@all")
    try:
        with as_user(client, "shy") as shy, pytest.raises(ResponseError):
            conclude(shy, concluding(b"a", Push(b"1", b"q"), Push(b"2", b"forbidden")))
    finally:
        client.execute_command("ACL", "DELUSER", "shy")
    assert not client.exists("q")


def test_entries_of_a_stream(client: redis.Redis) -> None:
    """Acknowledged once, by the consumer with which they are pending."""
    client.delete("taken")
    ids = [client.xadd("taken", {"event": name}) for name in "ab"]
    client.xgroup_create("taken", "g", "0")
    client.xreadgroup("g", "me", {"taken": ">"}, count=1)
    client.xreadgroup("g", "you", {"taken": ">"}, count=1)
    made = [concluding(id, Push(b"1", b"q")) for id in ids]

    assert conclude(client, *made, group="g") == [[b"DONE"], [b"LOST"]]
    assert conclude(client, *made, group="g") == [[b"LOST"], [b"LOST"]]
    assert conclude(client, *made, group="g", token="you") == [[b"LOST"], [b"DONE"]]
    assert client.xpending("taken", "g")["pending"] == 0
    assert events(client, "q") == [b"1", b"1"]


def arguments(number: int, value: str) -> list[Value]:
    keys, put_args = putting("id")
    args: list[Value] = [0, "me", "", "channel", "taken", NOW, "a", "a", "DONE", "", 1, len(keys), len(put_args)]
    args += [*range(3, 3 + len(keys)), *put_args, 1, "line", 1, "task", 13, 14, ""]
    return [value if at == number else good for at, good in enumerate(args)]


@pytest.mark.parametrize(
    ("number", "values"),
    [
        (0, NO_COUNT),
        (1, ("",)),
        (5, ("x", "-1", "nan", "1e300")),
        (10, (*NO_COUNT, "2", "99")),
        (11, (*NO_COUNT, "0", "99")),
        (12, (*NO_COUNT, "99")),
        (13, (*NO_COUNT, "0", "2", "15")),
        (-7, (*NO_COUNT, "3", "99")),
        (-5, (*NO_COUNT, "2", "99")),
        (-3, (*NO_COUNT, "0", "2", "15")),
        (-2, (*NO_COUNT, "2", "15")),
    ],
)
def test_unusable_arguments(client: redis.Redis, number: int, values: Sequence[str]) -> None:
    keys = ["taken", "holders", *putting("id")[0], "q", "s"]
    for value in values:
        with pytest.raises(DelayQError, match="conclude needs"):
            script("rules/conclude", "put")(client, keys, arguments(number % len(arguments(0, "")), value))
    for length in range(7, len(arguments(0, ""))):
        with pytest.raises(DelayQError, match="conclude needs"):
            script("rules/conclude", "put")(client, keys, arguments(-1, "")[:length])
    assert events(client, "taken") == [b"a", b"a", b"b"]
    assert script("rules/conclude", "put")(client, keys, arguments(-1, "")) == [[b"DONE"]]


@pytest.mark.parametrize("key", ["taken", "holders"])
def test_a_key_that_holds_something_else(client: redis.Redis, key: str) -> None:
    client.delete(key)
    client.set(key, "x")
    with pytest.raises(DelayQError, match=f"{key} is a string"):
        conclude(client, concluding(b"a", Push(b"1", b"q")))
    assert not client.exists("q")
