"""reserve.lua: what is due is somebody's for a while, and comes back if he dies."""

from __future__ import annotations

from contextlib import suppress

import pytest
import redis

from celery_delayq.delivery import Delivery
from celery_delayq.job import Aside, Move, Moved, OnConflict, Origin, Reserved, Upcoming
from celery_delayq.store import Store

from .conftest import NOW, QUEUE, Reader, full, index, job, leases, put, reserve, totals, waiting


@pytest.fixture
def store(leasing: Store) -> Store:
    return leasing


def test_what_is_due_is_reserved_with_all_that_is_known_of_it(store: Store) -> None:
    """In the order of due times, each with a token of its own; the others wait on."""
    put(store, job("b", 2, step=6), job("a", 1), job("later", 90))

    done = store.reserve("q", 10, 60, now_us=NOW + 3, nonce="n")

    assert done.jobs == (
        Reserved("q", b"a", b"body of a", NOW + 1, 0, 1, "n.1"),
        Reserved("q", b"b", b"body of b", NOW + 2, 6, 1, "n.2"),
    )
    assert (done.dropped, done.orphans, done.requeued, done.buried, done.left) == (0, 0, 0, 0, False)
    assert (done.now_us, done.next) == (NOW + 3, Upcoming(NOW + 90, "q", QUEUE))
    assert waiting(store) == {b"later": 90}
    assert leases(store) == {b"a": 63, b"b": 63}


def test_what_redis_holds_of_it(store: Store, contents: Reader) -> None:
    """All that takes it back to where it was; and nothing of it among what waits."""
    put(store, job("a", 5, step=3, max_wait_us=9, grace_us=2000), job("b", 6))

    reserve(store, after=7, lease=60)

    keys = store.keys
    held = {
        keys.expiries: {b"q": NOW + 67},
        keys.ways: {b"q": QUEUE.dumps().encode()},
        keys.leases("q"): {b"a": NOW + 67, b"b": NOW + 67},
        keys.tickets("q"): {
            b"a": b"n.1 1 %d 3 %d 2000" % (NOW + 5, NOW),
            b"b": b"n.2 1 %d - - -" % (NOW + 6),
        },
        keys.reserved("q"): {b"a": b"body of a", b"b": b"body of b"},
    }
    assert contents() == {key.encode(): value for key, value in held.items()}


def test_tokens_cannot_be_guessed(store: Store) -> None:
    """Each is new, also for the same id, and tells nothing of it."""
    put(store, job("a", 1), job("b", 2))
    first = store.reserve("q", 10, 60, now_us=NOW + 2).jobs
    put(store, job("a", 1))
    again = store.reserve("q", 10, 60, now_us=NOW + 2).jobs

    tokens = [one.token for one in (*first, *again)]
    assert len(set(tokens)) == 3
    assert all(len(token) > 40 for token in tokens)


def test_nobody_else_gets_it(store: Store) -> None:
    """Neither by reserve, dispatch or pull, until the lease is over."""
    put(store, job("a", 1))
    assert len(reserve(store, after=1, lease=60)) == 1

    assert reserve(store, after=60) == []
    assert store.dispatch("q", QUEUE, 10, now_us=NOW + 60).moved == 0
    assert store.pull("q", 10, now_us=NOW + 60) == []


def test_nothing_is_reserved_before_it_is_due(store: Store) -> None:
    """One microsecond too early is too early."""
    put(store, job("a", 5))

    assert reserve(store, after=4) == []
    assert len(reserve(store, after=5)) == 1


def test_an_empty_topic_gives_nothing_and_writes_nothing(store: Store, contents: Reader) -> None:
    """Also of a Redis that is full."""
    with full(store):
        done = store.reserve("q", 10, 60, now_us=NOW)
    assert (done.jobs, done.left, done.next) == ((), False, None)
    assert contents() == {}


@pytest.mark.parametrize("limit", [1, 19, 20, 21, 120, 1000])
def test_a_call_takes_no_more_than_its_limit(store: Store, limit: int) -> None:
    """A backlog goes in bounded batches, in order, and each says whether more is due."""
    ids = [b"%04d" % number for number in range(1100)]
    put(store, *(job(id, number) for number, id in enumerate(ids)))

    taken: list[bytes] = []
    left = True
    while left:
        done = store.reserve("q", limit, 60, now_us=NOW + 2000)
        assert len(done.jobs) == min(limit, 1100 - len(taken))
        taken += [one.id for one in done.jobs]
        left = done.left

    assert taken == ids


