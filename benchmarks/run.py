"""One command that runs benchmarks, and under which circumstances each of them ran."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone

from .circumstances import Circumstances, Machine, ProcessorTime, commit, versions
from .conditions import Conditions
from .report import Results
from .results import Outcome


@dataclass(frozen=True)
class Run:
    """What is the same for all benchmarks of one command."""

    conditions: Conditions
    command: str
    machine: Machine
    versions: dict[str, str]
    commit: str

    @classmethod
    def of(cls, conditions: Conditions, command: str) -> Run:
        return cls(conditions, command, Machine.here(), versions(conditions.redis_version()), commit())

    def measure(self, benchmark: Callable[[Conditions], Results]) -> Outcome:
        """What it finds, and the circumstances."""
        load_before, begun = os.getloadavg()[0], datetime.now(timezone.utc)
        before, started = ProcessorTime.now(), time.monotonic()
        results = benchmark(self.conditions)
        circumstances = Circumstances(
            self.command,
            begun.isoformat(timespec="seconds"),
            round(time.monotonic() - started, 1),
            self.machine,
            self.versions,
            self.commit,
            round(load_before, 2),
            ProcessorTime.now().stolen_since(before),
            self.conditions.quick,
        )
        return Outcome.of(circumstances, results)
