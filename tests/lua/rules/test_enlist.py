"""enlist.lua: one watcher has a place, until it is given back or another says that it is gone."""

from __future__ import annotations

import pytest
import redis

from celery_delayq.errors import DelayQError
from celery_delayq.scripts import Value, script

from .conftest import NO_COUNT, NOW


def enlist(client: redis.Redis, slot: Value, token: str, *, takes: Value = 1, now: Value = NOW) -> bool:
    return bool(script("rules/enlist")(client, ["holders", "beats"], [slot, token, takes, now]))


def test_a_place_is_taken_once(client: redis.Redis) -> None:
    assert enlist(client, 0, "me")
    assert not enlist(client, 0, "you")
    assert enlist(client, 1, "you")
    assert client.hgetall("holders") == {b"0": b"me", b"1": b"you"}


def test_who_has_a_place_says_that_it_lives(client: redis.Redis) -> None:
    enlist(client, 0, "me")
    assert enlist(client, 0, "me", takes=0, now=NOW + 7)
    assert client.zscore("beats", "0") == NOW + 7


def test_who_has_none_is_told(client: redis.Redis) -> None:
    """It gets none by saying that it lives."""
    enlist(client, 0, "me")
    client.hset("holders", "0", "")
    assert not enlist(client, 0, "me", takes=0, now=NOW + 7)
    assert not enlist(client, 3, "me", takes=0)
    assert client.zscore("beats", "0") == NOW
    assert client.hgetall("holders") == {b"0": b""}


def test_a_place_that_was_given_back_is_free(client: redis.Redis) -> None:
    client.hset("holders", "0", "")
    assert enlist(client, 0, "me")


def test_by_default_redis_has_the_clock(client: redis.Redis) -> None:
    enlist(client, 0, "me", now="")
    seconds, microseconds = client.time()
    assert abs(client.zscore("beats", "0") - (seconds * 1_000_000 + microseconds)) < 60_000_000


@pytest.mark.parametrize(
    "args",
    [
        *([value, "me", 1, ""] for value in NO_COUNT),
        [0, "", 1, ""],
        *([0, "me", value, ""] for value in ("", "2", "x")),
        *([0, "me", 1, value] for value in NO_COUNT[1:] if value != "1.5"),
        [0, "me", 1],
    ],
)
def test_unusable_arguments(client: redis.Redis, args: list[Value]) -> None:
    with pytest.raises(DelayQError, match="enlist needs"):
        script("rules/enlist")(client, ["holders", "beats"], args)
    assert client.keys() == []


@pytest.mark.parametrize("key", ["holders", "beats"])
def test_a_key_that_holds_something_else(client: redis.Redis, key: str) -> None:
    client.set(key, "x")
    with pytest.raises(DelayQError, match=f"{key} is a string"):
        enlist(client, 0, "me")
    assert client.keys() == [key.encode()]
