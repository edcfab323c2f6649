"""What is timed of one system in one turn: the lateness of a stream of jobs, then a burst."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from benchmarks.workers import wait_until

from .deployment import Deployment, jobs

#: Jobs a second for the lateness.
RATE = 100

#: How far ahead (s) of its due time a job is put for the lateness.
AHEAD = 2.0

#: How fast (jobs a second) everybody puts jobs for a burst, at first sight.
PUTS = 500

#: How often a stream is tried whose jobs are put too late.
TRIES = 5

#: How often (s) is looked how far a burst is.
LOOK = 0.005


@dataclass(frozen=True)
class Burst:
    """From the instant at which all jobs are due.

    Attributes:
        ready: until the last no longer waited for its time (s), or until our patience ended; None where that cannot
            be told.
        run: until the last has started (s), or until our patience ended.
        missing: how many had not run by then.
    """

    ready: float | None
    run: float
    missing: int


@dataclass(frozen=True)
class Turn:
    """What one turn of one system gave.

    Attributes:
        late: for each job of the stream, its start less its due time (ms), in order; below zero is early.
        burst: what became of the burst.
    """

    late: tuple[float, ...]
    burst: Burst


def turn(deployment: Deployment, *, seconds: int, burst: int, patience: float) -> Turn:
    """A stream of so many seconds and a burst of so many jobs, one after the other, for one worker.

    Args:
        patience: how long (s) the burst may take.

    Raises:
        TimeoutError: the stream did not come to its end.
    """
    with deployment, deployment.worker():
        return Turn(_lateness(deployment, seconds), _burst(deployment, burst, patience))


def _lateness(deployment: Deployment, seconds: int) -> tuple[float, ...]:
    for _ in range(TRIES):
        late, spare = _stream(deployment, seconds)
        if spare > AHEAD / 2:  # else the machine stood still meanwhile: what is put late is late
            return late
    raise RuntimeError(f"{deployment.system.name}: in none of {TRIES} tries jobs were put in time")


def _stream(deployment: Deployment, seconds: int) -> tuple[tuple[float, ...], float]:
    """How late (ms) its jobs were, in order; and how long (s) before its due time a job was put at the latest."""
    first = time.time() + AHEAD + 0.5
    dice = random.Random(1)
    # At random, as real ones are: a grid could fall in with somebody's clock.
    stream = jobs(sorted(first + seconds * dice.random() for _ in range(RATE * seconds)))
    spare = AHEAD
    for job in stream:
        time.sleep(max(0.0, job[1] - AHEAD - time.time()))
        deployment.order(job)
        spare = min(spare, job[1] - time.time())
    deployment.settle()
    spare = min(spare, stream[-1][1] - time.time())
    wait_until(lambda: deployment.ran() >= len(stream), f"the stream of {deployment.system.name} has run")
    due = dict(stream)
    return tuple(sorted((started - due[id]) * 1000 for id, started in deployment.take_records())), spare


def _burst(deployment: Deployment, count: int, patience: float) -> Burst:
    lead = count / PUTS + 1.0
    while True:
        instant = time.time() + lead
        deployment.put(jobs([instant] * count))
        if time.time() < instant:
            break
        # The first were due before the last were put: that was none. Once they have run, with more time.
        wait_until(lambda: deployment.ran() >= count, f"{count} jobs of {deployment.system.name} have run")
        deployment.take_records()
        lead *= 2
    ready: float | None = None
    time.sleep(max(0.0, instant - time.time()))
    while (missing := count - deployment.ran()) > 0 and time.time() < instant + patience:
        if ready is None and deployment.all_ready():
            ready = time.time() - instant
        time.sleep(LOOK)
    run = patience if missing > 0 else max(started for _, started in deployment.take_records()) - instant
    if ready is None and deployment.system.waiting is not None:
        ready = run  # between the last two looks, or never
    return Burst(ready, run, missing)
