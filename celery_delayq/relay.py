"""The hand-over where the broker is elsewhere: reserve, publish, ack.

Knows neither Celery nor Kombu: who publishes comes from outside. A job is the relay's for the time of a lease; whoever
dies over it has lost nothing, and whoever dies between a publish and its ack has it published once more by another.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from enum import Enum
from time import monotonic
from typing import NamedTuple, Protocol

import redis

from .clock import SECOND_US
from .errors import DelayQError, shortened
from .job import Reserved, Tell, Upcoming
from .store import Dispatched, Store, Tick

logger = logging.getLogger(__name__)

#: Times (s) that a batch should take: a longer one halves the next, for other topics wait meanwhile, and a death costs
#: as many second copies; a shorter and full one doubles it. The first is small.
SLOW, QUICK, FIRST_BATCH = 0.5, 0.1, 100

#: How long (s) the end of a process may take for the broker to confirm what was sent, and for its ack: what has none
#: by then is handed over again.
END_PATIENCE = 6.0

#: Pauses (s) while the broker is away: the first, and the longest.
PAUSE_FIRST, PAUSE_LAST = 0.1, 2.0

#: A job that the broker refuses is tried again after so long (us), twice as long after each further time, and at most.
BACKOFF_US, BACKOFF_LAST_US = SECOND_US, 60 * SECOND_US

#: What a store that cannot be reached makes of a call.
UNREACHABLE = (redis.ConnectionError, redis.TimeoutError, OSError)


class Fate(Enum):
    """What became of one job that was to be published."""

    #: The broker has it.
    CONFIRMED = "confirmed"
    #: The broker does not want it, or it cannot be published at all.
    REFUSED = "refused"
    #: It was sent, and nobody said whether it came there.
    UNKNOWN = "unknown"
    #: It was not sent: the broker went away before its turn, or its lease was lost.
    UNSENT = "unsent"


class Published(NamedTuple):
    """What became of one job, and why if it is not confirmed."""

    fate: Fate
    reason: str = ""


class BrokerAway(Exception):
    """The broker as a whole cannot be reached; no job's fault."""


class Tended(Protocol):
    """The leases of the jobs that are being published."""

    def may_send(self, number: int) -> bool:
        """Whether the job of that number is still ours, and shall be sent now."""

    def tend(self) -> bool:
        """Keep them alive; to be called about each second. False: we are to stop, so wait for nothing more."""


class Publisher(Protocol):
    """Publishes jobs to a broker. Used by one thread."""

    def reach(self) -> None:
        """Make sure that there is a connection.

        Raises:
            BrokerAway: there is none.
        """

    def publish(self, jobs: Sequence[Reserved], leases: Tended) -> list[Published]:
        """Send each of *jobs*, wait for the broker's confirmations, and say what became of each. Does not raise."""

    def close(self) -> None:
        """Close the connection."""


