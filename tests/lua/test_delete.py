"""delete.lua: what waited is gone, and the caller is told."""

from __future__ import annotations

import pytest

from celery_delayq.job import Aside, OnConflict
from celery_delayq.store import Store, Upcoming

from .conftest import NOW, QUEUE, Reader, announcements, full, index, job, leases, put, reserve, totals, waiting


def test_delete_says_for_each_id_whether_it_waited(store: Store) -> None:
    """Of ids that wait, that never did, and named twice, each gets its own answer."""
    put(store, job("a"), job("b"), job("c"))

    assert store.delete("q", ["a", "x", "c", "a"]) == [True, False, True, False]
    assert list(waiting(store)) == [b"b"]


def test_the_last_delete_leaves_nothing_behind(store: Store, contents: Reader) -> None:
    """Body, priority, debounce, grace, ties and the topic itself go with the last job; what is left is the count."""
    put(store, job("a", 5, step=3, max_wait_us=50, grace_us=70), job("b", 5))

    store.delete("q", ["a"])
    assert not {store.keys.steps("q").encode(), store.keys.graces("q").encode()} & set(contents())
    store.delete("q", ["b"])

    assert contents() == {store.keys.totals.encode(): {b"cancelled:q": b"2"}}


def test_delete_moves_the_index_on(store: Store) -> None:
    """When the earliest job is deleted, dispatchers wait for the next one."""
    put(store, job("a", 5), job("b", 9))

    store.delete("q", ["a"])

    assert store.tick(now_us=NOW).next == Upcoming(NOW + 9, "q", QUEUE)


def test_a_job_is_either_deleted_or_dispatched(store: Store) -> None:
    """After a dispatch, delete answers no; after a delete, dispatch moves nothing."""
    put(store, job("a", 1), job("b", 2))
    assert store.delete("q", ["a"]) == [True]

    assert store.dispatch("q", QUEUE, 10, now_us=NOW + 2).moved == 1
    assert store.delete("q", ["b"]) == [False]
    assert store.client.lrange("q", 0, -1) == [b"body of b"]


def test_nothing_to_delete(store: Store, contents: Reader) -> None:
    """No ids, or an unknown topic: no error, and nothing is created."""
    assert store.delete("q", []) == []
    assert store.delete("unknown", ["a"]) == [False]
    assert contents() == {}


def test_an_empty_id_is_answered_like_any_that_does_not_wait(store: Store) -> None:
    """Nobody can have put it, so it does not wait."""
    assert store.delete("q", [""]) == [False]


def test_only_what_waited_is_counted(store: Store) -> None:
    """The total of a topic grows with what was taken back, and with nothing else."""
    put(store, job("a"), job("b"), job("x", topic="r"))

    store.delete("q", ["a", "x", "a"])
    store.delete("q", ["a"])
    store.delete("r", ["x"])

    assert totals(store) == {"cancelled:q": 1, "cancelled:r": 1}


def test_a_count_that_is_no_number_stops_nobody(store: Store) -> None:
    """What somebody wrote by hand where a count should stand: the jobs are deleted all the same."""
    put(store, job("a"), job("b"))
    store.client.hset(store.keys.totals, "cancelled:q", "many")

    assert store.delete("q", ["a"]) == [True]
    assert store.purge("q") == 1


def test_with_a_body_only_that_very_job_is_deleted(store: Store, contents: Reader) -> None:
    """What was put anew under the same id since the caller read it stays, and so does what has no body at all."""
    put(store, job("a"), job("b"), job("orphan"))
    store.client.hdel(store.keys.jobs("q"), "orphan")
    put(store, job("a", body=b"newer"), on_conflict=OnConflict.REPLACE)
    before = contents()

    read = [b"body of a", b"body of orphan", b""]
    assert store.delete("q", ["a", "orphan", "missing"], bodies=read) == [False, False, False]
    assert before == contents()
    assert store.delete("q", ["b", "a"], bodies=[b"body of b", b"newer"]) == [True, True]


