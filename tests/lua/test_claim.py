"""claim.lua: what lies aside is finished by one at a time, and by somebody at last."""

from __future__ import annotations

import pytest

from celery_delayq.job import Aside
from celery_delayq.store import Store

from .conftest import NOW, QUEUE, Reader, contents_of, full, job, put


def lay_aside(store: Store, *ids: str, lease_us: int = 0) -> list[Aside]:
    """Jobs that were deleted at NOW, with a lease."""
    put(store, *(job(id) for id in ids))
    store.delete("q", ids, lease_us=lease_us, now_us=NOW)
    return [Aside("revoked", id, b"body of " + id.encode()) for id in ids]


def test_nobody_claims_what_is_leased(store: Store) -> None:
    """As long as whoever deleted it may be about to finish it, to the microsecond."""
    jobs = lay_aside(store, "a", "b", lease_us=60)

    assert store.claim(100, 10, now_us=NOW + 59) == []
    assert store.claim(100, 10, now_us=NOW + 60) == jobs


def test_what_is_claimed_is_leased(store: Store) -> None:
    """Two finishers do not get the same job, unless the first one took too long."""
    (a,) = lay_aside(store, "a")

    assert store.claim(100, 10, now_us=NOW) == [a]
    assert store.claim(100, 10, now_us=NOW + 99) == []
    assert store.claim(100, 10, now_us=NOW + 100) == [a]


def test_the_longest_waiting_come_first_and_no_more_than_asked_for(store: Store) -> None:
    """A claim is bounded; the next one gets the rest."""
    (c,) = lay_aside(store, "c", lease_us=1)
    a, b = lay_aside(store, "a", "b", lease_us=2)

    assert store.claim(100, 2, now_us=NOW + 9) == [c, a]
    assert store.claim(100, 2, now_us=NOW + 9) == [b]


def test_reasons_are_told_apart(store: Store) -> None:
    """One id can lie aside as deleted and as late: each is finished in its own way."""
    lay_aside(store, "a")
    put(store, job("a", 1, grace_us=0, body=b"other"))
    store.dispatch("q", QUEUE, 10, now_us=NOW + 5)

    assert store.claim(100, 10, now_us=NOW + 5) == [Aside("revoked", "a", b"body of a"), Aside("late", "a", b"other")]


def test_a_claim_takes_nothing_away(store: Store, contents: Reader) -> None:
    """Whoever claims may die; only the time changes."""
    lay_aside(store, "a")
    before = contents()

    store.claim(100, 10, now_us=NOW)

    assert contents() == before | {store.keys.aside.encode(): {b"revoked:a": NOW + 100}}


def test_what_has_no_body_is_thrown_away(store: Store) -> None:
    """What an eviction took cannot be finished, and does not come up for ever."""
    a, b = lay_aside(store, "a", "b")
    store.client.hdel(store.keys.remains, a.name)

    assert store.claim(100, 10, now_us=NOW) == [b]
    assert store.client.zrange(store.keys.aside, 0, -1) == [b"revoked:b"]


def test_redis_clock_is_the_clock(store: Store) -> None:
    """Without a time of the caller's, Redis's own counts."""
    put(store, job("a"))
    store.delete("q", ["a"], lease_us=0)

    assert len(store.claim(60_000_000, 10)) == 1
    assert store.claim(60_000_000, 10) == []


def test_nothing_to_claim(store: Store, contents: Reader) -> None:
    """No error, and nothing is created."""
    assert store.claim(100, 10, now_us=NOW) == []
    assert contents() == {}


@pytest.mark.parametrize("id", [b"a:b:c", b"\xff\xfe\x00", b"x" * 10_000, "ü€".encode()])
def test_any_id_comes_back(store: Store, id: bytes) -> None:
    """Colons, bytes that are no text, and 10 kB of them."""
    put(store, job(id))
    store.delete("q", [id], lease_us=0, now_us=NOW)

    assert store.claim(100, 10, now_us=NOW) == [Aside.of("revoked", id, b"body of " + id)]


def test_a_full_redis_lets_claim(store: Store) -> None:
    """Out of memory: the lease cannot be written, yet the job can be finished, which makes room."""
    (a,) = lay_aside(store, "a")
    before = contents_of(store)

    with full(store):
        assert store.claim(100, 10, now_us=NOW) == [a]
        assert before == contents_of(store)
        assert store.forget([a]) == 1
