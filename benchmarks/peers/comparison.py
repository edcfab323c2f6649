"""Ours beside each of the others: lateness, a burst, memory, idle commands, and what a SIGKILL does.

All are on the same Redis, each alone on it in its turns, which alternate: ours, the other, ours, the other. The
exception is the SIGKILL, where nobody is in a hurry: there all take part at once, each on a server of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.conditions import Conditions
from benchmarks.report import Row, Spread
from celery_delayq.embedded import RedisServer

from . import turns
from .arq import ARQ
from .bullmq import BULLMQ
from .celery_redis_plus import CELERY_REDIS_PLUS
from .deployment import CONCURRENCY, PAYLOAD_BYTES, Deployment
from .dramatiq import DRAMATIQ
from .environment import Runtime, Unavailable, default_folder, prepare
from .huey import HUEY
from .ours import OURS
from .rq import RQ
from .system import System

PEERS = (CELERY_REDIS_PLUS, RQ, DRAMATIQ, HUEY, ARQ, BULLMQ)

T = TypeVar("T")


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: turns of each, for lateness and burst.
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
    lateness_seconds: int = 10
    burst: int = 10_000
    burst_patience: float = 120.0
    waiting: int = 20_000
    idle_seconds: float = 30.0
    third: int = 100
    kill_patience: float = 180.0
    after: float = 30.0


QUICK = Size(
    rounds=1,
    lateness_seconds=3,
    burst=1000,
    burst_patience=30.0,
    waiting=2000,
    idle_seconds=5.0,
    third=40,
    kill_patience=45.0,
    after=5.0,
)


class Pair:
    """Ours and one other, whose turns alternate on one server."""

    def __init__(self, server: RedisServer, ours: Runtime, peer: System, runtime: Runtime) -> None:
        self.peer = peer
        self.versions = runtime.versions
        self._server = server
        self._sides = ((OURS, ours), (peer, runtime))

    def measure(self, turn: Callable[[Deployment], T], rounds: int) -> tuple[list[T], list[T]]:
        """That turn of both, so many times."""
        taken: tuple[list[T], list[T]] = ([], [])
        for _ in range(rounds):
            for (system, runtime), results in zip(self._sides, taken, strict=True):
                results.append(turn(Deployment(system, runtime, self._server)))
        return taken


def _row(pair: Pair, figure: str, ours: list[float], theirs: list[float], remark: str = "") -> Row:
    """The row of a figure of which less is better."""
    ratio = Spread.of(a / b for a, b in zip(ours, theirs, strict=True)) if min(theirs) > 0 else None
    compared = f"{pair.peer.name} {Spread.of(theirs)}{remark}"
    return Row("peers", figure, str(Spread.of(ours)), compared, ratio)


def _lateness(pair: Pair, size: Size) -> list[Row]:
    ours, theirs = pair.measure(lambda it: turns.lateness(it, size.lateness_seconds), size.rounds)
    what = f"ms late, {turns.RATE} jobs a second"
    return [
        _row(pair, f"p50 {what}", [it.p50 for it in ours], [it.p50 for it in theirs]),
        _row(pair, f"p99 {what}", [it.p99 for it in ours], [it.p99 for it in theirs]),
        _row(pair, f"max {what}", [it.most for it in ours], [it.most for it in theirs]),
        Row(
            "peers",
            "earliest of all, ms late: below zero is early",
            f"{min(it.least for it in ours):.2f}",
            f"{pair.peer.name} {min(it.least for it in theirs):.2f}",
        ),
    ]


def _burst(pair: Pair, size: Size) -> list[Row]:
    ours, theirs = pair.measure(lambda it: turns.burst(it, size.burst, size.burst_patience), size.rounds)
    fewest = min(it.ran for it in theirs)
    remark = "" if fewest == size.burst else f", and then only {fewest:,} had run"
    figure = f"s from the instant until {size.burst:,} jobs have started"
    return [_row(pair, figure, [it.seconds for it in ours], [it.seconds for it in theirs], remark)]


def _memory(pair: Pair, size: Size) -> list[Row]:
    figure = f"bytes of Redis memory a waiting job, {PAYLOAD_BYTES} bytes of argument, {size.waiting:,} wait"
    return [_row(pair, figure, *pair.measure(lambda it: turns.memory(it, size.waiting), 1))]


def _idle(pair: Pair, size: Size) -> list[Row]:
    figure = "commands a second, one idle worker, a job an hour ahead"
    return [_row(pair, figure, *pair.measure(lambda it: turns.idle(it, size.idle_seconds), 1))]


def _survivals(conditions: Conditions, size: Size, runtimes: dict[System, Runtime]) -> dict[System, str]:
    """What SIGKILL does to each, in words; all at once."""

    def survive(system: System) -> str:
        with conditions.server() as server:
            deployment = Deployment(system, runtimes[system], server, hold=turns.HOLD)
            try:
                it = turns.survival(deployment, size.third, size.kill_patience, size.after)
            except (TimeoutError, RuntimeError) as error:
                return f"FAILED: {error}"
        ran = f"{it.count - it.lost} of {it.count} ran, {it.doubled} of them more than once"
        return f"{ran}, the last after {it.seconds:.0f} s"

    with ThreadPoolExecutor(len(runtimes)) as pool:
        return dict(zip(runtimes, pool.map(survive, runtimes), strict=True))


def _prepared(conditions: Conditions) -> tuple[dict[System, Runtime], list[Row]]:
    """All that can be had, ours first; and rows for those that cannot."""
    folder = conditions.environments or default_folder()
    print(f" environments are kept in {folder} …", end="", file=sys.stderr, flush=True)
    runtimes = {OURS: prepare(OURS, folder)}
    skipped = []
    for peer in PEERS:
        try:
            runtimes[peer] = prepare(peer, folder)
        except Unavailable as reason:
            skipped.append(Row("peers", "skipped", "", f"{peer.name}: {reason}"))
    return runtimes, skipped


def run(conditions: Conditions) -> list[Row]:
    size = QUICK if conditions.quick else Size()
    runtimes, rows = _prepared(conditions)
    for peer, runtime in runtimes.items():
        if peer is OURS:
            continue
        with conditions.server() as server:
            pair = Pair(server, runtimes[OURS], peer, runtime)
            note = f"Settings: {peer.settings}. It cannot: {peer.cannot}."
            rows.append(
                Row("peers", f"versions; {CONCURRENCY} jobs at once", "this checkout", runtime.versions, note=note)
            )
            for measure in (_lateness, _burst, _memory, _idle):
                try:
                    rows += measure(pair, size)
                except (TimeoutError, RuntimeError) as error:  # its other figures, and the others', are good
                    rows.append(Row("peers", measure.__name__.strip("_"), "", f"{peer.name} FAILED: {error}"))
    fates = _survivals(conditions, size, runtimes)
    for peer in runtimes.keys() - {OURS}:
        rows.append(Row("peers", "SIGKILL of the worker", fates[OURS], f"{peer.name}: {fates[peer]}"))
    return rows
