"""move.lua: another due time for the same job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from celery_delayq.clock import LATEST_US
from celery_delayq.errors import DelayQError
from celery_delayq.scripts import script
from celery_delayq.store import Move, Moved, Store

from .conftest import NOW, Contents, job, put, value_of, waiting


def move(store: Store, id: str, **how: Any) -> Moved:
    """Move one job of the queue, at NOW."""
    (moved,) = store.move("q", [Move(id, **how)], now_us=NOW)
    return moved


def keys_of(store: Store) -> list[str]:
    """What move takes, in its order."""
    keys = store.keys
    return [keys.index, keys.holds, keys.schedule("q"), keys.jobs("q"), keys.ties("q"), keys.journal("j")]


def test_a_moved_job_keeps_its_body(store: Store) -> None:
    """Only the due time changes, to later, to earlier, and by a delay."""
    put(store, job("a", 50), job("b", 60))

    assert Moved.OK is move(store, "a", at_us=NOW + 90)
    assert waiting(store) == {b"b": 60, b"a": 90}
    assert Moved.OK is move(store, "a", in_us=10)
    assert waiting(store) == {b"a": 10, b"b": 60}
    assert store.client.hget(store.keys.jobs("q"), "a") == b"body of a"
    assert value_of(store.client, store.keys.index.encode()) == {b"q": NOW + 10}


def test_move_to_the_past_is_due_now(store: Store) -> None:
    """What should have run already runs next."""
    put(store, job("a", 50))

    assert Moved.OK is move(store, "a", at_us=5)
    assert waiting(store) == {b"a": 0}


def test_a_job_moved_to_a_taken_time_goes_behind(store: Store) -> None:
    """Among jobs of one due, a moved one counts as the last that came; to its own time it stays where it is."""
    put(store, job("b", 50), job("a", 90))

    move(store, "a", at_us=NOW + 50)
    assert list(waiting(store)) == [b"b", b"a"]

    move(store, "b", at_us=NOW + 70)
    move(store, "b", at_us=NOW + 70)
    assert waiting(store)[b"b"] == 70


def test_what_does_not_wait_cannot_move(store: Store, contents: Callable[[], Contents]) -> None:
    """An unknown id, and one that was dispatched: the caller is told, nothing is created."""
    assert Moved.MISSING is move(store, "a", at_us=NOW + 9)
    assert contents() == {}


def test_if_due_moves_only_what_the_caller_saw(store: Store, contents: Callable[[], Contents]) -> None:
    """Compare and set: with another due time than the caller's, nothing changes."""
    put(store, job("a", 50))
    before = contents()

    assert Moved.CHANGED is move(store, "a", at_us=NOW + 9, if_due_us=NOW + 51)
    assert before == contents()
    assert Moved.OK is move(store, "a", at_us=NOW + 9, if_due_us=NOW + 50)


def test_a_job_moved_to_the_front_wakes_the_dispatchers(store: Store) -> None:
    """Earlier than all others: announced; later: not."""
    put(store, job("a", 50), job("b", 60))
    with store.client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe(store.keys.wake)
        listener.get_message(timeout=5)
        move(store, "a", at_us=NOW + 90)
        move(store, "a", at_us=NOW + 30)

        message = listener.get_message(timeout=5)

    assert int(message["data"]) == NOW + 30


@pytest.mark.parametrize("due", ["", "soon", "nan", "inf", str(LATEST_US + 1)])
def test_an_unusable_due_time_changes_nothing(store: Store, contents: Callable[[], Contents], due: str) -> None:
    """What is no time, or beyond what can be kept, is refused."""
    put(store, job("a", 50))
    before = contents()

    with pytest.raises(DelayQError, match="move:"):
        script("move")(store.client, keys_of(store), ["", NOW, "q", "", 0, "a", due, "", ""])

    assert before == contents()


def test_a_full_redis_refuses_a_move_whole(store: Store, contents: Callable[[], Contents]) -> None:
    """Out of memory: the job stays due when it was."""
    put(store, job("a", 50))
    before = contents()
    store.client.config_set("maxmemory", "1")
    try:
        with pytest.raises(Exception, match="OOM|maxmemory"):
            move(store, "a", at_us=NOW + 9)
        assert before == contents()
    finally:
        store.client.config_set("maxmemory", "0")


@pytest.mark.parametrize("position", range(5))
def test_move_refuses_a_foreign_key(store: Store, contents: Callable[[], Contents], position: int) -> None:
    """A key of a wrong type: the error names it, nothing changes."""
    put(store, job("a"))
    key = keys_of(store)[position]
    store.client.set(key, "somebody else's")
    before = contents()

    with pytest.raises(DelayQError, match="is a string"):
        move(store, "a", at_us=NOW + 9)

    assert before == contents()
