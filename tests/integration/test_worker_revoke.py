"""Revoking with workers online: each task's end is told by one of us, Celery or celery_delayq, and once."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from celery_delayq.embedded import RedisServer
from celery_delayq.keys import Keys
from celery_delayq.store import Store
from celery_delayq.version import __version__

from .hearing import listening
from .worker import Project, newest_redis, wait_for

FAR = 86_400.0


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with newest_redis() as server:
        yield server


def test_waiting_and_handed_over_tasks_are_revoked_once(server: RedisServer) -> None:
    """What waits ends with us, what is handed over with the worker: no result, event or run too many."""
    conf = {"result_backend": server.url(1), "worker_prefetch_multiplier": 1}
    with (
        Project(server.url(0), **conf) as project,
        listening(project.app, server) as ear,
        server.client(0) as client,
    ):
        with project.worker("-E", concurrency=1) as worker:
            worker.await_ready()
            busy, next_one = project.send(3, task="block"), project.send()
            worker.await_log(f"[{next_one}] received")  # it takes no more now
            held = project.send()
            waits, ignored = project.send(countdown=FAR), project.send(countdown=FAR, ignore_result=True)
            came = project.send(countdown=0.01)
            wait_for(lambda: client.llen("celery") == 2, "both are handed over")
            ids = [held, came, waits, ignored]
            (reply,) = project.app.control.revoke(ids, reply=True, timeout=30, limit=1)
            assert all("ok" in answer for answer in reply.values())
            for id in (held, came):
                worker.await_log(f"Discarding revoked task: record[{id}]")
            after = project.send()
            project.ledger.wait_for([after])
            wait_for(lambda: {id for id, _ in ear.revoked()} >= set(ids), "all are told")

        told = Counter(event["uuid"] for event in ear.events() if event["type"] == "task-revoked")
        assert told == dict.fromkeys(ids, 1)
        assert worker.said("Discarding revoked task") == 2
        assert set(project.ledger.runs()) == {busy, next_one, after}
        assert {project.app.AsyncResult(id).state for id in (held, came, waits)} == {"REVOKED"}


def test_a_worker_forgets_no_id_that_was_revoked(server: RedisServer) -> None:
    """As in stock Celery: a later task of a revoked id is discarded by the workers that were online; one of a
    cancelled id runs.
    """
    with Project(server.url(2), result_backend=server.url(3)) as project, project.worker() as worker:
        worker.await_ready()
        project.send(countdown=FAR, task_id="revoked")
        project.send(countdown=FAR, task_id="cancelled")
        project.app.control.revoke("revoked", reply=True, timeout=30, limit=1)
        project.app.delayq.cancel("cancelled")
        for task_id in ("revoked", "cancelled"):
            project.send(countdown=0.01, task_id=task_id)
        worker.await_log("Discarding revoked task: record[revoked]")
        project.ledger.wait_for(["cancelled"])

        assert set(project.ledger.runs()) == {"cancelled"}


@pytest.mark.parametrize(
    ("database", "pool"), [(4, "prefork"), (6, "threads"), (8, "solo"), (10, "gevent"), (12, "eventlet")]
)
def test_a_task_that_is_found_too_late_is_dropped(server: RedisServer, database: int, pool: str) -> None:
    """No worker runs it; its result says REVOKED, its event that it was too late; one without a grace runs."""
    with (
        Project(server.url(database), result_backend=server.url(database + 1)) as project,
        listening(project.app, server) as ear,
        server.client(database) as client,
    ):
        keys = Keys("delayq")
        ids = [project.send(countdown=0.01)]
        ids += [project.send(countdown=0.01, late="drop", grace=0.05) for _ in range(149)]
        ((_, last_us),) = client.zrange(keys.schedule("celery"), -1, -1, withscores=True)
        too_late = last_us / 1e6 + 0.06
        wait_for(lambda: Store(client, keys).now_us() / 1e6 > too_late, "all are too late")
        with project.worker(pool=pool) as worker:
            project.ledger.wait_for(ids[:1])
            wait_for(lambda: not client.exists(keys.schedule("celery"), keys.aside, keys.remains), "all are told")
            count = re.compile(r"(\d+) tasks of 'celery' came later than their grace")
            wait_for(lambda: sum(map(int, count.findall(worker.log()))) == 149, "all are counted")
            assert worker.said("discarded late task: record[") == 149

        assert {project.app.AsyncResult(id).state for id in ids[1:]} == {"REVOKED"}
        assert ear.revoked() == sorted((id, True) for id in ids[1:])
        assert set(project.ledger.runs()) == {ids[0]}


def test_inspect(server: RedisServer) -> None:
    """``celery inspect delayq`` shows each worker's dispatcher, to people and as JSON; also one that has none."""
    with (
        Project(server.url(14)) as project,
        project.worker() as worker,
        project.worker("--no-delayq-dispatch") as other,
    ):
        worker.await_ready()
        other.await_ready(dispatcher=False)
        project.ledger.wait_for([project.send(countdown=0.01)])
        both = ["--timeout", "30", "--destination", f"celery@{worker.name},celery@{other.name}"]
        answers = json.loads(project.celery("inspect", *both, "--json", "delayq").stdout)
        states = {name.partition("@")[2]: state for name, state in answers.items()}

        told = {"version": __version__, "joined": True, "running": False, "adopting": True}
        assert states[other.name] == {**told, "adopted": 0, "unattended": 0}
        state = states[worker.name]
        assert (state["running"], state["moved"], state["dropped"], state["errors"], state["orphans"]) == (
            True,
            1,
            0,
            0,
            0,
        )
        assert state["active"] is True
        assert (state["adopting"], state["adopted"]) == (True, 0)
        assert state["passes"] > 0
        assert 0 <= state["lag"] < 60
        assert state["last_pass"].endswith("+00:00")

        said = project.celery("--no-color", "inspect", *both, "delayq").stdout
        assert '"running": true' in said
        assert '"running": false' in said
        assert "2 nodes online" in said
        assert "delayq" in project.celery("inspect", "--list").stdout
