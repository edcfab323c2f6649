"""Was every promise kept? Judged from the records alone; how fast anything went plays no part."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .records import Attempt

#: A task is early if it was taken longer (s) than this before its time: the wall clock, by which Redis counts, may be
#: slewed against the monotonic one, by which we measure.
SLEW = 0.02


@dataclass
class Verdict:
    """What the records say.

    Attributes:
        acked, raised, cut_off: attempts, by how they ended.
        exceptions: what was raised, and how often.
        batches: calls that stored several at once.
        watched: tasks that were taken from the queues that nobody consumes.
        lost, doubled, early, alien, torn: the ids of violations; torn: batches of which only a part was stored.
        resent: ids that were stored once more by a put that outlasted their waiting, as documented.
        republished: ids that were published more than once by a relay, as documented; and of these in calm: those that
            fell due when nothing died any more.
        stored_unacked: how many were handed over though nobody was told that they were stored.
        lateness: of each watched task whose put was acknowledged: seconds from its due time until it was taken.
        late_outside: the same of those that fell due while Redis answered.
    """

    acked: int = 0
    raised: int = 0
    cut_off: int = 0
    exceptions: Counter[str] = field(default_factory=Counter)
    batches: int = 0
    watched: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    early: list[str] = field(default_factory=list)
    alien: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    resent: list[str] = field(default_factory=list)
    republished: list[str] = field(default_factory=list)
    in_calm: list[str] = field(default_factory=list)
    stored_unacked: int = 0
    lateness: list[float] = field(default_factory=list)
    late_outside: list[float] = field(default_factory=list)
    #: What else is wrong, in words.
    faults: list[str] = field(default_factory=list)

    @property
    def violations(self) -> dict[str, list[str]]:
        found = {name: getattr(self, name) for name in ("lost", "doubled", "early", "alien", "torn")}
        return {name: ids for name, ids in found.items() if ids}

    @property
    def is_good(self) -> bool:
        return not self.violations and not self.faults


def judge(
    attempts: Mapping[str, Attempt],
    taken: Mapping[str, Sequence[float]],
    consumed: str,
    outages: Sequence[tuple[float, float]],
    *,
    relayed_until: float | None = None,
) -> Verdict:
    """Compare what was asked for with what was handed over.

    Args:
        attempts: by id.
        taken: id -> when its messages were taken from the queues that nobody consumes (s, monotonic; infinity where
            that is not known).
        consumed: the queue that workers consume; its tasks are not in *taken*.
        outages: when Redis did not answer (s, monotonic; from and to).
        relayed_until: None in direct mode, which hands over once; in relay mode, which hands over at least once, since
            when nothing died any more (s, monotonic).
    """
    verdict = Verdict(watched=sum(map(len, taken.values())))
    batches: dict[tuple[str, int], set[bool]] = defaultdict(set)
    for task_id, attempt in attempts.items():
        if attempt.is_acked:
            verdict.acked += 1
        elif attempt.outcome == "cut off":
            verdict.cut_off += 1
        else:
            verdict.raised += 1
            verdict.exceptions[attempt.outcome] += 1
        if attempt.queue == consumed:
            continue
        times = taken.get(task_id, ())
        if attempt.batch:
            batches[task_id.rpartition(".")[0], attempt.batch].add(bool(times))
        if times:
            _judge_handed_over(verdict, task_id, attempt, times, relayed_until)
            if attempt.is_acked:
                _measure(verdict, attempt, times[0], outages)
        elif attempt.is_acked:
            verdict.lost.append(task_id)
    verdict.batches = len(batches)
    verdict.torn = [f"{name}: batch {number}" for (name, number), stored in batches.items() if len(stored) > 1]
    verdict.alien = [task_id for task_id in taken if task_id not in attempts or attempts[task_id].queue == consumed]
    odd = {name for name in verdict.exceptions if not name.endswith(".OperationalError")}
    if odd:
        verdict.faults.append(f"apply_async raised what Celery's own never raises: {', '.join(sorted(odd))}")
    return verdict


def _judge_handed_over(
    verdict: Verdict, task_id: str, attempt: Attempt, times: Sequence[float], relayed_until: float | None
) -> None:
    if not attempt.is_acked:
        verdict.stored_unacked += 1
    if len(times) > 1:
        if attempt.outlasted:
            verdict.resent.append(task_id)
        elif relayed_until is None:
            verdict.doubled.append(task_id)
        else:
            verdict.republished.append(task_id)
            if attempt.begun + attempt.countdown >= relayed_until:
                verdict.in_calm.append(task_id)
    if times[0] < attempt.begun + attempt.countdown - SLEW:
        verdict.early.append(task_id)


def _measure(verdict: Verdict, attempt: Attempt, at: float, outages: Sequence[tuple[float, float]]) -> None:
    if at == float("inf"):
        return
    due = attempt.ended + attempt.countdown  # at the latest
    late = max(at - due, 0.0)
    verdict.lateness.append(late)
    if not any(begin <= due <= end for begin, end in outages):
        verdict.late_outside.append(late)


@dataclass(frozen=True)
class After:
    """What became of the tasks of the consumed queue after they were handed over: stock Kombu's and Celery's part.

    Attributes:
        moved: handed over, by the store's own count.
        once, again: ids that ran once, or more often.
        unacked: ids that did not run, and wait in Kombu's ``unacked`` for the visibility timeout.
        ready: ids that did not run, and are on a ready list.
        gone: neither of these: lost after the hand-over.
    """

    moved: int
    once: int
    again: int
    unacked: int
    ready: int

    @property
    def gone(self) -> int:
        return self.moved - self.once - self.again - self.unacked - self.ready
