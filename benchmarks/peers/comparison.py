"""Ours beside each of the others: lateness, a burst, memory, idle commands, and what a SIGKILL does.

What takes time is measured in turns of ours and of one other that alternate (A B A B), each alone on one Redis. What is
only counted (memory, commands, lost jobs) is counted of all at once, each on a server of its own.
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import redis

from benchmarks.conditions import Conditions
from benchmarks.report import Results, Row
from celery_delayq.embedded import RedisServer, servers

from . import rows
from .arq import ARQ
from .bullmq import BULLMQ
from .celery_redis_plus import CELERY_REDIS_PLUS
from .counts import Counts, counts
from .deployment import BrokenOff, Deployment
from .dramatiq import DRAMATIQ
from .environment import Runtime, Unavailable, default_folder, prepare
from .huey import HUEY
from .ours import OURS
from .rq import RQ
from .system import System
from .turns import Turn, turn

PEERS = (CELERY_REDIS_PLUS, RQ, DRAMATIQ, HUEY, ARQ, BULLMQ)

#: What goes wrong with one system, and should not cost the figures of the others.
FAILURES = (OSError, RuntimeError, redis.RedisError)


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: turns of each.
        lateness_seconds: how long the stream of jobs is.
        burst: jobs due at one instant.
        burst_patience: how long (s) they may take.
        waiting: jobs that wait, for the memory.
        idle_seconds: how long commands are counted.
        third: a third of the jobs of which the worker is killed.
        kill_patience: how long (s) they may take.
        after: how long (s) is waited for second runs.
    """

    rounds: int = 3
    lateness_seconds: int = 4
    burst: int = 1500
    burst_patience: float = 60.0
    waiting: int = 5000
    idle_seconds: float = 20.0
    third: int = 100
    kill_patience: float = 90.0
    after: float = 10.0


QUICK = Size(
    rounds=1,
    lateness_seconds=2,
    burst=300,
    burst_patience=20.0,
    waiting=1000,
    idle_seconds=5.0,
    third=24,
    kill_patience=90.0,
    after=5.0,
)


def run(conditions: Conditions) -> Results:
    size = QUICK if conditions.quick else Size()
    runtimes, skipped = _prepared(conditions)
    counted = _counted(conditions, size, runtimes)
    results, lines = rows.about(OURS, runtimes[OURS]), []
    our_turns: list[Turn] = []
    for peer in PEERS:
        if peer not in runtimes:
            results.append(skipped[peer])
            continue
        print(f" {peer.name} …", end="", file=sys.stderr, flush=True)
        results += rows.about(peer, runtimes[peer])
        try:
            ours, theirs = _alternate(conditions, size, runtimes, peer)
        except FAILURES as reason:
            results.append(rows.failed(peer, reason))
        else:
            our_turns += ours
            results += rows.timed(peer, ours, theirs, size.burst)
            lines += rows.timed_lines(peer, theirs)
        results += _counted_rows(peer, counted, size)
    if our_turns:
        lines += rows.timed_lines(OURS, our_turns)
    for system, found in counted.items():
        if isinstance(found, Counts):
            lines += rows.counted_lines(system, found)
    return [*results, *lines]


def _prepared(conditions: Conditions) -> tuple[dict[System, Runtime], dict[System, Row]]:
    """All that can be had; and rows for those that cannot."""
    folder = conditions.environments or default_folder()
    print(f" environments are kept in {folder} …", end="", file=sys.stderr, flush=True)
    # Empty if the server was named and is none of those that are found: then nobody is skipped for it.
    version = next((found for found, program in servers().items() if program == conditions.program), ())
    runtimes, skipped = {OURS: prepare(OURS, folder, version)}, {}
    for peer in PEERS:
        try:
            runtimes[peer] = prepare(peer, folder, version)
        except Unavailable as reason:
            skipped[peer] = rows.skipped(peer, reason)
    return runtimes, skipped


def _alternate(
    conditions: Conditions, size: Size, runtimes: dict[System, Runtime], peer: System
) -> tuple[list[Turn], list[Turn]]:
    """The turns of ours and of that peer: A B A B."""
    turns: dict[System, list[Turn]] = {OURS: [], peer: []}
    with conditions.server() as server:
        for _ in range(size.rounds):
            for system, taken in turns.items():
                deployment = Deployment(system, runtimes[system], server)
                taken.append(
                    turn(deployment, seconds=size.lateness_seconds, burst=size.burst, patience=size.burst_patience)
                )
    return turns[OURS], turns[peer]


def _counted(conditions: Conditions, size: Size, runtimes: dict[System, Runtime]) -> dict[System, Counts | Exception]:
    """What is counted of each, or why it could not be."""
    broken_off = threading.Event()

    def count(system: System, server: RedisServer) -> Counts | Exception:
        try:
            return counts(
                lambda hold: Deployment(system, runtimes[system], server, hold=hold, broken_off=broken_off),
                waiting=size.waiting,
                idle_seconds=size.idle_seconds,
                third=size.third,
                patience=size.kill_patience,
                after=size.after,
            )
        except (*FAILURES, BrokenOff) as reason:
            return reason

    with ExitStack() as started, ThreadPoolExecutor(len(runtimes)) as pool:
        servers = [started.enter_context(conditions.server()) for _ in runtimes]
        try:
            return dict(zip(runtimes, pool.map(count, runtimes, servers), strict=True))
        finally:
            broken_off.set()  # where all have been counted, nobody hears it


def _counted_rows(peer: System, counted: dict[System, Counts | Exception], size: Size) -> list[Row]:
    ours, theirs = counted[OURS], counted[peer]
    if isinstance(ours, Counts) and isinstance(theirs, Counts):
        return rows.counted(peer, ours, theirs, size.waiting, 3 * size.third, size.kill_patience)
    return [rows.failed(system, said) for system, said in ((OURS, ours), (peer, theirs)) if isinstance(said, Exception)]
