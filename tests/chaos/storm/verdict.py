"""Was every promise kept? Judged from the records alone; how fast anything went plays no part."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .records import Attempt, Copy

#: A task is early if it was taken longer (s) than this before its time: the wall clock, by which Redis counts, may be
#: slewed against the monotonic one, by which we measure.
SLEW = 0.02

#: An outage of Redis counts as begun so many seconds before, and as over so many after it.
MARGIN = 3.0

#: Why a relay may publish a task once more.
DIED = "its dispatcher died between publish and ack"
ENDED = "its dispatcher was told to end, and did not wait longer for the broker"
BROKER_LOST = "the broker was lost before it had confirmed"
LATE = "its dispatcher acked after the lease, and said so"
CAUSES = (DIED, BROKER_LOST, ENDED, LATE)


@dataclass
class Verdict:
    """What the records say.

    Attributes:
        acked, raised, cut_off: attempts, by how they ended.
        exceptions: what was raised, and how often.
        batches: calls that stored several at once.
        watched: tasks that were taken from the queues that nobody consumes.
        lost, doubled, early, alien, torn: the ids of violations; doubled: in relay mode, what nothing excuses; torn:
            batches of which only a part was stored.
        resent: ids that were stored once more by a put that outlasted their waiting, as documented.
        republished: ids that were published more than once by a relay, as documented, by the first cause.
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
    republished: dict[str, list[str]] = field(default_factory=lambda: {cause: [] for cause in CAUSES})
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


@dataclass(frozen=True)
class Excuses:
    """What may have made a relay publish a task once more. Times are s, monotonic, from and to.

    Attributes:
        deaths: who (see :attr:`Copy.by`) -> when he died.
        ends: who -> from when he was told to end until he had ended.
        broker: when the broker, or the network to it, was in trouble.
        told: participant -> of how many tasks it said itself that it came too late to ack them.
    """

    deaths: Mapping[str, tuple[float, float]]
    ends: Mapping[str, tuple[float, float]]
    broker: Sequence[tuple[float, float]]
    told: Mapping[str, int]

    def why(self, first: Copy, second: Copy) -> str:
        """Why *second* may have followed *first*: what came between them, or else whoever published the first was too
        late, as he must have said himself.
        """

        def came_between(trouble: tuple[float, float]) -> bool:
            return trouble[0] <= second.at and trouble[1] >= first.at

        troubles = {DIED: [self.deaths.get(first.by)], BROKER_LOST: self.broker, ENDED: [self.ends.get(first.by)]}
        return next((cause for cause, times in troubles.items() if any(t and came_between(t) for t in times)), LATE)


def judge(
    attempts: Mapping[str, Attempt],
    taken: Mapping[str, Sequence[Copy]],
    consumed: str,
    outages: Sequence[tuple[float, float]],
    *,
    excuses: Excuses | None = None,
    ran: Mapping[str, Sequence[Copy]] | None = None,
) -> Verdict:
    """Compare what was asked for with what was handed over.

    Args:
        attempts: by id.
        taken: id -> its messages, as they were found in the queues that nobody consumes.
        consumed: the queue that workers consume; its tasks are not in *taken*.
        outages: when Redis did not answer (s, monotonic; from and to).
        excuses: None in direct mode, which hands over once; in relay mode, which hands over at least once, what may
            have been the cause.
        ran: in relay mode, id -> the different messages of the consumed queue that were run.
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
        copies = sorted(taken.get(task_id, ()))
        if attempt.batch:
            batches[task_id.rpartition(".")[0], attempt.batch].add(bool(copies))
        if copies:
            if not attempt.is_acked:
                verdict.stored_unacked += 1
            else:
                _measure(verdict, attempt, copies[0].at, outages)
            if copies[0].at < attempt.begun + attempt.countdown - SLEW:
                verdict.early.append(task_id)
        elif attempt.is_acked:
            verdict.lost.append(task_id)
    for found in (taken, ran or {}):
        _judge_copies(verdict, attempts, found, excuses)
    verdict.batches = len(batches)
    verdict.torn = [f"{name}: batch {number}" for (name, number), stored in batches.items() if len(stored) > 1]
    verdict.alien = [task_id for task_id in taken if task_id not in attempts or attempts[task_id].queue == consumed]
    odd = {name for name in verdict.exceptions if not name.endswith(".OperationalError")}
    if odd:
        verdict.faults.append(f"apply_async raised what Celery's own never raises: {', '.join(sorted(odd))}")
    return verdict


def _judge_copies(
    verdict: Verdict,
    attempts: Mapping[str, Attempt],
    found: Mapping[str, Sequence[Copy]],
    excuses: Excuses | None,
) -> None:
    """What came more than once."""
    late, told = [], Counter(excuses.told if excuses else {})
    for task_id, copies in found.items():
        if len(copies) == 1 or task_id not in attempts:
            continue
        if attempts[task_id].outlasted:
            verdict.resent.append(task_id)
        elif excuses is None:
            verdict.doubled.append(task_id)
        else:
            pairs = list(pairwise(sorted(copies)))
            causes = [excuses.why(first, second) for first, second in pairs]
            verdict.republished[causes[0]].append(task_id)
            late += [(task_id, pair) for pair, cause in zip(pairs, causes, strict=True) if cause == LATE]
    # Who was late is mostly who came first; or he was stopped with the message in his hands, and another was quicker.
    for task_id, (first, second) in late:
        who = first.participant if told[first.participant] else second.participant
        if told[who]:
            told[who] -= 1
        elif task_id not in verdict.doubled:
            verdict.doubled.append(task_id)


def _measure(verdict: Verdict, attempt: Attempt, at: float, outages: Sequence[tuple[float, float]]) -> None:
    due = attempt.ended + attempt.countdown  # at the latest
    late = max(at - due, 0.0)
    verdict.lateness.append(late)
    if not any(begin - MARGIN <= due <= end + MARGIN for begin, end in outages):
        verdict.late_outside.append(late)


@dataclass(frozen=True)
class After:
    """What became of the tasks of the consumed queue after they were handed over: stock Kombu's and Celery's part.

    Attributes:
        moved: handed over, by the store's own count.
        once, again: ids that ran once, or more often.
        copies: ids that ran more often, as different messages, which a relay had published; no doing of stock Kombu's.
        unacked: ids that did not run, and wait in Kombu's ``unacked`` for the visibility timeout.
        ready: ids that did not run, and are on a ready list.
        gone: neither of these: lost after the hand-over.
    """

    moved: int
    once: int
    again: int
    copies: int
    unacked: int
    ready: int

    @property
    def gone(self) -> int:
        return self.moved - self.once - self.again - self.copies - self.unacked - self.ready
