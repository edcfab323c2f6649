"""dispatch_zset.lua: what is due in a bare sorted set goes to a list's tail, and nothing else happens to it."""

from __future__ import annotations

import pytest
import redis

from celery_delayq.errors import DelayQError
from celery_delayq.scripts import Value, script
from celery_delayq.store import Store

from .conftest import full

NOW = 1_800_000_000


@pytest.fixture
def client(store: Store) -> redis.Redis:
    """A Redis, of which only these two keys are ours."""
    return store.client


def call(
    client: redis.Redis, now: Value = NOW, unit: Value = 1, limit: Value = 10, *more: Value, ready: str = "ready"
) -> list[int]:
    reply: list[int] = script("dispatch_zset")(client, ["delayed", ready], [now, unit, limit, *more])
    return reply


def test_what_is_due_goes_to_the_tail(client: redis.Redis) -> None:
    """In the order of scores, to the last one that is due this very moment; binary members as they are."""
    client.rpush("ready", "before")
    client.zadd("delayed", {"b": NOW - 1.5, "a": NOW - 2, b"\xff\x00": NOW, "later": NOW + 0.25})

    assert call(client) == [3, 1, 1, 250_000]
    assert client.lrange("ready", 0, -1) == [b"before", b"a", b"b", b"\xff\x00"]
    assert client.zrange("delayed", 0, -1, withscores=True) == [(b"later", NOW + 0.25)]
    assert call(client, NOW + 0.25) == [1, 0, 4, -1]
    assert call(client) == [0, 0, 5, -1]


@pytest.mark.parametrize(
    ("unit", "score"), [(1, NOW + 0.5), (1000, NOW * 1000 + 500), (1_000_000, NOW * 10**6 + 500_000)]
)
def test_units(client: redis.Redis, unit: int, score: float) -> None:
    """Scores are seconds, milliseconds or microseconds; a wait is in microseconds."""
    client.zadd("delayed", {"a": score})
    assert call(client, NOW * unit, unit) == [0, 1, 0, 500_000]
    assert call(client, repr(score), unit) == [1, 0, 0, -1]


def test_redis_has_the_clock(client: redis.Redis) -> None:
    """Unless a time is given."""
    seconds, _ = client.time()
    client.zadd("delayed", {"due": seconds, "not": seconds + 3600})
    moved, delayed, ready, wait = call(client, "")
    assert (moved, delayed, ready) == (1, 1, 0)
    assert 3_590_000_000 < wait <= 3_600_000_000


@pytest.mark.parametrize("limit", [1, 999, 1000, 1001, 5000])
def test_a_call_moves_no_more_than_its_limit(client: redis.Redis, limit: int) -> None:
    """A backlog goes in batches, in order; what is left is due now."""
    client.zadd("delayed", {f"{number:05}": NOW - 5000 + number for number in range(3000)})
    taken = 0
    while taken < 3000:
        moved, delayed, ready, wait = call(client, limit=limit)
        assert (moved, ready, wait) == (min(limit, 3000 - taken), taken, 0 if delayed else -1)
        taken += moved
    assert client.lrange("ready", 0, -1) == [b"%05d" % number for number in range(3000)]


def test_however_high_the_limit_others_get_their_turn(client: redis.Redis) -> None:
    """A call moves ten thousand at most."""
    for number in range(0, 12_000, 1000):
        client.zadd("delayed", {f"{member:05}": 1 for member in range(number, number + 1000)})
    assert call(client, limit=1_000_000_000) == [10_000, 2000, 0, 0]
    assert call(client, limit=2**53 - 1) == [2000, 0, 10_000, -1]
    assert client.lrange("ready", 0, -1) == [b"%05d" % number for number in range(12_000)]


@pytest.mark.parametrize("limit", [1, 1000])
def test_large_members_go_a_few_a_call(client: redis.Redis, limit: int) -> None:
    """No more bytes than Redis should move at once; one member at least."""
    for number in range(13):
        client.zadd("delayed", {bytes([number]) * 2_000_000: NOW - 100 + number})
    delayed = 13
    while delayed:
        moved, delayed, ready, wait = call(client, limit=limit)
        assert 1 <= moved <= min(limit, 10)
        assert (ready, wait) == (13 - delayed - moved, 0 if delayed else -1)
    assert [member[0] for member in client.lrange("ready", 0, -1)] == list(range(13))


