"""The comparison with other job systems, with the simplest job system there is."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.peers.counts import counts
from benchmarks.peers.deployment import BrokenOff, Deployment
from benchmarks.peers.environment import PROGRAMS, Runtime
from benchmarks.peers.system import System
from benchmarks.peers.turns import turn
from celery_delayq.embedded import RedisServer

ONE_REDIS = True

SIMPLE = System("Simple", "none", waiting=("ZCARD", "jobs"))

#: Threads look at a sorted set; what they take stands in a list until it has run, and is taken again at the start.
PROGRAM = """
import sys, threading, time
import harness, redis

client = redis.Redis.from_url(harness.BROKER)
lock = threading.Lock()

def take():
    with lock:
        due = client.zrange("jobs", "-inf", time.time(), byscore=True, offset=0, num=1)
        if due:
            client.pipeline().zrem("jobs", *due).lpush("taken", *due).execute()
        return due

def work():
    while True:
        for job in take():
            harness.run(job.decode(), "")
            client.lrem("taken", 0, job)
        time.sleep(0.005)

if sys.argv[1] == "put":
    harness.serve(lambda id, due: client.zadd("jobs", {id: due}))
else:
    while job := client.lpop("taken"):
        client.zadd("jobs", {job: 0})
    for _ in range(4):
        threading.Thread(target=work).start()
"""


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    program = tmp_path / "simple.py"
    program.write_text(PROGRAM)
    return Runtime((sys.executable, str(program)), {"PYTHONPATH": str(PROGRAMS)}, "")


def children() -> set[int]:
    """Processes below this one, but not Redis."""
    return {one.pid for one in psutil.Process().children(recursive=True) if one.name() != "redis-server"}


def test_a_turn(server: RedisServer, runtime: Runtime) -> None:
    """All jobs of the stream and of the burst run, none early; nobody is left."""
    before = children()
    found = turn(Deployment(SIMPLE, runtime, server), seconds=1, burst=50, patience=60)
    assert len(found.late) == 100
    assert found.late[0] >= 0
    assert found.burst.missing == 0
    assert found.burst.ready is not None
    assert 0 <= found.burst.ready <= found.burst.run + 1
    assert children() == before


def test_counts(server: RedisServer, runtime: Runtime) -> None:
    """The memory holds at least the ids; an idle worker polls; a killed one's jobs run again."""
    before = children()
    found = counts(
        lambda hold: Deployment(SIMPLE, runtime, server, hold=hold),
        waiting=200,
        idle_seconds=0.5,
        third=8,
        patience=60.0,
        after=0.1,
    )
    assert found.memory > 36
    assert found.idle > 1
    assert found.survival.lost == 0
    assert found.survival.doubled <= 4
    assert found.survival.seconds > 0
    assert children() == before


def test_broken_off(server: RedisServer, runtime: Runtime) -> None:
    """Who waits in a thread ends at once, and takes his programs along."""
    before, broken_off, said = children(), threading.Event(), []

    def wait() -> None:
        try:
            with Deployment(SIMPLE, runtime, server, broken_off=broken_off) as deployment, deployment.worker():
                deployment.pause(600)
        except BrokenOff:
            said.append("broken off")

    thread = threading.Thread(target=wait)
    thread.start()
    deadline = time.monotonic() + 30
    while len(children() - before) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    broken_off.set()
    thread.join(30)
    assert said == ["broken off"]
    assert children() == before
