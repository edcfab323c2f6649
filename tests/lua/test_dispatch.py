"""dispatch.lua: what is due leaves whole, once, in order."""

from __future__ import annotations

import pytest

from celery_delayq.delivery import Delivery
from celery_delayq.job import Aside, OnConflict, Tell
from celery_delayq.store import Dispatched, Store, Upcoming

from .conftest import NOW, QUEUE, Reader, full, index, job, popped, put, totals, waiting

#: After which time (us) dispatch looks again at a topic whose ready lists were full.
FULL_PAUSE = 50_000


def outcome(done: Dispatched) -> tuple[int, int, bool]:
    """Moved, orphans, whether more is due."""
    return done.moved, done.orphans, done.left


def test_it_says_what_is_due_next(store: Store) -> None:
    """Of all topics, with the way to its queue: a dispatcher need not ask again. Nothing, if nothing waits."""
    put(store, job("a", 1), job("b", 90), job("x", 50, topic="r"))

    done = store.dispatch("q", QUEUE, 10, now_us=NOW + 3)
    assert (done.now_us, done.next) == (NOW + 3, Upcoming(NOW + 50, "r", Delivery.plain("r")))
    done = store.dispatch("r", Delivery.plain("r"), 10, now_us=NOW + 60)
    assert done.next == Upcoming(NOW + 90, "q", QUEUE)
    assert store.dispatch("q", QUEUE, 10, now_us=NOW + 90).next is None


def test_only_what_is_due_leaves_and_in_order(store: Store) -> None:
    """Due jobs move to the ready list, the earliest first; the others stay."""
    put(store, job("b", 2), job("a", 1), job("c", 3), job("d", 4))

    assert outcome(store.dispatch("q", QUEUE, 10, now_us=NOW + 3)) == (3, 0, False)
    assert popped(store) == [b"body of a", b"body of b", b"body of c"]
    assert waiting(store) == {b"d": 4}
    assert store.tick(now_us=NOW + 3).next == Upcoming(NOW + 4, "q", QUEUE)


def test_nothing_is_left_behind(store: Store, contents: Reader) -> None:
    """When the last job has left, Redis holds the ready lists and none of our keys but the count."""
    put(store, job("a", 5, step=3, max_wait_us=9, grace_us=2000), job("b", 5))

    store.dispatch("q", QUEUE, 10, now_us=NOW + 2000)

    assert contents() == {
        b"q": [b"body of b"],
        b"q\x06\x163": [b"body of a"],
        store.keys.totals.encode(): {b"moved:q": b"2"},
    }


def test_nothing_is_handed_over_before_it_is_due(store: Store) -> None:
    """One microsecond too early is too early."""
    put(store, job("a", 5))

    assert outcome(store.dispatch("q", QUEUE, 10, now_us=NOW + 4)) == (0, 0, False)
    assert outcome(store.dispatch("q", QUEUE, 10, now_us=NOW + 5)) == (1, 0, False)


@pytest.mark.parametrize("limit", [1, 99, 100, 101, 1000, 1700])
def test_a_call_moves_no_more_than_its_limit(store: Store, limit: int) -> None:
    """A backlog goes in bounded batches, in order, and each says whether more is due."""
    ids = [f"{number:04}" for number in range(1700)]
    put(store, *(job(id, number) for number, id in enumerate(ids)))

    moved = 0
    while (done := store.dispatch("q", QUEUE, limit, now_us=NOW + 2000)).left:
        assert limit == done.moved
        moved += done.moved

    assert moved + done.moved == 1700
    assert [f"body of {id}".encode() for id in ids] == popped(store)


def test_large_bodies_make_smaller_batches(store: Store) -> None:
    """A call stops after the portion that passed 8 MB, so that no call holds Redis for long."""
    body = b"x" * 20_000
    put(store, *(job(f"{number:04}", 1, body=body) for number in range(1200)))

    assert outcome(store.dispatch("q", QUEUE, 1200, now_us=NOW + 2000)) == (500, 0, True)


