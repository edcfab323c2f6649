"""A producer: ``python -m tests.chaos.storm.produce``. Sends delayed tasks until it is told to stop (SIGTERM).

Each attempt is noted before it is made, and again when it is over: "acked" if ``apply_async`` returned, else what it
raised. What was begun and has no end was cut off with its producer.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback

from celery_delayq.clock import SECOND_US, from_us

from .project import app, note

#: How many calls store several tasks at once, all or nothing; and how many tasks these are.
BATCHES, BATCH = 0.05, 60

#: Of the tasks that are sent alone: how many go to the queue that workers consume; and how many have a priority, or an
#: ``eta`` in place of a countdown.
CONSUMED_SHARE, PRIORITY_SHARE, ETA_SHARE = 0.1, 0.1, 0.1

#: A message of about 1 kB.
FILLING = "x" * 300


class Producer:
    """Sends tasks at a pace.

    Args:
        name: the first part of every id.
        queues: those that nobody consumes.
        consumed: the one that workers consume.
        countdown: seconds, from and to.
        has_time: its clock is right, so that it can name a time (``eta``).
    """

    def __init__(
        self, name: str, path: str, seed: int, queues: list[str], consumed: str, countdown: list[float], has_time: bool
    ) -> None:
        self._name = name
        self._chance = random.Random(f"{seed} {name}")
        self._queues = queues
        self._consumed = consumed
        self._countdown = countdown
        self._has_time = has_time
        self._number = 0
        self._ledger = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.stopping = False

    def _write(self, *lines: str) -> None:
        os.write(self._ledger, "".join(f"{line}\n" for line in lines).encode())

    def _begin(self, queue: str, countdown: float, batch: int = 0) -> str:
        self._number += 1
        task_id = f"{self._name}.{self._number}"
        self._write(f"begun {task_id} {time.monotonic():.6f} {queue} {countdown:.6f} {batch}")
        return task_id

    def _end(self, task_ids: list[str], error: Exception | None) -> None:
        word = "acked" if error is None else f"{type(error).__module__}.{type(error).__name__}"
        if error is not None and not word.endswith(".OperationalError"):
            traceback.print_exception(error)
        now = time.monotonic()
        self._write(*(f"{word} {task_id} {now:.6f}" for task_id in task_ids))

    def send(self) -> int:
        """Send one task, or some at once; return how many."""
        chance = self._chance
        if self._has_time and chance.random() < BATCHES:
            return self._send_batch()
        countdown = chance.uniform(*self._countdown)
        queue = self._consumed if chance.random() < CONSUMED_SHARE else chance.choice(self._queues)
        options: dict[str, object] = {"queue": queue}
        if queue != self._consumed and chance.random() < PRIORITY_SHARE:
            options["priority"] = chance.choice([3, 6, 9])
        options["task_id"] = task_id = self._begin(queue, countdown)
        if self._has_time and chance.random() < ETA_SHARE:
            options["eta"] = from_us(round((time.time() + countdown) * SECOND_US))
        else:
            options["countdown"] = countdown
        error = None
        try:
            note.apply_async((FILLING,), **options)
        except Exception as raised:  # noqa: BLE001  # whatever it is, it goes into the ledger
            error = raised
        self._end([task_id], error)
        return 1

    def _send_batch(self) -> int:
        items, task_ids, batch = [], [], self._number + 1
        for _ in range(BATCH):
            countdown = self._chance.uniform(*self._countdown)
            queue = self._chance.choice(self._queues)
            task_ids.append(self._begin(queue, countdown, batch))
            items.append((note.s(FILLING).set(queue=queue, task_id=task_ids[-1]), time.time() + countdown))
        error = None
        try:
            app.delayq.apply_many(items)
        except Exception as raised:  # noqa: BLE001  # as above
            error = raised
        self._end(task_ids, error)
        return BATCH

    def run(self, pace: float) -> None:
        """Send *pace* tasks a second, if that can be done."""
        due = time.monotonic()
        while not self.stopping:
            due = max(due + self.send() / pace, time.monotonic() - 1)
            time.sleep(max(due - time.monotonic(), 0))


def main() -> None:
    options = json.loads(sys.argv[1])
    pace = options.pop("pace")
    name = f"{options.pop('name')}.{os.environ['STORM_INCARNATION']}"
    producer = Producer(name, **options)

    def stop(*_: object) -> None:
        producer.stopping = True

    signal.signal(signal.SIGTERM, stop)
    producer.run(pace)


if __name__ == "__main__":
    main()