def test_with_a_lease_the_job_lies_aside(store: Store, contents: Reader) -> None:
    """Its body stays at hand for the caller, and after the lease for anybody; as a job it is gone."""
    put(store, job("a", step=3), job("b"))

    assert store.delete("q", ["a", "b", "missing"], lease_us=60, now_us=NOW) == [True, True, False]

    assert contents(totals=False) == {
        b"delayq:{0}:aside": {b"revoked:a": NOW + 60, b"revoked:b": NOW + 60},
        b"delayq:{0}:remains": {b"revoked:a": b"body of a", b"revoked:b": b"body of b"},
    }
    assert store.delete("q", ["a"], lease_us=90, now_us=NOW) == [False]


def test_a_lease_counts_from_redis_own_clock(store: Store) -> None:
    """Without a time of the caller's."""
    put(store, job("a"))
    before = store.now_us()

    store.delete("q", ["a"], lease_us=60_000_000)

    until = store.client.zscore(store.keys.aside, "revoked:a")
    assert before + 60_000_000 <= until <= store.now_us() + 60_000_000


def test_what_has_no_body_does_not_lie_aside(store: Store, contents: Reader) -> None:
    """There is nothing left of it to finish."""
    put(store, job("orphan"))
    store.client.delete(store.keys.jobs("q"))

    assert store.delete("q", ["orphan"], lease_us=60) == [True]
    assert contents(totals=False) == {}


def test_one_id_of_two_topics_lies_aside_once(store: Store) -> None:
    """It is one task, and its end is told once; the later lease counts."""
    put(store, job("a"), job("a", topic="r"))

    store.delete("q", ["a"], lease_us=60, now_us=NOW)
    store.delete("r", ["a"], lease_us=90, now_us=NOW)

    assert store.claim(1, 10, now_us=NOW + 89) == []
    assert store.claim(1, 10, now_us=NOW + 90) == [Aside("revoked", "a", b"body of a")]


def test_delete_from_a_paused_topic(store: Store, contents: Reader) -> None:
    """It does not bring the topic back into the index, and the pause outlives the last job."""
    put(store, job("a", 5), job("b", 9))
    store.pause("q")

    with announcements(store) as said:
        store.delete("q", ["a"])
        assert said() == []
    assert index(store) == {}

    store.delete("q", ["b"])
    assert contents(totals=False) == {store.keys.holds.encode(): {b"q": float("inf")}}
    assert store.paused() == {"q"}


def test_a_topic_held_back_is_looked_at_when_its_turn_comes(store: Store) -> None:
    """Deleting the earliest job does not let the next one leave before its turn."""
    put(store, job("a", 1), job("b", 2), job("c", 3))
    store.resume("q", 1_000_000.0, now_us=NOW + 3)
    store.dispatch("q", QUEUE, 10, now_us=NOW + 3)

    store.delete("q", ["b"])

    assert index(store) == {b"q": 1_000_003}


def test_nothing_of_a_rate_outlives_the_last_job(store: Store, contents: Reader) -> None:
    """A topic with nothing left has caught up."""
    put(store, job("a", 1), job("b", 2))
    store.resume("q", 1_000_000.0, now_us=NOW + 3)
    store.dispatch("q", QUEUE, 10, now_us=NOW + 3)

    store.delete("q", ["b"])

    assert contents(totals=False) == {b"q": [b"body of a"]}


def test_a_full_redis_takes_back(store: Store, contents: Reader) -> None:
    """Out of memory: whoever deletes makes room; with a lease, too, nothing is lost."""
    put(store, job("a"), job("b"), job("c"))
    store.pause("r")
    with full(store):
        assert store.delete("q", ["missing", "a"], lease_us=60, now_us=NOW) == [False, True]
        assert store.delete("q", ["b"], bodies=[b"body of b"]) == [True]
        assert store.delete("r", ["x"]) == [False]

    assert store.claim(1, 10, now_us=NOW + 60) == [Aside("revoked", "a", b"body of a")]
    assert waiting(store) == {b"c": 3}
    assert totals(store) == {"cancelled:q": 2}


