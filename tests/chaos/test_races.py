"""Processes race for the same jobs: each job ends once, and whoever ended it is told so."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain

import pytest

from celery_delayq.clock import SECOND_US
from celery_delayq.delivery import Delivery
from celery_delayq.embedded import RedisServer
from celery_delayq.job import Put
from celery_delayq.store import Store
from tests.integration.worker import Project, handed_over, put_many

from .race import QUEUE, race


@pytest.fixture
def project(server: RedisServer) -> Iterator[Project]:
    with Project(server.url()) as project:
        yield project


def put_tasks(project: Project, store: Store, count: int) -> list[str]:
    """Tasks that are due, or will be in half a second."""
    now = int(time.time() * SECOND_US)
    ids = put_many(project, QUEUE, [now + number % 3 * SECOND_US // 4 for number in range(count)])
    store.client.delete(store.keys.totals)  # they had a template, which is taken back
    return ids


def totals(store: Store) -> Counter[str]:
    return Counter({name.decode(): int(count) for name, count in store.client.hgetall(store.keys.totals).items()})


def left(store: Store) -> set[bytes]:
    """What there still is of ours, beside the totals and the version."""
    return {*store.client.scan_iter("delayq:*")} - {store.keys.totals.encode(), store.keys.version.encode()}


def test_a_task_is_handed_over_or_cancelled(project: Project, store: Store) -> None:
    """While others move it to and fro, and pause its queue: never both, never neither, and the totals agree."""
    ids = put_tasks(project, store, 3_000)
    project.app.delayq.pause(QUEUE)

    moved_here, moved_there, *others = race(
        project.app.conf.broker_url,
        ("dispatch",),
        ("dispatch",),
        ("delete", ids),
        ("delete", ids),
        ("cancel", ids[::4]),
        ("run_now", ids),
        ("reschedule", ids[::2]),
        ("pause_and_resume", 100),
    )

    run, taken = handed_over(store.client, QUEUE), Counter(chain(*others[:3]))
    assert run, "nothing was handed over: that was no race"
    assert taken, "nothing was cancelled: that was no race"
    assert run + taken == dict.fromkeys(ids, 1)
    assert moved_here + moved_there == run.total()
    assert totals(store) == {f"moved:{QUEUE}": run.total(), f"cancelled:{QUEUE}": taken.total()}
    assert left(store) == set()


def test_a_put_that_was_stored_ends_once(store: Store, server: RedisServer) -> None:
    """A few ids are put again and again: as many puts as said that they were stored were handed over or taken back."""
    ids = [f"task-{number}" for number in range(20)]

    put_here, put_there, moved, deleted, purged, _ = race(
        server.url(),
        ("put", ids, 100, "new"),
        ("put", ids, 100, "new"),
        ("dispatch",),
        ("delete", ids * 40),
        ("purge", 100),
        ("pause_and_resume", 50),
    )

    bodies = Counter(store.client.lrange(QUEUE, 0, -1))
    assert set(bodies.values()) == {1}
    assert bodies.total() == moved
    assert put_here + put_there == moved + len(deleted) + purged
    assert totals(store) == {f"moved:{QUEUE}": moved, f"cancelled:{QUEUE}": len(deleted) + purged}
    assert left(store) == set()


def test_a_put_that_is_sent_by_many_is_stored_once(store: Store, server: RedisServer) -> None:
    """As a producer does that got no answer: the same bytes under the same id are one job."""
    ids = [f"task-{number}" for number in range(300)]
    store.pause(QUEUE)

    stored = race(server.url(), *[("put", ids, 2, "retried")] * 3)
    store.resume(QUEUE)
    moved = race(server.url(), ("dispatch",), ("dispatch",), ("dispatch",))

    assert sum(stored) == sum(moved) == len(ids)
    assert Counter(store.client.lrange(QUEUE, 0, -1)) == {id.encode(): 1 for id in ids}
    assert left(store) == set()


def test_what_lies_aside_is_finished_once(store: Store, server: RedisServer) -> None:
    """Deleted ones and those that came too late: each is claimed by one of several, all are, and nothing else is."""
    ids = [f"task-{number}" for number in range(1_000)]
    now = store.now_us()
    jobs = [
        # On time, too late, or on time if somebody is quick.
        Put(QUEUE, id, id.encode(), at_us=now, grace_us=(None, 0, 2 * SECOND_US)[number % 3])
        for number, id in enumerate(ids)
    ]
    store.put(jobs, {QUEUE: Delivery.plain(QUEUE)})

    moved, deleted, deleted_too, *claimed = race(
        server.url(), ("dispatch",), ("delete", ids, 0), ("delete", ids, 0), ("finish",), ("finish",)
    )

    run = Counter(body.decode() for body in store.client.lrange(QUEUE, 0, -1))
    aside = Counter(chain(*claimed))
    dropped = Counter(name.removeprefix("late:") for name in aside if name.startswith("late:"))
    assert set(aside.values()) == {1}
    assert {name for name in aside if name.startswith("revoked:")} == {f"revoked:{id}" for id in deleted + deleted_too}
    assert run + dropped + Counter(deleted + deleted_too) == dict.fromkeys(ids, 1)
    assert moved == run.total()
    assert left(store) == set()
