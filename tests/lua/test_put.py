"""put.lua: all jobs or none, each in its place."""

from __future__ import annotations

import pytest
from redis.exceptions import OutOfMemoryError

from celery_delayq.clock import LATEST_US
from celery_delayq.delivery import Delivery
from celery_delayq.errors import AlreadyScheduled, DelayQError, Unattended
from celery_delayq.job import OnConflict, Origin, Put
from celery_delayq.liveness import Liveness
from celery_delayq.scripts import script
from celery_delayq.store import Store

from .conftest import NOW, QUEUE, Reader, announcements, full, index, job, popped, put, waiting


def test_a_put_leaves_the_id_its_body_and_the_way_to_the_queue(store: Store, contents: Reader) -> None:
    """After a put, Redis holds the job once, its topic in the index and how it is delivered; nothing else."""
    assert put(store, job("a", 5)) == 1

    assert {
        b"delayq:{0}:index": {b"q": NOW + 5},
        b"delayq:{0}:topics": {b"q": QUEUE.dumps().encode()},
        b"delayq:{0}:schedule:q": {b"a": NOW + 5},
        b"delayq:{0}:jobs:q": {b"a": b"body of a"},
    } == contents()


def test_jobs_of_one_due_leave_in_the_order_of_their_puts(store: Store) -> None:
    """A thousand jobs of the very same microsecond keep their order, and none is due before its time."""
    ids = [f"{9999 - number}" for number in range(1000)]
    for id in ids[:500]:
        put(store, job(id, 7))
    put(store, *(job(id, 7) for id in ids[500:]))

    order = waiting(store)

    assert [id.encode() for id in ids] == list(order)
    assert {7, 8, 9, 1006} <= set(order.values())
    assert min(order.values()) == 7


def test_also_behind_an_earlier_job_they_leave_in_the_order_of_their_puts(store: Store) -> None:
    """One by one, with ids in any order, and also a due time that another has got by being put off."""
    put(store, job("first", 5))
    for id in ("c", "b", "a"):
        put(store, job(id, 70))
    put(store, job("d", 72))

    order = waiting(store)

    assert list(order) == [b"first", b"c", b"b", b"a", b"d"]
    assert len(set(order.values())) == 5


def test_a_put_behind_another_mends_an_index_that_was_lost(store: Store) -> None:
    """As by an eviction: else nobody would look at the topic again."""
    put(store, job("first", 5))
    store.client.delete(store.keys.index)
    put(store, job("a", 70))

    assert index(store) == {b"q": 5}


def test_a_put_behind_another_brings_the_newest_way_of_delivery(store: Store) -> None:
    """Where a queue has got priorities meanwhile, as an example."""
    put(store, job("first", 5))
    newer = Delivery((0, 5), ("q", "q-5"))
    store.put([job("a", 70)], {"q": newer}, now_us=NOW)

    assert store.topics() == {"q": newer}


def test_more_than_a_thousand_of_one_due_stay_within_a_millisecond(store: Store) -> None:
    """However many are due at once, none is put off by a millisecond or more."""
    put(store, *(job(f"{number:05}", 7) for number in range(3000)))

    assert max(waiting(store).values()) == 7 + 999
    assert len(waiting(store)) == 3000


def test_the_order_survives_a_cancelled_first(store: Store) -> None:
    """When the first of several of one due is deleted, a later put still goes behind the others."""
    put(store, job("c", 7), job("b", 7))
    store.delete("q", ["c"])
    put(store, job("a", 7))

    assert list(waiting(store)) == [b"b", b"a"]


def test_the_index_knows_the_earliest_of_each_topic(store: Store) -> None:
    """A dispatcher finds the time of each topic's earliest job in one key."""
    put(store, job("late", 50), job("x", 70, topic="r"))
    put(store, job("early", 20))

    assert index(store) == {b"q": 20, b"r": 70}


def test_what_is_past_is_due_now(store: Store) -> None:
    """A due time before Redis's clock counts as now, so that lateness and order stay honest."""
    put(store, job("a", -5_000_000), Put("q", "b", b"", in_us=-3))

    assert waiting(store) == {b"a": 0, b"b": 1}


