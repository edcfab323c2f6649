"""rules/revive.lua: a dead event goes back to its input, or stays where it is."""

from __future__ import annotations

import pytest
import redis

from celery_delayq.errors import DelayQError
from celery_delayq.scripts import Value, script
from celery_delayq.store import Store
from tests.lua.conftest import Reader, full

ENTRY = b'{"event": "\\udcff"}'


@pytest.fixture
def client(store: Store) -> redis.Redis:
    """A Redis with three dead events, two of them alike."""
    store.client.rpush("dead", ENTRY, b"other", ENTRY)
    return store.client


def revive(client: redis.Redis, *args: Value, keys: tuple[str, ...] = ("dead", "input")) -> object:
    return script("rules/revive")(client, keys, args)


def test_into_a_list(client: redis.Redis) -> None:
    """To the head, as if it came anew; of two alike, the older one."""
    client.rpush("input", "waits")
    assert revive(client, "list", ENTRY, b"\xff") == 1
    assert client.lrange("input", 0, -1) == [b"\xff", b"waits"]
    assert client.lrange("dead", 0, -1) == [ENTRY, b"other"]


def test_into_a_stream(client: redis.Redis) -> None:
    """With all its fields, under a new id."""
    assert revive(client, "stream", b"other", "event", "acq/1", "by", b"\x00\xff") == 1
    ((_, fields),) = client.xrange("input")
    assert fields == {b"event": b"acq/1", b"by": b"\x00\xff"}
    assert client.lrange("dead", 0, -1) == [ENTRY, ENTRY]


def test_only_once(client: redis.Redis, contents: Reader) -> None:
    """Who comes second, after a reply that was lost, or at the same time as another, changes nothing."""
    assert revive(client, "list", b"other", "acq/1") == 1
    before = contents()
    assert revive(client, "list", b"other", "acq/1") == 0
    assert contents() == before


def test_a_full_redis(client: redis.Redis, store: Store) -> None:
    """What is not there is refused by nobody; what is there comes back whole, or not at all."""
    with full(store):
        assert revive(client, "list", b"gone", "acq/1") == 0
        assert revive(client, "list", b"other", "acq/1") == 1
    assert (client.llen("dead"), client.llen("input")) == (2, 1)


@pytest.mark.parametrize("forbidden", ["lpush", "lrem"])
def test_who_may_not_do_all_of_it_does_nothing(client: redis.Redis, contents: Reader, forbidden: str) -> None:
    """No event is lost, and none comes twice, for a right that a user lacks."""
    before = contents()
    client.acl_setuser("half", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", f"-{forbidden}"])
    port = client.connection_pool.connection_kwargs["port"]
    with (
        redis.Redis(port=port, username="half", password="pw") as half,
        pytest.raises(redis.ResponseError, match="permi|can't run"),
    ):
        revive(half, "list", b"other", "acq/1")
    client.acl_deluser("half")
    assert contents() == before
    assert revive(client, "list", b"other", "acq/1") == 1


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("kind", ["list", "stream"])
def test_a_foreign_key(client: redis.Redis, contents: Reader, number: int, kind: str) -> None:
    """The error names it, and nothing has changed."""
    keys = ["dead", "input"]
    keys[number] = "theirs"
    client.set("theirs", "somebody else's")
    before = contents()
    with pytest.raises(DelayQError, match="theirs is a string, expected"):
        revive(client, kind, "other", "event", *(["acq/1"] if kind == "stream" else []), keys=tuple(keys))
    assert contents() == before


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("list",),
        ("list", "other"),
        ("list", "", "acq/1"),
        ("list", "other", "a", "b"),
        ("stream", "other", "a"),
        ("set", "other", "a"),
    ],
)
def test_unusable_arguments(client: redis.Redis, contents: Reader, args: tuple[str, ...]) -> None:
    """Neither a kind of input that there is not, nor half a field, nor no event."""
    before = contents()
    with pytest.raises(DelayQError, match="^rules/revive: "):
        revive(client, *args)
    with pytest.raises(DelayQError, match="^rules/revive: "):
        revive(client, "list", "other", "event", keys=("dead", "dead"))
    assert contents() == before
