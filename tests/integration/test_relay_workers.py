"""Real workers of brokers that are not the Redis in which their delayed tasks wait."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from celery_delayq.embedded import RedisServer

from .worker import Project, wait_for

ONE_REDIS = True


def conf(store: RedisServer, queue: str, **more: Any) -> dict[str, Any]:
    """Settings of a project whose only queue is *queue*, on a broker that others may use."""
    return {"delayq_store_url": store.url(), "task_default_queue": queue, "worker_enable_remote_control": False, **more}


def check(project: Project, queue: str) -> None:
    """What native delays cannot do, and what they can: milliseconds, retries, a list, a cancel, another time."""
    delayq = project.app.delayq
    far = project.send("far", countdown=3600)
    cancelled = project.send("never", countdown=2)
    assert [task.id for task in delayq.scheduled(queue=queue)] == [cancelled, far]
    assert delayq.cancel(cancelled, mark=False) == 1
    assert delayq.reschedule(far, delayq.get(far).due - timedelta(minutes=59, seconds=59))
    short = [project.send(delay, countdown=delay) for delay in (0.05, 0.25, 0.45, 0.65)]
    retried = project.send(0.3, task="retry", countdown=0.2)
    project.ledger.wait_for([*short, far, retried])
    wait_for(lambda: len(project.ledger.of(retried)) == 2, "the retry runs")

    assert project.ledger.of(cancelled) == []
    assert len(project.ledger.of(far)) == 1
    for task_id in short:
        (run,) = project.ledger.of(task_id)
        assert run["at"] >= run["due"]
    first, second = project.ledger.of(retried)
    assert second["retries"] == 1
    assert second["at"] >= second["due"] >= first["at"] + 0.25
    wait_for(lambda: delayq.stats()[queue].reserved == 0, "all is acked")
    stats = delayq.stats()[queue]
    assert (stats.waiting, stats.ready, stats.dead, stats.moved) == (0, None, 0, 7)


@pytest.mark.parametrize(
    ("kind", "exchange", "pool"),
    [("classic", "topic", "prefork"), ("quorum", "direct", "threads"), ("quorum", "topic", "gevent")],
)
def test_rabbit(rabbit_url: str, server: RedisServer, kind: str, exchange: str, pool: str) -> None:
    """RabbitMQ with classic and with quorum queues, behind direct and topic exchanges."""
    name = f"q-{uuid4().hex}"
    queue = {
        "exchange": f"ex-{name}",
        "exchange_type": exchange,
        "routing_key": f"key.{name}",
        "queue_arguments": {"x-queue-type": kind},
    }
    settings = conf(server, name, task_queues={name: queue})
    with Project(rabbit_url, **settings) as project, project.worker(pool=pool) as worker:
        worker.await_ready()
        check(project, name)
        assert worker.said("Traceback") == 0
        project.app.delayq.apply_delayed("record", 0.1, task_id="x")
        project.ledger.wait_for(["x"])
        assert "delayq_due" not in project.ledger.of("x")[0]["message"].partition("'properties'")[0]


def test_another_redis(server: RedisServer, own_server: RedisServer) -> None:
    """A broker on one Redis, what waits on another."""
    with Project(own_server.url(), **conf(server, "mail")) as project, project.worker() as worker:
        worker.await_ready()
        check(project, "mail")
        assert worker.said("Traceback") == 0
        with own_server.client() as client:
            assert not client.keys("delayq*")


@contextmanager
def carried(source: Path, target: Path) -> Iterator[None]:
    """Carry each message from *source* to *target* once it is written.

    Kombu's filesystem transport opens a file, then locks it, then writes it, and a consumer takes whatever file it
    sees: one that is still empty ends a worker of Celery's with a JSONDecodeError. A rename shows whole files only.
    """
    stopping = threading.Event()

    def carry() -> None:
        while not stopping.wait(0.01):
            for path in sorted(source.glob("*.msg")):
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX)
                    if os.fstat(file.fileno()).st_size:
                        path.rename(target / path.name)

    thread = threading.Thread(target=carry)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def test_a_filesystem(server: RedisServer, tmp_path: Path) -> None:
    """An embedded broker: no server but Redis."""
    sent, arrived, control = (tmp_path / name for name in ("sent", "arrived", "control"))
    sent.mkdir()
    arrived.mkdir()
    folders = {"data_folder_out": str(sent), "data_folder_in": str(arrived), "control_folder": str(control)}
    settings = conf(server, "mail", broker_transport_options={**folders, "polling_interval": 0.05})
    with (
        carried(sent, arrived),
        Project("filesystem://", **settings) as project,
        project.worker("--without-heartbeat") as worker,
    ):
        worker.await_ready()
        check(project, "mail")
        assert worker.said("Traceback") == 0
