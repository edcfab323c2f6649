"""requeue.lua: what nobody acked in time comes back, again and again, but not for ever."""

from __future__ import annotations

import pytest

from celery_delayq.delivery import Delivery
from celery_delayq.store import Store

from .conftest import NOW, QUEUE, Reader, announcements, job, leases, put, reserve, totals, waiting

SECOND = 1_000_000


@pytest.fixture
def store(leasing: Store) -> Store:
    return leasing


def test_only_what_has_run_out_comes_back(store: Store) -> None:
    """To the microsecond, the first that ran out first, with a back-off."""
    put(store, job("a", 1), job("b", 2), job("c", 3))
    reserve(store, 1, after=3, lease=50)
    reserve(store, 1, after=3, lease=49)
    reserve(store, 1, after=3, lease=51)

    assert store.requeue("q", 10, now_us=NOW + 51) == 0
    assert store.requeue("q", 10, now_us=NOW + 53) == 2

    assert waiting(store) == {b"b": 53 + SECOND, b"a": 54 + SECOND}
    assert leases(store) == {b"c": 54}
    assert totals(store) == {"requeued:q": 2}


def test_a_call_ends_no_more_than_its_limit(store: Store) -> None:
    """The next one goes on."""
    put(store, *(job(f"{number:02}", number) for number in range(50)))
    reserve(store, 50, after=50, lease=5)

    assert [store.requeue("q", 20, now_us=NOW + 90) for _ in range(4)] == [20, 20, 10, 0]


def test_each_attempt_is_followed_by_a_longer_pause(store: Store) -> None:
    """Twice as long, a minute at most; also after so many attempts that nobody can count as far."""
    put(store, job("a", 0))
    now, pauses = 0, []
    for _ in range(9):
        assert len(reserve(store, after=now, lease=1)) == 1
        store.requeue("q", 10, now_us=NOW + now + 1)
        pauses.append(waiting(store)[b"a"] - now - 1)
        now = waiting(store)[b"a"]
    assert [pause / SECOND for pause in pauses] == [1, 2, 4, 8, 16, 32, 60, 60, 60]

    store.client.hset(store.keys.attempts("q"), "a", 5000)
    reserve(store, after=now, lease=1)
    store.requeue("q", 10, backoff_us=0, now_us=NOW + now + 1)
    assert waiting(store)[b"a"] == now + 1


def test_what_was_reserved_too_often_is_dead(store: Store) -> None:
    """With its body, when and why; the others come back."""
    put(store, job("a", 1), job("b", 90, step=3))
    reserve(store, after=1, lease=1)
    store.requeue("q", 10, backoff_us=0, now_us=NOW + 2)
    reserve(store, after=90, lease=1)

    assert store.requeue("q", 10, max_attempts=2, now_us=NOW + 91) == 2

    (dead,) = store.dead("q").jobs
    assert (dead.id, dead.body, dead.died_us, dead.attempts) == (b"a", b"body of a", NOW + 91, 2)
    assert dead.reason == "its lease ran out"
    assert list(waiting(store)) == [b"b"]
    assert totals(store) == {"requeued:q": 2, "dead:q": 1}


def test_options_come_back(store: Store, contents: Reader) -> None:
    """The step, the first put for a max_wait, the grace up to the same end."""
    put(store, job("a", 5, step=3, max_wait_us=9, grace_us=3 * SECOND))
    reserve(store, after=7, lease=10)

    store.requeue("q", 10, now_us=NOW + 17)

    found = contents(totals=False)
    keys = store.keys
    assert waiting(store) == {b"a": 17 + SECOND}
    assert found[keys.steps("q").encode()] == {b"a": b"3"}
    assert found[keys.firsts("q").encode()] == {b"a": b"%d" % NOW}
    assert found[keys.graces("q").encode()] == {b"a": b"%d" % (2 * SECOND - 12)}
    assert store.find("a")[0].state == "waiting"


