"""ack.lua: what is handed over is gone, if it was still ours."""

from __future__ import annotations

import pytest

from celery_delayq.store import Store

from .conftest import NOW, Reader, job, leases, put, reserve, totals


@pytest.fixture
def store(leasing: Store) -> Store:
    return leasing


def test_what_is_acked_is_gone_and_counted(store: Store, contents: Reader) -> None:
    """Nothing of it is left, nor of its topic."""
    put(store, job("a", 1, step=3, max_wait_us=9, grace_us=70), job("b", 2), job("c", 3))
    jobs = reserve(store, after=3)

    assert store.ack("q", jobs[:2]) == [True, True]
    assert leases(store) == {b"c": 1_000_003}
    assert store.ack("q", jobs[2:]) == [True]

    assert contents(totals=False) == {}
    assert totals(store) == {"moved:q": 3}


def test_to_ack_again_is_a_lost_lease(store: Store, contents: Reader) -> None:
    """Also within one call; and it counts once."""
    put(store, job("a", 1))
    (a,) = reserve(store, after=1)

    assert store.ack("q", [a, a]) == [True, False]
    assert store.ack("q", [a]) == [False]
    assert totals(store) == {"moved:q": 1}


def test_a_wrong_token_touches_nothing(store: Store, contents: Reader) -> None:
    """A part of it, an empty one, that of another job."""
    put(store, job("a", 1), job("b", 2))
    a, b = reserve(store, after=2)
    before = contents()

    wrong = [a._replace(token=token) for token in ("n", "", "n.", "n.2", "n.1 1", "n.11", "N.1")]
    assert store.ack("q", [*wrong, b._replace(id=b"c")]) == [False] * 8
    assert before == contents()


def test_a_lease_that_has_run_out_can_be_acked_until_it_is_taken_back(store: Store) -> None:
    """The job was handed over: better late than twice. Afterwards it is another's."""
    put(store, job("a", 1), job("b", 1000))
    (a,) = reserve(store, after=1, lease=5)
    assert store.ack("q", [a]) == [True]

    (b,) = reserve(store, after=1000, lease=5)
    store.requeue("q", 10, backoff_us=0, now_us=NOW + 1005)
    assert store.ack("q", [b]) == [False]
    (again,) = reserve(store, after=1005, nonce="m")
    assert (store.ack("q", [b]), store.ack("q", [again])) == ([False], [True])


def test_other_leases_keep_their_time(store: Store) -> None:
    """The first that runs out may be the one that is acked."""
    put(store, job("a", 1), job("b", 2))
    (a,) = reserve(store, 1, after=2, lease=50)
    reserve(store, 1, after=2, lease=90)

    store.ack("q", [a])

    assert [store.tick(now_us=NOW + after).expired for after in (91, 92)] == [(), ("q",)]


def test_many_at_once_among_lost_ones(store: Store, contents: Reader) -> None:
    """Past a portion of 100: each is answered in its place."""
    put(store, *(job(f"{number:03}", number) for number in range(350)))
    jobs = reserve(store, 350, after=350)
    store.ack("q", jobs[::3])

    assert store.ack("q", jobs) == [number % 3 != 0 for number in range(350)]
    assert contents(totals=False) == {}
    assert totals(store) == {"moved:q": 350}


def test_nothing_to_ack(store: Store) -> None:
    """No call at all."""
    assert store.ack("q", []) == []


def test_a_script_that_redis_forgot_is_loaded_again(store: Store) -> None:
    """SCRIPT FLUSH between any two verbs."""
    put(store, job("a", 1), job("b", 2))
    for verb in (store.extend, store.release):
        store.client.script_flush()
        jobs = reserve(store, 1, after=9)
        store.client.script_flush()
        more = (60,) if verb == store.extend else ()
        assert verb("q", jobs, *more, now_us=NOW + 9) == [True]
    store.client.script_flush()
    assert store.ack("q", reserve(store, after=9)) == [True]
