"""release.lua: what could not be handed over waits again, or is dead."""

from __future__ import annotations

import pytest

from celery_delayq.clock import LATEST_US
from celery_delayq.job import Move, OnConflict
from celery_delayq.store import Store

from .conftest import NOW, QUEUE, Reader, announcements, index, job, leases, put, reserve, totals, waiting


@pytest.fixture
def store(leasing: Store) -> Store:
    return leasing


def test_it_waits_again_at_once(store: Store, contents: Reader) -> None:
    """With its body, its step and its first put; and it is known how often it was reserved."""
    put(store, job("a", 5, step=3, max_wait_us=9), job("b", 6))
    jobs = reserve(store, after=7)

    assert store.release("q", jobs, now_us=NOW + 20) == [True, True]

    keys = store.keys
    held = {
        keys.index: {b"q": NOW + 20},
        keys.topics: {b"q": QUEUE.dumps().encode()},
        keys.schedule("q"): {b"a": NOW + 20, b"b": NOW + 21},
        keys.ties("q"): {b"%d" % (NOW + 20): NOW + 21},
        keys.jobs("q"): {b"a": b"body of a", b"b": b"body of b"},
        keys.steps("q"): {b"a": b"3"},
        keys.firsts("q"): {b"a": b"%d" % NOW},
        keys.attempts("q"): {b"a": b"1", b"b": b"1"},
    }
    assert contents(totals=False) == {key.encode(): value for key, value in held.items()}
    assert totals(store) == {"requeued:q": 2}
    assert [(one.id, one.step, one.attempts) for one in reserve(store, after=21)] == [(b"a", 3, 2), (b"b", 0, 2)]


def test_it_waits_again_later(store: Store) -> None:
    """At a time, or so long from now; what is past is now."""
    put(store, *(job(id, 1) for id in "abc"))
    a, b, c = reserve(store, after=9)

    store.release("q", [a], at_us=NOW + 500, now_us=NOW + 10)
    store.release("q", [b], in_us=40, now_us=NOW + 10)
    store.release("q", [c], at_us=NOW, now_us=NOW + 10)

    assert waiting(store) == {b"c": 10, b"b": 50, b"a": 500}
    assert index(store) == {b"q": 10}


def test_it_is_dead_when_its_attempts_are_used_up(store: Store, contents: Reader) -> None:
    """Never silently: its body, when and why, and how often it was tried."""
    put(store, job("a", 1, step=3, grace_us=10**6))
    for attempt in (1, 2):
        (a,) = reserve(store, after=9)
        assert a.attempts == attempt
        store.release("q", [a], max_attempts=3, now_us=NOW + 9)
    (a,) = reserve(store, after=9)

    assert store.release("q", [a], max_attempts=3, reason="no such\nexchange", now_us=NOW + 10) == [True]

    (dead,) = store.dead("q").jobs
    assert dead == ("q", b"a", b"body of a", NOW + 10, NOW + 9, 3, 3, "no such\nexchange")
    assert totals(store) == {"requeued:q": 2, "dead:q": 1}
    keys = [store.keys.ways, *store.keys.of_dead("q")]
    assert set(contents(totals=False)) == {key.encode() for key in keys}
    assert store.ack("q", [a]) == [False]


def test_what_is_not_counted_is_no_attempt(store: Store) -> None:
    """Nobody could be reached: however often that is so, it uses no attempt up."""
    put(store, job("a", 1))
    (a,) = reserve(store, after=9)
    store.release("q", [a], max_attempts=3, now_us=NOW + 9)
    for _ in range(5):
        (a,) = reserve(store, after=9)
        assert a.attempts == 2
        assert store.release("q", [a], max_attempts=3, counted=False, now_us=NOW + 9) == [True]
    assert store.dead("q").jobs == ()


def test_attempts_begin_anew_with_a_new_job(store: Store, contents: Reader) -> None:
    """Of the same id: put anew, deleted, purged, dispatched or pulled in between."""
    for end in (
        lambda: put(store, job("a", 1, body=b"other"), on_conflict=OnConflict.REPLACE),
        lambda: store.delete("q", ["a"]),
        lambda: store.purge("q"),
        lambda: store.dispatch("q", QUEUE, 10, now_us=NOW + 9),
        lambda: store.pull("q", 10, now_us=NOW + 9),
    ):
        put(store, job("a", 1))
        store.release("q", reserve(store, after=9), now_us=NOW + 9)
        end()
        assert store.keys.attempts("q").encode() not in contents()
        store.purge("q")


