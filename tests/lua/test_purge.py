"""purge.lua: all that waits in a topic is taken back."""

from __future__ import annotations

from celery_delayq.store import Store, Upcoming

from .conftest import NOW, QUEUE, Reader, announcements, full, job, put, totals, waiting


def test_a_purge_leaves_nothing_behind(store: Store, contents: Reader) -> None:
    """Jobs with all their options, ties, the topic and its place in the index: gone, and counted."""
    put(
        store, *(job(f"{number}", number, step=3, max_wait_us=50, grace_us=70) for number in range(2000)), job("tie", 7)
    )

    assert store.purge("q") == 2001

    assert contents() == {store.keys.totals.encode(): {b"cancelled:q": b"2001"}}


def test_other_topics_stay(store: Store) -> None:
    """And what is next is one of theirs."""
    put(store, job("a", 5), job("x", 9, topic="r"))

    store.purge("q")

    assert waiting(store, "r") == {b"x": 9}
    next = store.tick(now_us=NOW).next
    assert isinstance(next, Upcoming)
    assert (next.topic, next.due_us) == ("r", NOW + 9)


def test_what_is_ready_or_lies_aside_stays(store: Store) -> None:
    """It waits no longer: that is the broker's, and the finisher's."""
    put(store, job("ready", 1), job("late", 2, grace_us=0), job("a", 90), job("b", 90))
    store.dispatch("q", QUEUE, 10, now_us=NOW + 9)
    store.delete("q", ["a"], lease_us=0, now_us=NOW)

    assert store.purge("q") == 1

    assert store.client.llen("q") == 1
    assert {job.name for job in store.claim(60, 10, now_us=NOW + 9)} == {"late:late", "revoked:a"}


def test_a_pause_stays(store: Store, contents: Reader) -> None:
    """Who paused a topic wants its jobs not to leave, also those that come after the purge."""
    put(store, job("a"))
    store.pause("q")

    store.purge("q")
    with announcements(store) as said:
        put(store, job("b"))
        assert said() == []

    assert store.paused() == {"q"}
    assert store.dispatch("q", QUEUE, 10, now_us=NOW + 9).moved == 0


def test_a_rate_does_not_stay(store: Store, contents: Reader) -> None:
    """A topic with nothing left has caught up."""
    put(store, job("a", 1), job("b", 2))
    store.resume("q", 1_000_000.0, now_us=NOW + 9)
    store.dispatch("q", QUEUE, 10, now_us=NOW + 9)

    store.purge("q")

    assert contents(totals=False) == {b"q": [b"body of a"]}
    assert totals(store) == {"moved:q": 1, "cancelled:q": 1}


def test_nothing_to_purge(store: Store, contents: Reader) -> None:
    """An unknown topic: no error, and nothing is created or counted."""
    assert store.purge("unknown") == 0
    assert contents() == {}


def test_an_id_can_wait_again_at_once(store: Store) -> None:
    """Nothing of the job before clings to it."""
    put(store, job("a", 5, step=3, max_wait_us=6, grace_us=70))
    store.purge("q")
    put(store, job("a", 90, max_wait_us=80))

    (found,) = store.find("a")
    assert (found.due_us - NOW, found.step, found.first_us, found.grace_us) == (80, 0, NOW, None)


def test_a_full_redis_can_be_purged(store: Store) -> None:
    """Out of memory: that is what it is for."""
    put(store, job("a"), job("b"))
    store.pause("q")
    with full(store):
        assert store.purge("q") == 2
    assert totals(store) == {"cancelled:q": 2}
    assert store.paused() == {"q"}
