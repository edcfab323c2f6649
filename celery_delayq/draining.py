"""What waits, given back to stock Celery: published with its eta, as if celery_delayq had never been there.

Where the broker is the Redis in which it waits, a script pushes a task and deletes it in one step. Where it is not, a
task is reserved, published and acked, as by the relay; and only a death between the last two doubles it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from time import monotonic
from typing import TypeVar

from kombu.exceptions import OperationalError

from .clock import LATEST_US, SECOND_US
from .delivery import Delivery
from .errors import shortened
from .inspection import Inspection
from .job import Reserved, Waiting
from .message import with_eta
from .relay import BrokerAway, Fate, Leases, Published, Publisher
from .store import Store

logger = logging.getLogger(__name__)

Job = TypeVar("Job", Waiting, Reserved)

#: Jobs that one call of the script pushes, since Redis does nothing else meanwhile, or that are published together; and
#: that are in memory at once.
BATCH, PAGE = 100, 1000

#: When a broker has refused so many tasks of a queue, the rest of it is not tried.
ENOUGH = 1000


@dataclass
class Drained:
    """What a drain has done so far.

    Attributes:
        count: tasks given back.
        unreadable: tasks that stay, since their messages cannot be read; by queue.
        refused: tasks that stay, since the broker elsewhere does not take them; by queue. The log says why.
        paused: queues that were left alone.
    """

    count: int = 0
    unreadable: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    paused: list[str] = field(default_factory=list)


def drain(
    delayq: Inspection,
    queue: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    publisher: Publisher | None = None,
    lease: float = 60.0,
) -> Drained:
    """Give back what waits; see :meth:`celery_delayq.app.DelayQ.drain`.

    Args:
        publisher: to the broker, if that is elsewhere; and
        lease: for how long (s) a batch is kept from others who would publish it.
    """
    done = Drained()
    with delayq._store() as store:
        deliveries, paused = store.topics(), store.paused()
    if queue is None:
        done.paused = sorted(paused & deliveries.keys())
    queues = sorted(deliveries.keys() - set(done.paused)) if queue is None else [queue]
    total = sum(delayq.count(name) for name in queues)

    def tell() -> None:
        if progress is not None:
            progress(min(done.count, total), total)

    for name in queues:
        if publisher is not None:
            with delayq._store() as store:
                for part in store.parts:
                    _Publishing(part, name, publisher, lease, done, tell).run()
            continue
        delivery = deliveries.get(name)
        while delivery is not None and not _walk(delayq, name, delivery, done, tell):
            pass  # somebody has moved or replaced a task meanwhile, which may stand where we have been already
    return done


def _walk(
    delayq: Inspection,
    queue: str,
    delivery: Delivery,
    done: Drained,
    tell: Callable[[], None],
) -> bool:
    """One walk through a queue. False: something was no longer as it was read."""
    agreed, unreadable, behind = True, 0, None
    while True:
        with delayq._store() as store:  # the broker's own, which has one shard
            page = store.parts[0].page(queue, behind=behind, limit=PAGE)
        for some in _portions(page.jobs):
            told = [(job, body) for job in some if (body := _told(job.body, job.due_us)) is not None]
            unreadable += len(some) - len(told)
            with delayq._store() as store:
                given = store.parts[0].drain(queue, delivery, told)
            done.count += sum(given)
            agreed = agreed and all(given)
            tell()
        behind = page.end
        if not page.left:
            break
    if unreadable:
        done.unreadable[queue] = unreadable
    return agreed


def _portions(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    rest = iter(jobs)
    while some := list(islice(rest, BATCH)):
        yield some


def _told(body: bytes | None, due_us: int) -> bytes | None:
    """A job's message for stock Celery; None if it is no message."""
    try:
        return None if body is None else with_eta(body, due_us)
    except (ValueError, TypeError, LookupError, AttributeError):
        return None


class _Publishing:
    """One queue's way back to a broker elsewhere.

    What stays is kept under its lease until the end, so that it is not met again; if we die, until that is over. It
    then waits for the time that it has waited for.
    """

    def __init__(
        self, store: Store, queue: str, publisher: Publisher, lease: float, done: Drained, tell: Callable[[], None]
    ) -> None:
        self._store = store
        self._queue = queue
        self._publisher = publisher
        self._lease = lease
        self._done = done
        self._tell = tell
        self._stay: list[Reserved] = []

    def run(self) -> None:
        """Publish all that can be."""
        extended = monotonic()
        try:
            while self._done.refused.get(self._queue, 0) < ENOUGH:
                if self._stay and monotonic() - extended > self._lease / 2:
                    extended = monotonic()
                    self._store.extend(self._queue, self._stay, round(self._lease * SECOND_US))
                if not self._publish_some():
                    break
        finally:
            for some in _portions(self._stay):
                self._store.release(self._queue, some, counted=False)

    def _publish_some(self) -> bool:
        """One batch. False: nothing waits any more."""
        self._reach()
        began = monotonic()
        taken = self._store.reserve(self._queue, BATCH, round(self._lease * SECOND_US), until_us=LATEST_US)
        open_jobs, readable, trouble = list(taken.jobs), [], ""
        try:
            for job in taken.jobs:
                body = _told(job.body, job.due_us)
                if body is None:
                    self._keep(job, self._done.unreadable)
                else:
                    readable.append(job._replace(body=body))
            open_jobs = readable
            if readable:
                leases = Leases(self._store, self._queue, readable, self._lease, began, lambda: True)
                open_jobs, trouble = self._settle(readable, self._publisher.publish(readable, leases))
        finally:
            if open_jobs:  # the broker went away, or somebody stops us: as if they had never been taken
                self._store.release(self._queue, open_jobs, counted=False)
        self._tell()
        if trouble:
            raise self._away(trouble)
        return bool(taken.jobs or taken.requeued)

    def _reach(self) -> None:
        try:
            self._publisher.reach()
        except BrokerAway as error:
            raise self._away(str(error)) from error

    def _away(self, reason: str) -> OperationalError:
        return OperationalError(
            f"the broker is away: {reason}; {self._done.count} tasks were given back, and the same call goes on"
        )

    def _settle(self, jobs: list[Reserved], published: list[Published]) -> tuple[list[Reserved], str]:
        """Ack what the broker has; return what is open, and why if the broker went away over it."""
        fates = list(zip(jobs, published, strict=True))
        self._store.ack(self._queue, [job for job, one in fates if one.fate is Fate.CONFIRMED])
        self._done.count += sum(one.fate is Fate.CONFIRMED for one in published)
        reasons: dict[str, int] = {}
        for job, (fate, reason) in fates:
            if fate is Fate.REFUSED:
                self._keep(job, self._done.refused)
                reasons[reason] = reasons.get(reason, 0) + 1
        for reason, count in reasons.items():
            logger.warning("delayq drain: %d tasks of %s stay: %s", count, shortened(self._queue), reason)
        left = [(job, reason) for job, (fate, reason) in fates if fate in (Fate.UNKNOWN, Fate.UNSENT)]
        return [job for job, _ in left], next((reason for _, reason in left if reason), "")

    def _keep(self, job: Reserved, counts: dict[str, int]) -> None:
        self._stay.append(job._replace(body=b""))
        counts[self._queue] = counts.get(self._queue, 0) + 1