def test_a_delay_counts_from_redis_own_clock(store: Store) -> None:
    """A job due "in" some time is due that much after the moment that the script sees."""
    put(store, Put("q", "a", b"", in_us=1_234_567))
    assert waiting(store) == {b"a": 1_234_567}

    seconds, micros = store.client.time()
    store.put([Put("r", "b", b"", in_us=60_000_000)], {"r": QUEUE})
    assert 0 <= waiting(store, "r")[b"b"] + NOW - (seconds * 1_000_000 + micros) - 60_000_000 < 5_000_000


@pytest.mark.parametrize("id", ["10", "{}*:\n\0", "ü€", b"\xff\x00\xfe", "x" * 10_000])
def test_any_id_will_do(store: Store, id: str | bytes) -> None:
    """Ids are bytes of any kind and length."""
    put(store, job(id))

    raw = id.encode() if isinstance(id, str) else id
    assert [raw] == list(waiting(store))
    assert {raw: b"body of " + raw} == store.client.hgetall(store.keys.jobs("q"))


def test_a_large_body_is_kept_as_it_is(store: Store) -> None:
    """50 MB of every byte value go in and come out the same."""
    body = bytes(range(256)) * 200_000
    put(store, job("a", body=body))
    store.dispatch("q", QUEUE, 10, now_us=NOW + 1)

    assert body == store.client.rpop("q")


def test_any_topic_name_will_do(store: Store) -> None:
    """Spaces, unicode, colons and braces in a queue's name cannot make two topics meet."""
    names = ["with space", "ünïcödé ☃", "a:b", "{0}", "jobs:q", "q", "\n"]
    for number, name in enumerate(names):
        put(store, job("same", number, topic=name))

    assert [[number] for number in range(len(names))] == [list(waiting(store, name).values()) for name in names]


def test_an_id_that_waits_is_refused(store: Store, contents: Reader) -> None:
    """on_conflict "error": the second put of an id raises, names it, and changes nothing."""
    put(store, job("a", 5))
    before = contents()

    with pytest.raises(AlreadyScheduled, match="'a' waits already.*on_conflict"):
        put(store, job("a", 9, body=b"other"))

    assert before == contents()


def test_a_batch_with_one_conflict_is_refused_whole(store: Store, contents: Reader) -> None:
    """All or none: one conflicting id keeps the whole batch out, over all topics."""
    put(store, job("taken", 5))
    before = contents()

    with pytest.raises(AlreadyScheduled):
        put(store, job("new"), job("other", topic="r"), job("taken", 9, body=b"other"))

    assert before == contents()


def test_an_id_twice_in_one_batch_is_a_conflict_too(store: Store, contents: Reader) -> None:
    """A batch cannot smuggle in what two puts could not."""
    with pytest.raises(AlreadyScheduled):
        put(store, job("a", 1), job("a", 2, body=b"other"))

    assert contents() == {}


def test_the_same_id_in_another_topic_is_another_job(store: Store) -> None:
    """Ids are unique in their topic, so that one message can wait for several queues."""
    assert put(store, job("a"), job("a", topic="r")) == 2


def test_keep_leaves_the_one_that_waits(store: Store) -> None:
    """on_conflict "keep": the first one stays, with its body and its due time."""
    put(store, job("a", 5))

    assert put(store, job("a", 9, body=b"other"), job("b", 9), on_conflict=OnConflict.KEEP) == 1

    assert waiting(store) == {b"a": 5, b"b": 9}
    assert store.client.hget(store.keys.jobs("q"), "a") == b"body of a"


def test_replace_overwrites_due_body_and_step(store: Store, contents: Reader) -> None:
    """on_conflict "replace": only the new one is left, as if the first had never been."""
    put(store, job("a", 5, step=6, max_wait_us=50))
    put(store, job("a", 9, body=b"other"), on_conflict=OnConflict.REPLACE)

    assert {
        b"delayq:{0}:index": {b"q": NOW + 9},
        b"delayq:{0}:topics": {b"q": QUEUE.dumps().encode()},
        b"delayq:{0}:schedule:q": {b"a": NOW + 9},
        b"delayq:{0}:jobs:q": {b"a": b"other"},
    } == contents()


