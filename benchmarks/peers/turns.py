"""What is measured of one system in one turn."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from dataclasses import dataclass

from benchmarks.fleet import commands_a_second
from benchmarks.report import percentile
from benchmarks.workers import wait_until

from .deployment import Deployment, jobs

#: Jobs a second for the lateness.
RATE = 100

#: How far ahead (s) of its due time a job is put for the lateness.
AHEAD = 3.0

#: How long (s) each job takes whose worker is killed.
HOLD = 0.3

#: How many jobs run at once where fewest do.
FEWEST_AT_ONCE = 4

#: The slowest (jobs a second) that anybody puts jobs for a burst.
SLOWEST_PUT = 500


@dataclass(frozen=True)
class Lateness:
    """How late (ms) the jobs of a turn started: below zero is early."""

    least: float
    p50: float
    p99: float
    most: float


def lateness(deployment: Deployment, seconds: int) -> Lateness:
    """A hundred jobs a second for so many seconds, each put three seconds ahead, one worker."""
    with deployment, deployment.worker():
        dice = random.Random(1)
        first = time.time() + AHEAD + 0.5
        # At random, as real ones are: a grid could fall in with somebody's clock.
        stream = jobs(sorted(first + seconds * dice.random() for _ in range(RATE * seconds)))
        for job in stream:
            time.sleep(max(0.0, job[1] - AHEAD - time.time()))
            deployment.order(job)
        deployment.settle()
        wait_until(lambda: deployment.ran() >= len(stream), f"all have run by {deployment.system.name}")
        due = dict(stream)
        late = sorted((started - due[id]) * 1000 for id, started in deployment.records())
    return Lateness(late[0], percentile(late, 50), percentile(late, 99), late[-1])


@dataclass(frozen=True)
class Burst:
    """From the instant at which all are due to the start of the last; or to the end of our patience.

    Attributes:
        seconds: that time.
        ran: how many have run by then.
    """

    seconds: float
    ran: int


def burst(deployment: Deployment, count: int, patience: float) -> Burst:
    """So many jobs that are due at one instant, put while the one worker waits."""
    with deployment, deployment.worker():
        instant = time.time() + count / SLOWEST_PUT + 1.0
        deployment.put(jobs([instant] * count))
        if time.time() > instant:
            raise RuntimeError(f"{deployment.system.name}: putting {count} jobs took longer than expected")
        deadline = instant + patience
        while deployment.ran() < count and time.time() < deadline:
            time.sleep(0.05)
        records = deployment.records()
    if len(records) < count:
        return Burst(patience, len(records))
    return Burst(max(started for _, started in records) - instant, count)


def memory(deployment: Deployment, count: int) -> float:
    """Redis memory (bytes) for each of so many jobs that wait for tomorrow, with no worker that could hold them."""
    with deployment:
        deployment.put(jobs([time.time() + 24 * 3600]))  # what is there once, for all jobs
        before = _used(deployment)
        deployment.put(jobs(time.time() + 24 * 3600 + number for number in range(count)))
        return (_used(deployment) - before) / count


def _used(deployment: Deployment) -> int:
    """Memory in use (bytes), without the buffers of connections, which come and go."""
    time.sleep(1.0)  # buffers shrink and tables finish growing meanwhile
    with deployment.server.client() as client:
        said = client.info("memory")
    return int(said["used_memory"]) - int(said["mem_clients_normal"])


def idle(deployment: Deployment, seconds: float) -> float:
    """Commands a second by one worker while one job waits, due in an hour."""
    with deployment, deployment.worker(), deployment.server.client() as client:
        deployment.put(jobs([time.time() + 3600]))
        time.sleep(2.0)  # who backs off while nothing is to be done has done so
        return commands_a_second(client, seconds)


@dataclass(frozen=True)
class Survival:
    """What became of jobs whose worker was killed.

    Attributes:
        count: how many jobs there were.
        lost: how many had not run to their end when our patience ended.
        doubled: how many ran to their end more than once.
        seconds: from the start of the second worker to the start of the last run, or nan if there was none.
    """

    count: int
    lost: int
    doubled: int
    seconds: float


def survival(deployment: Deployment, third: int, patience: float, after: float) -> Survival:
    """SIGKILL of the only worker, and another a second later.

    A third of the jobs have run by then; a third was due at once, and the worker is killed when a quarter of it has
    run, in the midst of some and with others at hand; the rest falls due when the second worker is there.

    Args:
        deployment: one whose jobs take :data:`HOLD`.
        third: how many jobs are a third.
        patience: how long (s) is waited for all to have run.
        after: how long (s) is then waited for more runs.
    """
    with deployment:
        with deployment.worker() as worker:
            begin, gap = time.time() + 3.0, third * HOLD / FEWEST_AT_ONCE + 4.0
            dues = (begin, begin + gap, begin + 2 * gap)
            deployment.put(jobs(due for due in dues for _ in range(third)))
            wait_until(lambda: deployment.ran() >= third + third // 4, f"runs by {deployment.system.name}")
            time.sleep(HOLD / 2)  # not at the end of some, where it is luck whether they are acknowledged
            deployment.kill(worker)
        time.sleep(1.0)
        started_at = time.time()
        second = deployment.restart()
        try:
            deadline = max(dues[-1], started_at) + patience
            while _distinct(deployment) < 3 * third and time.time() < deadline:
                time.sleep(0.5)
            time.sleep(after)
        finally:
            deployment.kill(second)
        records = deployment.records()
    times = Counter(id for id, _ in records)
    last = max((started for _, started in records if started > started_at), default=math.nan)
    doubled = sum(count > 1 for count in times.values())
    return Survival(3 * third, 3 * third - len(times), doubled, last - started_at)


def _distinct(deployment: Deployment) -> int:
    return len({id for id, _ in deployment.records()})