def test_front_goes_before_what_is_ready_already(store: Store) -> None:
    """Position "front": due jobs are popped before the waiting ones, still in their own order."""
    store.client.lpush("q", "there already")
    put(store, job("a", 1), job("b", 2), job("c", 3))

    store.dispatch("q", QUEUE, 10, "front", now_us=NOW + 3)

    assert popped(store) == [b"body of a", b"body of b", b"body of c", b"there already"]


def test_back_goes_behind_what_is_ready_already(store: Store) -> None:
    """Position "back", the default: first come, first served."""
    store.client.lpush("q", "there already")
    put(store, job("a", 1), job("b", 2))

    store.dispatch("q", QUEUE, 10, now_us=NOW + 3)

    assert popped(store) == [b"there already", b"body of a", b"body of b"]


def test_each_priority_step_has_its_list(store: Store) -> None:
    """Jobs go to the list of their step; of a step that is no more, to the next lower one."""
    put(store, job("zero"), job("three", step=3), job("nine", step=9), job("seven", step=7), job("ten", step=10))

    store.dispatch("q", QUEUE, 10, now_us=NOW + 2000)

    lists = [popped(store, key) for key in QUEUE.lists]
    assert lists == [[b"body of zero"], [b"body of three"], [b"body of seven"], [b"body of nine", b"body of ten"]]


def test_expiring_queues_live_on(store: Store) -> None:
    """x-expires: a delivery renews the life of every sub-list that exists; a queue without it gets no TTL."""
    delivery = Delivery(QUEUE.steps, QUEUE.lists, expires_ms=60_000)
    for key in QUEUE.lists[1:3]:
        store.client.lpush(key, "waiting")
        store.client.pexpire(key, 5_000)
    put(store, job("a"), job("b", topic="r"))

    store.dispatch("q", delivery, 10, now_us=NOW + 1)
    store.dispatch("r", Delivery.plain("r"), 10, now_us=NOW + 1)

    assert all(50_000 < store.client.pttl(key) <= 60_000 for key in QUEUE.lists[:3])
    assert store.client.pttl("r") == -1


def test_an_id_without_a_body_is_dropped_and_counted(store: Store, contents: Reader) -> None:
    """Orphans block nobody: they are counted, dropped, and the jobs around them leave."""
    put(store, job("a", 1), job("gone", 2), job("b", 3))
    store.client.hdel(store.keys.jobs("q"), "gone")

    assert outcome(store.dispatch("q", QUEUE, 10, now_us=NOW + 3)) == (2, 1, False)
    assert contents(totals=False) == {b"q": [b"body of b", b"body of a"]}
    assert totals(store) == {"moved:q": 2, "orphans:q": 1}


def test_nothing_but_orphans(store: Store, contents: Reader) -> None:
    """A schedule whose bodies are all lost is cleaned up, too."""
    put(store, *(job(f"{number}") for number in range(700)))
    store.client.delete(store.keys.jobs("q"))

    assert outcome(store.dispatch("q", QUEUE, 1000, now_us=NOW + 1000)) == (0, 700, False)
    assert contents() == {store.keys.totals.encode(): {b"orphans:q": b"700"}}


def test_one_orphan_alone(store: Store, contents: Reader) -> None:
    """The shortcut for a single due job drops it as well, and finds the next one."""
    put(store, job("gone", 1), job("b", 9))
    store.client.hdel(store.keys.jobs("q"), "gone")

    done = store.dispatch("q", QUEUE, 10, now_us=NOW + 3)

    assert (outcome(done), done.next) == ((0, 1, False), Upcoming(NOW + 9, "q", QUEUE))
    assert totals(store) == {"orphans:q": 1}


