"""The doctor on a real fleet: what it finds about dispatchers and workers, and how it tells it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from kombu import Queue

from celery_delayq.bootstep import CheckUpStep
from celery_delayq.doctor import CHECKS, Finding
from celery_delayq.embedded import RedisServer
from celery_delayq.version import __version__

from .command import run
from .conftest import Inside
from .diagnosis import Look, configured, levels, one, put
from .worker import ROOT, wait_for

#: What these checks ask of Redis is asked on every version in test_doctor.py.
ONE_REDIS = True

PROJECT = """
import os, time
from celery import Celery

app = Celery("shop", broker=os.environ["BROKER"])
app.conf.broker_transport_options = {"visibility_timeout": 1}
app.conf.broker_connection_retry_on_startup = True
if os.environ.get("JOINED", "1") == "1":
    import celery_delayq.bootstep
    from celery_delayq import DelayQ
    DelayQ(app)
    celery_delayq.bootstep.__version__ = os.environ["VERSION"]

@app.task(name="block", acks_late=True)
def block(path):
    while os.path.exists(path):
        time.sleep(0.05)
"""


@pytest.fixture
def worker(tmp_path: Path, server: RedisServer) -> Iterator[Callable[..., Path]]:
    """Starts workers: ``worker("name", VERSION="0.9")`` -> the log."""
    (tmp_path / "proj.py").write_text(PROJECT)
    with ExitStack() as stack:

        def start(name: str, **environment: str) -> Path:
            log = tmp_path / f"{name}.log"
            path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
            command = [sys.executable, "-m", "celery", "-A", "proj", "worker", "-P", "threads", "-c", "2", "-n", name]
            with log.open("wb") as out:
                process = subprocess.Popen(
                    [*command, "--without-gossip", "--without-mingle", "-Q", "celery,mail", "-l", "INFO"],
                    cwd=tmp_path,
                    env={**os.environ, "BROKER": server.url(), "PYTHONPATH": path, "VERSION": "0", **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return log

        yield start


def test_clock(look: Look) -> None:
    """An hour ahead, and a minute behind."""
    assert one(look("clock"))[0] == "ok"
    level, text = one(look("clock", clock=lambda: time.time() + 3600))
    assert (level, "ahead of Redis's" in text) == ("warning", True)
    assert one(look("clock", clock=lambda: time.time() - 60))[0] == "warning"


def test_dispatchers(look: Look, app: Celery, inside: Inside, make_app: Callable[..., Celery]) -> None:
    """None, with something to hand over and without; one; one for some queues only; and one that is gone again."""

    def found(on: Celery = app) -> tuple[str, str]:
        return one(look("dispatchers", on=on, reply_timeout=0.1))

    assert found()[0] == "warning"
    put(inside, "a")
    assert found() == ("broken", "none lives: 1 task will not be handed over")
    some = app.delayq.dispatcher(["q"])
    some.start()
    wait_for(lambda: found()[1].startswith("1 with --queues, none for all, the last one"), "it is seen")
    some.stop()
    dispatcher = app.delayq.dispatcher()
    dispatcher.start()
    wait_for(lambda: found()[1].startswith("1 live, the last one was at work"), "it is seen")
    assert found()[0] == "ok"
    dispatcher.stop()
    wait_for(lambda: found()[0] == "broken", "it is missed")
    assert "was at work" in found()[1]


def test_workers(
    look: Look, worker: Callable[..., Path], make_app: Callable[..., Celery], inside: Inside, tmp_path: Path
) -> None:
    """None; some, of other versions or none; queues that nobody consumes; a task that runs too long for its broker."""
    names = ("workers", "versions", "queues", "visibility")
    app = make_app(broker_transport_options={"visibility_timeout": 1})
    assert levels(look(*names, on=app, reply_timeout=0.1)) == ["warning", "ok", "unknown", "ok"]
    put(inside, "a", "mail")
    put(inside, "b", "typo")
    logs = [worker("older", VERSION="0.0.1"), worker("same", VERSION=__version__), worker("stock", JOINED="0")]
    for log in logs:
        wait_for(lambda log=log: " ready." in log.read_text(), "it is ready")
    flag = tmp_path / "flag"
    flag.touch()
    app.send_task("block", (str(flag),))

    def found() -> dict[str, list[str]]:
        told: dict[str, list[str]] = {}
        for finding in look(*names, on=app, reply_timeout=1.0):
            told.setdefault(finding.check, []).append(finding.text)
        return told

    def complete() -> Any:
        told = found()
        return told if "visibility_timeout is 1 s" in told["visibility"][0] and "3: " in told["workers"][0] else None

    told = wait_for(complete, "all answer, and the task runs for too long")
    flag.unlink()
    assert told["workers"] == ["3: celery@older, celery@same, celery@stock"]
    assert told["versions"] == [
        f"celery_delayq is {__version__} here, and 0.0.1 in celery@older",
        "without celery_delayq, or without the time to answer: celery@stock",
    ]
    assert told["queues"] == ["no worker consumes 'typo': 1 wait for it, 0 are ready"]
    assert told["visibility"][0].startswith("block['")
    app.conf.task_queues = [Queue("celery"), Queue("mail")]
    assert "not in task_queues either" in one(look("queues", on=app, reply_timeout=1.0))[1]


def test_a_worker_looks_at_its_start(worker: Callable[..., Path], server: RedisServer) -> None:
    """What can be seen cheaply is a line each in its log; it starts all the same."""
    with configured(server, maxmemory="1gb", maxmemory_policy="allkeys-lru"):
        log = worker("w")
        wait_for(lambda: " ready." in log.read_text() and "delayq persistence: " in log.read_text(), "it says so")
    warnings = [line for line in log.read_text().splitlines() if "WARNING" in line and "delayq" in line]
    assert [line.split("delayq ")[1].split(":")[0] for line in warnings] == ["eviction", "persistence"]
    assert "redis-cli CONFIG SET maxmemory-policy noeviction" in warnings[0]


def test_a_check_up_delays_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Redis hangs, or something raises: the worker knows nothing of it."""
    hanging = threading.Event()

    def hang() -> list[Finding]:
        hanging.wait()
        raise RuntimeError("at last")

    worker = SimpleNamespace(app=SimpleNamespace(delayq=SimpleNamespace(check_up=hang, can_dispatch=True)))
    step = CheckUpStep(worker)
    assert step.include_if(worker)
    step.create(worker)  # which returns, or the test would not end
    hanging.set()
    for thread in threading.enumerate():
        if thread.name == "delayq-check-up":
            thread.join(60)
    assert caplog.text == ""


