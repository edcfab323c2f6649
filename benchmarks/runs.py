"""How often each delayed task runs, and how late the latest, where stock Celery depends on the visibility timeout.

Stock Celery holds a delayed task in a worker's memory, unacknowledged. If the delay is longer than the visibility
timeout, Kombu gives the task to another worker as well; if the worker is killed, the task is nobody's until that time
is over. Both are shown with a timeout of seconds, so that it ends; by default it is an hour. Both apps at the same
time: nothing here is a matter of speed.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from .conditions import Conditions
from .report import Results, Row
from .workers import Bench, wait_until

#: Kombu's default (s).
STOCK_TIMEOUT = 3600


@dataclass(frozen=True)
class Outcome:
    """What became of a number of tasks.

    Attributes:
        runs: of each of them.
        latest: how late (s) the first run of a task started, of the task that was the latest.
    """

    runs: tuple[int, ...]
    latest: float

    @classmethod
    def of(cls, bench: Bench, dues: list[float]) -> Outcome:
        started: dict[float, list[float]] = {due: [] for due in dues}
        for record in bench.take_records():
            due, at = map(float, record.split())
            started[due].append(at)
        late = [min(runs) - due for due, runs in started.items() if runs]
        return cls(tuple(map(len, started.values())), max(late, default=float("nan")))

    @property
    def is_once_each(self) -> bool:
        return set(self.runs) == {1}

    def __str__(self) -> str:
        tasks = Counter(min(runs, 2) for runs in self.runs)
        return f"{tasks[0]} never, {tasks[1]} once, {tasks[2]} twice or more; {sum(self.runs)} runs"


def _conf(visibility_timeout: int) -> dict[str, Any]:
    return {
        "broker_transport_options": {
            "visibility_timeout": visibility_timeout,
            # Look for what has been out for too long each second, and not each hundred.
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
        }
    }


def _publish(bench: Bench, tasks: int, due: float) -> list[float]:
    """So many tasks, a millisecond apart, so that each is known by its due time; return those."""
    dues = [due + number / 1000 for number in range(tasks)]
    for one in dues:
        bench.task("stamp").apply_async((one,), countdown=one - time.time())
    return dues


def _long_delays(conditions: Conditions, tasks: int, delay: float, timeout: int) -> list[Row]:
    """Two workers each, and a delay that is longer than the visibility timeout."""
    with conditions.server() as server, ExitStack() as workers:
        benches = [Bench(server, number, delayq=number == 0, conf=_conf(timeout)) for number in (0, 1)]
        for bench in benches:
            for _ in range(2):
                workers.enter_context(bench.worker("-P", "threads", "-c", "4"))
        due = time.time() + delay
        dues = [_publish(bench, tasks, due) for bench in benches]
        for bench in benches:
            wait_until(lambda bench=bench: bench.recorded() >= tasks, f"{bench.name} tasks")
        time.sleep(2 * timeout)  # whatever was given out twice has run by then
        ours, native = (Outcome.of(bench, dues) for bench, dues in zip(benches, dues, strict=True))
    return [
        Row(
            "runs",
            f"runs of {tasks} tasks, delay {delay:g} s, visibility_timeout {timeout} s",
            str(ours),
            f"native {native}",
            None,
            "each exactly once",
            ours.is_once_each,
        )
    ]


def _killed(conditions: Conditions, tasks: int, delay: float, timeout: int) -> list[Row]:
    """One worker each, killed after half of the delay; a new one takes its place."""
    with conditions.server() as server, ExitStack() as workers:
        benches = [Bench(server, number, delayq=number == 0, conf=_conf(timeout)) for number in (0, 1)]
        first = [workers.enter_context(bench.worker("-P", "threads", "-c", "4")) for bench in benches]
        due = time.time() + delay
        dues = [_publish(bench, tasks, due) for bench in benches]
        time.sleep(max(0.0, due - delay / 2 - time.time()))
        for worker in first:
            worker.kill()
        for bench in benches:
            workers.enter_context(bench.worker("-P", "threads", "-c", "4"))
        ahead = due - time.time()
        if ahead < 0:
            raise TimeoutError("the new workers started slower than expected")
        for bench in benches:
            wait_until(lambda bench=bench: bench.recorded() >= tasks, f"{bench.name} tasks")
        time.sleep(2)  # for whatever runs once more
        ours, native = (Outcome.of(bench, dues) for bench, dues in zip(benches, dues, strict=True))
    killed = f"SIGKILL of the worker at half of the delay of {delay:g} s"
    return [
        Row(
            "runs",
            f"runs of {tasks} tasks, {killed}, a new worker is up {ahead:.0f} s before they are due",
            str(ours),
            f"native {native}",
            None,
            "each exactly once",
            ours.is_once_each,
        ),
        Row(
            "runs",
            f"s late, the latest of these tasks, visibility_timeout {timeout} s",
            f"{ours.latest:.2f}",
            f"native {native.latest:.1f}; with the default of an hour {STOCK_TIMEOUT - delay:,.0f} or more",
        ),
    ]


def run(conditions: Conditions) -> Results:
    tasks = 20 if conditions.quick else 50
    beyond, killed = ((6.0, 3), (16.0, 21)) if conditions.quick else ((15.0, 4), (30.0, 45))
    return [*_long_delays(conditions, tasks, *beyond), *_killed(conditions, tasks, *killed)]
