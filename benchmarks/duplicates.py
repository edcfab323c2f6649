"""How often each delayed task runs when its delay is longer than the broker's visibility timeout.

Stock Celery holds a delayed task in a worker's memory, unacknowledged; once the visibility timeout is over, Kombu
gives it to another worker as well. Two workers each; both apps at the same time: nothing here is a matter of speed.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack

from .conditions import Conditions
from .report import Results, Row
from .workers import Bench, wait_until

#: Seconds.
VISIBILITY_TIMEOUT = 4


def run(conditions: Conditions) -> Results:
    tasks, delay = (20, 9) if conditions.quick else (50, 15)
    conf = {
        "broker_transport_options": {
            "visibility_timeout": VISIBILITY_TIMEOUT,
            # Look for what has been out for too long each second, and not now and then.
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
        }
    }
    with conditions.server() as server, ExitStack() as workers:
        benches = Bench(server, 0, delayq=True, conf=conf), Bench(server, 1, delayq=False, conf=conf)
        for bench in benches:
            for _ in range(2):
                workers.enter_context(bench.worker("-P", "threads", "-c", "4"))
        due = time.time() + delay
        for bench in benches:
            for number in range(tasks):
                bench.task("mark").apply_async((number,), countdown=due - time.time())
        for bench in benches:
            wait_until(lambda bench=bench: bench.recorded() >= tasks, f"{bench.name} tasks")
        time.sleep(2 * VISIBILITY_TIMEOUT)  # whatever was given out twice has run by then
        ours, native = (Counter(bench.take_records()) for bench in benches)
    exactly_once = len(ours) == tasks and set(ours.values()) == {1}
    return [
        Row(
            "duplicates",
            f"runs of {tasks} tasks, delay {delay} s, visibility_timeout {VISIBILITY_TIMEOUT} s",
            _summary(ours),
            f"native {_summary(native)}",
            None,
            "each exactly once",
            exactly_once,
        )
    ]


def _summary(runs: Counter[bytes]) -> str:
    return f"{runs.total()}, a task {min(runs.values())} to {max(runs.values())}"
