"""Queues that are held back: paused, resumed at a rate, full; and tasks that are made to run at once."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from celery_delayq import apply_delayed
from celery_delayq.embedded import RedisServer

from .worker import Project, newest_redis, wait_for


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with newest_redis() as server:
        yield server


def test_a_paused_queue_waits_while_others_run(server: RedisServer) -> None:
    """Nothing of a paused queue is handed over, however overdue, also by a worker that starts later; its schedule
    keeps filling; resumed, all of it runs, in due order.
    """
    with Project(server.url(0)) as project, server.client(0) as client:
        delayq = project.app.delayq
        assert delayq.pause("other")
        held = [project.send(countdown=0.02 * number, queue="other") for number in range(1, 11)]
        with project.worker() as worker:
            worker.await_ready()
            more = [project.send(countdown=0.3, queue="other")]
            task_ids = [project.send(countdown=0.6)]
            project.ledger.wait_for(task_ids)  # due after all the others, and run

            assert client.llen("other") == 0
            assert delayq.paused() == {"other"}
            stats = delayq.stats()["other"]
            assert (stats.waiting, stats.due, stats.paused) == (11, 11, True)
            assert stats.overdue.total_seconds() > 0.2

            assert delayq.resume("other")
            wait_for(lambda: client.llen("other") == 11, "all are handed over")
            popped = client.lrange("other", 0, -1)[::-1]
            assert all(task_id.encode() in body for task_id, body in zip(held + more, popped, strict=True))
            assert delayq.stats()["other"].moved == 11


def test_a_pause_survives_a_restart_of_redis_and_of_the_worker(redis_server: RedisServer) -> None:
    """Whatever is restarted, the queue stays paused until somebody resumes it."""
    with (
        RedisServer(redis_server._program, ["--appendonly", "yes", "--appendfsync", "always"]) as server,
        Project(server.url()) as project,
    ):
        delayq = project.app.delayq
        delayq.pause("celery")
        task_id = project.send(countdown=0.1)
        with project.worker() as worker:
            worker.await_ready()
            server.stop()
            worker.await_log("trying again, tasks wait safely")
            server.start()
            worker.await_log("working again")
        with project.worker() as worker:
            worker.await_ready()
            other = project.send(countdown=0.1, queue="other")
            wait_for(lambda: delayq.get(other) is None, "the other queue's task is handed over")
            assert project.ledger.lines() == []
            assert delayq.paused() == {"celery"}

            delayq.resume("celery")
            project.ledger.wait_for([task_id])


def test_a_rate_bounds_what_a_resumed_queue_releases(server: RedisServer) -> None:
    """Twenty overdue tasks at ten a second take two seconds, in due order; a task that is due later needs no rate."""
    with Project(server.url(1)) as project, project.worker() as worker:
        worker.await_ready()
        delayq = project.app.delayq
        delayq.pause("celery")
        task_ids = [project.send(countdown=0.01 * number) for number in range(1, 21)]
        wait_for(lambda: delayq.stats()["celery"].due == 20, "all are due")

        began = time.time()
        delayq.resume("celery", rate=10)
        project.ledger.wait_for(task_ids)

        runs = sorted(project.ledger.lines(), key=lambda line: line["at"])
        assert runs[-1]["at"] - began > 1.7  # 19 intervals of 0.1 s, less the tenth that may be made up
        assert delayq.stats()["celery"].waiting == 0
        assert project.ledger.runs() == dict.fromkeys(task_ids, 1)


def test_a_full_ready_list_gets_no_more(server: RedisServer) -> None:
    """With a ready limit of 5 and nobody consuming, 5 of 30 due tasks are handed over; as messages leave, more come,
    and none is lost.
    """
    with (
        Project(server.url(2), delayq_ready_limit={"other": 5}) as project,
        project.worker() as worker,
        server.client(2) as client,
    ):
        worker.await_ready()
        delayq = project.app.delayq
        task_ids = [project.send(countdown=0.01 * number, queue="other") for number in range(1, 31)]
        sign = project.send(countdown=0.8)
        project.ledger.wait_for([sign])
        assert client.llen("other") == 5
        assert delayq.stats()["other"].due == 25

        taken = []
        while len(taken) < 30:
            body = wait_for(lambda: client.rpop("other"), "more is handed over")
            assert client.llen("other") <= 5
            taken.append(body)

        assert all(task_id.encode() in body for task_id, body in zip(task_ids, taken, strict=True))


def test_run_now_runs_at_once(server: RedisServer) -> None:
    """A task that waits for days starts when it is told to, because the dispatcher is woken for it."""
    with Project(server.url(3)) as project, project.worker() as worker:
        worker.await_ready()
        delayq = project.app.delayq
        task_id = apply_delayed(project.app.signature("record"), 3 * 86_400, ("x",), task_id="some-id").id

        assert delayq.run_now(task_id, "another") == 1

        project.ledger.wait_for([task_id])
        assert delayq.get(task_id) is None


def test_a_task_that_comes_too_late_is_dropped(server: RedisServer) -> None:
    """Found later than its grace it does not run, and is counted; within its grace it runs."""
    with Project(server.url(4)) as project:
        delayq = project.app.delayq
        stale = project.send("stale", countdown=0.1, late="drop", grace=0.2)
        fresh = project.send("fresh", countdown=0.1, late="drop", grace=3600)
        plain = project.send("plain", countdown=0.1)
        wait_for(lambda: delayq.stats()["celery"].overdue.total_seconds() > 0.5, "all are overdue")
        with project.worker() as worker:
            worker.await_ready()
            project.ledger.wait_for([fresh, plain])

            assert stale not in project.ledger.runs()
            assert delayq.stats()["celery"].dropped == 1
            worker.await_log("came later than their grace")
