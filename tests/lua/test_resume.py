"""resume.lua: a topic's jobs leave again; at once, or at a rate until it has caught up."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from celery_delayq.clock import SECOND_US
from celery_delayq.embedded import RedisServer
from celery_delayq.keys import Keys
from celery_delayq.store import Store, Upcoming

from .conftest import NOW, QUEUE, Reader, announcements, full, index, job, popped, put

#: A topic that catches up may get so many jobs in one call as its rate allows for this time (us), one at least; what it
#: could not use, it makes up for so long (us).
SLICE, SLACK = 10_000, 100_000


def backlog(store: Store, count: int) -> None:
    """That many jobs of a paused topic, all overdue at NOW + count."""
    for start in range(0, count, 1000):
        put(store, *(job(f"{number:05}", number) for number in range(start, min(start + 1000, count))))
    store.pause("q")


def release(store: Store, begin: int, until: int, late_us: random.Random | None = None) -> list[tuple[int, int]]:
    """Dispatch from *begin* until *until*, each time when the reply names, or a little late: [(when, how many), …]."""
    released, now = [], begin
    while now < until:
        done = store.dispatch("q", QUEUE, 1000, now_us=now)
        released.append((now, done.moved))
        if done.next is None:
            break
        assert done.next.due_us > now or (done.left and done.moved + done.dropped), (
            "a look that changed nothing is not repeated at once"
        )
        now = max(done.next.due_us, now)
        if late_us is not None and not done.left:
            now += late_us.randrange(20_000)
    return released


def test_all_that_is_overdue_leaves_at_once(store: Store, contents: Reader) -> None:
    """Without a rate a topic goes on as if it had not been paused; dispatchers are woken."""
    put(store, job("a", 1), job("b", 2), job("c", 900))
    before = contents()
    store.pause("q")

    with announcements(store) as said:
        assert store.resume("q", now_us=NOW + 9) is True
        assert said() == [1]

    assert before == contents()
    assert store.paused() == set()
    assert store.dispatch("q", QUEUE, 10, now_us=NOW + 9).moved == 2


def test_what_is_not_paused_is_not_resumed(store: Store, contents: Reader) -> None:
    """The caller is told, and nothing changes."""
    put(store, job("a", 1))
    before = contents()

    with announcements(store) as said:
        assert store.resume("q", now_us=NOW + 9) is False
        assert store.resume("unknown", now_us=NOW + 9) is False
        assert said() == []
    assert before == contents()


def test_an_empty_topic_can_be_resumed(store: Store, contents: Reader) -> None:
    """Nothing is left behind, with a rate or without."""
    for interval_us in (None, 2.0):
        store.pause("q")
        assert store.resume("q", interval_us, now_us=NOW) is True
        assert contents() == {}


def test_who_has_nothing_overdue_needs_no_rate(store: Store, contents: Reader) -> None:
    """A rate is for what has piled up; what comes later leaves when it is due."""
    put(store, job("a", 900), job("b", 900))
    before = contents()
    store.pause("q")

    assert store.resume("q", 1_000_000.0, now_us=NOW + 9) is True

    assert before == contents()
    assert store.dispatch("q", QUEUE, 10, now_us=NOW + 901).moved == 2


def test_only_one_that_becomes_the_earliest_wakes_the_dispatchers(store: Store) -> None:
    """As a put does; a topic that catches up is due now, not when its first job was."""
    put(store, job("a", 50), job("x", 30, topic="r"))
    store.pause("q")
    store.pause("r")

    with announcements(store) as said:
        store.resume("q", now_us=NOW)
        store.pause("q")
        store.resume("r", now_us=NOW)
        store.resume("q", now_us=NOW)
        store.pause("q")
        store.pause("r")
        store.resume("q", 5.0, now_us=NOW + 99)
        assert said() == [50, 30, 99]


@pytest.mark.parametrize(
    ("rate", "seconds"), [(1, 6), (3, 4), (10, 3), (99, 2), (100, 2), (101, 2), (700, 1.5), (1000, 1.5), (7777, 0.5)]
)
def test_a_rate_is_kept(store: Store, rate: int, seconds: float) -> None:
    """Called when the replies name, a topic releases rate times seconds, spread evenly, in the order of due times."""
    backlog(store, int(rate * seconds * 1.2) + 20)
    begin = NOW + 100_000
    store.resume("q", SECOND_US / rate, now_us=begin)

    released = release(store, begin, begin + int(seconds * SECOND_US))

    slice_jobs = max(1, rate * SLICE // SECOND_US)
    assert max(moved for _, moved in released) <= slice_jobs
    total = sum(moved for _, moved in released)
    assert rate * seconds - slice_jobs <= total <= rate * seconds + slice_jobs
    assert [body.split()[-1] for body in popped(store)] == [f"{number:05}".encode() for number in range(total)]
    # And evenly: at no time are there more than its share and one slice, but for what a double rounds off.
    so_far = 0
    for (at, moved), (after, _) in pairwise(released):
        so_far += moved
        assert so_far <= (at - begin) * rate / SECOND_US + slice_jobs + 0.01
        assert so_far >= (after - begin) * rate / SECOND_US - 1.01


def test_a_rate_higher_than_a_batch(store: Store) -> None:
    """Where a slice is more than one call may move, the calls follow each other until it is used up."""
    backlog(store, 30_000)
    begin = NOW + 100_000
    store.resume("q", 4.0, now_us=begin)

    released = release(store, begin, begin + 80_000)

    assert max(moved for _, moved in released) <= 1000
    assert 20_000 - 2500 <= sum(moved for _, moved in released) <= 20_000 + 2500


def test_dispatchers_that_come_late_keep_the_rate_all_the_same(store: Store) -> None:
    """What lateness costs is made up for, as long as it is small."""
    backlog(store, 2000)
    begin = NOW + 100_000
    store.resume("q", SECOND_US / 300, now_us=begin)

    released = release(store, begin, begin + 4 * SECOND_US, random.Random(4))

    assert 1200 - 30 <= sum(moved for _, moved in released) <= 1200 + 30


def test_after_a_long_silence_no_burst_makes_up_for_it(store: Store) -> None:
    """Nobody dispatched for a minute: then not a minute's jobs come at once, only those of a moment."""
    backlog(store, 2000)
    begin = NOW + 100_000
    store.resume("q", SECOND_US / 1000, now_us=begin)
    release(store, begin, begin + SECOND_US // 10)
    length = store.client.llen("q")

    silence = begin + 60 * SECOND_US
    release(store, silence, silence + 1)

    assert store.client.llen("q") - length <= (SLACK + SLICE) * 1000 // SECOND_US


def test_when_nothing_is_overdue_the_rate_is_gone(store: Store, contents: Reader) -> None:
    """From then on the topic is like any other: what falls due at one moment leaves at one moment."""
    backlog(store, 10)
    put(store, *(job(f"later {number}", 5 * SECOND_US) for number in range(50)))
    begin = NOW + 100_000
    store.resume("q", SECOND_US / 10, now_us=begin)

    released = release(store, begin, begin + 2 * SECOND_US)

    assert [(at - begin) // 100_000 for at, moved in released if moved] == list(range(10))
    assert {store.keys.holds.encode(), store.keys.rates.encode()}.isdisjoint(contents())
    assert store.dispatch("q", QUEUE, 1000, now_us=NOW + 6 * SECOND_US).moved == 50


def test_what_falls_due_meanwhile_queues_up(store: Store) -> None:
    """While a topic catches up, new jobs leave in their turn, at the same rate."""
    backlog(store, 20)
    put(store, *(job(f"due {number}", SECOND_US + number) for number in range(5)))
    begin = NOW + 100_000
    store.resume("q", SECOND_US / 10, now_us=begin)

    released = release(store, begin, begin + 10 * SECOND_US)

    assert [moved for _, moved in released if moved] == [1] * 25
    assert [body.split()[-1] for body in popped(store)[20:]] == [b"%d" % number for number in range(5)]


def test_what_is_dropped_does_not_use_up_the_rate(store: Store) -> None:
    """A rate protects the workers; what never reaches them need not be slow."""
    put(store, *(job(f"late {number:03}", number, grace_us=0) for number in range(300)))
    put(store, job("a", 400), job("b", 401))
    store.pause("q")
    begin = NOW + 100_000
    store.resume("q", 1.0 * SECOND_US, now_us=begin)

    released = release(store, begin, begin + 2 * SECOND_US)

    assert [at - begin for at, moved in released if moved] == [0, SECOND_US]
    assert len(store.claim(60, 1000, now_us=begin)) == 300


def test_a_topic_that_is_not_paused_can_get_a_rate(store: Store) -> None:
    """To slow down a backlog that is on its way already; the answer still says that it was not paused."""
    put(store, job("a", 1), job("b", 2), job("c", 3))

    assert store.resume("q", 1_000_000.0, now_us=NOW + 9) is False

    assert [moved for _, moved in release(store, NOW + 9, NOW + 9 + 2 * SECOND_US)] == [1, 1]


def test_a_new_rate_takes_the_place_of_the_old(store: Store) -> None:
    """The last word counts, from the moment at which it was said."""
    backlog(store, 20)
    store.resume("q", 60.0 * SECOND_US, now_us=NOW + 100)
    assert store.dispatch("q", QUEUE, 10, now_us=NOW + 100).moved == 1

    assert store.resume("q", 1000.0, now_us=NOW + 200) is False

    assert store.dispatch("q", QUEUE, 20, now_us=NOW + 200).moved == 10


def test_without_a_rate_whoever_catches_up_is_let_go(store: Store, contents: Reader) -> None:
    """Slow enough: the rest leaves at once, and dispatchers are woken for it."""
    backlog(store, 20)
    store.resume("q", 60.0 * SECOND_US, now_us=NOW + 100)
    store.dispatch("q", QUEUE, 10, now_us=NOW + 100)

    with announcements(store) as said:
        assert store.resume("q", now_us=NOW + 200) is False
        assert said() == [1]

    assert {store.keys.holds.encode(), store.keys.rates.encode()}.isdisjoint(contents())
    assert store.dispatch("q", QUEUE, 100, now_us=NOW + 200).moved == 19


def test_a_rate_is_redis_own(store: Store, server: RedisServer) -> None:
    """It survives the client that set it, and the scripts being flushed; every dispatcher keeps to it."""
    backlog(store, 30)
    begin = NOW + 100_000
    store.resume("q", SECOND_US / 10, now_us=begin)
    release(store, begin, begin + SECOND_US // 2)

    store.client.script_flush()
    with server.client() as client:
        other = Store(client, Keys("delayq"))
        assert other.dispatch("q", QUEUE, 10, now_us=begin + SECOND_US // 2 - 1).moved == 0
        released = release(other, begin + SECOND_US // 2, begin + SECOND_US)

    assert sum(moved for _, moved in released) == 5
    assert store.client.llen("q") == 10


def test_two_dispatchers_do_not_double_a_rate(store: Store) -> None:
    """Both called at the times of the replies, and whenever they like: the sum is the rate."""
    backlog(store, 50)
    begin = NOW + 100_000
    store.resume("q", SECOND_US / 10, now_us=begin)

    chance = random.Random(2)
    for at in sorted(chance.randrange(2 * SECOND_US) for _ in range(500)):
        store.dispatch("q", QUEUE, 10, now_us=begin + at)

    assert 19 <= store.client.llen("q") <= 21


def test_a_rate_and_a_ceiling_both_hold(store: Store) -> None:
    """While the ready list is full nothing leaves; then on at the rate, without a burst for the time lost."""
    backlog(store, 30)
    begin = NOW + 100_000
    store.resume("q", SECOND_US / 10, now_us=begin)
    now, moved = begin, []
    while now < begin + 2 * SECOND_US:
        done = store.dispatch("q", QUEUE, 10, ceiling=3, now_us=now)
        moved.append(done.moved)
        now = done.next.due_us if done.next else now
        if now - begin > SECOND_US:
            store.client.delete("q")

    assert sum(moved) == 3 + 10
    assert set(moved) == {0, 1}


def test_a_resumed_topic_is_looked_at_now(store: Store) -> None:
    """Not at the time of its first job, so that nobody overtakes the turn of other topics."""
    put(store, job("a", 1), job("b", 2), job("x", 3, topic="r"))
    store.pause("q")

    store.resume("q", 5.0, now_us=NOW + 9)

    assert index(store) == {b"q": 9, b"r": 3}
    assert [one.topic for one in store.tick(now_us=NOW + 9).due] == ["r", "q"]
    assert store.dispatch("q", QUEUE, 1, now_us=NOW + 9).next == Upcoming(NOW + 3, "r", store.topics()["r"])


def test_a_full_redis_can_be_resumed(store: Store, contents: Reader) -> None:
    """Out of memory, with a rate and without: a topic that is let go makes room."""
    backlog(store, 5)
    with full(store):
        assert store.resume("q", 60.0 * SECOND_US, now_us=NOW + 9) is True
        assert store.dispatch("q", QUEUE, 10, now_us=NOW + 9).moved == 1
        assert store.dispatch("q", QUEUE, 10, now_us=NOW + 10).moved == 0
        assert store.resume("q", now_us=NOW + 10) is False
        assert store.dispatch("q", QUEUE, 10, now_us=NOW + 10).moved == 4
    assert set(contents(totals=False)) == {b"q"}