def test_max_wait_bounds_a_debounce(store: Store) -> None:
    """Replacing again and again cannot put a job off for longer than max_wait after its first put."""
    for due in (60, 90, 120, 150, 180):
        put(store, job("a", due, max_wait_us=100), on_conflict=OnConflict.REPLACE)

    assert waiting(store) == {b"a": 100}


def test_the_same_put_again_is_no_conflict(store: Store, contents: Reader) -> None:
    """A put whose answer was lost and that is sent again finds its own bytes, answers OK and moves nothing."""
    put(store, job("a", 5))
    before = contents()

    for on_conflict in OnConflict:
        assert put(store, job("a", 999), on_conflict=on_conflict, origin=Origin.RETRIED) == 0

    assert before == contents()


def test_other_bytes_sent_again_are_a_conflict(store: Store) -> None:
    """Sent again or not: another body under the same id is another message."""
    put(store, job("a", 5))

    with pytest.raises(AlreadyScheduled):
        put(store, job("a", 5, body=b"other"), origin=Origin.RETRIED)


def test_only_the_earliest_wakes_the_dispatchers(store: Store) -> None:
    """A put is announced when it became the earliest of all topics, and only then."""
    with announcements(store) as said:
        put(store, job("a", 50))
        put(store, job("b", 60), job("x", 55, topic="r"))
        put(store, job("y", 20, topic="r"))

        assert said() == [50, 20]


def test_a_full_redis_refuses_and_keeps_nothing_half(store: Store, contents: Reader) -> None:
    """Out of memory: the put is refused whole, also one that would replace; with nothing to write it is answered."""
    put(store, job("a", 5))
    store.pause("r")
    before = contents()

    with full(store):
        with pytest.raises(OutOfMemoryError):
            put(store, job("b"), job("c", topic="r"))
        with pytest.raises(OutOfMemoryError):
            put(store, job("a", 9, body=b"other"), on_conflict=OnConflict.REPLACE)
        assert put(store, job("a", 9), origin=Origin.RETRIED) == 0

    assert before == contents()


@pytest.mark.parametrize("due", ["", "soon", "nan", "inf", "+inf", str(LATEST_US + 1), "1e300"])
def test_one_unusable_job_keeps_the_good_ones_out(store: Store, contents: Reader, due: str) -> None:
    """What is no time, or none that a score can hold, is refused, and the error says which job of the batch it is."""
    keys = [store.keys.index, store.keys.topics, store.keys.holds, store.keys.beat, *store.keys.of_topic("q")]
    good = [1, "good", NOW + 1, 0, "", "", b"body"]
    args = ["", NOW, "error", "new", "", "store", 1, "q", QUEUE.dumps(), *good, 1, "bad", due, 0, "", "", b"body"]

    with pytest.raises(DelayQError, match="put: job 2"):
        script("put")(store.client, keys, args)

    assert contents() == {}


def test_the_latest_time_is_kept_exactly(store: Store) -> None:
    """The last microsecond that is accepted comes back as it was given."""
    store.put([Put("q", "a", b"", LATEST_US)], {"q": QUEUE}, now_us=NOW)

    assert int(store.client.zscore(store.keys.schedule("q"), "a")) == LATEST_US


@pytest.mark.parametrize("offset", [0, 1, 2, 499_999, 999_999])
def test_microseconds_are_exact(store: Store, offset: int) -> None:
    """A due time keeps every digit on its way through Lua."""
    put(store, job("a", offset))

    assert NOW + offset == int(store.client.zscore(store.keys.schedule("q"), "a"))