def test_totals_count_what_left_each_topic(store: Store) -> None:
    """Over many calls, also past a portion of 100, and for each topic apart."""
    put(store, *(job(f"{number}", number) for number in range(350)), job("x", topic="r"))

    for after in (0, 5, 320, 330, 340, 400):
        store.dispatch("q", QUEUE, 1000, now_us=NOW + after)
    store.dispatch("r", Delivery.plain("r"), 10, now_us=NOW + 5)

    assert totals(store) == {"moved:q": 350, "moved:r": 1}


def test_a_count_that_is_no_number_stops_nobody(store: Store) -> None:
    """What somebody wrote by hand where a count should stand: the jobs leave all the same, each once."""
    put(store, job("a", 1), job("b", 2), job("late", 3, grace_us=0), job("gone", 4))
    store.client.hdel(store.keys.jobs("q"), "gone")
    store.client.hset(store.keys.totals, mapping={f"{word}:q": "many" for word in ("moved", "dropped", "orphans")})

    done = store.dispatch("q", QUEUE, 10, now_us=NOW + 9)

    assert (done.moved, done.dropped, done.orphans) == (2, 1, 1)
    assert popped(store) == [b"body of a", b"body of b"]


def test_a_step_that_is_no_number_goes_to_the_plain_list(store: Store) -> None:
    """Nothing that stands in Redis can make a job disappear: what cannot be understood is as if it were not there."""
    put(store, job("a", 1, step=3), job("b", 2, grace_us=70))
    store.client.hset(store.keys.steps("q"), "a", "high")
    store.client.hset(store.keys.graces("q"), "b", "long")

    assert outcome(store.dispatch("q", QUEUE, 10, now_us=NOW + 900)) == (2, 0, False)
    assert popped(store) == [b"body of a", b"body of b"]


def test_two_steps_may_have_one_list(store: Store) -> None:
    """Each job is pushed once, however many of a queue's steps name the list."""
    delivery = Delivery((0, 3, 6), ("q", "q", "high"))
    put(store, job("a", 1), job("b", 2, step=3), job("c", 3, step=6))

    assert store.dispatch("q", delivery, 10, now_us=NOW + 9).moved == 3

    assert (popped(store), popped(store, "high")) == ([b"body of a", b"body of b"], [b"body of c"])


def test_a_full_redis_may_be_asked_too_early(store: Store) -> None:
    """Out of memory and nothing due yet: no error, which would cost the dispatcher its connection."""
    put(store, job("a", 50))
    with full(store):
        assert outcome(store.dispatch("q", QUEUE, 10, now_us=NOW)) == (0, 0, False)
        assert outcome(store.dispatch("unknown", Delivery.plain("r"), 10, now_us=NOW)) == (0, 0, False)


def test_a_wrong_time_in_the_index_is_put_right(store: Store) -> None:
    """A topic that the index calls due, and is not, is looked at once and not for ever."""
    put(store, job("a", 50))
    store.client.zadd(store.keys.index, {"q": 1})

    done = store.dispatch("q", QUEUE, 10, now_us=NOW)

    assert done.next == Upcoming(NOW + 50, "q", QUEUE)
    assert store.tick(now_us=NOW).due == ()


def test_a_full_redis_still_drains(store: Store) -> None:
    """Out of memory: puts are refused, yet what is due goes out, whole, and is counted."""
    put(store, *(job(f"{number:03}") for number in range(700)))
    with full(store):
        assert outcome(store.dispatch("q", QUEUE, 1000, now_us=NOW + 1000)) == (700, 0, False)
    assert store.client.llen("q") == 700
    assert totals(store) == {"moved:q": 700}


def test_a_full_redis_drains_one_by_one(store: Store) -> None:
    """So does the shortcut for a single job."""
    put(store, job("a", 1), job("b", 500, step=3))
    with full(store):
        assert store.dispatch("q", QUEUE, 10, now_us=NOW + 1).moved == 1
        assert store.dispatch("q", QUEUE, 10, now_us=NOW + 500).moved == 1
    assert totals(store) == {"moved:q": 2}


