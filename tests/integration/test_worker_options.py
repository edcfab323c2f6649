"""Who dispatches: a worker that was told not to leaves it to others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from celery_delayq.embedded import RedisServer

from .worker import ROOT, Project, newest_redis, wait_for


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with newest_redis() as server:
        yield server


@pytest.mark.parametrize(
    ("database", "arguments", "conf"),
    [
        pytest.param(0, ["--no-delayq-dispatch"], {}, id="option"),
        pytest.param(1, [], {"delayq_dispatch": False}, id="setting"),
    ],
)
def test_a_worker_that_should_not_dispatch_does_not(
    server: RedisServer, database: int, arguments: list[str], conf: dict[str, bool]
) -> None:
    """With the option or the setting a due task waits, however long, until somebody else dispatches it."""
    with (
        Project(server.url(database), **conf) as project,
        project.worker(*arguments) as worker,
        server.client(database) as redis,
    ):
        worker.await_ready(dispatcher=False)
        delayed = project.send(countdown=0.2)
        due_us = int(redis.zscore("delayq:{0}:schedule:celery", delayed))

        def past_due() -> bool:
            seconds, micros = redis.time()
            return seconds * 1_000_000 + micros > due_us + 1_500_000  # more than the poll interval

        wait_for(past_due, "the task is long due")
        plain = project.send()
        project.ledger.wait_for([plain])
        assert delayed not in project.ledger.runs()
        assert redis.zcard("delayq:{0}:schedule:celery") == 1
        assert worker.said("delayq dispatcher") == 0

        dispatcher = project.app.delayq.dispatcher()
        dispatcher.start()
        try:
            project.ledger.wait_for([delayed])
        finally:
            dispatcher.stop()


def test_the_help_of_the_worker_command_names_the_option(server: RedisServer) -> None:
    """``celery worker --help`` says how to leave the dispatching to others."""
    with Project(server.url(2)) as project:
        command = [sys.executable, "-m", "celery", "--workdir", f"{ROOT}/tests/integration", "-A", "proj"]
        said = subprocess.run(
            [*command, "worker", "--help"],
            env={**project.environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert "--no-delayq-dispatch" in said


def test_a_setting_that_does_not_exist_ends_the_start(server: RedisServer) -> None:
    """A wrong ``delayq_`` setting stops the worker at once, with its name and the nearest right one."""
    with Project(server.url(3), delayq_dispach=False) as project, project.worker() as worker:
        worker.wait()

        assert worker.process.returncode not in (0, None)
        assert "unknown setting delayq_dispach; did you mean delayq_dispatch?" in worker.log()


def test_workers_of_a_joined_app_need_no_other_step(server: RedisServer) -> None:
    """A stock worker of the same queues runs what another process dispatched: messages are plain Celery ones."""
    with Project(server.url(4), joined=False) as project, project.worker() as worker:
        worker.await_ready(dispatcher=False)
        dispatcher = project.app.delayq.dispatcher()
        dispatcher.start()
        try:
            task_id = project.send(countdown=0.3)
            project.ledger.wait_for([task_id])
        finally:
            dispatcher.stop()
        assert project.ledger.runs()[task_id] == 1
        assert worker.said("delayq dispatcher") == 0