class Relay:
    """Hands due jobs over to a broker through a publisher.

    Args:
        lease: seconds that a batch has; a slow one extends it.
        max_attempts: a job that was refused or lost with us so often is laid among the dead letters.
        batch_size: jobs that are reserved at once at most.
    """

    end_patience = END_PATIENCE

    def __init__(
        self, publisher: Publisher, *, lease: float = 60.0, max_attempts: int = 16, batch_size: int = 1000
    ) -> None:
        self._publisher = publisher
        self._lease = lease
        self._max_attempts = max_attempts
        self._batch_size = batch_size
        self._batch_limit = min(FIRST_BATCH, batch_size)
        self._owed: list[tuple[str, list[Reserved]]] = []  # published, and not acked yet
        self._away_until = 0.0  # s, monotonic
        self._pause = 0.0
        self._trouble: str | None = None

    def begin(self, store: Store) -> None:
        """Ack what was published when the store went away: before its lease is over, it is doubled by nobody."""
        while self._owed:
            topic, jobs = self._owed[0]
            try:
                lost = store.ack(topic, jobs).count(False)
            except DelayQError as error:  # one of its keys is no longer what it should be
                logger.error(
                    "delayq relay: %d tasks of %r are published but cannot be acked: %s", len(jobs), topic, error
                )
                lost = 0
            self._owed.pop(0)
            if lost:
                logger.info(
                    "delayq relay: %d tasks of %r were no longer ours when they were acked: put anew by then, or taken "
                    "by another when the lease was over, who may publish them again with the same ids",
                    lost,
                    topic,
                )

    def close(self) -> None:
        """Close the connection to the broker."""
        self._publisher.close()

    def expired(self, _: Store, tick: Tick) -> list[Upcoming]:
        """All that are not due: who reserves gives back what has outlived its lease."""
        due = {upcoming.topic for upcoming in tick.due}
        return [Upcoming(tick.now_us, topic, None) for topic in tick.expired if topic not in due]

    def hand_over(
        self,
        store: Store,
        upcoming: Upcoming,
        goes_on: Callable[[], bool],
        question: tuple[Tell, bytes] = (Tell.NOTHING, b""),
        *,
        now_us: int | None = None,
    ) -> Dispatched:
        """One batch of that topic. While the broker is away nothing is reserved, so nothing has failed."""
        self.begin(store)
        if not self._reaches():
            return _nothing(upcoming)
        topic = upcoming.topic
        began = monotonic()
        taken = store.reserve(
            topic,
            self._batch_limit,
            round(self._lease * SECOND_US),
            max_attempts=self._max_attempts,
            backoff_us=BACKOFF_US,
            now_us=now_us,
        )
        if taken.requeued or taken.buried:
            logger.warning(
                "delayq relay: the leases of %d tasks of %r ran out: whoever had them died or hung over them; "
                "%d of them are tried again, %d have failed too often and are dead letters now",
                taken.requeued + taken.buried,
                topic,
                taken.requeued,
                taken.buried,
            )
        read = (began + monotonic()) / 2  # when Redis read its clock
        leases = Leases(store, topic, taken.jobs, self._lease, began, goes_on)
        published = self._publisher.publish(taken.jobs, leases) if taken.jobs else []
        moved = self._settle(store, topic, taken.jobs, published, now_us)
        self._adapt(monotonic() - began, len(taken.jobs))
        # A dispatcher takes Redis's clock to have been read halfway through the call.
        later_us = round(((began + monotonic()) / 2 - read) * SECOND_US)
        is_there = self._trouble is None
        return Dispatched(
            len(moved),
            taken.dropped,
            taken.orphans,
            taken.left and is_there,
            taken.now_us + later_us,
            taken.next if is_there else upcoming,
            *_answers(moved, *question),
        )

    def _reaches(self) -> bool:
        if monotonic() < self._away_until:
            return False
        try:
            self._publisher.reach()
        except BrokerAway as error:
            self._away(str(error))
            return False
        if self._trouble is not None:
            logger.info("delayq relay: the broker is there again")
            self._trouble = None
        self._pause = 0.0
        return True

    def _away(self, reason: str) -> None:
        """One log line for each time that it goes away."""
        if self._trouble is None:
            logger.warning("delayq relay: the broker is away: %s; due tasks wait safely meanwhile", reason)
        self._trouble = reason
        self._pause = min(max(2 * self._pause, PAUSE_FIRST), PAUSE_LAST)
        self._away_until = monotonic() + self._pause

    def _settle(
        self, store: Store, topic: str, jobs: Sequence[Reserved], published: Sequence[Published], now_us: int | None
    ) -> list[Reserved]:
        """Ack and release what was published and what was not; return the former."""
        by_fate: dict[Fate, list[Reserved]] = defaultdict(list)
        refused: dict[tuple[int, str], list[Reserved]] = defaultdict(list)
        for job, (fate, reason) in zip(jobs, published, strict=True):
            if fate is Fate.REFUSED:
                refused[job.attempts, reason].append(job)
            else:
                by_fate[fate].append(job)
        lost = [reason for fate, reason in published if fate is Fate.UNKNOWN]
        unsent = [reason for fate, reason in published if fate is Fate.UNSENT and reason]
        if lost or unsent:
            self._away((lost + unsent)[0])
        confirmed = by_fate[Fate.CONFIRMED]
        if confirmed:
            self._owed.append((topic, confirmed))
            self.begin(store)
        for (attempts, reason), some in refused.items():
            self._refuse(store, topic, some, attempts, reason, now_us)
        # None of these has been refused: what is sent twice has the same id, what was never sent has lost nothing.
        back = by_fate[Fate.UNKNOWN] + by_fate[Fate.UNSENT]
        if back:
            store.release(topic, back, counted=False, now_us=now_us)
        return confirmed

    def _refuse(
        self, store: Store, topic: str, jobs: list[Reserved], attempts: int, reason: str, now_us: int | None
    ) -> None:
        pause_us = min(BACKOFF_US * 2 ** min(attempts - 1, 16), BACKOFF_LAST_US)
        store.release(topic, jobs, in_us=pause_us, max_attempts=self._max_attempts, reason=reason, now_us=now_us)
        what = f"{len(jobs)} tasks of {topic!r}, {shortened(jobs[0].id)} first, could not be published: {reason}"
        if attempts >= self._max_attempts:
            logger.error("delayq relay: %s; after %d attempts they are dead letters now", what, attempts)
        else:
            logger.warning(
                "delayq relay: %s; attempt %d of %d, next in %g s",
                what,
                attempts,
                self._max_attempts,
                pause_us / SECOND_US,
            )

    def _adapt(self, took: float, count: int) -> None:
        if took > SLOW:
            self._batch_limit = max(self._batch_limit // 2, min(10, self._batch_size))
        elif count == self._batch_limit and took < QUICK:
            self._batch_limit = min(self._batch_limit * 2, self._batch_size)


def _nothing(upcoming: Upcoming) -> Dispatched:
    """As if Redis's clock stood still at the due time: the dispatcher then looks again after its poll interval."""
    return Dispatched(0, 0, 0, left=False, now_us=upcoming.due_us, next=upcoming)


def _answers(
    jobs: Sequence[Reserved], tell: Tell, pattern: bytes
) -> tuple[tuple[int, ...], tuple[tuple[bytes, bytes], ...]]:
    """What dispatch.lua would tell of them."""
    if tell is Tell.NOTHING:
        return (), ()
    jobs = sorted(jobs, key=lambda job: job.due_us)
    dues_us = tuple(job.due_us for job in jobs)
    if tell is Tell.DUES:
        return dues_us, ()
    found = ((job.id, re.search(pattern, job.body)) for job in jobs)
    return dues_us, tuple((id, match[1] if match else b"") for id, match in found)


class Leases:
    """Those of one batch.

    Args:
        lease: their length (s).
        began: when they were asked for (s, monotonic).
        goes_on: says no as soon as nothing more shall be sent.
    """

    def __init__(
        self,
        store: Store,
        topic: str,
        jobs: Sequence[Reserved],
        lease: float,
        began: float,
        goes_on: Callable[[], bool],
    ) -> None:
        self._store = store
        self._topic = topic
        self._jobs = jobs
        self._lease = lease
        self._goes_on = goes_on
        self._end = began + lease  # s, monotonic; not later than by Redis's clock, since it was asked after that
        self._lost: set[int] = set()

    def may_send(self, number: int) -> bool:
        if not self._goes_on():
            return False
        if self._end - monotonic() < self._lease / 2:
            self._extend()
        return monotonic() < self._end and number not in self._lost

    def tend(self) -> bool:
        if self._end - monotonic() < self._lease / 2:
            self._extend()
        return self._goes_on()

    def _extend(self) -> None:
        asked = monotonic()
        try:
            held = self._store.extend(self._topic, self._jobs, round(self._lease * SECOND_US))
        except UNREACHABLE:
            return  # nothing more is sent once the lease is over
        self._lost = {number for number, ours in enumerate(held) if not ours}
        self._end = asked + self._lease
