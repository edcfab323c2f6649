"""Calls whose replies are read later: by pages and puts that go on while the caller is busy."""

from __future__ import annotations

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from celery_delayq.errors import AlreadyScheduled, DelayQError
from celery_delayq.job import OnConflict
from celery_delayq.store import Store

from .conftest import QUEUE, job, put, waiting


def test_the_reply_is_read_when_it_is_wanted(store: Store) -> None:
    """Redis may have done the work long before; other calls may come in between."""
    put(store, job("a"), job("b", 2))

    page = store.begin_page("q")
    stored = store.begin_restore([job("c", 3)], {"other": QUEUE, "q": QUEUE}, OnConflict.ERROR)
    assert store.client.ping() is True

    assert stored.result() == 1
    assert [job.id for job in page.result().jobs][:2] == [b"a", b"b"]
    assert list(waiting(store)) == [b"a", b"b", b"c"]


def test_a_server_that_does_not_know_the_script_is_told(store: Store) -> None:
    """As after a restart."""
    put(store, job("a"))
    store.client.script_flush()

    assert store.begin_page("q").result() == store.page("q")


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_lost_connection_costs_another_call(store: Store, when: str) -> None:
    """Whether it is lost before the call or before its reply."""
    put(store, job("a"))
    page = store.page("q")
    if when == "before":
        store.client.client_kill_filter(_type="normal", skipme=False)
    begun = store.begin_page("q")
    if when == "meanwhile":
        store.client.client_kill_filter(_type="normal", skipme=True)

    assert begun.result() == page


def test_a_reply_that_nobody_wants_meets_nobody_else(store: Store) -> None:
    """A dropped call takes its connection along, and may be dropped twice."""
    put(store, job("a"))
    for _ in range(20):
        begun = store.begin_page("q")
        begun.drop()
        begun.drop()

    assert store.client.ping() is True
    assert store.begin_page("q").result().jobs[0].id == b"a"


def test_refusals_are_told(store: Store) -> None:
    """As by the call that waits; and the connection goes back to its pool."""
    put(store, job("a"))
    begun = store.begin_restore([job("a", 5)], {"q": QUEUE}, OnConflict.ERROR)
    with pytest.raises(AlreadyScheduled, match="'a' waits already"):
        begun.result()

    store.client.set(store.keys.schedule("other"), "foreign")
    for _ in range(3):
        with pytest.raises(DelayQError, match="Another program uses this key"):
            store.begin_page("other").result()
    pool = store.client.connection_pool
    assert len(pool._available_connections) == pool._created_connections


def test_a_redis_that_is_gone_is_told(store: Store) -> None:
    """In the words of redis-py: translating them is the caller's business."""
    lost = Store(redis.Redis(port=1, retry=Retry(NoBackoff(), 0)), store.keys)
    with pytest.raises(redis.ConnectionError):
        lost.begin_page("q").result()
