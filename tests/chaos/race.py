"""Processes that all want the same jobs at once: ``python -m tests.chaos.race BROKER_URL < plan``.

The plan is JSON: what to do in a process of its own, each with its arguments. They begin at one moment; what each of
them was told by the store comes out as a list, in the same order. Whoever dispatches ends when all others have ended
and nothing waits any more.

All are forks of one process, so that importing Celery takes its time only once.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from celery import Celery

from celery_delayq import DelayQ
from celery_delayq.delivery import Delivery
from celery_delayq.errors import AlreadyScheduled
from celery_delayq.job import OnConflict, Origin, Put
from tests.integration.worker import ROOT

QUEUE = "orders"

#: Whoever has claimed a job keeps it (us): longer than any race lasts.
LEASE_US = 600_000_000


class Racer:
    """What one process can do."""

    def __init__(self, url: str, seed: int, over: Callable[[], bool]) -> None:
        self.app = Celery(broker=url)
        self.delayq = DelayQ(self.app)
        self.store = self.delayq.connect()
        self.chance = random.Random(seed)
        self.over = over

    def _shuffled(self, ids: Sequence[str]) -> list[str]:
        return self.chance.sample(ids, len(ids))

    def _batches(self, ids: Sequence[str]) -> Iterator[list[str]]:
        shuffled = self._shuffled(ids)
        while shuffled:
            size = self.chance.randrange(1, 5)
            yield shuffled[:size]
            shuffled = shuffled[size:]

    def dispatch(self) -> int:
        """How many were handed over here."""
        moved = 0
        while True:
            over = self.over()
            tick = self.store.tick()
            for upcoming in tick.due:
                delivery = upcoming.delivery or Delivery.plain(upcoming.topic)
                moved += self.store.dispatch(upcoming.topic, delivery, self.chance.randrange(1, 5)).moved
            if over and not tick.due and tick.next is None:
                return moved

    def delete(self, ids: Sequence[str], lease_us: int | None = None) -> list[str]:
        """Those that were deleted here."""
        won: list[str] = []
        for batch in self._batches(ids):
            gone = self.store.delete(QUEUE, batch, lease_us=lease_us)
            won += [id for id, was_here in zip(batch, gone, strict=True) if was_here]
        return won

    def cancel(self, ids: Sequence[str]) -> list[str]:
        """The same as users do it; half of them with all that is to be told of a revoked task."""
        return [id for id in self._shuffled(ids) if self.delayq.cancel(id, mark=self.chance.random() < 0.5)]

    def run_now(self, ids: Sequence[str]) -> int:
        """How many waited."""
        return sum(self.delayq.run_now(*batch) for batch in self._batches(ids))

    def reschedule(self, ids: Sequence[str]) -> int:
        """How many waited, and do so a little longer."""
        return sum(self.delayq.reschedule(id, time.time() + self.chance.random() / 4) for id in self._shuffled(ids))

    def pause_and_resume(self, times: int) -> int:
        """How often; at the end nothing holds the queue back."""
        for _ in range(times):
            self.delayq.pause(QUEUE)
            self.delayq.resume(QUEUE, rate=self.chance.choice([None, 200, 20_000]))
        self.delayq.resume(QUEUE)
        return times

    def put(self, ids: Sequence[str], times: int, origin: str) -> int:
        """How many were stored; each of a body of its own, unless they are retried."""
        stored = 0
        for number in range(times):
            for id in self._shuffled(ids):
                body = id if origin == "retried" else f"{id} {self.chance.random()} {number}"
                job = Put(QUEUE, id, body.encode(), in_us=self.chance.choice([0, 0, 3_000]))
                on_conflict = self.chance.choice([OnConflict.ERROR, OnConflict.KEEP])
                with suppress(AlreadyScheduled):
                    stored += self.store.put([job], {QUEUE: Delivery.plain(QUEUE)}, on_conflict, origin=Origin(origin))
        return stored

    def purge(self, times: int) -> int:
        """How many were purged here."""
        return sum(self.store.purge(QUEUE) for _ in range(times))

    def finish(self) -> list[str]:
        """Those that were claimed here."""
        claimed: list[str] = []
        while True:
            over = self.over()
            jobs = self.store.claim(LEASE_US, self.chance.randrange(1, 5))
            claimed += [job.name for job in jobs]
            self.store.forget(jobs)
            if over and not jobs:
                return claimed


def race(url: str, *plan: tuple[Any, ...]) -> list[Any]:
    """Run it in processes of their own; each step is a name and arguments of :class:`Racer`."""
    command = [sys.executable, "-m", "tests.chaos.race", url]
    plan_text = json.dumps(plan)
    done = subprocess.run(
        command, cwd=ROOT, input=plan_text, stdout=subprocess.PIPE, text=True, timeout=120, check=True
    )
    results: list[Any] = json.loads(done.stdout)
    return results


def main() -> None:
    """Fork, start all at once, and print what they say."""
    url, plan = sys.argv[1], json.load(sys.stdin)
    context = multiprocessing.get_context("fork")
    start, over = context.Barrier(len(plan)), context.Event()

    def take_part(number: int, name: str, arguments: list[Any], answer: Any) -> None:
        racer = Racer(url, number, over.is_set)
        racer.store.now_us()  # connects
        start.wait(60)
        answer.send(getattr(racer, name)(*arguments))

    runs = []
    for number, (name, *arguments) in enumerate(plan):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=take_part, args=(number, name, arguments, there), daemon=True)
        process.start()
        there.close()
        runs.append((name in ("dispatch", "finish"), here))
    results = {here: here.recv() for lasting, here in runs if not lasting}
    over.set()
    results |= {here: here.recv() for lasting, here in runs if lasting}
    print(json.dumps([results[here] for _, here in runs]))


if __name__ == "__main__":
    main()
