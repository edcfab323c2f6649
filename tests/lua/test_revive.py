"""revive.lua: dead jobs wait again. And what there is to see of them before."""

from __future__ import annotations

import pytest

from celery_delayq.job import Place
from celery_delayq.store import Store

from .conftest import NOW, QUEUE, Reader, announcements, full, index, job, put, reserve, totals, waiting


@pytest.fixture
def store(leasing: Store) -> Store:
    return leasing


def bury(store: Store, *ids: str, after: int = 9, **options: int) -> None:
    """Jobs that died so many microseconds after NOW."""
    put(store, *(job(id, 1, **options) for id in ids))
    assert all(
        store.release("q", reserve(store, 10_000, after=after), max_attempts=1, reason="why", now_us=NOW + after)
    )


def test_it_waits_again_as_if_it_had_never_been_reserved(store: Store, contents: Reader) -> None:
    """Due now, with its step and its first put; its grace is over, for somebody wants it to run."""
    bury(store, "a", "b", step=3, max_wait_us=70, grace_us=50)

    assert store.revive("q", ["b", "a"], now_us=NOW + 10**9) == [True, True]

    keys, now = store.keys, NOW + 10**9
    held = {
        keys.index: {b"q": now},
        keys.topics: {b"q": QUEUE.dumps().encode()},
        keys.schedule("q"): {b"b": now, b"a": now + 1},
        keys.ties("q"): {b"%d" % now: now + 1},
        keys.jobs("q"): {b"a": b"body of a", b"b": b"body of b"},
        keys.steps("q"): {b"a": b"3", b"b": b"3"},
        keys.firsts("q"): {b"a": b"%d" % NOW, b"b": b"%d" % NOW},
    }
    assert contents(totals=False) == {key.encode(): value for key, value in held.items()}
    assert [one.attempts for one in reserve(store, after=10**9 + 1)] == [1, 1]
    assert totals(store) == {"dead:q": 2}


def test_what_is_not_dead_is_not_revived(store: Store, contents: Reader) -> None:
    """It waits, it is reserved, or it is not there."""
    bury(store, "dead")
    put(store, job("reserved", 1), job("waits", 500))
    reserve(store, after=9)
    before = contents()

    assert store.revive("q", ["reserved", "waits", "missing"], now_us=NOW) == [False] * 3
    assert store.revive("q", []) == []
    assert before == contents()


def test_a_dead_one_does_not_take_the_place_of_a_living_one(store: Store) -> None:
    """Its id was put anew: it stays dead while that waits, and while that is reserved."""
    bury(store, "a")
    put(store, job("a", 20, body=b"new"))
    assert [one.state for one in store.find("a")] == ["waiting", "dead"]
    assert store.revive("q", ["a"], now_us=NOW) == [False]
    (new,) = reserve(store, after=20)
    assert [one.state for one in store.find("a")] == ["reserved", "dead"]
    assert store.revive("q", ["a"], now_us=NOW) == [False]
    store.ack("q", [new])

    assert store.revive("q", ["a"], now_us=NOW + 30) == [True]
    assert [one.body for one in reserve(store, after=30)] == [b"body of a"]


def test_the_last_death_of_an_id_is_the_one_that_is_kept(store: Store) -> None:
    """A new job of a dead one's id, which dies too, takes its place; both are counted."""
    bury(store, "a")
    put(store, job("a", 20, body=b"new"))
    store.release("q", reserve(store, after=20), max_attempts=1, reason="again", now_us=NOW + 20)

    (dead,) = store.dead("q").jobs
    assert (dead.body, dead.reason, dead.died_us) == (b"new", "again", NOW + 20)
    assert totals(store) == {"dead:q": 2}


def test_a_dispatcher_hears_of_it_unless_the_topic_is_paused(store: Store) -> None:
    """It is due at once."""
    bury(store, "a", "b")
    with announcements(store) as said:
        store.revive("q", ["a"], now_us=NOW + 30)
        assert said() == [30]
        store.pause("q")
        store.revive("q", ["b"], now_us=NOW + 30)
        assert said() == [30]
    assert (index(store), list(waiting(store))) == ({}, [b"a", b"b"])


def test_the_dead_can_be_read_page_by_page(store: Store) -> None:
    """The longest dead first; a page begins behind a place, also if that job is gone; living ones do not appear."""
    bury(store, "a", "b", "c", after=30)
    bury(store, "z", after=20)
    put(store, job("alive", 1))

    first = store.dead("q", limit=2)
    assert ([one.id for one in first.jobs], first.left, first.end) == ([b"z", b"a"], 2, Place(NOW + 30, b"a"))
    assert first.jobs[1] == ("q", b"a", b"body of a", NOW + 30, NOW + 1, 0, 1, "why")
    store.discard("q", ["a"])
    second = store.dead("q", behind=first.end, limit=2)
    assert ([one.id for one in second.jobs], second.left) == ([b"b", b"c"], 0)
    assert second.jobs[-1].place == second.end
    assert store.dead("q", behind=second.end).jobs == ()
    assert store.dead("r").jobs == ()


def test_ids_and_reasons_of_any_bytes(store: Store) -> None:
    """As they were given; a reason that is no end of text is cut."""
    put(store, job(b"two\nlines\xff", 1), job("b", 2))
    first, second = reserve(store, after=9)
    store.release("q", [first], max_attempts=1, reason="é\nü " * 1000, now_us=NOW)
    store.release("q", [second], max_attempts=1, now_us=NOW + 1)

    one, other = store.dead("q").jobs
    assert (one.id, len(one.reason), one.reason[:4]) == (b"two\nlines\xff", 1000, "é\nü ")
    assert (other.id, other.reason) == (b"b", "")
    assert store.revive("q", [one.id], now_us=NOW) == [True]


def test_find_and_loads_tell_what_is_dead(store: Store) -> None:
    """After all that is alive."""
    bury(store, "a", "b", step=6)

    (found,) = store.find("a")
    assert (found.state, found.due_us, found.step, found.body) == ("dead", NOW + 1, 6, b"body of a")
    load = store.loads({"q": QUEUE})[1]["q"]
    assert (load.waiting, load.reserved, load.dead, load.buried) == (0, 0, 2, 2)
    assert store.leased() == {"q"}


def test_a_purge_leaves_the_dead(store: Store) -> None:
    """It takes back what waits; the dead are discarded one by one."""
    bury(store, "a")
    put(store, job("b", 50))

    assert store.purge("q") == 1
    assert [one.id for one in store.dead("q").jobs] == [b"a"]


def test_a_full_redis_can_revive(store: Store) -> None:
    """What is moved takes no more room than before."""
    bury(store, "a")
    with full(store):
        assert store.revive("q", ["a"], now_us=NOW) == [True]
    assert list(waiting(store)) == [b"a"]