def test_a_full_redis_lays_aside_what_is_late(store: Store, contents: Reader) -> None:
    """Out of memory: what is dropped is kept for its end, not lost on the way."""
    put(store, job("late", 1, grace_us=5), job("a", 2))
    with full(store):
        done = store.dispatch("q", QUEUE, 10, now_us=NOW + 9)

    assert (done.moved, done.dropped) == (1, 1)
    assert contents(totals=False) == {
        b"q": [b"body of a"],
        b"delayq:{0}:aside": {b"late:late": NOW + 9},
        b"delayq:{0}:remains": {b"late:late": b"body of late"},
    }
    assert totals(store) == {"moved:q": 1, "dropped:q": 1}


def test_a_full_redis_holds_back_what_is_held_back(store: Store, contents: Reader) -> None:
    """Out of memory: a pause, a ceiling and a rate hold; nothing is written, and nothing is lost."""
    put(store, job("a", 1), job("b", 2))
    store.client.lpush("q", "ready")
    before = contents()
    with full(store):
        done = store.dispatch("q", QUEUE, 10, ceiling=1, now_us=NOW + 9)
    assert (outcome(done), done.next) == ((0, 0, False), Upcoming(NOW + 9 + FULL_PAUSE, "q", QUEUE))
    assert before == contents()

    store.pause("q")
    before = contents()
    with full(store):
        assert outcome(store.dispatch("q", QUEUE, 10, now_us=NOW + 9)) == (0, 0, False)
    assert before == contents()

    store.resume("q", 1_000_000.0, now_us=NOW + 9)
    with full(store):
        assert store.dispatch("q", QUEUE, 10, now_us=NOW + 9).moved == 1
        assert store.dispatch("q", QUEUE, 10, now_us=NOW + 10).moved == 0
        assert store.dispatch("q", QUEUE, 10, now_us=NOW + 1_000_009).moved == 1
    assert contents(totals=False) == {b"q": [b"body of b", b"body of a", b"ready"]}


def test_an_unknown_topic_moves_nothing(store: Store, contents: Reader) -> None:
    """Somebody else was faster: no error, nothing created."""
    assert outcome(store.dispatch("q", QUEUE, 10, now_us=NOW)) == (0, 0, False)
    assert contents() == {}


def test_bytes_are_moved_as_they_are(store: Store) -> None:
    """Large integers, empty lists, NULs and broken UTF-8: what went in comes out."""
    body = b'{"n": 12345678901234567890, "empty": [], "f": 1.0}\x00\xff\xfe'
    put(store, job("a", body=body))

    store.dispatch("q", QUEUE, 10, now_us=NOW + 1)

    assert [body] == popped(store)


def test_order_among_equals_holds_while_a_backlog_drains(store: Store) -> None:
    """A put of the same due, while earlier ones of it are still being moved, goes behind them."""
    put(store, *(job(id, 5) for id in "dcb"))
    store.dispatch("q", QUEUE, 1, now_us=NOW + 500)
    store.put([job("a", 5)], {"q": QUEUE}, now_us=NOW)
    store.dispatch("q", QUEUE, 10, now_us=NOW + 500)

    assert popped(store) == [b"body of d", b"body of c", b"body of b", b"body of a"]


def test_a_paused_topic_never_leaves(store: Store, contents: Reader) -> None:
    """However long overdue, and whoever asks."""
    put(store, job("a", 1), job("b", 2, step=9, grace_us=5))
    store.pause("q")
    before = contents()

    for after in (0, 5, 10**6, 10**12):
        done = store.dispatch("q", QUEUE, 10, now_us=NOW + after)
        assert (outcome(done), done.dropped, done.next) == ((0, 0, False), 0, None)

    assert before == contents()


