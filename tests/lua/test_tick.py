"""tick.lua: what is due, and when to look again."""

from __future__ import annotations

from celery_delayq.delivery import Delivery
from celery_delayq.store import Store, Tick, Upcoming

from .conftest import NOW, QUEUE, Reader, job, put


def test_an_empty_store_has_nothing_to_say(store: Store, contents: Reader) -> None:
    """Nothing waits: no topic, no time, no key created."""
    assert store.tick(now_us=NOW) == Tick(NOW, aside=False, next=None, due=())
    assert contents() == {}


def test_due_topics_come_with_their_delivery_the_longest_overdue_first(store: Store) -> None:
    """One call tells a dispatcher all that it needs for its pass."""
    put(store, job("x", 9, topic="r"), job("a", 5), job("y", 70, topic="s"))

    tick = store.tick(now_us=NOW + 9)

    due = (Upcoming(NOW + 5, "q", QUEUE), Upcoming(NOW + 9, "r", Delivery.plain("r")))
    assert tick == Tick(NOW + 9, aside=False, next=Upcoming(NOW + 70, "s", Delivery.plain("s")), due=due)


def test_it_names_as_many_topics_as_were_asked_for(store: Store) -> None:
    """With thousands of due topics a pass stays bounded, and the next one is due at once."""
    put(store, *(job("a", number, topic=f"t{number}") for number in range(30)))

    tick = store.tick(10, now_us=NOW + 100)

    assert [f"t{number}" for number in range(10)] == [one.topic for one in tick.due]
    assert tick.next == Upcoming(NOW + 10, "t10", Delivery.plain("t10"))


def test_redis_clock_is_the_clock(store: Store) -> None:
    """Without a time of the caller's, Redis's own counts."""
    seconds, micros = store.client.time()

    assert 0 <= store.tick().now_us - (seconds * 1_000_000 + micros) < 5_000_000


def test_a_topic_whose_delivery_is_lost_is_named_all_the_same(store: Store) -> None:
    """What an eviction or a hand took away does not strand the jobs."""
    put(store, job("a"))
    store.client.delete(store.keys.topics)

    assert [one.delivery for one in store.tick(now_us=NOW + 1).due] == [None]
    assert store.tick(now_us=NOW).next == Upcoming(NOW + 1, "q", None)


def test_tick_changes_nothing(store: Store, contents: Reader) -> None:
    """Looking is free."""
    put(store, job("a"), job("b", 90))
    before = contents()

    store.tick(now_us=NOW + 50)

    assert before == contents()


def test_a_paused_topic_is_not_named(store: Store) -> None:
    """Neither as due nor as next: nothing is to be done about it."""
    put(store, job("a"), job("x", 9, topic="r"))
    store.pause("q")

    assert store.tick(now_us=NOW + 5) == Tick(
        NOW + 5, aside=False, next=Upcoming(NOW + 9, "r", Delivery.plain("r")), due=()
    )
    store.pause("r")
    assert store.tick(now_us=NOW + 50) == Tick(NOW + 50, aside=False, next=None, due=())


def test_it_says_that_a_job_lies_aside_when_its_lease_is_over(store: Store) -> None:
    """As long as it is somebody's, nobody else is bothered; a late one is anybody's at once."""
    put(store, job("a"), job("late", 5, grace_us=10))
    store.delete("q", ["a"], lease_us=60, now_us=NOW)

    assert [store.tick(now_us=NOW + after).aside for after in (0, 59, 60)] == [False, False, True]
    store.dispatch("q", QUEUE, 10, now_us=NOW + 16)
    assert [store.tick(now_us=NOW + after).aside for after in (15, 16)] == [False, True]
