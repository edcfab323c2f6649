"""What the tests of these scripts share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from celery_delayq.embedded import RedisServer

#: A moment (us).
NOW = 1_800_000_000_000_000

#: What no argument that counts something may be.
NO_COUNT = ("", "x", "-1", "1.5", "nan", "inf", "1e300")


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client() as client:
        yield client


def events(client: redis.Redis, key: str) -> list[bytes]:
    """A list's, those that are taken next first."""
    return client.lrange(key, 0, -1)[::-1]
