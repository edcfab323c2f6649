"""What is counted of one system rather than timed, so that others may be at work beside it on servers of their own."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.fleet import commands_a_second
from benchmarks.workers import wait_until

from .deployment import Deployment, jobs

#: How long (s) each job takes whose worker is killed.
HOLD = 0.3

#: How many jobs run at once where fewest do.
FEWEST_AT_ONCE = 4

#: An hour (s).
HOUR = 3600


@dataclass(frozen=True)
class Survival:
    """What became of jobs whose worker was killed.

    Attributes:
        lost: how many had not run to their end when our patience ended.
        doubled: how many ran to their end more than once.
        seconds: from the start of the second worker to the start of the last run, or nan if there was none.
    """

    lost: int
    doubled: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.lost}; {self.doubled}; {self.seconds:.0f} s"


@dataclass(frozen=True)
class Counts:
    """What was counted.

    Attributes:
        memory: Redis memory (bytes) for each waiting job.
        idle: Redis commands a second of one idle worker.
        survival: what SIGKILL did.
    """

    memory: float
    idle: float
    survival: Survival


def counts(
    deploy: Callable[[float], Deployment],
    *,
    waiting: int,
    idle_seconds: float,
    third: int,
    patience: float,
    after: float,
) -> Counts:
    """Count, each in a new deployment.

    Args:
        deploy: a new deployment whose jobs take so many seconds.
        waiting: how many jobs wait for the memory.
        idle_seconds: how long commands are counted.
        third: a third of the jobs of which the worker is killed.
        patience: how long (s) after the kill, or the last due time if later, all must have run.
        after: how long (s) is then waited for second runs.
    """
    return Counts(
        _memory(deploy(0), waiting), _idle(deploy(0), idle_seconds), _survival(deploy(HOLD), third, patience, after)
    )


def _memory(deployment: Deployment, count: int) -> float:
    """Of so many jobs that wait for tomorrow, with no worker that could hold them."""
    tomorrow = time.time() + 24 * HOUR
    with deployment:
        deployment.put(jobs([tomorrow]))  # what is there once, for all jobs
        before = _used(deployment)
        deployment.put(jobs(tomorrow + number for number in range(count)))
        return (_used(deployment) - before) / count


def _used(deployment: Deployment) -> int:
    """Memory in use (bytes), without the buffers of connections, which come and go."""
    deployment.pause(1.0)  # buffers shrink and tables finish growing meanwhile
    with deployment.server.client() as client:
        said = client.info("memory")
    return int(said["used_memory"]) - int(said["mem_clients_normal"])


def _idle(deployment: Deployment, seconds: float) -> float:
    """With one job an hour ahead."""
    with deployment, deployment.worker(), deployment.server.client() as client:
        deployment.put(jobs([time.time() + HOUR]))
        deployment.pause(2.0)  # who backs off while nothing is to be done has done so
        return commands_a_second(client, seconds, deployment.pause)


def _survival(deployment: Deployment, third: int, patience: float, after: float) -> Survival:
    """SIGKILL of the only worker, and another a second later.

    A third of the jobs have run by then; a third was due at once, and the worker is killed when a quarter of it has
    run, in the midst of some and with others at hand; the rest falls due when the second worker is there.
    """
    with deployment:
        with deployment.worker() as worker:
            begin, gap = time.time() + 3.0, third * HOLD / FEWEST_AT_ONCE + 4.0
            dues = (begin, begin + gap, begin + 2 * gap)
            deployment.put(jobs(due for due in dues for _ in range(third)))
            wait_until(lambda: deployment.ran() >= third + third // 4, f"runs by {deployment.system.name}")
            deployment.pause(HOLD / 2)  # not at the end of some, where it is luck whether they are acknowledged
            deployment.kill(worker)
        deployment.pause(1.0)
        restarted = time.time()
        with deployment.cold_worker():
            deadline = max(dues[-1], restarted) + patience
            while _distinct(deployment) < 3 * third and time.time() < deadline:
                deployment.pause(0.5)
            deployment.pause(after)
            records = deployment.take_records()
    runs = Counter(id for id, _ in records)
    last = max((started for _, started in records if started > restarted), default=math.nan)
    return Survival(3 * third - len(runs), sum(count > 1 for count in runs.values()), last - restarted)


def _distinct(deployment: Deployment) -> int:
    return len({id for id, _ in deployment.records()})