def test_a_topic_paused_since_the_tick_stays(store: Store) -> None:
    """A dispatcher that saw it due, and comes too late, moves nothing and is told what else is next."""
    put(store, job("a", 1), job("x", 9, topic="r"))
    assert [one.topic for one in store.tick(now_us=NOW + 5).due] == ["q"]
    store.pause("q")

    done = store.dispatch("q", QUEUE, 10, now_us=NOW + 5)

    assert (outcome(done), done.next) == ((0, 0, False), Upcoming(NOW + 9, "r", Delivery.plain("r")))


def test_a_paused_topic_that_stands_in_the_index_leaves_it(store: Store) -> None:
    """A wrong place in the index is put right, so that no dispatcher turns in circles."""
    put(store, job("a", 1))
    store.pause("q")
    store.client.zadd(store.keys.index, {"q": NOW})

    assert outcome(store.dispatch("q", QUEUE, 10, now_us=NOW + 5)) == (0, 0, False)
    assert index(store) == {}


def test_the_pause_of_another_topic_is_none_of_ours(store: Store) -> None:
    """With and without jobs that have options."""
    store.pause("r")
    put(store, job("a", 1), job("b", 50, step=3))

    assert outcome(store.dispatch("q", QUEUE, 10, now_us=NOW + 5)) == (1, 0, False)
    assert outcome(store.dispatch("q", QUEUE, 10, now_us=NOW + 50)) == (1, 0, False)
    assert popped(store, "q\x06\x163") == [b"body of b"]


def test_a_ceiling_keeps_what_does_not_fit(store: Store) -> None:
    """No more leaves than the ready lists may hold, all steps together; the rest waits in its order."""
    put(store, *(job(f"{number}", number, step=3 * (number % 3)) for number in range(9)))
    store.client.lpush("q\x06\x169", "ready", "ready")

    done = store.dispatch("q", QUEUE, 10, ceiling=5, now_us=NOW + 20)

    assert (outcome(done), done.next) == ((3, 0, False), Upcoming(NOW + 20 + FULL_PAUSE, "q", QUEUE))
    assert [store.client.llen(key) for key in QUEUE.lists] == [1, 1, 1, 2]
    assert list(waiting(store)) == [b"3", b"4", b"5", b"6", b"7", b"8"]


def test_a_full_queue_is_left_alone_and_resumes_by_itself(store: Store, contents: Reader) -> None:
    """While consumers are behind, a look every 50 ms; as they go on, so does the queue, and nothing is lost."""
    put(store, *(job(f"{number:02}", number) for number in range(40)))
    now, seen, looks = NOW + 100, [], []
    while waiting(store):
        done = store.dispatch("q", QUEUE, 1000, ceiling=10, now_us=now)
        looks.append(done.moved)
        assert store.client.llen("q") <= 10
        if len(looks) % 3 == 0:  # the consumers wake up
            seen += [store.client.rpop("q") for _ in range(7)]
        if done.next is not None:
            assert done.next.due_us - now == FULL_PAUSE
            assert store.tick(now_us=done.next.due_us - 1).due == ()
            now = done.next.due_us
    seen += popped(store)
    store.client.delete("q")

    assert looks == [10, 0, 0, 7, 0, 0, 7, 0, 0, 7, 0, 0, 7, 0, 0, 2]
    assert [f"body of {number:02}".encode() for number in range(40)] == seen
    assert contents() == {store.keys.totals.encode(): {b"moved:q": b"40"}}


def test_nobody_looks_at_a_full_queue_meanwhile(store: Store) -> None:
    """A second dispatcher, or a put, does not make it look sooner; one without the ceiling has to wait as well."""
    put(store, job("a", 1), job("b", 2))
    store.dispatch("q", QUEUE, 10, ceiling=1, now_us=NOW + 9)

    put(store, job("c", 3))
    assert index(store) == {b"q": 9 + FULL_PAUSE}
    assert store.dispatch("q", QUEUE, 10, now_us=NOW + 9).moved == 0
    assert store.dispatch("q", QUEUE, 10, now_us=NOW + 9 + FULL_PAUSE).moved == 2


