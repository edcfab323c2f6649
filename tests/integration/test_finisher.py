"""The finisher on a real Redis, without Celery: whatever lies aside is finished, whoever dies over it."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from celery_delayq.delivery import Delivery
from celery_delayq.dispatcher import Dispatcher
from celery_delayq.embedded import RedisServer
from celery_delayq.finisher import Finisher
from celery_delayq.job import Aside, Put
from celery_delayq.keys import Keys
from celery_delayq.store import Store

from .worker import wait_for

Finish = Callable[[Sequence[Aside]], object]


@pytest.fixture
def make(server: RedisServer) -> Iterator[Callable[..., Finisher]]:
    """Makes finishers on the server, and stops them."""
    made: list[Finisher] = []

    def make(finish: Finish, on: RedisServer = server, **options: Any) -> Finisher:
        def connect() -> Store:
            return Store(redis.Redis(port=on.port, retry=Retry(NoBackoff(), 0)), Keys("delayq"))

        finisher = Finisher(connect, finish, **options)
        made.append(finisher)
        return finisher

    yield make
    for finisher in made:
        finisher.stop()


def lay_aside(store: Store, *ids: str, lease_us: int = 0) -> None:
    """Jobs that somebody has deleted, and not told."""
    store.put([Put("q", id, id.encode(), in_us=10**9) for id in ids], {"q": Delivery.plain("q")})
    assert all(store.delete("q", ids, lease_us=lease_us))


def left(store: Store) -> set[str]:
    """The ids that lie aside."""
    names = {name.decode() for name in store.client.zrange(store.keys.aside, 0, -1)}
    assert names == {name.decode() for name in store.client.hkeys(store.keys.remains)}
    return {name.partition(":")[2] for name in names}


def ids_of(jobs: Sequence[Aside]) -> list[str]:
    return [job.id for job in jobs]


def ended(finisher: Finisher) -> None:
    wait_for(lambda: not finisher.running, "the finisher has ended")


def test_what_lies_aside_is_finished_and_forgotten(store: Store, make: Callable[..., Finisher]) -> None:
    """Batch after batch, each job with its reason and body; then the thread ends, and can begin again."""
    told: list[Aside] = []
    finisher = make(told.extend, limit=10)
    for turn in ("a", "b"):
        ids = [f"{turn}{number:02}" for number in range(25)]
        lay_aside(store, *ids)
        finisher.begin()
        ended(finisher)
        assert sorted(told, key=lambda job: job.id) == [Aside("revoked", id, id.encode()) for id in ids]
        assert left(store) == set()
        told.clear()


def test_nothing_is_forgotten_before_it_is_finished(store: Store, make: Callable[..., Finisher]) -> None:
    """Whoever finishes a job finds it in Redis still, and nobody else may claim it meanwhile."""
    seen: list[tuple[set[str], list[Aside]]] = []
    lay_aside(store, "x")
    make(lambda jobs: seen.append((left(store), store.claim(1, 10)))).finish_once(store)

    assert seen == [({"x"}, [])]
    assert left(store) == set()


def test_a_death_between_claim_and_forget_loses_nothing(store: Store, make: Callable[..., Finisher]) -> None:
    """What a killed process had claimed, and perhaps told, another tells when the lease is over."""
    lay_aside(store, "x", "y")
    child = os.fork()
    if not child:
        make(lambda jobs: os.kill(os.getpid(), signal.SIGKILL), lease=3600).finish_once(store)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    store.client.connection_pool.disconnect()  # the child has used it, too

    told: list[Aside] = []
    other = make(told.extend)
    assert other.finish_once(store) == 0
    for name in store.client.zrange(store.keys.aside, 0, -1):
        store.client.zadd(store.keys.aside, {name: 0})  # the lease is over
    assert other.finish_once(store) == 2
    assert sorted(ids_of(told)) == ["x", "y"]
    assert left(store) == set()


def test_a_backend_that_is_away(store: Store, make: Callable[..., Finisher], caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is lost, the log says it once, and once that it works again; each job is told when its lease is over."""
    told: list[Aside] = []
    away = True

    def finish(jobs: Sequence[Aside]) -> None:
        if away:
            raise ConnectionError("the backend is away")
        told.extend(jobs)

    lay_aside(store, "x", "y")
    finisher = make(finish, lease=0.0)
    with caplog.at_level(logging.INFO, "celery_delayq.finisher"):
        for _ in range(3):
            finisher.begin()
            ended(finisher)
        assert left(store) == {"x", "y"}
        away = False
        finisher.begin()
        ended(finisher)

    assert sorted(ids_of(told)) == ["x", "y"]
    assert left(store) == set()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "the backend is away" in caplog.text


