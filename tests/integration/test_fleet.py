"""Many dispatchers on one Redis: they cost what one costs, and no death of one of them is felt for long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis

from celery_delayq.delivery import Delivery
from celery_delayq.dispatcher import Dispatcher
from celery_delayq.embedded import RedisServer
from celery_delayq.job import Put
from celery_delayq.keys import Keys
from celery_delayq.store import Store

from .commands import commands_of
from .worker import ROOT, wait_for

#: What dispatchers ask of Redis is tested on each version elsewhere.
ONE_REDIS = True

PROCESS = Path(ROOT, "tests", "chaos", "dispatch.py")


def due(store: Store, *ids: str, in_us: int = 0) -> None:
    store.put([Put("q", id, id.encode(), in_us=in_us) for id in ids], {"q": Delivery.plain("q")})


def listening(store: Store) -> int:
    """How many dispatchers listen to each other."""
    return int(store.client.pubsub_numsub(store.keys.fleet)[0][1])


def at_work(store: Store) -> int:
    """How many dispatchers listen to announcements: those that are active."""
    return int(store.client.pubsub_numsub(store.keys.wake)[0][1])


@pytest.fixture
def fleet(server: RedisServer) -> Iterator[Callable[[int], list[Dispatcher]]]:
    """Starts that many dispatchers, and waits until one is active."""
    running: list[Dispatcher] = []

    def start(size: int) -> list[Dispatcher]:
        with server.client() as client:
            store = Store(client, Keys("delayq"))
            for _ in range(size):
                one = Dispatcher(lambda: Store(redis.Redis(port=server.port), Keys("delayq")))
                one.start()
                running.append(one)
            wait_for(lambda: listening(store) == size, "all listen")
            wait_for(lambda: at_work(store) == 1, "one is active")
        return running

    yield start
    for one in running:
        one.stop()


@pytest.mark.parametrize("size", [1, 10, 50])
def test_a_fleet_costs_redis_what_one_dispatcher_costs(
    store: Store, fleet: Callable[[int], list[Dispatcher]], size: int
) -> None:
    """With a job an hour ahead: a look each half second, and nothing else, of however many."""
    due(store, "far", in_us=3_600_000_000)
    fleet(size)
    with commands_of(store.client) as commands:
        time.sleep(4)

    assert commands["EVALSHA"] >= 4
    # Eight looks, and some more for a machine on which beats come late; by themselves fifty would look a hundred times.
    assert commands.total() <= 20, commands


def test_puts_wake_the_active_one_only(store: Store, fleet: Callable[[int], list[Dispatcher]]) -> None:
    """Announcements and due jobs are the business of one, however many there are."""
    dispatchers = fleet(10)
    for number in range(100):
        due(store, f"{number}")
    wait_for(lambda: sum(one.counts.moved for one in dispatchers) == 100, "all are handed over, and counted")

    assert store.client.llen("q") == 100
    assert sum(one.counts.moved > 0 for one in dispatchers) <= 2


def test_a_farewell_makes_the_next_one_active(server: RedisServer, store: Store) -> None:
    """Whoever stops cleanly is replaced at once: a standby that would wait for an hour does not."""
    dispatchers = [
        Dispatcher(lambda: Store(redis.Redis(port=server.port), Keys("delayq")), name=name, max_poll_interval=7200)
        for name in ("a", "b")
    ]
    try:
        for one in dispatchers:
            one.start()
        wait_for(lambda: listening(store) == 2, "both listen")
        store.client.publish(store.keys.fleet, b"beat a")  # else they would not hear of each other for an hour
        wait_for(lambda: [one.active for one in dispatchers] == [True, False], "one stands by")
        wait_for(lambda: at_work(store) == 1, "and disregards puts")
        dispatchers[0].stop(timeout=10)
        wait_for(lambda: dispatchers[1].active, "the other one takes over")
        due(store, "a")
        wait_for(lambda: store.client.llen("q") == 1, "it dispatches")
    finally:
        for one in dispatchers:
            one.stop()


@pytest.fixture
def processes(server: RedisServer) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts dispatchers as processes of their own."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, str(PROCESS), server.url()]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def active_process(store: Store) -> int:
    """The process that is at work, by its connection that listens to puts; 0 unless it is one."""
    ports = {
        int(client["addr"].rpartition(":")[2])
        for client in store.client.client_list(_type="pubsub")
        if client["sub"] == "2"  # to the fleet, and to puts
    }
    pids = {one.pid for one in psutil.net_connections("tcp4") if one.laddr.port in ports and one.pid is not None}
    return pids.pop() if len(ports) == len(pids) == 1 else 0


def test_one_that_is_killed_or_paused_is_replaced(
    store: Store, processes: Callable[[], subprocess.Popen[bytes]]
) -> None:
    """A job that falls due after the death of the active one leaves; one that wakes up from a long pause doubles
    nothing.
    """
    for _ in range(4):
        processes()
    sent = 0
    for signal_ in (signal.SIGSTOP, signal.SIGKILL, signal.SIGSTOP):
        pid = wait_for(lambda: active_process(store), "one is active")
        os.kill(pid, signal_)
        due(store, *(f"{sent + number}" for number in range(10)), in_us=100_000)
        sent += 10
        wait_for(lambda: store.client.llen("q") == sent, "its jobs leave without it")  # noqa: B023
        if signal_ == signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)
            due(store, *(f"{sent + number}" for number in range(10)), in_us=100_000)
            sent += 10
            wait_for(lambda: store.client.llen("q") == sent, "with it as well")  # noqa: B023

    assert sorted(int(body) for body in store.client.lrange("q", 0, -1)) == list(range(sent))