def test_the_way_to_its_queue_comes_back(store: Store) -> None:
    """Though the topic was empty meanwhile."""
    put(store, job("a", 1))
    reserve(store, after=1, lease=1)
    assert store.topics() == {}

    store.requeue("q", 10, now_us=NOW + 2)

    assert store.topics() == {"q": QUEUE}
    assert store.leased() == set()


def test_a_newer_way_stays(store: Store) -> None:
    """What a later put said of the queue is not undone."""
    put(store, job("a", 1))
    reserve(store, after=1, lease=1)
    store.put([job("b", 500)], {"q": Delivery.plain("elsewhere")}, now_us=NOW)

    store.requeue("q", 10, now_us=NOW + 2)

    assert store.topics() == {"q": Delivery.plain("elsewhere")}


def test_a_dispatcher_hears_of_it(store: Store) -> None:
    """As of a put that became the earliest."""
    put(store, job("a", 1))
    reserve(store, after=1, lease=1)
    with announcements(store) as said:
        store.requeue("q", 10, backoff_us=40, now_us=NOW + 2)
        assert said() == [42]


def test_a_large_backlog_of_large_bodies_is_bounded(store: Store) -> None:
    """No more than 8 MB at once, but one always."""
    for number in range(12):
        put(store, job(f"{number:02}", number, body=b"x" * 1_000_000))
    reserve(store, after=20, lease=1)
    put(store, job("whale", 1, body=b"x" * 9_000_000))
    reserve(store, 1, after=20, lease=1)

    assert [store.requeue("q", 100, now_us=NOW + 90) for _ in range(3)] == [8, 1, 0]


def test_what_cannot_be_understood_comes_back_all_the_same(store: Store) -> None:
    """Nothing that stands in Redis can make a job disappear."""
    put(store, *(job(id, number) for number, id in enumerate("abc")))
    reserve(store, after=9, lease=1)
    store.client.hset(store.keys.tickets("q"), "a", "what is that")
    store.client.hdel(store.keys.tickets("q"), "b")
    store.client.hset(store.keys.tickets("q"), "c", "n.3 many soon high once long")

    assert store.requeue("q", 10, now_us=NOW + 90) == 3
    assert set(waiting(store)) == {b"a", b"b", b"c"}


def test_one_without_a_body_is_dropped_and_counted(store: Store, contents: Reader) -> None:
    """Orphans block nobody, and nobody looks for them for ever."""
    put(store, job("a", 1), job("b", 2))
    reserve(store, after=2, lease=1)
    store.client.hdel(store.keys.reserved("q"), "a")

    assert store.requeue("q", 10, now_us=NOW + 90) == 1
    assert list(waiting(store)) == [b"b"]
    assert totals(store) == {"requeued:q": 1, "orphans:q": 1}
    assert store.tick(now_us=NOW + 99).expired == ()


def test_a_count_that_is_no_number_stops_nobody(store: Store) -> None:
    """What somebody wrote by hand where a count should stand."""
    put(store, job("a", 1), job("b", 2))
    reserve(store, after=2, lease=1)
    store.client.hset(store.keys.totals, mapping={f"{word}:q": "many" for word in ("requeued", "dead")})

    assert store.requeue("q", 1, now_us=NOW + 90) == 1
    assert store.requeue("q", 1, max_attempts=1, now_us=NOW + 90) == 1
    assert (list(waiting(store)), len(store.dead("q").jobs)) == ([b"a"], 1)


def test_what_is_due_by_its_grace_is_left(store: Store) -> None:
    """Its grace ended before the back-off does: it may leave now, and the caller is told, whatever else is due."""
    put(store, job("a", 5, grace_us=10), job("x", 1, topic="r"))
    reserve(store, after=5, lease=20)

    done = store.reserve("q", 10, 20, now_us=NOW + 50)

    assert (done.requeued, done.left, done.next and done.next.topic) == (1, True, "r")
    assert store.reserve("q", 10, 20, now_us=NOW + 50).dropped == 1
