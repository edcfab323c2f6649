"""extend.lua: a lease begins anew, if it was still ours."""

from __future__ import annotations

import pytest

from celery_delayq.store import Store

from .conftest import NOW, Reader, full, job, leases, put, reserve


@pytest.fixture
def store(leasing: Store) -> Store:
    return leasing


def test_a_lease_is_made_longer_or_shorter(store: Store) -> None:
    """It ends so long from now, to the microsecond; nothing else has changed."""
    put(store, job("a", 1), job("b", 2), job("c", 3))
    a, b, c = reserve(store, after=3, lease=50)

    assert store.extend("q", [a, c], 100, now_us=NOW + 10) == [True, True]
    assert store.extend("q", [c], 5, now_us=NOW + 10) == [True]

    assert leases(store) == {b"c": 15, b"b": 53, b"a": 110}
    assert [store.tick(now_us=NOW + after).expired for after in (14, 15)] == [(), ("q",)]
    assert store.ack("q", [a, b, c]) == [True] * 3


def test_one_that_has_run_out_can_be_had_again(store: Store) -> None:
    """As long as nobody has taken the job back."""
    put(store, job("a", 1), job("b", 2))
    a, b = reserve(store, after=2, lease=5)
    store.requeue("q", 1, now_us=NOW + 7)

    assert store.extend("q", [a, b], 60, now_us=NOW + 9) == [False, True]
    assert leases(store) == {b"b": 69}


def test_a_wrong_token_touches_nothing(store: Store, contents: Reader) -> None:
    """Neither a lease nor the time at which somebody looks after it."""
    put(store, job("a", 1))
    (a,) = reserve(store, after=1)
    before = contents()

    assert store.extend("q", [a._replace(token="n"), a._replace(id=b"b")], 60, now_us=NOW) == [False, False]
    assert store.extend("q", [], 60) == []
    assert before == contents()


def test_a_full_redis_extends(store: Store) -> None:
    """A publish that takes its time may well be the reason that nothing drains."""
    put(store, job("a", 1))
    jobs = reserve(store, after=1)
    with full(store):
        assert store.extend("q", jobs, 60, now_us=NOW + 1) == [True]
    assert leases(store) == {b"a": 61}
