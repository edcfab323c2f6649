"""When a cancelled task is really gone, and whether it stays cancelled.

The same call for both, ``app.control.revoke`` with many ids, at the same time, each with a worker and a server of its
own. Of ours, the store forgets the tasks. Native workers note the ids in their memory; the tasks stay there, and
unacknowledged in Redis, until they are due, and then longer where there are many: an idle worker drops some twenty a
second. And a worker that is started anew knows of no note: there can be a file for that (``--statedb``), which is not
the default; other workers would tell it, where not all are restarted, as in a deploy. Here there is one.
"""

from __future__ import annotations

import time
import uuid
from contextlib import ExitStack

import redis

from .conditions import Conditions
from .report import Results, Row
from .workers import Bench, wait_until

MEGABYTE = 1024 * 1024

WORKER = ("-P", "threads", "-c", "4")


class Trial:
    """A number of tasks of one bench, published and then revoked.

    Attributes:
        taken: Redis's memory for them (MB).
    """

    def __init__(self, bench: Bench, tasks: int, due: float) -> None:
        self._bench = bench
        self._before = _megabytes(bench.broker)
        self._ids = [str(uuid.uuid4()) for _ in range(tasks)]
        for id in self._ids:
            bench.task("stamp").apply_async((due,), task_id=id, countdown=due - time.time())
        wait_until(lambda: self.waiting() == tasks, f"{bench.name} tasks wait")
        self.taken = self.held()

    def held(self) -> float:
        """Redis's memory for what is left of them (MB)."""
        return _megabytes(self._bench.broker) - self._before

    def waiting(self) -> int:
        """How many are held: natively by the worker, and what it has not yet taken is not waited for."""
        key = "delayq:{0}:jobs:celery" if self._bench.name == "delayq" else "unacked"
        return int(self._bench.broker.hlen(key))

    def revoke(self) -> None:
        self._revoked = time.time()
        self._bench.app.control.revoke(self._ids)

    def gone(self) -> float:
        """Wait until none of them is left; how long (s) after they were revoked."""
        wait_until(lambda: not self.waiting(), f"{self._bench.name} tasks are gone")
        return time.time() - self._revoked


def _megabytes(broker: redis.Redis) -> float:
    """What all keys of a database take (MB)."""
    return sum(int(broker.memory_usage(key, samples=0) or 0) for key in broker.scan_iter()) / MEGABYTE


def run(conditions: Conditions) -> Results:
    tasks = 100
    delay, deploy = (6.0, 14.0) if conditions.quick else (15.0, 30.0)
    with conditions.server() as here, conditions.server() as there, ExitStack() as workers:
        benches = Bench(here, 0, delayq=True), Bench(there, 0, delayq=False)
        running = [workers.enter_context(bench.worker(*WORKER)) for bench in benches]

        ours, native = _trials(benches, tasks, delay)
        left = [trial.held() for trial in (ours, native)]
        our_end, native_end = ours.gone(), native.gone()
        taken = ours.taken, native.taken
        assert not any(bench.recorded() for bench in benches), "a revoked task ran, with its worker up"

        due = time.time() + deploy
        _trials(benches, tasks, deploy)
        for worker in running:
            worker.end()
        for bench in benches:
            workers.enter_context(bench.worker(*WORKER))
        if time.time() > due:
            raise TimeoutError("the new workers started slower than expected")
        time.sleep(due + 5.0 - time.time())
        our_runs, native_runs = (bench.recorded() for bench in benches)
    return [
        Row(
            "cancelled",
            f"s from the call until the last of {tasks} revoked tasks, due in {delay:g} s, is gone",
            f"{our_end:.2f}",
            f"native {native_end:.1f}",
        ),
        Row(
            "cancelled",
            "MB of Redis's memory that they take: before, and after the call",
            f"{taken[0]:.2f}, {left[0]:.2f}",
            f"native {taken[1]:.2f}, {left[1]:.2f}",
        ),
        Row(
            "cancelled",
            f"runs of {tasks} revoked tasks, the only worker restarted before they are due",
            f"{our_runs}",
            f"native {native_runs}",
            None,
            "0",
            our_runs == 0,
        ),
    ]


def _trials(benches: tuple[Bench, Bench], tasks: int, delay: float) -> tuple[Trial, Trial]:
    """Publish so many tasks each, all due then, and revoke them."""
    due = time.time() + delay
    ours, native = (Trial(bench, tasks, due) for bench in benches)
    for trial in (ours, native):
        trial.revoke()
    return ours, native