def test_late_limits(look: Look, make_app: Callable[..., Celery]) -> None:
    """A task that acknowledges late and may run longer than its message stays invisible."""
    app = make_app(broker_transport_options={"visibility_timeout": 60}, task_time_limit=3600)
    for name, options in (
        ("late", {"acks_late": True}),
        ("early", {}),
        ("short", {"acks_late": True, "time_limit": 30}),
    ):

        @app.task(name=name, shared=False, **options)
        def task() -> None: ...

    level, text = one(look("visibility", on=app, reply_timeout=0.1))
    assert (level, text) == (
        "warning",
        "late acknowledges late and may run 60 min, visibility_timeout is 60 s",
    )


def test_the_command(app: Celery, server: RedisServer, inside: Inside) -> None:
    """For people, for machines, and its exit status: by the worst that it found."""
    said = run(app, "doctor", "--timeout", "0.1")
    assert said.code == 1
    assert said.lines[0].startswith("ok       reachable    redis://127.0.0.1:")
    position = said.lines.index(
        "warning  persistence  neither AOF nor snapshots: a restart of Redis loses all that waits"
    )
    assert said.lines[position + 1].startswith(" " * 22 + "fix: redis-cli CONFIG SET appendonly yes")
    assert said.lines[-1] == "15 ok, 1 unknown, 3 warning"

    put(inside, "a\x1b[31m", "bad\nname")
    said = run(app, "doctor", "--timeout", "0.1", "--json")
    assert said.code == 2
    assert {*said.objects[0]} == {"check", "level", "text", "fix"}
    assert [found["check"] for found in said.objects] == [check.name for check in CHECKS]
    assert {found["check"]: found["level"] for found in said.objects}["dispatchers"] == "broken"
    inside.store.purge("bad\nname")

    dispatcher = app.delayq.dispatcher()
    dispatcher.start()
    wait_for(inside.store.beat_us, "it is at work")
    with configured(server, appendonly="yes"):
        app.conf.worker_enable_remote_control = False
        assert run(app, "doctor", "--timeout", "0.1").code == 0
    dispatcher.stop()


def test_a_broker_that_is_not_redis(make_app: Callable[..., Celery]) -> None:
    """There is nothing to look at."""
    said = run(make_app(broker_url="memory://"), "doctor")
    assert (said.code, "is not Redis" in said.err) == (2, True)
