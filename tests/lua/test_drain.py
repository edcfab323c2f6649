"""drain.lua: what waits is ready, with another body, exactly once."""

from __future__ import annotations

import pytest

from celery_delayq.delivery import Delivery
from celery_delayq.job import Move, OnConflict, Waiting
from celery_delayq.store import Store, Upcoming

from .conftest import NOW, QUEUE, Reader, full, index, job, popped, put, totals, waiting


def drain(store: Store, *ids: str, topic: str = "q", delivery: Delivery = QUEUE) -> list[bool]:
    """Drain those that wait as they are, each with "new" before its body; or what was read of them earlier."""
    return store.drain(topic, delivery, [(one, b"new " + (one.body or b"")) for one in read(store, *ids, topic=topic)])


def read(store: Store, *ids: str, topic: str = "q") -> list[Waiting]:
    jobs = {one.id.decode(): one for one in store.page(topic).jobs}
    return [jobs[id] for id in ids or jobs]


def test_what_waits_is_pushed_with_its_new_body(store: Store, contents: Reader) -> None:
    """To the ready lists of its step, before it is due; of the last one nothing is left but the count."""
    put(store, job("a", 5), job("b", 7, step=6, max_wait_us=50, grace_us=70), job("c", 7))

    assert drain(store, "a", "b", "c") == [True] * 3

    assert popped(store) == [b"new body of a", b"new body of c"]
    assert popped(store, QUEUE.lists[2]) == [b"new body of b"]
    assert set(contents()) == {b"q", QUEUE.lists[2].encode(), store.keys.totals.encode()}
    assert totals(store) == {"moved:q": 3}


def test_only_what_is_still_as_it_was_read(store: Store) -> None:
    """What was moved, replaced, deleted, dispatched or drained meanwhile is none of ours."""
    put(store, job("moved", 5), job("replaced", 6), job("deleted", 7), job("dispatched", 1), job("drained", 8))
    jobs = [(one, b"new") for one in read(store)]
    store.move("q", [Move("moved", at_us=NOW + 9)], now_us=NOW)
    put(store, job("replaced", 6, body=b"other"), on_conflict=OnConflict.REPLACE)
    store.delete("q", ["deleted"])
    store.dispatch("q", QUEUE, 1, now_us=NOW + 1)
    drain(store, "drained")

    assert store.drain("q", QUEUE, jobs) == [False] * 5
    assert set(waiting(store)) == {b"moved", b"replaced"}
    assert sorted(popped(store)) == [b"body of dispatched", b"new body of drained"]


def test_the_index_moves_on(store: Store) -> None:
    """Dispatchers wait for what is left."""
    put(store, job("a", 5), job("b", 9))

    drain(store, "a")

    assert store.tick(now_us=NOW).next == Upcoming(NOW + 9, "q", QUEUE)


def test_a_pause_outlives_it_and_a_rate_does_not(store: Store, contents: Reader) -> None:
    """A paused topic is drained, too, if its jobs are named; it stays paused."""
    put(store, job("a", 5), job("b", 6), job("x", 5, topic="r"))
    store.pause("q")
    store.resume("r", 1000.0, now_us=NOW + 9)

    assert drain(store, "a") == [True]
    assert index(store) == {b"r": 9}
    assert drain(store, "b") == [True]
    assert drain(store, "x", topic="r", delivery=Delivery.plain("r")) == [True]

    assert store.paused() == {"q"}
    assert store.keys.rates.encode() not in contents()


def test_a_queue_that_expires_lives_on(store: Store) -> None:
    """As after Kombu's own push."""
    delivery = Delivery((0, 5), ("q", "q5"), expires_ms=10**6)
    put(store, job("a", 5))

    drain(store, "a", delivery=delivery)

    assert 0 < store.client.pttl("q") <= 10**6


def test_a_full_redis_can_be_left(store: Store) -> None:
    """It frees before it pushes."""
    put(store, *(job(f"{number}", number + 1, body=b"x" * 1000) for number in range(200)))
    jobs = read(store)
    with full(store):
        assert all(store.drain("q", QUEUE, [(one, b"y" * 1100) for one in jobs]))

    assert store.client.llen("q") == 200


def test_nothing_to_drain(store: Store, contents: Reader) -> None:
    """No jobs: no error, and nothing is created."""
    assert store.drain("q", QUEUE, []) == []
    assert store.drain("q", QUEUE, [(Waiting("q", b"a", NOW, b"body"), b"new")]) == [False]
    assert contents() == {}


@pytest.mark.parametrize("count", ["many", "1"])
def test_a_count_that_is_no_number_stops_nobody(store: Store, count: str) -> None:
    """What somebody wrote by hand where a count should stand: drained all the same."""
    put(store, job("a"))
    store.client.hset(store.keys.totals, "moved:q", count)

    assert drain(store, "a") == [True]
