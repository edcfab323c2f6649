"""Rules in workers: what their tasks have done becomes events, and events become tasks."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_delayq.embedded import RedisServer
from celery_delayq.keys import Keys

from .worker import Project, newest_redis, wait_for

POOLS = ("prefork", "threads", "gevent", "eventlet", "solo")

#: A round: an event, a task, which is an event of which come a task that waits and a text in a list.
RULES: dict[str, Any] = {
    "watchers": [
        {
            "input_queue": "events",
            "rules": [{"on": r"^acq/(?P<product>\w+)$", "make": {"celery": "record", "args": ["${product}"]}}],
        },
        {
            "source": "task",
            "rules": [
                {
                    "on": {"task": "rec*"},
                    "make": [
                        {"celery": "record.later", "delay": "1h", "task_id": "later-${args.0}", "queue": "later"},
                        {"task": "done/${task}/${args.0}", "queue": "done"},
                    ],
                },
                {"on": {"task": "retry", "state": "retry"}, "make": {"task": "retry/${id}/${error}", "queue": "done"}},
                {"on": {"task": "fail", "state": "failure"}, "make": {"task": "fail/${error}", "queue": "done"}},
            ],
        },
    ]
}

ONE_REDIS = True


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """One server for all: nothing here depends on its version."""
    with newest_redis() as server:
        yield server


def written(folder: Path, rules: dict[str, Any]) -> str:
    path = folder / "rules.json"
    path.write_text(json.dumps(rules))
    return str(path)


@pytest.mark.parametrize("pool", POOLS)
def test_round_and_round(server: RedisServer, tmp_path: Path, pool: str) -> None:
    """In each pool; without a word on where Redis is it is the broker."""
    database = POOLS.index(pool)
    with (
        Project(server.url(database), delayq_rules=written(tmp_path, RULES)) as project,
        project.worker(pool=pool) as worker,
        server.client(database) as client,
    ):
        worker.await_ready()
        client.lpush("events", "acq/1", "acq/2")
        retried = project.send(0.01, task="retry")
        project.send("nobody's business", task="fail")
        wait_for(lambda: client.llen("done") == 4, "all are done")
        done = client.lrange("done", 0, -1)
        wait_for(lambda: not client.exists("celery/done", "celery/done/taken", "events/taken"), "all is cleared")

        assert sorted(done)[:2] == [b"done/record/1", b"done/record/2"]
        assert f"retry/{retried}/".encode() in sorted(done)[3]
        assert sorted(done)[2] == b"fail/RuntimeError: nobody's business"
        assert set(client.hkeys(Keys("delayq").jobs("later"))) == {b"later-1", b"later-2"}
        worker.signal(signal.SIGTERM)
        worker.wait()
        assert worker.process.returncode == 0
        assert worker.said("Traceback") == 1  # the failed task's own


def test_a_task_that_kills_its_process_has_failed(server: RedisServer, tmp_path: Path) -> None:
    """That is written by the worker's main process."""
    rule = {"on": {"task": "die", "state": "failure"}, "make": {"task": "${args.0}/${error}", "queue": "out"}}
    rules = {"watchers": [{"source": "task", "input_queue": "what happened", "rules": [rule]}]}
    with (
        Project(server.url(10), delayq_rules=written(tmp_path, rules)) as project,
        project.worker(pool="prefork") as worker,
        server.client(10) as client,
    ):
        worker.await_ready()
        project.send("mine", task="die")
        wait_for(lambda: client.llen("out"), "the event has been handled")
        assert client.lrange("out", 0, -1)[0].startswith(b"mine/WorkerLostError: ")


def test_the_event_is_there_before_the_acknowledgement(server: RedisServer, tmp_path: Path) -> None:
    """Of a task that acknowledges late: if its worker dies between the two, it runs again."""
    rules = {"watchers": [{"source": "task", "rules": [{"on": {"task": "record.late"}, "make": {"queue": "out"}}]}]}
    with (
        Project(server.url(11), delayq_rules=written(tmp_path, rules)) as project,
        project.worker(pool="prefork") as worker,
        server.client(11) as client,
    ):
        worker.await_ready()
        with client.monitor() as monitor:
            project.send("x", task="record.late")
            said: list[str] = []
            while not (said and said[-1].startswith(("HDEL", "ZREM")) and "unacked" in said[-1]):
                said.append(monitor.next_command()["command"])
    assert any(command.startswith("LPUSH celery/done") for command in said)


def test_a_wrong_file_ends_the_start(server: RedisServer, tmp_path: Path) -> None:
    """With all its faults."""
    rules = {"watchers": [{"input_queue": "a", "rules": [{"on": "[", "make": {"queue": "${b}"}, "mak": 1}]}]}
    files = [written(tmp_path, rules), "/nowhere.json"]
    with Project(server.url(9), delayq_rules=files) as project, project.worker() as worker:
        worker.wait()
        assert worker.process.returncode
        for words in ("is no regular expression", "field mak: is unknown", "/nowhere.json: No such file"):
            assert words in worker.log()
