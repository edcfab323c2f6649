"""Redis tells who has read a key when it changes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from celery_delayq.embedded import RedisServer
from celery_delayq.tracking import Tracking
from celery_delayq.zset_program import client_for

#: Long enough (s) for whatever comes to come.
AT_LAST = 20.0


@pytest.fixture
def reader(server: RedisServer) -> Iterator[redis.Redis]:
    pool = client_for(server.url()).connection_pool
    with redis.Redis(connection_pool=pool, single_connection_client=True) as client:
        yield client
    pool.disconnect()


@pytest.fixture
def other(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client() as client:
        yield client


def read(client: redis.Redis) -> None:
    """Both keys, in a script: as the dispatcher does."""
    client.eval("return {redis.call('ZCARD', KEYS[1]), redis.call('LLEN', KEYS[2])}", 2, "key", "list")


def test_it_tells_of_what_others_change(reader: redis.Redis, other: redis.Redis) -> None:
    """Once for each reading: who is told looks again."""
    with Tracking(reader, b"key") as tracking:
        assert tracking.refusal is None
        for number in range(3):
            read(reader)
            other.zadd("key", {f"{number}": 1})
            other.zadd("key", {f"{number} more": 1})
            assert tracking.told(AT_LAST)
            assert not tracking.told(0.05)
        read(reader)
        other.delete("key")
        assert tracking.told(AT_LAST)
        read(reader)
        other.flushall()
        assert tracking.told(AT_LAST)


def test_it_tells_of_nothing_else(reader: redis.Redis, other: redis.Redis) -> None:
    """Neither of other keys that were read, nor of one's own changes."""
    with Tracking(reader, b"key") as tracking:
        read(reader)
        other.rpush("list", "a")
        other.zadd("not read", {"a": 1})
        assert not tracking.told(0.2)
        read(reader)
        reader.zadd("key", {"a": 1})
        assert not tracking.told(0.2)


def test_a_lost_connection(reader: redis.Redis, other: redis.Redis) -> None:
    """Is an error, and no silence."""
    with Tracking(reader, b"key") as tracking:
        other.client_kill_filter(_type="pubsub")
        with pytest.raises(redis.ConnectionError):
            tracking.told(AT_LAST)


def test_a_redis_that_refuses(server: RedisServer, other: redis.Redis) -> None:
    """Says why, and whoever reads goes on."""
    other.acl_setuser("plain", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-subscribe"])
    pool = client_for(f"redis://plain:pw@127.0.0.1:{server.port}").connection_pool
    with (
        redis.Redis(connection_pool=pool, single_connection_client=True) as client,
        Tracking(client, b"key") as tracking,
    ):
        assert "permi" in (tracking.refusal or "")
        read(client)
    pool.disconnect()
    other.acl_deluser("plain")