@pytest.mark.parametrize("id", [b"\xff\x00:revoked:", b"x" * 10_000, "ü:€"], ids=["binary", "10 kB", "text"])
def test_any_id_can_be_taken_back(store: Store, id: str | bytes) -> None:
    """Ids are bytes of any kind and length, aside as well."""
    put(store, job(id, body=b"body"))

    assert store.delete("q", [id], bodies=[b"body"], lease_us=0, now_us=NOW) == [True]
    (aside,) = store.claim(60, 10, now_us=NOW)
    assert aside.id.encode(errors="surrogateescape") == (id.encode() if isinstance(id, str) else id)
    assert store.forget([aside]) == 1


def test_what_is_reserved_is_left_alone_unless_it_is_meant(store: Store) -> None:
    """Somebody is handing it over at this moment: that it is taken back must be the caller's wish."""
    put(store, job("a"))
    [held] = reserve(store, after=1)

    assert store.delete("q", ["a"]) == [False]
    assert store.ack("q", [held]) == [True]


def test_a_reserved_job_is_deleted_and_its_lease_lost(store: Store, contents: Reader) -> None:
    """Whoever had it is told so by whatever he tries; nothing but the count is left behind."""
    store = Store(store.client, store.keys, leases=True)
    put(store, job("a", 1, step=3, max_wait_us=50, grace_us=70))
    [held] = reserve(store, after=1)

    assert store.delete("q", ["a", "a", "x"], reserved=True) == [True, False, False]

    assert contents() == {store.keys.totals.encode(): {b"cancelled:q": b"1"}}
    assert store.extend("q", [held], 9) == store.release("q", [held]) == store.ack("q", [held]) == [False]


def test_the_leases_of_others_go_on(store: Store) -> None:
    """The first of them that runs out is the next to look at; and those who wait, wait."""
    store = Store(store.client, store.keys, leases=True)
    put(store, job("a"), job("b"), job("c", 900))
    reserve(store, 1, after=9, lease=10)
    reserve(store, 1, after=9, lease=20)

    assert store.delete("q", ["a"], reserved=True) == [True]
    assert leases(store) == {b"b": 29}
    assert store.expiries() == {"q": NOW + 29}

    assert store.delete("q", ["b", "c"], reserved=True) == [True, True]
    assert (store.expiries(), store.leased(), waiting(store)) == ({}, set(), {})


def test_the_way_of_the_dead_stays(store: Store) -> None:
    """With the last reserved job gone, the dead ones of the topic can still be revived."""
    store = Store(store.client, store.keys, leases=True)
    put(store, job("a"), job("b"))
    dead, _ = reserve(store, after=9)
    store.release("q", [dead], max_attempts=1)

    assert store.delete("q", ["b"], reserved=True) == [True]
    assert store.leased() == {"q"}
    assert store.revive("q", ["a"]) == [True]
    assert store.delete("q", ["a"], reserved=True) == [True]


def test_a_reserved_job_of_another_body_stays(store: Store) -> None:
    """As one that waits does; and with a lease, what is deleted lies aside with its body."""
    store = Store(store.client, store.keys, leases=True)
    put(store, job("a"), job("b"))
    reserve(store, after=9)

    assert store.delete("q", ["a"], bodies=[b"other"], reserved=True) == [False]
    assert store.delete("q", ["a", "b"], bodies=[b"body of a"] * 2, lease_us=5, reserved=True, now_us=NOW) == [
        True,
        False,
    ]
    assert store.revoked(["a", "b"]) == [Aside("revoked", "a", b"body of a")]
    assert leases(store).keys() == {b"b"}