def test_the_store_refuses_an_empty_id_and_unclear_times() -> None:
    """Before anything is sent: no id, no time, or two times."""
    for arguments in ({"id": "", "at_us": 1}, {"id": "a"}, {"id": "a", "at_us": 1, "in_us": 1}):
        with pytest.raises(ValueError, match="id must not be empty|either"):
            Put("q", body=b"", **arguments)
    with pytest.raises(ValueError, match="2255"):
        Put("q", "a", b"", at_us=LATEST_US + 1)


def test_a_new_delivery_takes_the_place_of_the_old(store: Store) -> None:
    """When a producer's priority steps change, the next put tells the dispatchers."""
    put(store, job("a"))
    store.put([job("b")], {"q": Delivery.plain("elsewhere")}, now_us=NOW)

    assert Delivery.plain("elsewhere") == store.tick(now_us=NOW + 1).due[0].delivery


def test_a_paused_topic_takes_puts_and_stays_out_of_the_index(store: Store) -> None:
    """What comes while a topic is paused waits; it is not looked at, and nobody is woken for it."""
    store.pause("q")
    with announcements(store) as said:
        put(store, job("a", 5))
        put(store, job("a", 3, body=b"other"), on_conflict=OnConflict.REPLACE)
        put(store, job("b", 2), job("x", 7, topic="r"))

        assert said() == [7]
    assert index(store) == {b"r": 7}
    assert waiting(store) == {b"b": 2, b"a": 3}


def test_a_topic_that_is_held_back_is_not_looked_at_earlier(store: Store) -> None:
    """While a topic catches up at a rate, a put cannot make it due before its turn."""
    put(store, job("a", 1), job("b", 2))
    store.resume("q", 1_000_000.0, now_us=NOW + 2)
    assert store.dispatch("q", QUEUE, 10, now_us=NOW + 2).moved == 1

    with announcements(store) as said:
        put(store, job("c", 1))
        assert said() == []

    assert index(store) == {b"q": 1_000_002}


def test_the_pause_of_another_topic_is_none_of_ours(store: Store) -> None:
    """Only the topic that is paused is held back."""
    store.pause("r")
    put(store, job("a", 5), job("x", 6, topic="r"))

    assert index(store) == {b"q": 5}


def test_a_grace_stands_beside_the_job_and_goes_when_it_is_replaced(store: Store, contents: Reader) -> None:
    """How late a job may be is kept for those that have a grace only, and as of the last put."""
    graces = store.keys.graces("q").encode()
    put(store, job("a", grace_us=70), job("b"))
    assert contents()[graces] == {b"a": b"70"}

    put(store, job("a", grace_us=0), on_conflict=OnConflict.REPLACE)
    assert contents()[graces] == {b"a": b"0"}
    put(store, job("a"), on_conflict=OnConflict.REPLACE)
    assert graces not in contents()


def test_an_id_twice_in_one_batch_that_replaces(store: Store) -> None:
    """The last one counts, and is compared with the one before it, not with what waited before the batch."""
    put(store, job("a", 5, body=b"first"))
    batch = [job("a", 6, body=b"second"), job("a", 7, body=b"first")]

    assert put(store, *batch, on_conflict=OnConflict.REPLACE, origin=Origin.RETRIED) == 2

    assert waiting(store) == {b"a": 7}
    assert store.client.hgetall(store.keys.jobs("q")) == {b"a": b"first"}


def test_a_due_time_may_be_written_in_any_way(store: Store) -> None:
    """A client in another language may send 1e15 or leading zeros; the score is the number."""
    keys = [store.keys.index, store.keys.topics, store.keys.holds, store.keys.beat, *store.keys.of_topic("q")]
    for id, due in {"a": "2e15", "b": "002000000000000001", "c": " 2000000000000002 ", "d": "0x71afd498d0003"}.items():
        args = ["", NOW, "error", "new", "", "store", 1, "q", QUEUE.dumps(), 1, id, due, 0, "", "", "body"]
        assert script("put")(store.client, keys, args) == [b"OK", 1, 0]

    assert waiting(store) == {id: 2 * 10**15 + number - NOW for number, id in enumerate([b"a", b"b", b"c", b"d"])}


