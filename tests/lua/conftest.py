"""What the tests of the scripts share: a moment, jobs, and a look at everything that Redis holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from celery_delayq.delivery import Delivery
from celery_delayq.store import OnConflict, Origin, Put, Store

#: A moment for scripts that are told the time (us).
NOW = 1_800_000_000_000_000

QUEUE = Delivery((0, 3, 6, 9), ("q", "q\x06\x163", "q\x06\x166", "q\x06\x169"))


def put(store: Store, *jobs: Put, on_conflict: OnConflict = OnConflict.ERROR, origin: Origin = Origin.NEW) -> int:
    """Put at NOW, every topic delivered to the list of its name."""
    deliveries = {job.topic: QUEUE if job.topic == "q" else Delivery.plain(job.topic) for job in jobs}
    return store.put(jobs, deliveries, on_conflict, origin=origin, now_us=NOW)


def job(id: str | bytes, due: int = 1, *, topic: str = "q", body: bytes | None = None, **more: int) -> Put:
    """A job due so many microseconds after NOW."""
    name = id.encode() if isinstance(id, str) else id
    return Put(topic, id, b"body of " + name if body is None else body, NOW + due, **more)


def waiting(store: Store, topic: str = "q") -> dict[bytes, int]:
    """Id -> due (us after NOW), in the order in which they leave."""
    pairs = store.client.zrange(store.keys.schedule(topic), 0, -1, withscores=True)
    return {id: int(score) - NOW for id, score in pairs}


Contents = dict[bytes, object]


@pytest.fixture
def contents(store: Store) -> Callable[[], Contents]:
    """Everything in the database, key -> value."""

    def read() -> Contents:
        return {key: value_of(store.client, key) for key in store.client.scan_iter()}

    return read


def value_of(client: redis.Redis, key: bytes) -> object:
    kind = client.type(key)
    if kind == b"zset":
        return dict(client.zrange(key, 0, -1, withscores=True))
    if kind == b"hash":
        return client.hgetall(key)
    if kind == b"list":
        return client.lrange(key, 0, -1)
    return client.get(key)
