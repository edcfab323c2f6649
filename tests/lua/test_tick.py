"""tick.lua: what is due, and when to look again."""

from __future__ import annotations

import pytest
import redis

from celery_delayq.delivery import Delivery
from celery_delayq.embedded import RedisServer
from celery_delayq.errors import DelayQError
from celery_delayq.keys import Keys
from celery_delayq.store import Store, Tick, Upcoming

from .conftest import NOW, QUEUE, Reader, full, job, put


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


def test_of_some_topics_only(store: Store, leasing: Store) -> None:
    """Who serves some is told of those as if there were no others: what is due, in order, bounded, and what is next."""
    put(store, *(job("a", due, topic=topic) for topic, due in (("p", 1), ("q", 9), ("r", 5), ("s", 7), ("t", 30))))

    def told(*topics: str, limit: int = 100) -> tuple[list[str], str | None]:
        tick = store.tick(limit, topics=topics, now_us=NOW + 9)
        return [one.topic for one in tick.due], tick.next and tick.next.topic

    assert told("s", "q", "none", "r", "t") == (["r", "s", "q"], "t")
    assert told("s", "q", "r", "t", limit=2) == (["r", "s"], "q")
    assert told("t", "none") == ([], "t")
    assert told("none") == ([], None)
    assert store.tick(topics=["r"], now_us=NOW + 9).due == (Upcoming(NOW + 5, "r", Delivery.plain("r")),)
    leasing.reserve("p", 1, 3, now_us=NOW + 1)
    leasing.reserve("s", 1, 5, now_us=NOW + 7)
    assert [store.tick(topics=["p", "q", "s"], now_us=NOW + at).expired for at in (3, 4, 12)] == [
        (),
        ("p",),
        ("p", "s"),
    ]
    assert store.tick(topics=["q"], now_us=NOW + 12).expired == ()
    store.pause("r")
    assert told("r", "t") == ([], "t")
    assert told(*(str(number) for number in range(1000))) == ([], None)
    with pytest.raises(DelayQError, match="1000 topics"):
        told(*(str(number) for number in range(1001)))


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


def test_a_look_changes_nothing(store: Store, contents: Reader) -> None:
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


def test_a_beat_is_told_to_the_fleet_and_written_once_a_second(store: Store, contents: Reader) -> None:
    """Standbys hear each; producers find one that is at most a second old; the disk is spared the others."""
    with store.client.pubsub(ignore_subscribe_messages=True) as fleet:
        fleet.subscribe(store.keys.fleet)
        fleet.get_message(timeout=5)
        written = []
        for after in (0, 500_000, 1_000_000, 1_999_999):
            store.tick(beat="one", now_us=NOW + after)
            written.append(int(store.client.get(store.keys.beat)) - NOW)
        store.tick(now_us=NOW + 9_000_000)
        store.tell_fleet(b"end")
        heard = []
        while (message := fleet.get_message(timeout=5)) and message["data"] != b"end":
            heard.append(message["data"])

    assert written == [0, 0, 1_000_000, 1_000_000]
    assert heard == [b"beat one"] * 4
    assert contents() == {store.keys.beat.encode(): b"%d" % (NOW + 1_000_000)}


def test_a_beat_of_one_who_stands_for_himself(store: Store) -> None:
    """Those who put see that he lives; the fleet hears nothing of him."""
    with store.client.pubsub(ignore_subscribe_messages=True) as fleet:
        fleet.subscribe(store.keys.fleet)
        fleet.get_message(timeout=5)
        store.tick(beat="one", aloud=False, now_us=NOW)
        store.tell_fleet(b"end")
        message = None
        while message is None:
            message = fleet.get_message(timeout=5)

    assert message["data"] == b"end"
    assert store.beat_us() == NOW


def test_a_beat_from_the_future_is_written_again(store: Store) -> None:
    """A clock that was set back does not make a dispatcher look alive for ever."""
    store.tick(beat="one", now_us=NOW + 60_000_000)
    store.tick(beat="one", now_us=NOW)

    assert int(store.client.get(store.keys.beat)) == NOW


def test_a_full_redis_still_says_what_is_due(store: Store) -> None:
    """The beat is not written then; the others hear it all the same, and due jobs go out."""
    put(store, job("a"))
    with full(store):
        tick = store.tick(beat="one", now_us=NOW + 50)

    assert [one.topic for one in tick.due] == ["q"]
    assert store.client.get(store.keys.beat) is None


def test_a_replica_refuses_a_beat(store: Store, own_server: RedisServer) -> None:
    """Whoever is still connected to a master that was demoted learns it within a second, not when a job is due."""
    with own_server.client() as client:
        client.replicaof("127.0.0.1", store.client.connection_pool.connection_kwargs["port"])
        replica = Store(client, Keys("delayq"))

        assert replica.tick(now_us=NOW).due == ()
        with pytest.raises(redis.ReadOnlyError):
            replica.tick(beat="one", now_us=NOW)


def test_a_foreign_key_is_refused(store: Store) -> None:
    """Nothing is overwritten that is not ours."""
    store.client.lpush(store.keys.beat, "theirs")

    with pytest.raises(DelayQError, match="expected a string"):
        store.tick(beat="one", now_us=NOW)
