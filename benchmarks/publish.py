"""How fast one process publishes delayed tasks one by one, ``apply_async(countdown=…)``, through us and natively.

Blocks of the two alternate, short ones, so that whatever else the machine does meets both. No worker runs: a native one
would take each message and hold it, which costs it and Redis more than the publishing. As a dispatcher of ours would,
each block leaves the sign that one lives.
"""

from __future__ import annotations

import gc
import time

from .backlog import Backlog
from .conditions import Conditions
from .report import Results, Row, Spread
from .workers import Bench

#: Calls in one block.
BLOCK = 50


def _block(bench: Bench) -> float:
    """Seconds that a block of publishes takes."""
    task = bench.task("mark")
    started = time.perf_counter()
    for number in range(BLOCK):
        task.apply_async((number,), countdown=3600)
    return time.perf_counter() - started


def run(conditions: Conditions) -> Results:
    rounds = 20 if conditions.quick else 100
    with conditions.server() as server:
        ours, native = Bench(server, 0, delayq=True), Bench(server, 1, delayq=False)
        for bench in (ours, native):
            _block(bench)
        taken: list[tuple[float, float]] = []
        store = Backlog(ours).store
        for _ in range(rounds):
            store.tick(beat="benchmark")
            gc.collect()  # else garbage of the one is collected in the time of the other
            taken.append((_block(ours), _block(native)))
    ratio = Spread.of(natively / here for here, natively in taken)
    rates = [Spread.of(BLOCK / seconds for seconds in column) for column in zip(*taken, strict=True)]
    return [
        Row(
            "publish",
            "apply_async(countdown=…), one by one, a second",
            f"{rates[0].median:.0f}",
            f"native {rates[1].median:.0f}",
            ratio,
            "ratio >= 1.3",
            ratio.median >= 1.3,
        )
    ]
