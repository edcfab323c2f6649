"""A worker of each pool runs delayed tasks: once, in time, with what it should know about them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone

import pytest

from celery_delayq.embedded import RedisServer

from .worker import Project, newest_redis, wait_for

POOLS = ("prefork", "threads", "gevent", "eventlet", "solo")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """One server for all: nothing here depends on its version."""
    with newest_redis() as server:
        yield server


@pytest.fixture(scope="module", params=POOLS)
def project(request: pytest.FixtureRequest, server: RedisServer) -> Iterator[Project]:
    """A project with one running worker of that pool, which reads three queues."""
    with (
        Project(server.url(POOLS.index(request.param))) as project,
        project.worker("--queues=celery,mail,reports", pool=request.param) as worker,
    ):
        worker.await_ready()
        yield project
        assert "Traceback" not in worker.log()


def test_runs_each_delayed_task_once_and_not_before_it_is_due(project: Project) -> None:
    """Tasks of several queues with a countdown or an eta run once each, in their queue, and never early."""
    sent = time.time()
    wanted: dict[str, tuple[str, float]] = {}
    for queue in ("celery", "mail", "reports"):
        for delay in (0.3, 0.8, 1.3):
            wanted[project.send(countdown=delay, queue=queue)] = (queue, sent + delay)
        eta = datetime.now(timezone.utc) + timedelta(seconds=1)
        wanted[project.send(eta=eta, queue=queue)] = (queue, eta.timestamp())

    project.ledger.wait_for(list(wanted))

    for task_id, (queue, due) in wanted.items():
        (run,) = project.ledger.of(task_id)
        assert run["queue"] == queue
        assert run["at"] >= due


def test_the_task_knows_the_time_it_was_asked_for(project: Project) -> None:
    """``scheduled_for(request)`` is the eta to the microsecond; None in a task that was not delayed."""
    eta = datetime.now(timezone.utc) + timedelta(seconds=0.5)
    delayed, plain = project.send(eta=eta), project.send()

    project.ledger.wait_for([delayed, plain])

    assert project.ledger.of(delayed)[0]["due"] == eta.timestamp()
    assert project.ledger.of(plain)[0]["due"] is None


def test_a_retry_waits_its_countdown(project: Project) -> None:
    """``retry(countdown=…)`` runs again after it, once, and knows its own time, not the first run's."""
    task_id = project.send(0.7, task="retry", countdown=0.3)

    wait_for(lambda: len(project.ledger.of(task_id)) == 2, "the retry ran")

    first, second = project.ledger.of(task_id)
    assert second["retries"] == 1
    assert second["at"] - first["at"] >= 0.7
    assert second["due"] - first["due"] >= 0.7


def test_a_retry_without_delay_carries_nothing_of_ours(project: Project) -> None:
    """What we write on a delayed message stays on it: its retry at once is a message like any other."""
    task_id = project.send(0, task="retry", countdown=0.3)

    wait_for(lambda: len(project.ledger.of(task_id)) == 2, "the retry ran")

    first, second = project.ledger.of(task_id)
    assert "delayq" in first["message"]
    assert "delayq" not in second["message"]
    assert second["due"] is None


def test_a_solo_worker_dispatches_while_it_is_busy(server: RedisServer) -> None:
    """While the only thread of a solo worker sleeps in a task, due tasks still reach the ready list in time."""
    with Project(server.url(9)) as project, project.worker(pool="solo") as worker, server.client(9) as redis:
        worker.await_ready()
        blocked = project.send(6, task="block")
        wait_for(lambda: project.ledger.of(blocked), "the long task has begun")
        task_id = project.send(countdown=1)
        other = project.send(countdown=1, queue="other")

        wait_for(lambda: redis.llen("other") == 1 and redis.llen("celery") == 1, "both are on their ready lists")

        assert len(project.ledger.of(blocked)) == 1, "the long task has ended: this proved nothing"
        assert other.encode() in redis.lindex("other", 0)
        project.ledger.wait_for([task_id])
        assert project.ledger.runs()[task_id] == 1
