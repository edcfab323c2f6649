"""Many delayed tasks and several workers: each task once, and nobody's memory pays for those that wait."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest

from celery_delayq.embedded import RedisServer

from .worker import Project, Worker, handed_over, newest_redis, put_many, wait_for


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with newest_redis() as server:
        yield server


def test_several_workers_hand_each_task_over_once(server: RedisServer) -> None:
    """Three dispatchers and 2,000 tasks that fall due within 4 seconds: every task runs, and none twice."""
    delays = random.Random(1).choices(range(1_000, 5_000), k=2_000)
    with Project(server.url(0)) as project, ExitStack() as stack, server.client(0) as redis:
        workers = [stack.enter_context(project.worker(concurrency=4)) for _ in range(3)]
        for worker in workers:
            worker.await_ready()
        task_ids = [project.send(countdown=ms / 1_000, queue=("celery", "other")[ms % 2]) for ms in delays]
        consumed = [task_id for task_id, ms in zip(task_ids, delays, strict=True) if ms % 2 == 0]
        untouched = [task_id for task_id, ms in zip(task_ids, delays, strict=True) if ms % 2 == 1]

        project.ledger.wait_for(consumed)
        wait_for(lambda: redis.llen("other") >= len(untouched), "the other queue's tasks are handed over")

        assert project.ledger.runs() == dict.fromkeys(consumed, 1)
        assert handed_over(redis, "other") == dict.fromkeys(untouched, 1)
        assert not [line for line in project.ledger.lines() if line["at"] < line["due"] - 0.001]


def test_children_that_live_for_one_task(server: RedisServer) -> None:
    """With ``max_tasks_per_child=1`` every task costs a fork, while the dispatcher's thread works: none hangs."""
    with (
        Project(server.url(1)) as project,
        project.worker("--max-tasks-per-child=1", pool="prefork", concurrency=8) as worker,
    ):
        worker.await_ready()
        task_ids = [project.send(countdown=0.5 + number * 0.005) for number in range(200)]

        project.ledger.wait_for(task_ids, timeout=300)  # 200 forks, and billiard waits for each

        assert project.ledger.runs() == dict.fromkeys(task_ids, 1)
        assert len({line["pid"] for line in project.ledger.lines()}) == len(task_ids)
        assert worker.said("Traceback") == 0


def test_tasks_that_wait_outlive_the_visibility_timeout(server: RedisServer) -> None:
    """Nothing that waits is unacknowledged, so a delay of twice the visibility timeout runs nothing twice."""
    impatient = {
        "visibility_timeout": 4,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }
    with (
        Project(server.url(2), broker_transport_options=impatient) as project,
        project.worker() as one,
        project.worker() as two,
        server.client(2) as redis,
    ):
        one.await_ready()
        two.await_ready()
        task_ids = [project.send(countdown=delay / 10) for delay in range(80, 100)]
        seen: list[int] = []

        def all_ran() -> bool:
            if not project.ledger.lines():
                seen.append(redis.hlen("unacked") + redis.zcard("unacked_index") + redis.llen("celery"))
            return len(project.ledger.lines()) >= len(task_ids)

        wait_for(all_ran, "the tasks ran")
        assert seen
        assert max(seen[:-5]) == 0  # the last look may have met the first task on its way
        wait_for(lambda: redis.hlen("unacked") == 0, "all are acknowledged")
        assert project.ledger.runs() == dict.fromkeys(task_ids, 1)


def megabytes(worker: Worker) -> float:
    """The resident memory of a worker process (MB)."""
    return psutil.Process(worker.process.pid).memory_info().rss / 1e6


def test_a_workers_memory_does_not_know_how_many_tasks_wait(server: RedisServer) -> None:
    """20,000 waiting tasks, put while the worker runs, add less than 5 MB to it."""
    with (
        Project(server.url(3)) as project,
        project.worker("--loglevel=WARNING", pool="solo") as worker,
        server.client(3) as redis,
    ):
        wait_for(lambda: redis.pubsub_numsub("delayq:{0}:wake:3")[0][1] == 1, "the dispatcher has subscribed")
        first = project.send(countdown=0.5)
        project.ledger.wait_for([first])  # what is loaded at the first use is loaded now
        before = megabytes(worker)

        hour = int(time.time() + 3_600) * 1_000_000
        put_many(project, "celery", range(hour, hour + 20_000))
        last = project.send(countdown=0.5)
        project.ledger.wait_for([last])

        assert redis.zcard("delayq:{0}:schedule:celery") == 20_000
        assert redis.hlen("unacked") == 0
        assert megabytes(worker) - before < 5