def test_what_was_put_in_front_of_a_backlog_leaves_first(store: Store) -> None:
    """The shortcut for a job before all others finds the same places as the search does."""
    for due in (9_000, 8_000, 7_001, 6_002, 6_002, 6_003, 5_000):
        put(store, job(f"{due}-{store.client.zcard(store.keys.schedule('q'))}", due))

    store.dispatch("q", QUEUE, 100, now_us=NOW + 9_000)

    dues = [body.split()[-1].split(b"-")[0] for body in popped(store)]
    assert dues == [b"5000", b"6002", b"6002", b"6003", b"7001", b"8000", b"9000"]


class Found(Liveness):
    """Remembers what it was told instead of logging it."""

    def __init__(self, *, refuses: bool = False) -> None:
        super().__init__(1.0, refuses)
        self.misses: list[tuple[int, int, bool]] = []

    def miss(self, silent_us: int, jobs: int, *, refused: bool) -> None:
        self.misses.append((silent_us, jobs, refused))


def beat(store: Store, ago: int) -> None:
    """The last sign of life of a dispatcher: so many us before NOW."""
    store.client.set(store.keys.beat, NOW - ago)


def attended(store: Store, *jobs: Put, refuses: bool = False, on_conflict: OnConflict = OnConflict.REPLACE) -> Found:
    """Put, and say what was found of the dispatchers."""
    found = Found(refuses=refuses)
    store.put(jobs, {"q": QUEUE}, on_conflict, origin=Origin.RETRIED, liveness=found, now_us=NOW)
    return found


def test_a_put_tells_whether_a_dispatcher_lives(store: Store) -> None:
    """Never seen, seen too long ago, and seen just in time; a beat from the future is none that is missing."""
    silence = Found().silence_us
    assert attended(store, job("a"), job("b")).misses == [(-1, 2, False)]
    for ago, misses in {silence + 1: [(silence + 1, 1, False)], silence: [], 0: [], -5_000_000: []}.items():
        beat(store, ago)
        assert attended(store, job(f"c{ago}")).misses == misses

    assert len(waiting(store)) == 6


def test_who_does_not_ask_is_told_nothing(store: Store) -> None:
    """Without a liveness the put does not look."""
    assert put(store, job("a")) == 1


@pytest.mark.parametrize("ago", [None, 10**9])
def test_a_put_that_is_refused_has_stored_nothing(store: Store, contents: Reader, ago: int | None) -> None:
    """All or none: of a batch that finds no dispatcher, nothing waits."""
    if ago is not None:
        beat(store, ago)
    before = contents()
    found = Found(refuses=True)

    with pytest.raises(Unattended):
        store.put([job("a"), job("b")], {"q": QUEUE}, liveness=found, now_us=NOW)

    assert contents() == before
    assert found.misses == [(ago or -1, 2, True)]


def test_with_a_dispatcher_nothing_is_refused(store: Store) -> None:
    """The wish to be refused changes nothing while one lives."""
    beat(store, 5)

    assert attended(store, job("a"), refuses=True).misses == []
    assert waiting(store) == {b"a": 1}


def test_what_waits_already_is_not_refused(store: Store) -> None:
    """The same bytes again are the same put, which was stored; what replaces a job must not run beside it."""
    put(store, job("a", 5), job("b", 6))

    assert attended(store, job("a", 5), refuses=True).misses == []
    assert attended(store, job("b", 9, body=b"other"), job("c", 9), refuses=True).misses == [(-1, 2, False)]

    assert waiting(store) == {b"a": 5, b"b": 9, b"c": 10}


def test_a_conflict_is_told_before_a_dispatcher_is_missed(store: Store) -> None:
    """Who said "error" learns that the id waits; who said "keep", that it is kept. Neither is refused."""
    put(store, job("a", 5))

    with pytest.raises(AlreadyScheduled):
        attended(store, job("a", 7, body=b"other"), refuses=True, on_conflict=OnConflict.ERROR)
    assert attended(store, job("a", 7, body=b"other"), refuses=True, on_conflict=OnConflict.KEEP).misses == []

    assert waiting(store) == {b"a": 5}