def test_ten_thousand_at_once(store: Store) -> None:
    """Nothing in Lua has so many places."""
    put(store, *(job(f"{number:05}", number, body=b"x%d" % number) for number in range(10_000)))

    jobs = store.reserve("q", 10_000, 60, now_us=NOW + 20_000).jobs

    assert [one.body for one in jobs] == [b"x%d" % number for number in range(10_000)]
    assert store.extend("q", jobs, 90, now_us=NOW + 20_000) == [True] * 10_000
    assert store.release("q", jobs[:5000], now_us=NOW + 20_000) == [True] * 5000
    assert store.ack("q", jobs) == [False] * 5000 + [True] * 5000


def test_large_bodies_make_smaller_batches(store: Store) -> None:
    """No more than 8 MB at once; but one job always."""
    for number in range(30):
        put(store, job(f"{number:02}", number, body=b"x" * 1_000_000))
    put(store, job("whale", 40, body=b"x" * 9_000_000))

    sizes = []
    while done := store.reserve("q", 1000, 60, now_us=NOW + 100):
        sizes.append(len(done.jobs))
        if not done.left:
            break

    assert sizes == [8, 8, 8, 6, 1]


def test_small_bodies_before_large_ones(store: Store) -> None:
    """What was small so far tells nothing of what comes."""
    for number in range(300):
        put(store, job(f"{number:03}", number, body=b"x" * (100_000 if number >= 60 else 10)))

    assert len(reserve(store, 1000, after=400)) == 60 + 83


def test_a_full_redis_still_drains(store: Store) -> None:
    """Out of memory: what is due is reserved, released and acked; nothing is lost on the way."""
    put(store, *(job(f"{number:03}", number, grace_us=5000) for number in range(500)))
    with full(store):
        jobs = reserve(store, 1000, after=1000)
        assert len(jobs) == 500
        assert store.extend("q", jobs[:3], 60, now_us=NOW + 1000) == [True] * 3
        assert store.release("q", jobs[:2], now_us=NOW + 1000) == [True] * 2
        assert store.release("q", jobs[2:4], max_attempts=1, now_us=NOW + 1000) == [True] * 2
        assert store.ack("q", jobs[4:]) == [True] * 496
        assert [one.attempts for one in reserve(store, after=1002)] == [2, 2]
        assert store.requeue("q", 10, now_us=NOW + 9_000_000) == 2
        assert store.revive("q", ["002", "003"], now_us=NOW) == [True] * 2
    assert list(waiting(store)) == [b"002", b"003", b"000", b"001"]


def test_a_really_full_redis_still_drains(store: Store) -> None:
    """As full as it can be, not as if: puts are refused, and all that waits is reserved and acked."""
    client = store.client
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 6_000_000)
    try:
        stored = 0
        with suppress(redis.ResponseError):
            while True:
                put(store, *(job(f"{stored + number:05}", 1, body=b"x" * 2000) for number in range(50)))
                stored += 50
        assert stored > 500
        taken = 0
        while jobs := reserve(store, 1000, after=2000):
            taken += len(jobs)
            assert all(store.ack("q", jobs))
        assert taken == stored
    finally:
        client.config_set("maxmemory", "0")


def test_an_id_without_a_body_is_dropped_and_counted(store: Store, contents: Reader) -> None:
    """Orphans block nobody."""
    put(store, job("a", 1), job("gone", 2), job("b", 3))
    store.client.hdel(store.keys.jobs("q"), "gone")

    done = store.reserve("q", 10, 60, now_us=NOW + 3)

    assert ([one.id for one in done.jobs], done.orphans) == ([b"a", b"b"], 1)
    assert totals(store) == {"orphans:q": 1}
    store.ack("q", done.jobs)
    assert contents(totals=False) == {}


