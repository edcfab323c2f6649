"""adopt.lua: a message that was delivered waits, and its delivery is acknowledged; both, or neither."""

from __future__ import annotations

import pytest
import redis

from celery_delayq.job import Adopted, OnConflict, Put
from celery_delayq.store import Store

from .conftest import NOW, QUEUE, Reader, announcements, full, index, job, put, waiting

UNACKED = ("unacked", "unacked_index")


def deliver(store: Store, tag: str = "tag") -> None:
    """Kombu's record of a message that a worker has."""
    store.client.hset("unacked", tag, "the message")
    store.client.zadd("unacked_index", {tag: 1})


def adopt(
    store: Store,
    job: Put,
    on_conflict: OnConflict = OnConflict.REPLACE,
    tag: str = "tag",
    least: int = 0,
    silence: int | None = None,
) -> Adopted:
    return store.adopt(job, QUEUE, on_conflict, tag, UNACKED, least_us=least, silence_us=silence, now_us=NOW)


def test_a_delivered_message_waits_and_is_acknowledged(store: Store, contents: Reader) -> None:
    """Redis holds what a put would have left, and no record of the delivery; others are not touched."""
    deliver(store)
    deliver(store, "another")
    assert adopt(store, job("a", 5, step=3, max_wait_us=50, grace_us=70)) is Adopted.OK
    adopted = contents()

    store.client.flushdb()
    deliver(store, "another")
    put(store, job("a", 5, step=3, max_wait_us=50, grace_us=70))

    assert contents() == adopted


def test_what_is_somebody_else_s_delivery_is_left_alone(store: Store, contents: Reader) -> None:
    """Its message was restored, and another worker has it: whoever comes too late puts nothing. Nor does a repeat."""
    deliver(store)
    assert adopt(store, job("a", 5)) is Adopted.OK
    before = contents()

    assert adopt(store, job("a", 9, body=b"other")) is Adopted.GONE

    assert contents() == before


def test_without_a_record_of_deliveries_there_is_none_to_take(store: Store, contents: Reader) -> None:
    """A broker with ack_emulation off: put, and nothing else is looked at."""
    assert adopt(store, job("a", 5), tag="") is Adopted.OK
    assert waiting(store) == {b"a": 5}
    assert not {b"unacked", b"unacked_index"} & set(contents())


@pytest.mark.parametrize(
    ("due", "least", "became"),
    [(-1, 0, "SOON"), (0, 0, "SOON"), (1, 0, "OK"), (99, 100, "SOON"), (100, 100, "OK")],
)
def test_only_what_is_due_later_is_adopted(store: Store, contents: Reader, due: int, least: int, became: str) -> None:
    """By Redis's clock: what is due already, or sooner than the least delay, stays the worker's."""
    deliver(store)
    before = contents()

    assert adopt(store, job("a", due), least=least).value == became
    assert (contents() == before) is (became == "SOON")


@pytest.mark.parametrize(("ago", "became"), [(None, "UNATTENDED"), (101, "UNATTENDED"), (100, "OK"), (-5, "OK")])
def test_without_a_dispatcher_nothing_is_taken_from_a_worker(
    store: Store, contents: Reader, ago: int | None, became: str
) -> None:
    """What nobody would hand over again, the worker keeps; unless it says that it has a dispatcher of its own."""
    deliver(store)
    if ago is not None:
        store.client.set(store.keys.beat, NOW - ago)
    before = contents()

    assert adopt(store, job("a", 5), silence=100).value == became
    assert (contents() == before) is (became == "UNATTENDED")
    if became == "UNATTENDED":
        assert adopt(store, job("a", 5)) is Adopted.OK


@pytest.mark.parametrize(
    ("on_conflict", "became", "left"),
    [("replace", "OK", {b"a": 9}), ("keep", "OK", {b"a": 5}), ("error", "EXISTS", {b"a": 5})],
)
def test_the_id_waits_already(store: Store, on_conflict: str, became: str, left: dict[bytes, int]) -> None:
    """As the task says: the later one takes its place, or is dropped, or stays with the worker."""
    put(store, job("a", 5, step=3, grace_us=1))
    deliver(store)

    assert adopt(store, job("a", 9, body=b"other"), OnConflict(on_conflict)).value == became

    assert waiting(store) == left
    assert index(store) == {b"q": left[b"a"]}
    assert store.client.hexists("unacked", "tag") == (became == "EXISTS")
    assert store.client.exists(store.keys.steps("q"), store.keys.graces("q")) == (0 if on_conflict == "replace" else 2)


def test_a_debounce_ends_as_with_a_put(store: Store) -> None:
    """max_wait counts from the first put of the id, whoever made it."""
    put(store, job("a", 5, max_wait_us=100))
    deliver(store)

    assert adopt(store, job("a", 10_000, max_wait_us=100)) is Adopted.OK
    assert waiting(store) == {b"a": 100}


def test_it_finds_its_place_among_equals_and_wakes_the_dispatchers(store: Store) -> None:
    """One due after another goes behind it; only what became the earliest is announced."""
    deliver(store, "one")
    deliver(store, "two")
    deliver(store, "three")
    put(store, job("late", 50))
    with announcements(store) as said:
        assert adopt(store, job("b", 7), tag="one") is Adopted.OK
        assert adopt(store, job("a", 7), tag="two") is Adopted.OK
        assert adopt(store, job("c", 60), tag="three") is Adopted.OK
        assert said() == [7]

    assert waiting(store) == {b"b": 7, b"a": 8, b"late": 50, b"c": 60}
    assert index(store) == {b"q": 7}


def test_a_paused_topic_takes_it_and_stays_out_of_the_index(store: Store) -> None:
    """As with a put: it waits, and nobody looks."""
    store.pause("q")
    deliver(store)
    with announcements(store) as said:
        assert adopt(store, job("a", 5)) is Adopted.OK
        assert said() == []
    assert index(store) == {}


def test_a_full_redis_leaves_it_with_the_worker(store: Store, contents: Reader) -> None:
    """Refused as a whole: the record of the delivery is still there, and nothing waits."""
    deliver(store)
    before = contents()

    with full(store), pytest.raises(redis.ResponseError, match="OOM|maxmemory"):
        adopt(store, job("a", 5))

    assert contents() == before
