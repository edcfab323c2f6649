"""discard.lua: dead jobs are thrown away when somebody says so."""

from __future__ import annotations

import pytest

from celery_delayq.store import Store

from .conftest import NOW, Reader, full, job, put, reserve


@pytest.fixture
def store(leasing: Store) -> Store:
    """Two dead jobs."""
    put(leasing, job("a", 1), job("b", 2))
    leasing.release("q", reserve(leasing, after=9), max_attempts=1, now_us=NOW + 9)
    return leasing


def test_what_is_discarded_is_gone(store: Store, contents: Reader) -> None:
    """For good; with the last one all that there was of the topic."""
    assert store.discard("q", ["a", "missing", "a"]) == [True, False, False]
    assert [one.id for one in store.dead("q").jobs] == [b"b"]
    assert store.discard("q", ["b"]) == [True]
    assert contents(totals=False) == {}


def test_only_the_dead(store: Store, contents: Reader) -> None:
    """Not what waits or is reserved under the same id."""
    put(store, job("a", 20), job("b", 20))
    (a,) = reserve(store, 1, after=20)

    assert store.discard("q", ["a", "b"]) == [True, True]
    assert store.discard("q", []) == []
    assert store.leased() == {"q"}
    assert [one.state for one in (*store.find("a"), *store.find("b"))] == ["reserved", "waiting"]
    assert store.ack("q", [a]) == [True]
    assert store.leased() == set()


def test_a_full_redis_can_discard(store: Store) -> None:
    """It is one way to make room."""
    with full(store):
        assert store.discard("q", ["a"]) == [True]