def test_what_is_later_than_its_grace_is_laid_aside(store: Store) -> None:
    """As by dispatch, to the microsecond."""
    put(store, job("late", 1, grace_us=7), job("on time", 2, grace_us=7), job("any", 3))

    done = store.reserve("q", 10, 60, now_us=NOW + 9)

    assert ([one.id for one in done.jobs], done.dropped) == ([b"on time", b"any"], 1)
    assert totals(store) == {"dropped:q": 1}
    assert store.claim(60, 10, now_us=NOW + 9) == [Aside("late", "late", b"body of late")]


def test_a_paused_topic_is_left_alone(store: Store, contents: Reader) -> None:
    """However long overdue."""
    put(store, job("a", 1), job("b", 2))
    store.pause("q")
    before = contents()

    done = store.reserve("q", 10, 60, now_us=NOW + 10**9)

    assert (done.jobs, done.left, done.next) == ((), False, None)
    assert before == contents()


def test_a_rate_holds(store: Store) -> None:
    """A topic that catches up gives as many as its interval allows, and says when to look again."""
    put(store, job("a", 1), job("b", 2), job("c", 3))
    store.resume("q", 1_000_000.0, now_us=NOW + 9)

    done = store.reserve("q", 10, 60, now_us=NOW + 9)

    assert [one.id for one in done.jobs] == [b"a"]
    assert (done.left, done.next) == (False, Upcoming(NOW + 1_000_009, "q", QUEUE))
    assert reserve(store, after=1_000_008) == []
    assert [one.id for one in reserve(store, after=1_000_009)] == [b"b"]


def test_it_gives_back_what_has_an_expired_lease(store: Store) -> None:
    """Whoever looks at the topic does it, whoever has died; and says how many there were."""
    put(store, job("a", 1), job("b", 2))
    reserve(store, 1, after=1, lease=50)

    done = store.reserve("q", 10, 50, backoff_us=7, now_us=NOW + 51)

    assert [one.id for one in done.jobs] == [b"b"]
    assert (done.requeued, done.buried, done.left, done.next) == (1, 0, False, Upcoming(NOW + 58, "q", QUEUE))
    assert [(one.id, one.attempts, one.due_us) for one in reserve(store, after=58)] == [(b"a", 2, NOW + 58)]
    assert totals(store) == {"requeued:q": 1}


def test_what_comes_back_at_once_is_left(store: Store) -> None:
    """Without a back-off it is due now: the caller is told to go on."""
    put(store, job("a", 1))
    reserve(store, after=1, lease=50)

    assert store.reserve("q", 10, 50, backoff_us=0, now_us=NOW + 51).left is True
    assert [one.attempts for one in reserve(store, after=51)] == [2]


def test_it_buries_what_was_reserved_too_often(store: Store) -> None:
    """Not silently: it is dead, with its body, and counted."""
    put(store, job("a", 1))
    reserve(store, after=1, lease=50)

    done = store.reserve("q", 10, 50, max_attempts=1, now_us=NOW + 51)

    assert (done.jobs, done.requeued, done.buried) == ((), 0, 1)
    assert totals(store) == {"dead:q": 1}


def test_expired_leases_are_ended_in_bounded_batches(store: Store) -> None:
    """A thousand jobs of a worker that died hold Redis for no longer than other calls, and no longer the topic."""
    put(store, *(job(f"{number:04}", number) for number in range(1000)), job("x", 5000))
    reserve(store, 1000, after=1000, lease=50)

    done = store.reserve("q", 1000, 50, now_us=NOW + 5000)

    assert [one.id for one in done.jobs] == [b"x"]
    assert (done.requeued, done.left) == (250, True)


def test_a_paused_topic_gets_its_expired_leases_back(store: Store) -> None:
    """They wait for the resumption."""
    put(store, job("a", 1))
    reserve(store, after=1, lease=50)
    store.pause("q")

    assert store.tick(now_us=NOW + 51).expired == ("q",)
    done = store.reserve("q", 10, 50, now_us=NOW + 51)

    assert (done.jobs, done.requeued) == ((), 1)
    assert (index(store), waiting(store)) == ({}, {b"a": 1_000_051})
    store.resume("q", now_us=NOW + 60)
    assert [one.attempts for one in reserve(store, after=1_000_051)] == [2]


