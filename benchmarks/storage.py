"""How much of Redis's memory a waiting job takes, beside the size of its body."""

from __future__ import annotations

import time

from .backlog import BODY_BYTES, Backlog
from .conditions import Conditions
from .report import Row, Spread
from .workers import Bench


def run(conditions: Conditions) -> list[Row]:
    rows = []
    # The tables of a hash double at powers of two: more than one count, so that a lucky one does not stand for all.
    for count in (20_000,) if conditions.quick else (100_000, 140_000):
        with conditions.server() as server:
            bench = Bench(server, 0, delayq=True)
            backlog = Backlog(bench)
            before = _used(bench)
            backlog.fill(count)
            assert backlog.waiting() == count
            each = (_used(bench) - before) / count
        ratio = each / BODY_BYTES
        rows.append(
            Row(
                "storage",
                f"bytes of Redis memory for each of {count:,} waiting jobs",
                f"{each:.0f}",
                f"body {BODY_BYTES}",
                Spread.of([ratio]),
                "ratio <= 1.40",
                ratio <= 1.40,
            )
        )
    return rows


def _used(bench: Bench) -> int:
    """Memory in use (bytes), without the buffers of connections, which come and go."""
    time.sleep(1.0)  # buffers shrink and tables finish growing meanwhile
    memory = bench.broker.info("memory")
    return int(memory["used_memory"]) - int(memory["mem_clients_normal"])
