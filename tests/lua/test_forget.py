"""forget.lua: what is finished is gone."""

from __future__ import annotations

from celery_delayq.job import Aside
from celery_delayq.store import Store

from .conftest import NOW, Reader, full, job, put


def test_the_last_one_leaves_nothing_behind(store: Store, contents: Reader) -> None:
    """Only what is named goes, with its body; the caller is told how many were there."""
    put(store, job("a"), job("b"))
    store.delete("q", ["a", "b"], lease_us=60, now_us=NOW)

    assert store.forget([Aside("revoked", "a", b"whatever"), Aside("revoked", "x", b"")]) == 1
    assert contents(totals=False) == {
        b"delayq:{0}:aside": {b"revoked:b": NOW + 60},
        b"delayq:{0}:remains": {b"revoked:b": b"body of b"},
    }
    assert store.forget([Aside("revoked", "b", b"body of b")] * 2) == 1
    assert contents(totals=False) == {}


def test_the_reason_counts(store: Store) -> None:
    """One that was deleted is not one that came too late."""
    put(store, job("a"))
    store.delete("q", ["a"], lease_us=0, now_us=NOW)

    assert store.forget([Aside("late", "a", b"body of a")]) == 0
    assert len(store.claim(100, 10, now_us=NOW)) == 1


def test_a_waiting_job_of_that_id_stays(store: Store) -> None:
    """It was put anew since, and is another one."""
    put(store, job("a"))
    store.delete("q", ["a"], lease_us=0, now_us=NOW)
    put(store, job("a"))

    store.forget([Aside("revoked", "a", b"")])

    assert len(store.find("a")) == 1


def test_nothing_to_forget(store: Store, contents: Reader) -> None:
    """No names: no call; unknown ones: no error, nothing created."""
    assert store.forget([]) == 0
    assert store.forget([Aside("revoked", "a", b"")]) == 0
    assert contents() == {}


def test_a_full_redis_forgets(store: Store) -> None:
    """Out of memory: it only makes room."""
    put(store, job("a"))
    store.delete("q", ["a"], lease_us=0, now_us=NOW)
    with full(store):
        assert store.forget([Aside("revoked", "a", b"")]) == 1