def test_a_tick_names_the_topics_with_expired_leases(store: Store) -> None:
    """To the microsecond, and as long as there are any."""
    put(store, job("a", 1))
    (a,) = reserve(store, after=1, lease=50)

    assert [store.tick(now_us=NOW + after).expired for after in (50, 51)] == [(), ("q",)]
    store.ack("q", [a])
    assert store.tick(now_us=NOW + 51).expired == ()


def test_find_tells_what_is_reserved(store: Store) -> None:
    """Wherever it is, until it is acked; with all that the store knows of it."""
    put(store, job("a", 1, step=3, grace_us=70), job("a", 9, topic="r"))
    (a,) = reserve(store, after=1)

    first, second = store.find("a")
    assert (first.topic, first.state, first.due_us) == ("r", "waiting", NOW + 9)
    assert second == ("q", b"a", NOW + 1, b"body of a", 3, None, 70, "reserved")
    store.ack("q", [a])
    assert [one.topic for one in store.find("a")] == ["r"]


def test_loads_tell_how_many_are_reserved(store: Store) -> None:
    """Beside what waits."""
    put(store, job("a", 1), job("b", 2), job("c", 3))
    reserve(store, 2, after=3)

    load = store.loads({"q": QUEUE})[1]["q"]
    assert (load.waiting, load.reserved, load.dead, load.requeued, load.buried) == (1, 2, 0, 0, 0)


def test_ids_and_bodies_of_any_bytes(store: Store) -> None:
    """Line breaks and blanks, NULs and broken UTF-8: what went in comes out, and can be acked."""
    ids = [b"a\nb", b"two words", b"\x00\xff", b"1\n2\n3"]
    put(store, *(job(id, number, body=id * 2) for number, id in enumerate(ids)))

    jobs = reserve(store, after=9)

    assert [(one.id, one.body) for one in jobs] == [(id, id * 2) for id in ids]
    assert store.ack("q", jobs) == [True] * 4


def test_order_among_equals_holds_while_they_are_reserved(store: Store) -> None:
    """A put of the same due, while earlier ones of it are being reserved, goes behind them."""
    put(store, *(job(id, 5) for id in "dcb"))
    assert [one.id for one in reserve(store, 1, after=500)] == [b"d"]
    store.put([job("a", 5)], {"q": QUEUE}, now_us=NOW)

    assert [one.id for one in reserve(store, after=500)] == [b"c", b"b", b"a"]


def test_a_count_that_is_no_number_stops_nobody(store: Store) -> None:
    """What somebody wrote by hand where a count should stand."""
    put(store, job("a", 1), job("late", 2, grace_us=0), job("gone", 3))
    store.client.hdel(store.keys.jobs("q"), "gone")
    store.client.hset(store.keys.totals, mapping={f"{word}:q": "many" for word in ("moved", "dropped", "orphans")})

    jobs = reserve(store, after=9)

    assert store.ack("q", jobs) == [True]
    assert [one.id for one in store.claim(60, 10, now_us=NOW + 9)] == ["late"]


# A put of an id that is reserved, and what else may happen to it meanwhile.


@pytest.mark.parametrize("on_conflict", OnConflict)
def test_a_put_of_a_reserved_id_starts_anew(store: Store, on_conflict: OnConflict) -> None:
    """It does not wait, so it is no conflict; and whoever holds the old one has lost it, whatever he tries."""
    put(store, job("a", 1, step=3))
    (old,) = reserve(store, after=1)

    assert put(store, job("a", 2, body=b"new"), on_conflict=on_conflict) == 1

    assert store.ack("q", [old]) == [False]
    assert store.release("q", [old]) == [False]
    assert store.extend("q", [old], 60) == [False]
    assert store.tick(now_us=NOW + 9_999_999).expired == ()
    assert [(one.body, one.step, one.attempts) for one in reserve(store, after=2)] == [(b"new", 0, 1)]


def test_the_same_put_sent_again_while_it_is_reserved(store: Store, contents: Reader) -> None:
    """Its reply was lost and it is due already: nothing is doubled."""
    put(store, job("a", 1))
    (a,) = reserve(store, after=1)
    before = contents()

    assert put(store, job("a", 1), origin=Origin.RETRIED) == 0
    assert before == contents()
    assert put(store, job("a", 1, body=b"another"), origin=Origin.RETRIED) == 1
    assert store.ack("q", [a]) == [False]