def test_a_ceiling_that_is_not_reached_changes_nothing(store: Store, contents: Reader) -> None:
    """What just fits leaves, and the queue is not held back for it."""
    put(store, job("a", 1), job("b", 2), job("later", 900))

    done = store.dispatch("q", QUEUE, 10, ceiling=2, now_us=NOW + 9)

    assert (outcome(done), done.next) == ((2, 0, False), Upcoming(NOW + 900, "q", QUEUE))
    assert store.keys.holds.encode() not in contents()


def test_a_batch_ends_before_the_ceiling_does(store: Store) -> None:
    """A call that stopped at its limit says that more may leave now."""
    put(store, *(job(f"{number}", number) for number in range(9)))

    assert outcome(store.dispatch("q", QUEUE, 4, ceiling=6, now_us=NOW + 20)) == (4, 0, True)
    assert outcome(store.dispatch("q", QUEUE, 4, ceiling=6, now_us=NOW + 20)) == (2, 0, False)


def test_what_is_later_than_its_grace_is_laid_aside(store: Store, contents: Reader) -> None:
    """To the microsecond; with its body, for anybody to finish; the others are handed over."""
    put(store, job("late", 1, grace_us=7), job("on time", 2, grace_us=7), job("any", 3))

    done = store.dispatch("q", QUEUE, 10, now_us=NOW + 9)

    assert (done.moved, done.dropped, done.orphans, done.left) == (2, 1, 0, False)
    assert popped(store) == [b"body of on time", b"body of any"]
    assert totals(store) == {"moved:q": 2, "dropped:q": 1}
    assert store.claim(60, 10, now_us=NOW + 9) == [Aside("late", "late", b"body of late")]
    assert store.delete("q", ["late"]) == [False]


def test_one_late_job_alone(store: Store, contents: Reader) -> None:
    """The shortcut for a single due job lays it aside as well."""
    put(store, job("late", 1, grace_us=0), job("b", 90))

    done = store.dispatch("q", QUEUE, 10, now_us=NOW + 9)

    assert (done.moved, done.dropped, done.next) == (0, 1, Upcoming(NOW + 90, "q", QUEUE))
    assert totals(store) == {"dropped:q": 1}
    assert store.keys.graces("q").encode() not in contents()


def test_many_late_jobs_among_others(store: Store) -> None:
    """Past a portion of 100, with steps: each is either handed over or laid aside."""
    put(store, *(job(f"{number:03}", number, step=3 * (number % 2), grace_us=100) for number in range(300)))
    put(store, *(job(f"any {number:03}", number + 1000) for number in range(50)))

    done = store.dispatch("q", QUEUE, 1000, now_us=NOW + 300)

    assert (done.moved, done.dropped) == (100, 200)
    aside = {job.id for job in store.claim(60, 1000, now_us=NOW + 300)}
    assert aside == {f"{number:03}" for number in range(200)}
    assert [body.split()[-1] for body in popped(store)] == [f"{number:03}".encode() for number in range(200, 300, 2)]


def test_a_grace_of_a_job_that_is_put_anew_is_the_new_one(store: Store) -> None:
    """The id of a late job may wait again, without a grace or with another."""
    put(store, job("a", 1, grace_us=0))
    put(store, job("a", 1), on_conflict=OnConflict.REPLACE)
    assert store.dispatch("q", QUEUE, 10, now_us=NOW + 9).moved == 1

    put(store, job("a", 1, grace_us=0))
    assert store.dispatch("q", QUEUE, 10, now_us=NOW + 9).dropped == 1
    put(store, job("a", 1))
    assert store.dispatch("q", QUEUE, 10, now_us=NOW + 9).moved == 1


