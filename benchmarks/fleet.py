"""What 1, 10 and 50 dispatchers cost one Redis, idle and busy; and how long a due job waits when the active one goes.

Commands are counted as clients send them: MONITOR, without the lines of what scripts call. Busy: a thousand jobs due a
second, a millisecond apart. For the takeovers a job is due every 5 ms while the process of the active dispatcher is
killed, or told to stop; the figure is the lateness of the latest job, from its due time to the consumer.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import redis

from celery_delayq.clock import SECOND_US
from celery_delayq.delivery import Delivery
from celery_delayq.dispatcher import Dispatcher
from celery_delayq.job import Put
from celery_delayq.keys import Keys
from celery_delayq.store import Store

from .conditions import Conditions
from .report import Results, Row, Spread
from .workers import wait_until

QUEUE = "fleet"

#: Dispatchers of a fleet, and the processes that they are in at most.
SIZES = (1, 10, 50)
PROCESSES = 10

END = "the end of what is counted"


def _store(port: int) -> Store:
    return Store(redis.Redis(port=port), Keys("delayq"))


def _serve(port: int, count: int) -> None:
    """So many dispatchers in this process, until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    dispatchers = [Dispatcher(lambda: _store(port)) for _ in range(count)]
    for one in dispatchers:
        one.start()
    stop.wait()
    for one in dispatchers:
        one.stop()


class Fleet:
    """Processes with dispatchers on one server."""

    def __init__(self, store: Store, size: int) -> None:
        self.store = store
        self.size = size
        self._each = max(size // PROCESSES, 1)
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start_one(self) -> None:
        port = self.store.client.connection_pool.connection_kwargs["port"]
        command = [sys.executable, "-m", "benchmarks.fleet", str(port), str(self._each)]
        process = subprocess.Popen(command, cwd=Path(__file__).resolve().parent.parent, stdin=subprocess.DEVNULL)
        self.processes[process.pid] = process

    def settle(self) -> None:
        """Wait until all listen, and one is active."""
        client, keys = self.store.client, self.store.keys
        settled = [(keys.fleet.encode(), self.size), (keys.wake.encode(), 1)]
        wait_until(lambda: client.pubsub_numsub(keys.fleet, keys.wake) == settled, "one of the fleet is active")

    def active(self) -> int:
        """The process of the active dispatcher."""
        ports = {
            int(one["addr"].rpartition(":")[2])
            for one in self.store.client.client_list(_type="pubsub")
            if one["sub"] == "2"
        }
        return next(one.pid for one in psutil.net_connections("tcp4") if one.laddr.port in ports and one.pid)

    def replace(self, pid: int) -> None:
        """Start another process in the place of one that was told to end."""
        self.processes.pop(pid).wait()
        self.start_one()


@contextmanager
def fleet_of(store: Store, size: int) -> Iterator[Fleet]:
    """So many dispatchers on database 0 of the server that *store* is in."""
    fleet = Fleet(store, size)
    try:
        for _ in range(min(size, PROCESSES)):
            fleet.start_one()
        fleet.settle()
        yield fleet
    finally:
        for process in fleet.processes.values():
            process.kill()
            process.wait()


def commands_a_second(client: redis.Redis, seconds: float, sleep: Callable[[float], None] = time.sleep) -> float:
    """Commands a second that clients send."""
    count = 0
    with client.monitor() as monitor:
        sleep(seconds)
        client.echo(END)
        for said in monitor.listen():
            if END in said["command"]:
                return count / seconds
            count += said["client_type"] != "lua"
    raise AssertionError("MONITOR ended")


def _put(store: Store, dues_us: list[int]) -> None:
    jobs = [Put(QUEUE, f"{due_us}", b"%d" % due_us, at_us=due_us) for due_us in dues_us]
    for start in range(0, len(jobs), 500):
        store.put(jobs[start : start + 500], {QUEUE: Delivery.plain(QUEUE)})


def _script_calls(store: Store, seconds: float) -> float:
    """Script calls a second while a thousand jobs are due a second."""
    begin_us = store.now_us() + SECOND_US + int(seconds * 200_000)
    _put(store, [begin_us + 1000 * number for number in range(int(seconds * 1000))])
    calls = -_evalsha(store.client)
    wait_until(lambda: store.client.llen(QUEUE) == int(seconds * 1000), "all are handed over")
    calls += _evalsha(store.client)
    store.client.delete(QUEUE)
    return calls / seconds


def _evalsha(client: redis.Redis) -> int:
    return int(client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0))


def _latest(fleet: Fleet, how: signal.Signals) -> float:
    """Seconds by which the latest job is late while the active dispatcher ends so."""
    store, count = fleet.store, 500
    fleet.settle()
    begin_us = store.now_us() + SECOND_US
    _put(store, [begin_us + 5000 * number for number in range(count)])
    latest = 0
    pid = fleet.active()
    for number in range(count):
        if number == 20:
            os.kill(pid, how)
        popped = store.client.brpop([QUEUE], timeout=60)
        assert popped is not None, "a job is missing"
        latest = max(latest, int(time.time() * SECOND_US) - int(popped[1]))
    fleet.replace(pid)
    return latest / SECOND_US


def run(conditions: Conditions) -> Results:
    idle_seconds, busy_seconds, rounds = (4, 2, 2) if conditions.quick else (20, 5, 8)
    limits = {1: 3, 10: 3, 50: 10}
    rows: list[Row] = []
    busy: dict[int, float] = {}
    with conditions.server() as server, server.client() as client:
        store = Store(client, Keys("delayq"))
        for size in SIZES:
            client.flushall()
            _put(store, [store.now_us() + 3600 * SECOND_US])
            with fleet_of(store, size):
                idle = commands_a_second(client, idle_seconds)
                busy[size] = _script_calls(store, busy_seconds)
            dispatchers = f"{size} dispatcher{'s' * (size > 1)}"
            rows.append(
                Row(
                    "fleet",
                    f"commands a second, {dispatchers}, idle",
                    f"{idle:.1f}",
                    "a stock worker: 1 BRPOP a second each",
                    None,
                    f"<= {limits[size]}",
                    idle <= limits[size],
                )
            )
            rows.append(
                Row(
                    "fleet",
                    f"script calls a second, {dispatchers}, 1,000 due a second",
                    f"{busy[size]:.0f}",
                    f"1 dispatcher: {busy[1]:.0f}",
                    Spread.of([busy[size] / busy[1]]),
                    "ratio <= 1.5",
                    busy[size] <= 1.5 * busy[1],
                )
            )
        client.flushall()
        with fleet_of(store, 10) as fleet:
            killed = Spread.of(_latest(fleet, signal.SIGKILL) for _ in range(rounds))
            stopped = Spread.of(_latest(fleet, signal.SIGTERM) for _ in range(rounds))
    rows.append(
        Row(
            "fleet",
            "s late, the latest job, SIGKILL of the active of 10",
            str(killed),
            "",
            None,
            "<= 1.5 s",
            killed.greatest <= 1.5,
        )
    )
    rows.append(
        Row(
            "fleet",
            "ms late, the latest job, clean stop of the active of 10",
            str(Spread(*(1000 * one for one in (stopped.median, stopped.least, stopped.greatest)))),
            "",
            None,
            "<= 50 ms",
            stopped.median <= 0.05,
        )
    )
    return rows


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
