"""What a worker holds of a queue, and what it owes: jobs that are done, that failed, and that take long. No I/O.

One :meth:`Work.turn` after the other keeps it all in order. Of what a turn has asked nothing is forgotten before it is
answered; so one that is broken off, since Redis cannot be reached, is simply made again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from random import random
from typing import TypeVar

from .clock import SECOND_US
from .errors import shortened
from .job import Job
from .queue_protocol import PORTION, QueueProtocol, Steps

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: A lease is renewed when this part of it is over, so that a renewal may be late or fail once.
RENEWAL = 1 / 3

#: A job that failed is due again after this time (s), twice as long after each further failure, but not longer than:
BACKOFF, LONGEST_BACKOFF = 1.0, 60.0

#: Jobs that are held for each hand beyond the one it works on, if nobody says otherwise.
PREFETCH = 4

#: A shorter lease (s) might be over before a busy worker has renewed it.
SHORTEST_LEASE = 0.5

#: After a turn that was broken off the next is made after this pause (s), twice as long after each further one, but not
#: longer than the second; who wants to end gives up after so many.
PAUSE, LONGEST_PAUSE, PATIENCE = 0.05, 5.0, 8

#: Jobs that one turn takes at most, so that acks and renewals are not kept waiting.
TAKEN = 1000


@dataclass(frozen=True)
class Turn:
    """What one turn did.

    Attributes:
        taken: jobs to be worked on, in the order in which they were due.
        acked, failed, returned: jobs that are done and forgotten; given back after a failure; given back untouched.
        lost: jobs that are no longer ours, whatever was to become of them.
        wait: seconds until the next turn, unless something happens before.
    """

    taken: tuple[Job, ...]
    acked: int
    failed: int
    returned: int
    lost: tuple[Job, ...]
    wait: float


class Work:
    """The jobs that one worker holds. :meth:`turn` belongs to one thread, the other methods to any.

    Args:
        lease: seconds for which jobs are taken, again and again while they are held.
        hands: so many jobs are worked on at once; and
        prefetch: so many more are held, so that no hand is idle while others are fetched.
    """

    def __init__(self, protocol: QueueProtocol, lease: float, hands: int, prefetch: int) -> None:
        self._protocol = protocol
        self._lease = lease
        self._room = hands + prefetch
        self._few = hands + prefetch // 2  # so that jobs are fetched in batches
        self._held: dict[str, Job] = {}  # token -> job
        self._until: dict[str, float] = {}  # token -> when its lease may be over (s, monotonic)
        self._renewed = float("-inf")
        # What others have said, and what of it Redis has not answered yet.
        self._said_done: deque[Job] = deque()
        self._said_failed: deque[tuple[float, str, Job]] = deque()  # pause (s), reason, job
        self._said_untouched: deque[Job] = deque()
        self._done: list[Job] = []
        self._failed: list[tuple[float, str, Job]] = []
        self._untouched: list[Job] = []

    @property
    def held(self) -> int:
        """How many jobs are ours: that wait for a hand, are worked on, or are done and not acked yet."""
        return len(self._held)

    def is_ours(self, job: Job, now: float) -> bool:
        """Whether nobody else can have the job by now (s, monotonic). Else it ought not to be begun."""
        return now < self._until.get(job.token, float("-inf"))

    def done(self, job: Job) -> None:
        """The job is done."""
        self._said_done.append(job)

    def failed(self, job: Job, error: BaseException) -> None:
        """The job is to be tried again, after a pause; it is logged why."""
        logger.error("delayq worker of %s: job %s has failed", self._protocol.topic, shortened(job.id), exc_info=error)
        pause = min(BACKOFF * 2 ** min(job.attempts - 1, 30), LONGEST_BACKOFF)
        self._said_failed.append((pause, repr(error), job))

    def untouched(self, job: Job) -> None:
        """The job was not begun, and is for others; that was no attempt."""
        self._said_untouched.append(job)

    def turn(self, now: float, *, takes: bool) -> Steps[Turn]:
        """Ack what is done, give back what failed, renew what takes long, and fill the room.

        Args:
            now: the time (s, monotonic).
            takes: whether to take more jobs.
        """
        lost: list[Job] = []
        acked = yield from self._ack(lost)
        failed = yield from self._give_back_failed(lost)
        returned = yield from self._give_back_untouched(lost)
        yield from self._renew(now, lost)
        for job in lost:
            logger.warning(
                "delayq worker of %s: job %s is no longer ours; another may run it, too",
                self._protocol.topic,
                shortened(job.id),
            )
        taken, wait = (yield from self._take(now)) if takes else ([], float("inf"))
        if self._held:
            wait = min(wait, max(self._renewed + self._lease * RENEWAL - now, 0.0))
        return Turn(tuple(taken), acked, failed, returned, tuple(lost), wait)

    def _take(self, now: float) -> Steps[tuple[list[Job], float]]:
        """Jobs that are ours now, and how long (s) it takes till there may be more."""
        room = min(self._room - len(self._held), TAKEN)
        if room < 1 or len(self._held) > self._few:
            return [], float("inf")
        batch = yield from self._protocol.reserve(self._lease, room)
        if batch.jobs and not self._held:
            self._renewed = now
        for job in batch.jobs:
            self._held[job.token] = job
            self._until[job.token] = now + self._lease
        if batch.jobs:  # and nothing more is asked in this turn, that could break it off before they are handed out
            return batch.jobs, batch.wait if len(self._held) <= self._few else float("inf")
        return [], min(batch.wait, (yield from self._protocol.rest()))

    def _ack(self, lost: list[Job]) -> Steps[int]:
        _drain(self._said_done, self._done)
        acked = 0
        while some := self._done[:PORTION]:
            gone = yield from self._protocol.ack(some)
            self._settle(some, gone, lost)
            del self._done[: len(some)]
            acked += len(some) - len(gone)
        return acked

    def _give_back_failed(self, lost: list[Job]) -> Steps[int]:
        _drain(self._said_failed, self._failed)
        failed = 0
        while self._failed:
            pause, reason, _ = self._failed[0]
            alike = takewhile(lambda one: one[:2] == (pause, reason), self._failed[:PORTION])  # noqa: B023  # used up here
            jobs = [job for _, _, job in alike]
            gone = yield from self._protocol.release(jobs, (None, round(pause * SECOND_US)), reason)
            self._settle(jobs, gone, lost)
            del self._failed[: len(jobs)]
            failed += len(jobs) - len(gone)
        return failed

    def _give_back_untouched(self, lost: list[Job]) -> Steps[int]:
        _drain(self._said_untouched, self._untouched)
        self._untouched = [job for job in self._untouched if job.token in self._held]
        returned = 0
        while some := self._untouched[:PORTION]:
            gone = yield from self._protocol.release(some, (None, 0), "its worker ended", counted=False)
            self._settle(some, gone, lost)
            del self._untouched[: len(some)]
            returned += len(some) - len(gone)
        return returned

    def _settle(self, jobs: Sequence[Job], gone: Sequence[Job], lost: list[Job]) -> None:
        for job in jobs:
            self._held.pop(job.token, None)
            self._until.pop(job.token, None)
        lost += gone

    def _renew(self, now: float, lost: list[Job]) -> Steps[None]:
        if not self._held or now < self._renewed + self._lease * RENEWAL:
            return
        held = list(self._held.values())
        gone = yield from self._protocol.extend(held, self._lease)
        for job in held:
            self._until[job.token] = now + self._lease
        self._settle(gone, gone, lost)
        self._renewed = now


def _drain(said: deque[T], owed: list[T]) -> None:
    while said:
        owed.append(said.popleft())


class Outages:
    """How a worker bears that Redis cannot be reached: it says so once, and asks again after longer and longer pauses.

    Args:
        name: who says so.
        jitter: gives a number from 0 to 1, so that many workers do not come back in step.
    """

    def __init__(self, name: str, jitter: Callable[[], float] = random) -> None:
        self._name = name
        self._jitter = jitter
        self._failures = 0

    def failed(self, error: Exception) -> float:
        """A turn was broken off; return the pause (s) before the next."""
        if self._failures == 0:
            logger.warning("%s: %s; it goes on when Redis answers", self._name, error)
        self._failures += 1
        pause: float = min(PAUSE * 2 ** min(self._failures - 1, 30), LONGEST_PAUSE)
        return pause * (0.5 + self._jitter() / 2)

    def over(self) -> None:
        """A turn was made."""
        if self._failures:
            logger.info("%s: Redis answers again", self._name)
        self._failures = 0

    def lasts(self) -> bool:
        """Whether who wants to end need not wait for its end: what he holds comes back by itself."""
        return self._failures >= PATIENCE


def checked_worker(hands: str, count: int, lease: float, prefetch: int | None) -> int:
    """How many jobs a worker holds beyond those that are worked on.

    Args:
        hands: what its hands are called.

    Raises:
        ValueError: a number cannot be used.
    """
    if count < 1:
        raise ValueError(f"{hands} must be 1 or more, not {count}")
    if lease < SHORTEST_LEASE:
        raise ValueError(f"lease must be {SHORTEST_LEASE} seconds or more, to be renewed in time, not {lease!r}")
    if prefetch is not None and prefetch < 0:
        raise ValueError(f"prefetch must be 0 or more, or None, not {prefetch}")
    return PREFETCH * count if prefetch is None else prefetch
