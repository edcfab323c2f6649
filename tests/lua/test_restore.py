"""restore.lua: what a record has is written as it was, whole; the same again is no conflict."""

from __future__ import annotations

import pytest

from celery_delayq.delivery import Delivery
from celery_delayq.errors import AlreadyScheduled, DelayQError
from celery_delayq.job import OnConflict, Put
from celery_delayq.store import Store

from .conftest import NOW, QUEUE, Reader, announcements, full, index, job, put, reserve, waiting


def restore(store: Store, *jobs: Put, on_conflict: OnConflict = OnConflict.ERROR) -> int:
    """What was read elsewhere, every topic delivered to the list of its name."""
    deliveries = {job.topic: QUEUE if job.topic == "q" else Delivery.plain(job.topic) for job in jobs}
    return store.restore(jobs, deliveries, on_conflict)


def test_what_is_restored_stands_where_it_stood(store: Store, contents: Reader) -> None:
    """Due to the microsecond, also where that is past or taken; with its step, first put and grace."""
    restore(store, job("late", -5_000_000), job("b", 7, step=3), job("a", 7, max_wait_us=NOW - 9, grace_us=70))

    assert {
        b"delayq:{0}:index": {b"q": NOW - 5_000_000},
        b"delayq:{0}:topics": {b"q": QUEUE.dumps().encode()},
        b"delayq:{0}:schedule:q": {b"late": NOW - 5_000_000, b"b": NOW + 7, b"a": NOW + 7},
        b"delayq:{0}:jobs:q": {b"late": b"body of late", b"b": b"body of b", b"a": b"body of a"},
        b"delayq:{0}:steps:q": {b"b": b"3"},
        b"delayq:{0}:firsts:q": {b"a": str(NOW - 9).encode()},
        b"delayq:{0}:graces:q": {b"a": b"70"},
    } == contents()


def test_a_restored_first_put_still_bounds_a_debounce(store: Store) -> None:
    """max_wait counts from the put of long ago, not from the restoration."""
    restore(store, job("a", 60, max_wait_us=NOW - 50))

    put(store, job("a", 90, max_wait_us=100), on_conflict=OnConflict.REPLACE)

    assert waiting(store) == {b"a": 50}


@pytest.mark.parametrize("on_conflict", OnConflict)
def test_to_restore_the_same_again_changes_nothing(store: Store, contents: Reader, on_conflict: OnConflict) -> None:
    """A record that is read in twice, or broken off and begun anew: what is there already is no conflict."""
    record = [job("late", -5), job("b", 7), job("a", 7, max_wait_us=NOW - 9, grace_us=70)]
    assert restore(store, *record[:2]) == 2

    assert restore(store, *record, on_conflict=on_conflict) == 1
    before = contents()
    assert restore(store, *record, record[1], on_conflict=on_conflict) == 0
    assert before == contents()


def test_one_record_twice_in_one_batch_is_one_job(store: Store) -> None:
    """The same job named twice in a batch is there once."""
    assert restore(store, job("a", 7), job("a", 7)) == 1


@pytest.mark.parametrize("other", [job("a", 8), job("a", 7, body=b"other")], ids=["due", "body"])
def test_what_waits_otherwise_than_recorded_is_a_conflict(store: Store, contents: Reader, other: Put) -> None:
    """Another due time or another body under that id: on_conflict decides."""
    restore(store, job("a", 7, step=3))
    before = contents()

    with pytest.raises(AlreadyScheduled):
        restore(store, other)
    assert restore(store, other, on_conflict=OnConflict.KEEP) == 0
    assert before == contents()
    assert restore(store, other, on_conflict=OnConflict.REPLACE) == 1
    assert waiting(store) == {b"a": (other.at_us or 0) - NOW}
    assert store.client.hgetall(store.keys.jobs("q")) == {b"a": other.body}
    assert not store.client.exists(store.keys.steps("q"))


def test_a_put_of_the_due_of_restored_ones_goes_behind_them(store: Store) -> None:
    """Restored jobs of one due keep it to the microsecond; who comes later is behind."""
    restore(store, job("z", 7), job("y", 7))
    put(store, job("a", 7))

    assert list(waiting(store)) == [b"y", b"z", b"a"]


def test_nothing_is_restored_from_before_the_epoch(store: Store, contents: Reader) -> None:
    """No put has ever accepted such a time, so no record has one; and a record has no times from now on."""
    with pytest.raises(DelayQError, match="1970"):
        store.restore([Put("q", "a", b"", at_us=-1)], {"q": QUEUE}, OnConflict.ERROR)

    with pytest.raises(ValueError, match="give it at_us"):
        store.restore([Put("q", "a", b"", in_us=1)], {"q": QUEUE}, OnConflict.ERROR)
    assert contents() == {}


