"""What the tests of the doctor share: its look at one thing, and the faults that are made for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from celery import Celery

from celery_delayq.delivery import Delivery
from celery_delayq.doctor import Finding
from celery_delayq.embedded import RedisServer
from celery_delayq.job import Move, OnConflict, Put
from celery_delayq.keys import VERSION
from celery_delayq.store import Store

from .conftest import Inside

Look = Callable[..., list[Finding]]


def levels(found: Sequence[Finding]) -> list[str]:
    return [finding.level.value for finding in found]


def one(found: Sequence[Finding]) -> tuple[str, str]:
    """Level and text of the one finding."""
    (finding,) = found
    return finding.level.value, finding.text


@contextmanager
def configured(server: RedisServer, **config: object) -> Iterator[None]:
    """The server with these settings, for a while."""
    with server.client() as client:
        names = {name.replace("_", "-"): value for name, value in config.items()}
        before = {name: client.config_get(name)[name] for name in names}
        for name, value in names.items():
            client.config_set(name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                client.config_set(name, value)


@contextmanager
def acl_user(server: RedisServer, make_app: Callable[..., Celery], *rules: str) -> Iterator[Celery]:
    """An app that logs in as a user with these rules."""
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "shop", "reset", "on", ">secret", *rules)
        try:
            yield make_app(broker_url=f"redis://shop:secret@127.0.0.1:{server.port}/0")
        finally:
            client.execute_command("ACL", "DELUSER", "shop")


def everything(store: Store) -> None:
    """Each verb and each look, on the queue "celery"."""
    way = {"celery": Delivery.plain("celery")}

    def put(*ids: str, **more: Any) -> None:
        store.put([Put("celery", id, id.encode(), in_us=0, **more) for id in ids], way, OnConflict.REPLACE)

    assert store.version() == VERSION
    put("a", "b", "c", step=3, max_wait_us=10**9, grace_us=10**12)
    put("a", max_wait_us=10**9)
    store.restore([Put("celery", "r", b"r", at_us=10**15)], way, OnConflict.ERROR)
    assert store.find("a")
    assert list(store.where(["a"]))
    assert store.page("celery").jobs
    assert store.count(["celery"], [(None, None)])
    assert store.loads(store.topics())
    assert store.sizes(["celery"]) == {"celery": (4, 4)}
    store.move("celery", [Move("a", in_us=5)], progress=("shift", "so far", 1000))
    store.journal("shift")
    store.end_journal("shift")
    store.pause("celery")
    store.paused()
    store.resume("celery", 1.0)
    store.resume("celery")
    store.delete("celery", ["b"], lease_us=0)
    store.revoked(["b"])
    store.forget(store.claim(10**6, 10))
    store.tick(beat="one")
    store.tick(topics=["celery"])
    store.beat_us()
    store.tell_fleet(b"farewell one")
    for position in ("back", "front"):
        put("a", "b", step=3)
        assert store.dispatch("celery", Delivery((0,), ("celery",), 60_000), 100, position, 1000).moved
    put("late", grace_us=0)
    put("a")
    store.counted()
    assert store.purge("celery")
    store.rest()

    leasing = Store(store.client, store.keys, leases=True)
    put("a", "b", "c", "d", step=3, max_wait_us=10**9)
    jobs = leasing.reserve("celery", 3, 10**9, max_attempts=1).jobs
    assert leasing.extend("celery", jobs, 10**9) == [True] * 3
    assert leasing.ack("celery", jobs[:1]) == [True]
    assert leasing.release("celery", jobs[1:], max_attempts=1, reason="why") == [True] * 2
    assert leasing.pull("celery", 1)
    assert len(leasing.dead("celery").jobs) == 2
    assert leasing.find("b")
    assert leasing.leased() == {"celery"}
    assert leasing.expiries() == {}
    assert leasing.discard("celery", ["b"]) == [True]
    assert leasing.revive("celery", ["c"]) == [True]
    leasing.reserve("celery", 1, 1)
    leasing.requeue("celery", 10)


def put(inside: Inside, id: str, topic: str = "celery", at_us: int | None = None) -> None:
    job = Put(topic, id, id.encode(), at_us=at_us or inside.store.now_us() + 3600 * 10**6)
    inside.store.restore([job], {topic: Delivery.plain(topic)}, OnConflict.ERROR)  # which can be overdue