def test_a_script_that_redis_forgot_is_loaded_again(store: Store) -> None:
    """SCRIPT FLUSH, a restart, a failover: the next call works, with all that was held back."""
    put(store, job("a", 1), job("b", 2))
    store.resume("q", 1_000_000.0, now_us=NOW + 9)
    store.dispatch("q", QUEUE, 10, now_us=NOW + 9)
    store.client.script_flush()

    assert store.dispatch("q", QUEUE, 10, now_us=NOW + 9).moved == 0
    assert store.dispatch("q", QUEUE, 10, now_us=NOW + 1_000_009).moved == 1


def test_it_tells_when_each_moved_job_was_due(store: Store) -> None:
    """Only if asked, exact, in due order over all portions; of what was dropped or had no body, nothing."""
    put(store, job("late", 0, grace_us=5), job("gone", 1), *(job(f"{number:03}", 2 + number) for number in range(250)))
    store.client.hdel(store.keys.jobs("q"), "gone")

    done = store.dispatch("q", QUEUE, 1000, tell=Tell.DUES, now_us=NOW + 900)

    assert (done.moved, done.dropped, done.orphans, done.jobs) == (250, 1, 1, ())
    assert tuple(NOW + 2 + number for number in range(250)) == done.dues_us


def test_it_tells_which_jobs_moved_and_a_part_of_each(store: Store) -> None:
    """What the pattern finds in a body, nothing if it finds nothing; ids are any bytes."""
    put(
        store,
        job(b"\xff\n ", 1, body=b'{"task": "shop.\xc3\xa9", "body": "\x00"}'),
        job("b", 2, body=b"none"),
        job("c", 900, step=3, body=b'"task": "x"'),
    )
    ask = {"tell": Tell.JOBS, "pattern": b'"task": "([^"]*)"'}

    done = store.dispatch("q", QUEUE, 1000, now_us=NOW + 9, **ask)
    assert (done.dues_us, done.jobs) == ((NOW + 1, NOW + 2), ((b"\xff\n ", b"shop.\xc3\xa9"), (b"b", b"")))
    done = store.dispatch("q", QUEUE, 1000, now_us=NOW + 900, **ask)  # alone
    assert (done.dues_us, done.jobs) == ((NOW + 900,), ((b"c", b"x"),))
    done = store.dispatch("q", QUEUE, 1000, now_us=NOW + 900, **ask)  # none
    assert (done.moved, done.dues_us, done.jobs) == (0, (), ())


@pytest.mark.parametrize("pattern", [b"%", b"(", b"[a", b"()", b""])
def test_a_pattern_that_is_none_stops_nobody(store: Store, pattern: bytes) -> None:
    """By then jobs have left: they are handed over, counted and told, without a part."""
    put(store, job("a", 1), job("b", 2))

    done = store.dispatch("q", QUEUE, 1000, tell=Tell.JOBS, pattern=pattern, now_us=NOW + 9)

    assert (done.moved, done.jobs) == (2, ((b"a", b""), (b"b", b"")))
    assert popped(store) == [b"body of a", b"body of b"]
    assert totals(store) == {"moved:q": 2}


@pytest.mark.parametrize("delivery", [QUEUE, Delivery.plain("q")], ids=["four lists", "one list"])
def test_a_store_with_leases_tells_as_well(store: Store, delivery: Delivery) -> None:
    """The key that comes last and the arguments that come last do not confuse each other."""
    leasing = Store(store.client, store.keys, leases=True)
    for tell, dues, jobs in (
        (Tell.NOTHING, (), ()),
        (Tell.DUES, (NOW + 1,), ()),
        (Tell.JOBS, (NOW + 1,), ((b"a", b""),)),
    ):
        leasing.put([job("a", 1, step=3)], {"q": delivery}, now_us=NOW)
        done = leasing.dispatch("q", delivery, 10, tell=tell, pattern=b"none", now_us=NOW + 5)
        assert (done.moved, done.dues_us, done.jobs) == (1, dues, jobs)
    assert popped(store, delivery.lists[min(1, len(delivery.lists) - 1)]) == [b"body of a"] * 3
