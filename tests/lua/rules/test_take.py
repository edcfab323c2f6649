"""take.lua: events go into work at the watcher's place, in their order, and only there."""

from __future__ import annotations

import pytest
import redis

from celery_delayq.errors import DelayQError
from celery_delayq.scripts import Value, script

from .conftest import NO_COUNT, events

KEYS = ["input", "taken", "holders"]


def take(client: redis.Redis, limit: Value = 10, *, token: str = "me") -> list[bytes]:
    reply: list[bytes] = script("rules/take")(client, KEYS, [0, token, limit])
    return reply


def test_events_are_taken_in_the_order_of_their_pushes(client: redis.Redis) -> None:
    client.hset("holders", "0", "me")
    client.lpush("input", "a", "b", "c", b"\xff\x00")
    assert take(client, 3) == [b"a", b"b", b"c"]
    assert take(client) == [b"\xff\x00"]
    assert take(client) == []
    assert events(client, "taken") == [b"a", b"b", b"c", b"\xff\x00"]


def test_who_has_no_place_takes_nothing(client: redis.Redis) -> None:
    client.lpush("input", "a")
    assert take(client) == 0
    client.hset("holders", "0", "you")
    assert take(client) == 0
    assert events(client, "input") == [b"a"]


def test_one_call_ends_after_so_many_bytes(client: redis.Redis) -> None:
    client.hset("holders", "0", "me")
    large = b"x" * 3_000_000
    client.lpush("input", large, large, large)
    assert len(take(client)) == 2
    assert client.llen("input") == 1


@pytest.mark.parametrize(
    "args",
    [
        *([value, "me", 1] for value in NO_COUNT),
        [0, "", 1],
        *([0, "me", value] for value in ("0", *NO_COUNT)),
        [0, "me"],
    ],
)
def test_unusable_arguments(client: redis.Redis, args: list[Value]) -> None:
    client.lpush("input", "a")
    with pytest.raises(DelayQError, match="take needs"):
        script("rules/take")(client, KEYS, args)
    assert client.keys() == [b"input"]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_holds_something_else(client: redis.Redis, key: str) -> None:
    client.set(key, "x")
    with pytest.raises(DelayQError, match=f"{key} is a string"):
        take(client)
    assert client.keys() == [key.encode()]