def test_whatever_member(client: redis.Redis) -> None:
    """Any bytes, none at all, a number, what is there twice by other bytes: each comes as it is."""
    members = [b"", b"\x00", b"\r\n", b"1", b"1.0", "日".encode(), b"\xff" * 100_000]
    for number, member in enumerate(members):
        client.zadd("delayed", {member: number})
    assert call(client) == [7, 0, 0, -1]
    assert client.lrange("ready", 0, -1) == members


def test_whatever_score(client: redis.Redis) -> None:
    """Infinite ones are always due, or never; those before 1970 are due; a microsecond is seen."""
    client.zadd("delayed", {"always": float("-inf"), "never": float("inf"), "old": -1.5, "next": NOW + 1e-6})
    assert call(client) == [2, 2, 0, 1]
    assert client.lrange("ready", 0, -1) == [b"always", b"old"]
    assert call(client, NOW + 1) == [1, 1, 2, 3_600_000_000]


@pytest.mark.parametrize(("key", "kind"), [("delayed", "zset"), ("ready", "list")])
def test_a_foreign_key(client: redis.Redis, key: str, kind: str) -> None:
    """Refused before anything is moved."""
    client.zadd("delayed", {"a": 1})
    client.delete(key)
    client.hset(key, "x", "y")
    with pytest.raises(DelayQError, match=f"{key} is a hash, expected a {kind}"):
        call(client)
    assert client.exists("delayed", "ready") == 1 + (key == "ready")


@pytest.mark.parametrize(
    "arguments",
    [
        ("x",),
        ("nan",),
        ("inf",),
        (NOW, 2),
        (NOW, ""),
        (NOW, 1, 0),
        (NOW, 1, -1),
        (NOW, 1, 1.5),
        (NOW, 1, ""),
        (NOW, 1, "nan"),
        (NOW, 1, "inf"),
        (NOW, 1, 10, "more"),
    ],
)
def test_unusable_arguments(client: redis.Redis, arguments: tuple[Value, ...]) -> None:
    """Refused before anything is moved."""
    client.zadd("delayed", {"a": 1})
    with pytest.raises(DelayQError, match="needs a time"):
        call(client, *arguments)
    assert client.zcard("delayed") == 1


def test_a_full_redis_still_drains(client: redis.Redis, store: Store) -> None:
    """What is due leaves, although nothing can be added."""
    client.zadd("delayed", {f"{number:05}": NOW - 1 for number in range(2000)})
    with full(store):
        with pytest.raises(redis.ResponseError, match="maxmemory|OOM"):
            client.zadd("delayed", {"more": 1})
        assert call(client, limit=2000)[0] == 2000
    assert client.llen("ready") == 2000


def test_one_key_for_both(client: redis.Redis) -> None:
    """Is refused, whatever it holds."""
    with pytest.raises(DelayQError, match="needs two keys"):
        call(client, ready="delayed")
    client.zadd("delayed", {"a": 1})
    with pytest.raises(DelayQError, match="needs two keys"):
        call(client, ready="delayed")


@pytest.mark.parametrize("forbidden", ["rpush", "zremrangebyrank"])
def test_who_may_not_do_all_of_it_does_nothing(client: redis.Redis, forbidden: str) -> None:
    """No member is lost, and none comes twice, for a right that a user lacks."""
    client.zadd("delayed", {"a": 1, "b": 2})
    client.acl_setuser("half", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", f"-{forbidden}"])
    port = client.connection_pool.connection_kwargs["port"]
    with (
        redis.Redis(port=port, username="half", password="pw") as half,
        pytest.raises(redis.ResponseError, match="permi|can't run"),
    ):
        call(half)
    client.acl_deluser("half")
    assert (client.zcard("delayed"), client.llen("ready")) == (2, 0)
    assert call(client) == [2, 0, 0, -1]
