"""What ran, against what should have run: the demo's counting. Plain values in, plain values out."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

#: One run that should happen: task id, and 0 for its first run or n for its nth retry.
Run = tuple[str, int]


@dataclass(frozen=True)
class Report:
    """What a task said when it started.

    Attributes:
        due_us: what it was asked for (us since the epoch), as the task itself sees it; None if it does not know.
        started_us: when it began to run (us since the epoch).
    """

    id: str
    attempt: int
    due_us: int | None
    started_us: int

    @property
    def run(self) -> Run:
        return self.id, self.attempt

    @property
    def lateness_ms(self) -> float:
        """Start minus due; not a number if the task does not know its due time."""
        return math.nan if self.due_us is None else (self.started_us - self.due_us) / 1000


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest of *values* that *share* of them (0 < share <= 1) do not exceed; None of nothing."""
    return sorted(values)[math.ceil(share * len(values)) - 1] if values else None


@dataclass(frozen=True)
class Progress:
    """One moment of the demo.

    Attributes:
        waiting: runs that were asked for and are neither ready nor begun: they are in the schedule.
        ready: runs that were handed over and have not begun: on the ready list, or in the worker's hands.
        ran: runs that have begun.
        expected: runs that there will be in all.
        latenesses_ms: of those that ran.
    """

    seconds: float
    waiting: int
    ready: int
    ran: int
    expected: int
    latenesses_ms: Sequence[float]

    @classmethod
    def of(cls, seconds: float, expected: Sequence[Run], reports: Sequence[Report], ready: int) -> Progress:
        """Count what *expected* and *reports* say; *ready* was counted in the broker."""
        begun = {report.run for report in reports}
        # A task asks for its own retry, when it runs.
        asked = sum(attempt == 0 or (id, attempt - 1) in begun for id, attempt in expected)
        # At least 0: a run that begins between the reading of two of these numbers may be counted in both.
        waiting = max(asked - ready - len(reports), 0)
        return cls(seconds, waiting, ready, len(reports), len(expected), [report.lateness_ms for report in reports])


@dataclass(frozen=True)
class Summary:
    """The demo's outcome.

    Attributes:
        tasks: how many were scheduled, by the way in which.
        runs_expected, runs: how often they should run in all, and how often they did.
        missing: runs that should have been and were not.
        doubled: runs of the same task and attempt beyond the first.
        unexpected: runs that nobody asked for, or that do not know their due time.
        early: runs that began before they were due.
        left: messages that the worker left behind.
        lateness_ms: start minus due: the median, the 99th percentile and the largest; None if nothing ran.
    """

    seconds: float
    tasks: Mapping[str, int]
    runs_expected: int
    runs: int
    missing: int
    doubled: int
    unexpected: int
    early: int
    left: int
    lateness_ms: Mapping[str, float | None]

    @classmethod
    def of(
        cls, seconds: float, tasks: Mapping[str, int], expected: Sequence[Run], reports: Sequence[Report], left: int
    ) -> Summary:
        """Hold *reports* against *expected*."""
        wanted = set(expected)
        seen = Counter(report.run for report in reports)
        known = [report for report in reports if report.run in wanted and report.due_us is not None]
        late = [report.lateness_ms for report in known]
        figures = {"p50": percentile(late, 0.50), "p99": percentile(late, 0.99), "max": percentile(late, 1)}
        return cls(
            seconds=round(seconds, 1),
            tasks=dict(tasks),
            runs_expected=len(wanted),
            runs=len(reports),
            missing=len(wanted - seen.keys()),
            doubled=sum(count - 1 for count in seen.values()),
            unexpected=len(reports) - len(known),
            early=sum(lateness < 0 for lateness in late),
            left=left,
            lateness_ms={name: None if value is None else round(value, 2) for name, value in figures.items()},
        )

    @property
    def ok(self) -> bool:
        """Whether everything ran exactly as often as it should, and nothing before its time."""
        return not (self.missing or self.doubled or self.unexpected or self.early or self.left)

    def as_json(self) -> str:
        """The summary as one JSON object, on one line."""
        return json.dumps({"ok": self.ok, **asdict(self)})

    def as_text(self) -> str:
        """The summary for people."""
        ways = ", ".join(f"{count} {way}" for way, count in self.tasks.items())
        wrong = {
            "missing": self.missing,
            "run twice": self.doubled,
            "unexpected": self.unexpected,
            "before they were due": self.early,
            "left behind": self.left,
        }
        verdict = ", ".join(f"{count} {what}" for what, count in wrong.items() if count) or "each exactly once"
        late = {name: "-" if value is None else f"{value:.1f} ms" for name, value in self.lateness_ms.items()}
        return "\n".join(
            (
                f"scheduled  {sum(self.tasks.values())} tasks ({ways})",
                f"ran        {self.runs} of {self.runs_expected} runs in {self.seconds:g} s: {verdict}",
                f"lateness   p50 {late['p50']}, p99 {late['p99']}, max {late['max']} (start of the task minus due)",
            )
        )
