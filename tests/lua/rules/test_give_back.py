"""give_back.lua: what is in work goes back, oldest first, and a place becomes free; never a living watcher's."""

from __future__ import annotations

import pytest
import redis

from celery_delayq.errors import DelayQError
from celery_delayq.scripts import Value, script

from .conftest import NO_COUNT, NOW, events

KEYS = ["input", "taken", "holders", "beats"]


def give_back(
    client: redis.Redis,
    token: str = "me",
    *,
    patience: Value = "",
    frees: Value = 1,
    limit: Value = 10,
    now: Value = NOW,
) -> list[int]:
    reply: list[int] = script("rules/give_back")(client, KEYS, [0, token, patience, frees, limit, now])
    return reply


@pytest.fixture(autouse=True)
def working(client: redis.Redis) -> None:
    """A watcher has taken a, b and c, and left d."""
    client.hset("holders", "0", "me")
    client.zadd("beats", {"0": NOW})
    client.lpush("taken", "a", "b", "c")
    client.lpush("input", "d")


def test_the_oldest_is_next_again(client: redis.Redis) -> None:
    assert give_back(client) == [3, 0]
    assert events(client, "input") == [b"a", b"b", b"c", b"d"]
    assert client.hgetall("holders") == {b"0": b""}
    assert not client.exists("beats", "taken")


def test_in_portions(client: redis.Redis) -> None:
    """The place is free when nothing is left, and not before."""
    assert give_back(client, limit=2) == [2, 1]
    assert client.hget("holders", "0") == b"me"
    assert give_back(client, limit=2) == [1, 0]
    assert events(client, "input") == [b"a", b"b", b"c", b"d"]
    assert client.hget("holders", "0") == b""


def test_a_place_may_be_kept(client: redis.Redis) -> None:
    assert give_back(client, frees=0) == [3, 0]
    assert client.hget("holders", "0") == b"me"
    assert client.zscore("beats", "0") == NOW


@pytest.mark.parametrize(("later", "moved"), [(5, [-1, 0]), (6, [3, 0])])
def test_a_watcher_is_gone_after_so_long(client: redis.Redis, later: int, moved: list[int]) -> None:
    assert give_back(client, patience=5, now=NOW + later) == moved


def test_a_watcher_that_was_never_heard_of_is_gone(client: redis.Redis) -> None:
    client.delete("beats")
    assert give_back(client, patience=5) == [3, 0]


def test_another_watchers_place(client: redis.Redis) -> None:
    assert give_back(client, "you") == [-1, 0]
    assert give_back(client, "") == [-1, 0]
    assert events(client, "taken") == [b"a", b"b", b"c"]


@pytest.mark.parametrize("nobody", ["", None])
def test_what_lies_where_nobody_is(client: redis.Redis, nobody: str | None) -> None:
    client.delete("holders")
    if nobody is not None:
        client.hset("holders", "0", nobody)
    assert give_back(client, "", frees=0) == [3, 0]


@pytest.mark.parametrize(
    "args",
    [
        *([value, "me", "", 1, 1, ""] for value in NO_COUNT),
        *([0, "me", value, 1, 1, ""] for value in ("x", "-1", "nan", "1e300")),
        *([0, "me", "", value, 1, ""] for value in ("", "2")),
        *([0, "me", "", 1, value, ""] for value in ("0", *NO_COUNT)),
        *([0, "me", "", 1, 1, value] for value in ("x", "-1", "nan", "1e300")),
        [0, "me", "", 1, 1],
    ],
)
def test_unusable_arguments(client: redis.Redis, args: list[Value]) -> None:
    with pytest.raises(DelayQError, match="give_back needs"):
        script("rules/give_back")(client, KEYS, args)
    assert events(client, "taken") == [b"a", b"b", b"c"]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_holds_something_else(client: redis.Redis, key: str) -> None:
    client.flushall()
    client.set(key, "x")
    with pytest.raises(DelayQError, match=f"{key} is a string"):
        give_back(client)
    assert client.keys() == [key.encode()]