def test_a_reserved_job_can_be_neither_deleted_nor_moved(store: Store, contents: Reader) -> None:
    """It waits no more: a purge takes what waits."""
    put(store, job("a", 1), job("b", 500))
    (a,) = reserve(store, after=1)
    before = contents()

    assert store.delete("q", ["a"]) == [False]
    assert store.move("q", [Move("a", in_us=0)]) == [Moved.MISSING]
    assert before == contents()
    assert store.purge("q") == 1
    assert store.ack("q", [a]) == [True]
    assert contents(totals=False) == {}


def test_a_put_by_a_store_that_knows_no_leases(store: Store) -> None:
    """A misconfigured producer: its job is the one that counts, and the old lease ends without touching it."""
    put(store, job("a", 1), job("b", 2))
    a, _ = reserve(store, after=2, lease=50)
    other = Store(store.client, store.keys)
    put(other, job("a", 3, body=b"new"), job("b", 3, body=b"new"))

    assert store.release("q", [a], now_us=NOW + 3) == [False]
    assert store.requeue("q", 10, now_us=NOW + 99) == 0
    assert leases(store) == {}
    assert [(one.body, one.attempts) for one in reserve(store, after=4)] == [(b"new", 1), (b"new", 1)]


def test_a_topic_whose_delivery_is_lost(store: Store) -> None:
    """What an eviction or a hand took away does not strand the jobs."""
    put(store, job("a", 1))
    store.client.delete(store.keys.topics)
    (a,) = reserve(store, after=1)

    assert store.release("q", [a], now_us=NOW + 2) == [True]
    assert store.tick(now_us=NOW + 2).due == (Upcoming(NOW + 2, "q", None),)
    assert len(reserve(store, after=2)) == 1


def test_topics_do_not_touch_each_other(store: Store) -> None:
    """The same id in two topics is two jobs, with two leases."""
    put(store, job("a", 1), job("a", 1, topic="r"))
    (mine,) = reserve(store, after=1)
    (other,) = store.reserve("r", 10, 70, now_us=NOW + 1, nonce="n").jobs

    assert mine.token == other.token
    assert store.ack("q", [mine]) == [True]
    assert leases(store, "r") == {b"a": 71}
    assert store.client.hgetall(store.keys.ways) == {b"r": Delivery.plain("r").dumps().encode()}


def test_what_becomes_due_by_then_is_taken_too(store: Store) -> None:
    """In the same order; whatever holds the topic back, and however late one is: all of it shall leave."""
    put(store, job("late", 1, grace_us=2), job("b", 700), job("a", 500), job("later", 900), job("free", 5, topic="r"))
    store.pause("q")

    done = store.reserve("q", 10, 60, until_us=NOW + 700, now_us=NOW + 50, nonce="n")

    assert [(one.id, one.due_us - NOW) for one in done.jobs] == [(b"late", 1), (b"a", 500), (b"b", 700)]
    assert (done.dropped, done.next) == (0, Upcoming(NOW + 5, "r", Delivery.plain("r")))
    assert waiting(store) == {b"later": 900}
    assert store.paused() == {"q"}
    store.resume("q", 10_000.0, now_us=NOW + 50)
    assert len(store.reserve("q", 10, 60, until_us=NOW + 900, now_us=NOW + 950).jobs) == 1


def test_what_was_taken_before_its_time_does_not_come_back_before_it(store: Store) -> None:
    """Whether it is given back, or its lease runs out: it waits as it did; and late, as what was due does."""
    put(store, job("a", 5_000_000), job("b", 6_000_000, grace_us=50, step=3), job("c", 2))
    taken = store.reserve("q", 10, 60, until_us=NOW + 9_000_000, now_us=NOW + 3, nonce="n").jobs
    store.release("q", [one for one in taken if one.id != b"b"], now_us=NOW + 4)
    assert waiting(store) == {b"c": 4, b"a": 5_000_000}

    store.requeue("q", 10, now_us=NOW + 90)
    assert waiting(store) == {b"c": 4, b"a": 5_000_000, b"b": 6_000_000}
    assert index(store) == {b"q": 4}
    last = reserve(store, after=6_000_050)[-1]
    assert (last.id, last.step, last.attempts) == (b"b", 3, 2)