def test_a_job_that_is_at_fault_holds_up_nobody(store: Store, make: Callable[..., Finisher]) -> None:
    """The others of its batch, and those behind it, are finished; it stays."""
    told: list[str] = []

    def finish(jobs: Sequence[Aside]) -> None:
        if "bad" in ids_of(jobs):
            raise ValueError("bad")
        told.extend(ids_of(jobs))

    lay_aside(store, "a", "bad", "c")
    lay_aside(store, *(f"behind{number}" for number in range(5)))
    finisher = make(finish, limit=4)
    finisher.begin()
    ended(finisher)

    assert sorted(told) == ["a", *(f"behind{number}" for number in range(5)), "c"]
    assert left(store) == {"bad"}


def test_redis_away(own_server: RedisServer, make: Callable[..., Finisher], caplog: pytest.LogCaptureFixture) -> None:
    """The thread ends; it begins again when it is asked to."""
    told: list[Aside] = []
    finisher = make(told.extend, own_server)
    own_server.stop()
    finisher.begin()
    ended(finisher)
    assert "ConnectionError" in caplog.text
    own_server.start()
    with own_server.client() as client:
        lay_aside(Store(client, Keys("delayq")), "x")
    finisher.begin()
    ended(finisher)

    assert ids_of(told) == ["x"]


def test_no_call_of_begin_is_lost(store: Store, make: Callable[..., Finisher]) -> None:
    """Called while it is at work, whatever it is at: it looks again before it ends; there is never a second thread."""
    inside, go_on = threading.Event(), threading.Event()
    threads: set[int] = set()

    def finish(jobs: Sequence[Aside]) -> None:
        threads.add(threading.get_ident())
        inside.set()
        assert go_on.wait(60)

    finisher = make(finish, lease=3600, limit=1)
    lay_aside(store, "x")
    finisher.begin()
    assert inside.wait(60)
    lay_aside(store, "y")
    for _ in range(5):
        finisher.begin()
    go_on.set()
    ended(finisher)

    assert left(store) == set()
    assert len(threads) == 1


def test_stop_waits_for_what_is_under_way(store: Store, make: Callable[..., Finisher]) -> None:
    """That is forgotten, so that nobody tells it again; what is left is left to others."""
    inside, go_on = threading.Event(), threading.Event()
    told: list[str] = []

    def finish(jobs: Sequence[Aside]) -> None:
        told.extend(ids_of(jobs))
        inside.set()
        assert go_on.wait(60)

    lay_aside(store, "x", "y", "z")
    finisher = make(finish, limit=1)
    finisher.begin()
    assert inside.wait(60)
    stopper = threading.Thread(target=finisher.stop, args=(60,))
    stopper.start()
    wait_for(finisher._stopping.is_set, "it knows that it should stop")
    go_on.set()
    stopper.join()

    assert not finisher.running
    assert len(told) == 1
    assert left(store) == {"x", "y", "z"} - set(told)


def test_after_a_fork(store: Store, make: Callable[..., Finisher]) -> None:
    """A child whose parent had a finisher at work has none, and can begin one of its own."""
    inside, go_on = threading.Event(), threading.Event()

    def finish(jobs: Sequence[Aside]) -> None:
        inside.set()
        assert go_on.wait(60)

    finisher = make(finish, limit=1)
    lay_aside(store, "parents")
    finisher.begin()
    assert inside.wait(60)
    child = os.fork()
    if not child:
        status = 1
        try:
            assert not finisher.running
            go_on.set()
            lay_aside(
                Store(redis.Redis(port=store.client.connection_pool.connection_kwargs["port"]), Keys("delayq")), "x"
            )
            finisher.begin()
            ended(finisher)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert left(store) == {"parents"}
    go_on.set()
    ended(finisher)

    assert left(store) == set()


def test_a_dispatcher_begins_it(store: Store, make: Callable[..., Finisher], server: RedisServer) -> None:
    """For what it drops itself, being too late, and for what others have left aside."""
    told: list[Aside] = []
    finisher = make(told.extend)
    lay_aside(store, "left")
    late = [Put("q", f"late{number}", b"late", at_us=1, grace_us=1000) for number in range(3)]
    store.put([*late, Put("q", "good", b"good", at_us=1)], {"q": Delivery.plain("q")})
    dispatcher = Dispatcher(lambda: Store(server.client(), Keys("delayq")), finish=finisher.begin)
    dispatcher.start()
    wait_for(lambda: len(told) == 4, "all are told")
    dispatcher.stop()
    ended(finisher)

    assert sorted((job.reason, job.id) for job in told) == [
        *(("late", f"late{number}") for number in range(3)),
        ("revoked", "left"),
    ]
    assert left(store) == set()
    assert store.client.lrange("q", 0, -1) == [b"good"]
    assert dispatcher.counts.dropped == 3