def test_a_move_keeps_the_attempts(store: Store) -> None:
    """It is the same job."""
    put(store, job("a", 1))
    store.release("q", reserve(store, after=1), in_us=60, now_us=NOW + 1)
    store.move("q", [Move("a", in_us=5)], now_us=NOW + 2)

    assert [one.attempts for one in reserve(store, after=7)] == [2]


def test_a_grace_counts_from_when_the_job_was_due_at_first(store: Store) -> None:
    """However often it comes back: it is dropped when that is over, and never put off beyond."""
    put(store, job("a", 10, grace_us=100), job("b", 10, grace_us=100))
    a, b = reserve(store, after=20)
    store.release("q", [a], in_us=30, now_us=NOW + 20)
    store.release("q", [b], in_us=10**6, now_us=NOW + 20)

    assert waiting(store) == {b"a": 50, b"b": 111}
    (a,) = reserve(store, after=110)
    store.release("q", [a], in_us=1, now_us=NOW + 110)
    done = store.reserve("q", 10, 60, now_us=NOW + 200)
    assert (done.jobs, done.dropped) == ((), 2)


def test_jobs_come_back_in_their_order(store: Store) -> None:
    """Those of one call keep it, and go behind what waits for that very moment already."""
    put(store, *(job(id, number) for number, id in enumerate("zyx")))
    jobs = reserve(store, after=9)
    put(store, job("m", 50))

    store.release("q", jobs, at_us=NOW + 50, now_us=NOW + 9)

    assert list(waiting(store)) == [b"m", b"z", b"y", b"x"]


def test_a_wrong_token_touches_nothing(store: Store, contents: Reader) -> None:
    """Nor is anything announced."""
    put(store, job("a", 1))
    (a,) = reserve(store, after=1)
    before = contents()

    with announcements(store) as said:
        lost = [a._replace(token="n.2"), a._replace(id=b"b")]
        assert store.release("q", lost, now_us=NOW) == [False, False]
        assert store.release("q", []) == []
        assert said() == []
    assert before == contents()


def test_to_release_again_is_a_lost_lease(store: Store) -> None:
    """Also within one call."""
    put(store, job("a", 1))
    (a,) = reserve(store, after=1)

    assert store.release("q", [a, a], now_us=NOW + 1) == [True, False]


def test_a_dispatcher_hears_of_what_became_the_earliest(store: Store) -> None:
    """And of nothing else; nor of a paused topic."""
    put(store, job("a", 1), job("b", 2), job("c", 3), job("x", 500, topic="r"))
    a, b, c = reserve(store, after=3)
    with announcements(store) as said:
        store.release("q", [a], in_us=700, now_us=NOW + 3)
        assert said() == []
        store.release("q", [b], in_us=100, now_us=NOW + 3)
        assert said() == [103]
        store.pause("q")
        store.release("q", [c], now_us=NOW + 3)
        assert said() == [103]


def test_a_paused_topic_gets_it_back(store: Store) -> None:
    """It waits for the resumption."""
    put(store, job("a", 1))
    jobs = reserve(store, after=1)
    store.pause("q")

    assert store.release("q", jobs, now_us=NOW + 2) == [True]
    assert (waiting(store), index(store)) == ({b"a": 2}, {})


def test_a_time_after_the_year_2255_is_refused(store: Store, contents: Reader) -> None:
    """As by put; nothing has changed."""
    put(store, job("a", 1))
    jobs = reserve(store, after=1)
    before = contents()

    with pytest.raises(ValueError, match="2255"):
        store.release("q", jobs, at_us=LATEST_US + 1)
    assert before == contents()


def test_one_without_a_body_is_dropped_and_counted(store: Store, contents: Reader) -> None:
    """What an eviction took away is not given back."""
    put(store, job("a", 1))
    jobs = reserve(store, after=1)
    store.client.delete(store.keys.reserved("q"))

    assert store.release("q", jobs, now_us=NOW + 1) == [False]
    assert (contents(totals=False), leases(store)) == ({}, {})
    assert totals(store) == {"orphans:q": 1}
