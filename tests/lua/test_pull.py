"""pull.lua: what is due is taken once and for all."""

from __future__ import annotations

import pytest

from celery_delayq.job import Waiting
from celery_delayq.store import Store

from .conftest import NOW, Reader, full, index, job, put, reserve, totals, waiting


def pull(store: Store, limit: int = 10, *, after: int = 0) -> list[bytes]:
    """The ids that come, so many microseconds after NOW."""
    return [one.id for one in store.pull("q", limit, now_us=NOW + after)]


def test_what_is_due_is_taken_in_order(store: Store, contents: Reader) -> None:
    """With its step and its body; the others wait on, and at last nothing is left."""
    put(store, job("b", 2, step=6, max_wait_us=9, grace_us=50), job("a", 1), job("later", 90))

    assert store.pull("q", 10, now_us=NOW + 3) == [
        Waiting("q", b"a", NOW + 1, b"body of a"),
        Waiting("q", b"b", NOW + 2, b"body of b", 6),
    ]
    assert (waiting(store), index(store)) == ({b"later": 90}, {b"q": 90})
    assert pull(store, after=89) == []
    assert pull(store, after=90) == [b"later"]
    assert contents(totals=False) == {}
    assert totals(store) == {"moved:q": 3}


@pytest.mark.parametrize("limit", [1, 20, 21, 1000])
def test_a_call_takes_no_more_than_its_limit(store: Store, limit: int) -> None:
    """A backlog goes in bounded batches, in order."""
    put(store, *(job(b"%04d" % number, number) for number in range(300)))

    taken: list[bytes] = []
    while some := pull(store, limit, after=2000):
        assert len(some) <= limit
        taken += some

    assert taken == [b"%04d" % number for number in range(300)]


def test_large_bodies_make_smaller_batches(store: Store) -> None:
    """No more than 8 MB at once; but one job always."""
    for number in range(11):
        put(store, job(f"{number:02}", number, body=b"x" * 1_000_000))
    put(store, job("whale", 40, body=b"x" * 9_000_000))

    assert [len(pull(store, 100, after=100)) for _ in range(4)] == [8, 3, 1, 0]


def test_a_hold_holds(store: Store) -> None:
    """A pause, and a rate."""
    put(store, job("a", 1), job("b", 2), job("c", 3))
    store.pause("q")
    assert pull(store, after=10**9) == []
    store.resume("q", 1_000_000.0, now_us=NOW + 9)

    assert [pull(store, after=after) for after in (9, 10, 1_000_009)] == [[b"a"], [], [b"b"]]


def test_what_is_late_or_without_a_body(store: Store) -> None:
    """Laid aside, dropped, and counted."""
    put(store, job("late", 1, grace_us=0), job("gone", 2), job("a", 3))
    store.client.hdel(store.keys.jobs("q"), "gone")

    assert pull(store, after=9) == [b"a"]
    assert totals(store) == {"moved:q": 1, "dropped:q": 1, "orphans:q": 1}
    assert [one.id for one in store.claim(60, 10, now_us=NOW + 9)] == ["late"]


def test_a_full_redis_still_drains(store: Store) -> None:
    """Out of memory: what is due comes."""
    put(store, *(job(f"{number:03}", number) for number in range(300)))
    with full(store):
        assert pull(store, after=-1) == []
        assert len(pull(store, 1000, after=1000)) == 300


def test_what_is_reserved_is_not_pulled(leasing: Store, contents: Reader) -> None:
    """And what came back is pulled as any other; nothing is left of it."""
    put(leasing, job("a", 1), job("b", 2))
    a, b = reserve(leasing, after=2)
    assert pull(leasing, after=9) == []
    leasing.release("q", [a, b], now_us=NOW + 9)

    assert pull(leasing, after=10) == [b"a", b"b"]
    assert contents(totals=False) == {}