def test_all_or_nothing_over_several_topics(store: Store, contents: Reader) -> None:
    """A conflict in one of them leaves the others untouched."""
    put(store, job("taken", 5, topic="b"))
    before = contents()
    record = [job("x", 1, topic="a"), job("taken", 6, topic="b"), job("y", 2, topic="c", step=0)]

    with pytest.raises(AlreadyScheduled, match="'taken' waits already"):
        restore(store, *record)
    assert contents() == before
    assert restore(store, *record, on_conflict=OnConflict.KEEP) == 2
    assert index(store) == {b"a": 1, b"c": 2, b"b": 5}


def test_thousands_in_one_call(store: Store) -> None:
    """More than one command can take; each with its own options."""
    record = [job(f"{number:05}", number, step=number % 3, grace_us=number or None) for number in range(2500)]
    assert restore(store, *record) == 2500

    assert list(waiting(store).values()) == list(range(2500))
    for found in (*store.page("q", limit=1000).jobs, *store.page("q", backwards=True, limit=1000).jobs):
        number = int(found.id)
        assert (found.step, found.grace_us, found.body) == (number % 3, number or None, b"body of " + found.id)


def test_the_last_of_an_id_counts(store: Store) -> None:
    """In one batch as in two: with replace the later one takes the place of the earlier, options included."""
    record = [job("a", 7, step=3, body=b"1"), job("b", 8), job("a", 9, grace_us=5, body=b"2"), job("a", 9, body=b"2")]

    assert restore(store, *record, on_conflict=OnConflict.REPLACE) == 3
    (found, _) = sorted(store.page("q").jobs)
    assert (found.id, found.due_us, found.body, found.step, found.grace_us) == (b"a", NOW + 9, b"2", 0, 5)
    assert waiting(store) == {b"b": 8, b"a": 9}
    assert restore(store, job("c", 1), job("c", 2), on_conflict=OnConflict.KEEP) == 1
    assert waiting(store)[b"c"] == 1


def test_dispatchers_are_told(store: Store) -> None:
    """Of the earliest only, if it is earlier than all; and a topic that is held back stays so."""
    with announcements(store) as said:
        restore(store, job("a", 50), job("b", 40, topic="other"))
        restore(store, job("c", 60))
        assert said() == [40]
    store.pause("q")
    with announcements(store) as said:
        restore(store, job("d", 10))
        assert said() == []
    assert index(store) == {b"other": 40}
    store.resume("q", now_us=NOW)
    assert index(store) == {b"q": 10, b"other": 40}


def test_what_is_replaced_leaves_the_index_right(store: Store) -> None:
    """Also where the earliest job of a topic becomes a later one."""
    restore(store, job("a", 5), job("b", 9))
    assert restore(store, job("a", 20), on_conflict=OnConflict.REPLACE) == 1
    assert index(store) == {b"q": 9}


def test_a_full_redis_refuses_whole(store: Store, contents: Reader) -> None:
    """Nothing is half restored."""
    restore(store, job("a", 5))
    before = contents()
    with full(store), pytest.raises(Exception, match="maxmemory"):
        restore(store, *(job(str(number), number) for number in range(300)))
    assert contents() == before


def test_what_is_reserved_already_is_there(leasing: Store, contents: Reader) -> None:
    """A second import while the first one's jobs are handed over doubles none."""
    restore(leasing, job("a", 5), job("b", 6))
    jobs = reserve(leasing, after=9)
    before = contents()

    assert restore(leasing, job("a", 5), job("b", 6)) == 0
    assert before == contents()
    with full(leasing):
        assert restore(leasing, job("a", 5)) == 0
    assert leasing.ack("q", jobs) == [True, True]


def test_what_is_restored_otherwise_than_it_is_reserved(leasing: Store, contents: Reader) -> None:
    """A new job of its id: the lease on the old one is lost, and it counts from the beginning."""
    restore(leasing, job("a", 5), job("b", 6), job("c", 7))
    a, b, c = reserve(leasing, after=9)
    leasing.release("q", [c], at_us=NOW + 20, now_us=NOW + 9)

    restored = [job("a", 5, body=b"new"), job("b", 60), job("c", 7)]
    assert restore(leasing, *restored, on_conflict=OnConflict.REPLACE) == 3

    assert leasing.ack("q", [a, b]) == [False, False]
    assert leasing.tick(now_us=NOW + 10**9).expired == ()
    assert [(one.body, one.attempts) for one in reserve(leasing, after=60)] == [
        (b"new", 1),
        (b"body of c", 1),
        (b"body of b", 1),
    ]
