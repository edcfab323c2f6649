"""A walk through all that waits, one task after the other: how fast, and what it adds to the memory of who walks."""

from __future__ import annotations

import time
from itertools import islice

import psutil

from .backlog import Backlog
from .conditions import Conditions
from .report import Results, Row
from .workers import Bench


def run(conditions: Conditions) -> Results:
    count = 100_000 if conditions.quick else 1_000_000
    process = psutil.Process()
    with conditions.server() as server:
        bench = Bench(server, 0, delayq=True)
        Backlog(bench).fill(count)
        walk = bench.app.delayq.scheduled()
        started = time.perf_counter()
        walked = sum(1 for _ in islice(walk, count // 10))
        before = process.memory_info().rss
        walked += sum(1 for _ in walk)
        took = time.perf_counter() - started
        grown = (process.memory_info().rss - before) / 2**20
    assert walked == count
    return [
        Row("walk", f"walk through {count:,}: tasks a second", f"{count / took:,.0f}", ""),
        Row("walk", "growth of memory after its first tenth, MB", f"{grown:.1f}", "", None, "< 5 MB", grown < 5),
    ]
