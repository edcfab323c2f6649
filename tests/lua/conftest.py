"""What the tests of the scripts share: a moment, jobs, and a look at everything that Redis holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import pytest
import redis

from celery_delayq.delivery import Delivery
from celery_delayq.job import OnConflict, Origin, Put, Reserved
from celery_delayq.store import Store

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


def reserve(
    store: Store, limit: int = 10, *, after: int = 0, lease: int = 1_000_000, nonce: str = "n"
) -> list[Reserved]:
    """Reserve of "q" so many microseconds after NOW, for a second."""
    return list(store.reserve("q", limit, lease, now_us=NOW + after, nonce=nonce).jobs)


def waiting(store: Store, topic: str = "q") -> dict[bytes, int]:
    """Id -> due (us after NOW), in the order in which they leave."""
    pairs = store.client.zrange(store.keys.schedule(topic), 0, -1, withscores=True)
    return {id: int(score) - NOW for id, score in pairs}


def popped(store: Store, key: str = "q") -> list[bytes]:
    """What consumers would get from a ready list, in their order: they pop the right end."""
    return store.client.lrange(key, 0, -1)[::-1]


def index(store: Store) -> dict[bytes, int]:
    """Topic -> when to look at it (us after NOW)."""
    pairs = store.client.zrange(store.keys.index, 0, -1, withscores=True)
    return {topic: int(at) - NOW for topic, at in pairs}


def totals(store: Store) -> dict[str, int]:
    """All that was ever counted: "moved:q" -> how many."""
    return {name.decode(): int(count) for name, count in store.client.hgetall(store.keys.totals).items()}


def leases(store: Store, topic: str = "q") -> dict[bytes, int]:
    """Id -> when its lease runs out (us after NOW)."""
    pairs = store.client.zrange(store.keys.leases(topic), 0, -1, withscores=True)
    return {id: int(until) - NOW for id, until in pairs}


@contextmanager
def full(store: Store) -> Iterator[None]:
    """Redis has no memory left."""
    store.client.config_set("maxmemory", "1")
    try:
        yield
    finally:
        store.client.config_set("maxmemory", "0")


@contextmanager
def announcements(store: Store) -> Iterator[Callable[[], list[int]]]:
    """Gives what was announced to the dispatchers so far (us after NOW), each time anew from the beginning."""
    said: list[int] = []
    with store.client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe(store.keys.wake)
        listener.get_message(timeout=5)

        def read() -> list[int]:
            store.client.publish(store.keys.wake, "end")
            while (message := listener.get_message(timeout=5)) and message["data"] != b"end":
                said.append(int(message["data"]) - NOW)
            return said

        yield read


Contents = dict[bytes, object]


class Reader(Protocol):
    """Reads everything in the database, key -> value; on request without what was counted."""

    def __call__(self, *, totals: bool = True) -> Contents: ...


@pytest.fixture
def leasing(store: Store) -> Store:
    """The same store, for those who reserve."""
    return Store(store.client, store.keys, leases=True)


@pytest.fixture
def contents(store: Store) -> Reader:
    return lambda *, totals=True: contents_of(store, totals=totals)


def contents_of(store: Store, pattern: str = "*", *, totals: bool = True) -> Contents:
    """All keys that are called so, and their values; in three round trips, since some tests look after each step."""
    keys = [key for key in store.client.scan_iter(pattern, count=1000) if totals or key != store.keys.totals.encode()]
    with store.client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.type(key)
        kinds = pipe.execute()
        for key, kind in zip(keys, kinds, strict=True):
            READERS[kind](pipe, key)
        values = pipe.execute()
    return {
        key: dict(value) if kind == b"zset" else value for key, kind, value in zip(keys, kinds, values, strict=True)
    }


READERS: dict[bytes, Callable[[redis.Redis, bytes], object]] = {
    b"zset": lambda client, key: client.zrange(key, 0, -1, withscores=True),
    b"hash": lambda client, key: client.hgetall(key),
    b"list": lambda client, key: client.lrange(key, 0, -1),
    b"string": lambda client, key: client.get(key),
}
