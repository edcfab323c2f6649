"""delete.lua: what waited is gone, and the caller is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from celery_delayq.errors import DelayQError
from celery_delayq.store import Store, Upcoming

from .conftest import NOW, QUEUE, Contents, job, put, waiting


def test_delete_says_for_each_id_whether_it_waited(store: Store) -> None:
    """Of ids that wait, that never did, and named twice, each gets its own answer."""
    put(store, job("a"), job("b"), job("c"))

    assert store.delete("q", ["a", "x", "c", "a"]) == [True, False, True, False]
    assert list(waiting(store)) == [b"b"]


def test_the_last_delete_leaves_nothing_behind(store: Store, contents: Callable[[], Contents]) -> None:
    """Body, priority, debounce, ties and the topic itself go with the last job."""
    put(store, job("a", 5, step=3, max_wait_us=50), job("b", 5))

    store.delete("q", ["a", "b"])

    assert contents() == {}


def test_delete_moves_the_index_on(store: Store) -> None:
    """When the earliest job is deleted, dispatchers wait for the next one."""
    put(store, job("a", 5), job("b", 9))

    store.delete("q", ["a"])

    assert store.tick(now_us=NOW).next == Upcoming(NOW + 9, "q", QUEUE)


def test_a_job_is_either_deleted_or_dispatched(store: Store) -> None:
    """After a dispatch, delete answers no; after a delete, dispatch moves nothing."""
    put(store, job("a", 1), job("b", 2))
    assert store.delete("q", ["a"]) == [True]

    assert store.dispatch("q", QUEUE, 10, now_us=NOW + 2).moved == 1
    assert store.delete("q", ["b"]) == [False]
    assert store.client.lrange("q", 0, -1) == [b"body of b"]


def test_nothing_to_delete(store: Store, contents: Callable[[], Contents]) -> None:
    """No ids, or an unknown topic: no error, and nothing is created."""
    assert store.delete("q", []) == []
    assert store.delete("unknown", ["a"]) == [False]
    assert contents() == {}


def test_an_empty_id_is_answered_like_any_that_does_not_wait(store: Store) -> None:
    """Nobody can have put it, so it does not wait."""
    assert store.delete("q", [""]) == [False]


@pytest.mark.parametrize("position", range(7))
def test_delete_refuses_a_foreign_key(store: Store, contents: Callable[[], Contents], position: int) -> None:
    """A key of a wrong type: nothing is deleted anywhere."""
    put(store, job("a"))
    key = [store.keys.index, store.keys.topics, *store.keys.of_topic("q")][position]
    store.client.set(key, "somebody else's")
    before = contents()

    with pytest.raises(DelayQError, match="is a string"):
        store.delete("q", ["a"])

    assert before == contents()
