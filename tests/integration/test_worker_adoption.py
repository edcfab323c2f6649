"""Adoption in real workers: old producers, rolling deploys, every pool."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import redis
from celery import Celery

from celery_delayq.embedded import RedisServer

from .worker import Project, newest_redis, wait_for


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with newest_redis() as server:
        yield server


@contextmanager
def old_producer(project: Project) -> Iterator[Celery]:
    """An app without celery_delayq that sends to the same broker."""
    app = Celery("old", broker=project.environment["PROJ_BROKER"], set_as_current=False)
    app.conf.update(project.conf)
    yield app
    app.close()


def send(app: Celery, count: int, delay: float, **options: Any) -> list[str]:
    """Send so many tasks the stock way, all due at the same time."""
    eta = datetime.now(timezone.utc) + timedelta(seconds=delay)
    with app.producer_or_acquire() as producer:
        return [app.send_task("record", eta=eta, producer=producer, **options).id for _ in range(count)]


def waiting(client: redis.Redis, queue: str = "celery", prefix: str = "") -> int:
    return int(client.zcard(f"{prefix}delayq:{{0}}:schedule:{queue}"))


POOLS = [
    pytest.param(0, "prefork", [], {}, id="prefork"),
    pytest.param(1, "threads", ["-Q", "other"], {"task_acks_late": True}, id="threads, acks_late, -Q"),
    pytest.param(2, "solo", [], {"broker_transport_options": {"global_keyprefix": "shop."}}, id="solo, prefix"),
    pytest.param(3, "gevent", [], {"worker_prefetch_multiplier": 1}, id="gevent"),
    pytest.param(4, "eventlet", [], {"worker_disable_rate_limits": True}, id="eventlet"),
]


@pytest.mark.parametrize(("database", "pool", "arguments", "conf"), POOLS)
def test_delayed_tasks_of_old_producers(
    server: RedisServer, database: int, pool: str, arguments: list[str], conf: dict[str, Any]
) -> None:
    """They wait in Redis and not in the worker, leave its prefetch window alone, and run once each, when due."""
    if pool in ("gevent", "eventlet"):
        pytest.importorskip(pool)
    queue = arguments[1] if arguments else "celery"
    prefix = conf.get("broker_transport_options", {}).get("global_keyprefix", "")
    with (
        Project(server.url(database), **conf) as project,
        old_producer(project) as old,
        server.client(database) as client,
    ):
        late = send(old, 40, 3600, queue=queue)
        with project.worker(*arguments, pool=pool) as worker:
            worker.await_ready()
            wait_for(lambda: waiting(client, queue, prefix) == 40, "what was in the queue is adopted")
            soon = send(old, 10, 2, queue=queue)
            plain = project.send(queue=queue)
            project.ledger.wait_for([plain])
            wait_for(lambda: client.hlen(f"{prefix}unacked") == 0, "every delivery is acknowledged")
            project.ledger.wait_for(soon)
            (said,) = (project.app.control.inspect(timeout=10, limit=1).stats() or {}).values()
            (state,) = (project.app.control.inspect(timeout=10, limit=1)._request("delayq") or {}).values()

        assert project.ledger.runs() == dict.fromkeys([*soon, plain], 1)
        assert not [line for line in project.ledger.lines() if line["due"] and line["at"] < line["due"] - 0.001]
        assert waiting(client, queue, prefix) == len(late)
        assert said["prefetch_count"] == 2 * project.conf.get("worker_prefetch_multiplier", 4) or pool == "solo"
        assert (state["adopting"], state["adopted"], state["unattended"]) == (True, 50, 0)
        assert worker.said("Traceback") == 0


def test_an_upgrade_with_tasks_in_the_hands_of_old_workers(server: RedisServer) -> None:
    """Old workers hold delayed tasks, one is killed, the others stop; each task runs once, from the schedule."""
    with (
        Project(server.url(5), joined=False) as before,
        Project(server.url(5)) as after,
        old_producer(before) as old,
        server.client(5) as client,
    ):
        with before.worker("--prefetch-multiplier=1") as stopped, before.worker("--prefetch-multiplier=1") as killed:
            for worker in (stopped, killed):
                worker.await_ready(dispatcher=False)
            ids = send(old, 30, 3600)
            wait_for(lambda: client.hlen("unacked") == 30, "old workers hold all of them")
            killed.kill()
            stopped.signal(signal.SIGTERM)
            stopped.wait()
        impatient = old.connection_for_read(transport_options={"visibility_timeout": 1})
        with after.worker(pool="solo") as worker, impatient as connection:
            worker.await_ready()
            # What workers do now and then, every 100 seconds by default: give out anew what has been held too long.
            restore = connection.default_channel.qos.restore_visible
            wait_for(lambda: restore(interval=1) or waiting(client) == 30, "all wait in Redis, the killed worker's too")
            assert after.app.delayq.run_now(*ids) == 30
            after.ledger.wait_for(ids)
        assert after.ledger.runs() == dict.fromkeys(ids, 1)
        assert before.ledger.runs() == {}
        assert client.hlen("unacked") == 0


def test_workers_that_are_killed_while_they_adopt(server: RedisServer) -> None:
    """Every message is in one place: the queue, a dead worker's hands, or the schedule. None is in two.

    (Stock Kombu can lose the one that it has just popped, and not yet written down as delivered.)
    """
    with Project(server.url(6)) as project, old_producer(project) as old, server.client(6) as client:
        ids = send(old, 600, 3600)
        kills = 0
        while client.llen("celery") and kills < 3:
            with project.worker() as worker:
                mark = waiting(client) + 50
                wait_for(lambda mark=mark: waiting(client) >= mark or not client.llen("celery"), "it adopts")  # type: ignore[misc]
                worker.kill()
            kills += 1
        places: Counter[str] = Counter(id.decode() for id in client.zrange("delayq:{0}:schedule:celery", 0, -1))
        places.update(json.loads(message)["headers"]["id"] for message in client.lrange("celery", 0, -1))
        places.update(json.loads(held)[0]["headers"]["id"] for held in client.hvals("unacked"))

        assert set(places.values()) == {1}
        assert len(set(ids) - set(places)) <= kills
        assert waiting(client) >= 50 * kills
        assert client.hlen("delayq:{0}:jobs:celery") == waiting(client)


def test_a_worker_that_does_not_dispatch(server: RedisServer) -> None:
    """Alone it holds what comes, as stock Celery does; when another dispatches, it adopts."""
    with Project(server.url(7)) as project, old_producer(project) as old, server.client(7) as client:
        with project.worker("--no-delayq-dispatch") as worker:
            worker.await_ready(dispatcher=False)
            held = send(old, 3, 2)
            wait_for(lambda: client.hlen("unacked") == 3, "it holds them")
            project.ledger.wait_for(held)
            assert waiting(client) == 0

            dispatcher = project.app.delayq.dispatcher()
            dispatcher.start()
            try:
                wait_for(lambda: client.exists("delayq:{0}:beat"), "another dispatches")
                adopted = send(old, 3, 2)
                wait_for(lambda: waiting(client) == 3, "it adopts")
                project.ledger.wait_for(adopted)
            finally:
                dispatcher.stop()
        assert project.ledger.runs() == dict.fromkeys(held + adopted, 1)


def test_a_retry_of_an_adopted_task(server: RedisServer) -> None:
    """It waits as any retry does, and the second run is the last."""
    with Project(server.url(8)) as project, old_producer(project) as old, project.worker("-Q", "other") as worker:
        worker.await_ready()
        task_id = old.send_task("retry", (0.3,), countdown=1.0, queue="other", priority=6).id
        wait_for(lambda: len(project.ledger.of(task_id)) == 2, "it runs twice")

        assert [line["retries"] for line in project.ledger.of(task_id)] == [0, 1]
        assert [line["queue"] for line in project.ledger.of(task_id)] == ["other", "other"]


def test_a_revoked_task_is_not_adopted(server: RedisServer) -> None:
    """What was revoked before it came is discarded, as ever; what waits is taken back."""
    with (
        Project(server.url(9)) as project,
        old_producer(project) as old,
        project.worker() as worker,
        server.client(9) as client,
    ):
        worker.await_ready()
        old.control.revoke("early")
        worker.await_log("Tasks flagged as revoked: early")
        old.send_task("record", countdown=3600, task_id="early")
        worker.await_log("Discarding revoked task: record[early]")
        old.send_task("record", countdown=3600, task_id="late")
        wait_for(lambda: waiting(client) == 1, "the other is adopted")
        project.app.control.revoke("late")

        assert waiting(client) == 0
        assert client.hlen("unacked") == 0


def test_adoption_goes_on_after_the_pool_was_restarted_and_the_connection_was_lost(server: RedisServer) -> None:
    """Celery makes its strategies anew then; ours are before them again."""
    with (
        Project(server.url(10), worker_pool_restarts=True) as project,
        old_producer(project) as old,
        project.worker(pool="prefork") as worker,
        server.client(10) as client,
    ):
        worker.await_ready()
        replies = project.app.control.pool_restart(reply=True, timeout=20, limit=1)
        assert replies
        send(old, 2, 3600)
        wait_for(lambda: waiting(client) == 2, "adopted after the restart")
        client.client_kill_filter(_type="normal", skipme=True)
        worker.await_log("Connected to redis", times=2)
        send(old, 2, 3600)
        wait_for(lambda: waiting(client) == 4, "adopted after the reconnect")
        assert client.hlen("unacked") == 0


def test_adoption_off(server: RedisServer) -> None:
    """The worker holds its tasks, as ever."""
    with (
        Project(server.url(11), delayq_adopt=False) as project,
        old_producer(project) as old,
        project.worker() as worker,
        server.client(11) as client,
    ):
        worker.await_ready()
        ids = send(old, 2, 2)
        wait_for(lambda: client.hlen("unacked") == 2, "the worker has them")
        project.ledger.wait_for(ids)
        assert waiting(client) == 0
