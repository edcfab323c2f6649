"""How long a round trip takes: export all that waits into a file, import the file into an empty Redis.

With the commands, as a user runs them: their processes' start is in the figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from .apps import ENVIRONMENT
from .backlog import BODY_BYTES, Backlog
from .conditions import Conditions
from .report import Results, Row
from .workers import Bench

MEGABYTE = 1024 * 1024

#: Seconds that a round trip of a million may take.
TARGET = 60


def run(conditions: Conditions) -> Results:
    few, many = (2_000, 50_000) if conditions.quick else (10_000, 1_000_000)
    with conditions.server() as server, tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "jobs")
        bench = Bench(server, 0, delayq=True)
        backlog = Backlog(bench)
        peaks, seconds = {}, (0.0, 0.0)
        for count in (few, many):
            backlog.fill(count - backlog.waiting())
            exporting = _timed(bench, "export", file)
            bench.broker.flushdb()
            importing = _timed(bench, "import", file)
            assert backlog.waiting() == count
            seconds = exporting[0], importing[0]
            peaks[count] = max(exporting[1], importing[1])
    total = sum(seconds)
    return [
        Row(
            "transfer",
            f"{many:,} jobs with bodies of {BODY_BYTES} bytes: export, import",
            f"{seconds[0]:.1f} s, {seconds[1]:.1f} s",
            f"{total / many * 1e6:.0f} us each, both ways",
            None,
            "" if conditions.quick else f"<= {TARGET} s both",
            None if conditions.quick else total <= TARGET,
        ),
        Row(
            "transfer",
            "memory of the command at most, MB",
            f"{peaks[many]:.0f} with {many:,}",
            f"{peaks[few]:.0f} with {few:,}",
            None,
            "<= 10 more",
            peaks[many] - peaks[few] <= 10,
        ),
    ]


def _timed(bench: Bench, command: str, file: Path) -> tuple[float, float]:
    """Run ``celery delayq``; return how long it took (s), and its memory at most (MB)."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "benchmarks.apps", "delayq", command, str(file)],
        cwd=Path(__file__).resolve().parent.parent,
        env={**os.environ, ENVIRONMENT: json.dumps(bench.arguments)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    most = 0
    while process.poll() is None:
        with suppress(psutil.Error):  # it has just ended
            most = max(most, psutil.Process(process.pid).memory_info().rss)
        time.sleep(0.02)
    assert process.returncode == 0, f"celery delayq {command} ended with {process.returncode}"
    return time.perf_counter() - started, most / MEGABYTE
