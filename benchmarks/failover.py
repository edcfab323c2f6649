"""How soon after a failover under Sentinel the next put works and the next due task runs; what is lost and run twice.

A producer sends a task every 20 ms, with a countdown of 0.3 s, all the time; a worker runs them. In their middle the
master

* is *killed*, or
* *hangs* (SIGSTOP), or
* is *failed over* while it lives (``SENTINEL FAILOVER``).

The clock starts when the Sentinel announces ``+switch-master``. A server that is silent for a second is down for it.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any

from kombu.exceptions import OperationalError

from tests.replication import MASTER, Replicated

from .conditions import Conditions
from .report import Results, Row, Spread
from .workers import Bench

PACE, COUNTDOWN = 0.02, 0.3

#: For how long (s) tasks are sent before a failover, and after it.
BEFORE, AFTER = 2.0, 4.0

DEATHS = ("killed", "hangs", "failed over alive")


@dataclass
class _Stream:
    """Tasks that are sent in a thread: when each was due, if its put returned, and when puts returned (s)."""

    bench: Bench
    over: Event = field(default_factory=Event)
    dues: list[float] = field(default_factory=list)
    returned: list[float] = field(default_factory=list)
    refused: int = 0

    def run(self) -> None:
        while not self.over.wait(PACE):
            due = time.time() + COUNTDOWN
            try:
                self.bench.task("stamp").apply_async((due,), countdown=COUNTDOWN)
            except OperationalError:
                self.refused += 1
            else:
                self.dues.append(due)
                self.returned.append(time.time())


@dataclass(frozen=True)
class _Round:
    """One failover: seconds until the next put returned and the next task started; how many of how many tasks."""

    put: float
    task: float
    sent: int
    lost: int
    twice: int


def _fail_over(servers: Replicated, how: str) -> None:
    master = servers.master
    if how == "killed":
        master.stop()
    elif how == "hangs":
        master.hang()
    else:
        servers.fail_over()


def _round(conditions: Conditions, how: str) -> _Round | None:
    """None: the worker has ended, as Celery's do at times when Redis dies while messages are in flight."""
    conf: dict[str, Any] = {"broker_transport_options": {"master_name": MASTER}}
    with conditions.server() as records, Replicated(program=conditions.program) as servers:
        bench = Bench(records, 0, delayq=True, conf=conf, broker_url=servers.url)
        with (
            bench.worker("-P", "threads", "-c", "4") as worker,
            closing(servers.sentinels[0].client.pubsub()) as events,
        ):
            events.subscribe("+switch-master")
            events.get_message(timeout=5)
            stream = _Stream(bench)
            sender = Thread(target=stream.run)
            sender.start()
            time.sleep(BEFORE)
            _fail_over(servers, how)
            assert events.get_message(timeout=60), "no failover"
            switched = time.time()
            time.sleep(AFTER)
            stream.over.set()
            sender.join()
            time.sleep(COUNTDOWN + AFTER)  # whatever will run has run
            if not worker.alive:
                return None
            runs: dict[float, list[float]] = {}
            for record in bench.take_records():
                due, started = map(float, record.split())
                runs.setdefault(due, []).append(started)
    return _Round(
        min(at for at in stream.returned if at > switched) - switched,
        min(at for starts in runs.values() for at in starts if at > switched) - switched,
        len(stream.dues),
        sum(due not in runs for due in stream.dues),
        sum(len(starts) > 1 for starts in runs.values()),
    )


def run(conditions: Conditions) -> Results:
    rounds = 1 if conditions.quick else 5
    rows = []
    for how in DEATHS:
        tried = [_round(conditions, how) for _ in range(rounds)]
        done = [one for one in tried if one is not None]
        if not done:
            raise RuntimeError(f"no worker has outlived a master that {how}")
        for what, seconds in (
            ("put returned", [one.put for one in done]),
            ("task started", [one.task for one in done]),
        ):
            rows.append(
                Row(
                    "failover",
                    f"master {how}: s from +switch-master until the next {what}",
                    str(Spread.of(seconds)),
                    "",
                    None,
                    "<= 3 s",
                    max(seconds) <= 3,
                )
            )
        lost, twice, sent = (sum(getattr(one, name) for one in done) for name in ("lost", "twice", "sent"))
        ended = f"; {len(tried) - len(done)} of {len(tried)} workers ended" if len(done) < len(tried) else ""
        rows.append(Row("failover", f"master {how}: tasks lost, run twice", f"{lost}, {twice} of {sent}{ended}", ""))
    return rows
