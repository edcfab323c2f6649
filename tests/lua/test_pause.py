"""pause.lua: nothing of a topic leaves until it is resumed."""

from __future__ import annotations

from celery_delayq.store import Store

from .conftest import NOW, QUEUE, Reader, full, index, job, put


def test_a_paused_topic_leaves_the_index(store: Store, contents: Reader) -> None:
    """All of its jobs stay as they are; only nobody looks at them any more."""
    put(store, job("a", 5, step=3, max_wait_us=50, grace_us=70), job("b", 5), job("x", 9, topic="r"))
    before = contents()

    assert store.pause("q") is True

    assert contents() == before | {
        store.keys.index.encode(): {b"r": NOW + 9},
        store.keys.holds.encode(): {b"q": float("inf")},
    }
    assert store.paused() == {"q"}


def test_to_pause_again_changes_nothing(store: Store, contents: Reader) -> None:
    """The caller is told that it was paused."""
    put(store, job("a"))
    store.pause("q")
    before = contents()

    assert store.pause("q") is False
    assert before == contents()


def test_a_topic_without_jobs_can_be_paused(store: Store) -> None:
    """Before the first job comes, or between two."""
    assert store.pause("q") is True
    assert store.paused() == {"q"}


def test_a_pause_outlives_the_jobs(store: Store) -> None:
    """Whatever happens to them."""
    put(store, job("a"), job("x", topic="r"))
    store.pause("q")
    store.pause("r")

    store.delete("q", ["a"])
    store.purge("r")

    assert store.paused() == {"q", "r"}


def test_a_pause_ends_a_rate(store: Store, contents: Reader) -> None:
    """Paused while it catches up: nothing leaves, and of the rate nothing is left, also after the resumption."""
    put(store, job("a", 1), job("b", 2), job("c", 3))
    store.resume("q", 1_000_000.0, now_us=NOW + 9)
    store.dispatch("q", QUEUE, 10, now_us=NOW + 9)

    assert store.pause("q") is True
    assert store.dispatch("q", QUEUE, 10, now_us=NOW + 10**9).moved == 0
    assert store.keys.rates.encode() not in contents()

    store.resume("q", now_us=NOW + 10)
    assert store.dispatch("q", QUEUE, 10, now_us=NOW + 10).moved == 2


def test_a_full_redis_can_be_paused(store: Store) -> None:
    """Out of memory is a moment at which one may well want to; it also was counted as held back before."""
    put(store, job("a", 1), job("b", 2))
    store.resume("q", 1_000_000.0, now_us=NOW + 9)
    with full(store):
        assert store.pause("q") is True
        assert store.pause("q") is False
        assert store.dispatch("q", QUEUE, 10, now_us=NOW + 10**9).moved == 0
    assert store.paused() == {"q"}
    assert index(store) == {}
