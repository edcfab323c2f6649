"""What waits: looked at, counted, drawn up in time. Nothing here changes anything."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any

from .clock import from_us, moment_of, to_us
from .delivery import Delivery
from .errors import shortened
from .job import Load, Page, Place, Waiting
from .scheduled import Filter, QueueStats, ScheduledTask
from .sharding import Sharded
from .store import Store

#: Tasks in memory at once, of all queues together, while many are walked through.
WALK = 1000

#: More steps than this no agenda needs; each costs a look at each queue.
AGENDA_STEPS = 100_000


class Inspection:
    """The part of DelayQ that looks."""

    def _store(self) -> AbstractContextManager[Store | Sharded]:
        """The store of the broker that tasks are published to, on a connection of the app's pool."""
        raise NotImplementedError

    def _deliveries(self, queues: set[str]) -> dict[str, Delivery]:
        """Where workers read the messages of each queue."""
        raise NotImplementedError

    def get(self, task_id: str) -> ScheduledTask | None:
        """The task of that id, in whatever queue; of several the one that is due first, and those that wait before
        those that are being handed over and dead letters. None: there is none.
        """
        return next(iter(self.get_all(task_id)), None)

    def get_all(self, task_id: str) -> list[ScheduledTask]:
        """All waiting tasks of that id: one for each queue that it was routed to. The one that is due first comes
        first.
        """
        (id,) = checked_ids([task_id])
        with self._store() as store:
            return [ScheduledTask.read(job) for job in store.find(id)]

    def scheduled(
        self,
        queue: str | None = None,
        task: object = None,
        start: datetime | float | None = None,
        end: datetime | float | None = None,
        headers: Mapping[str, Any] | None = None,
        stamps: Mapping[str, Any] | None = None,
    ) -> Iterator[ScheduledTask]:
        """Walk through what waits, in due order, page by page: a million tasks take no more memory than a thousand.

        A task that keeps its place comes exactly once, whatever else comes and goes meanwhile.

        Args:
            queue: only of this queue.
            task: only of this task: a task, a name, or a pattern with ``*``.
            start, end: only what is due from the one on and before the other: a datetime (a naive one is UTC) or
                seconds since the epoch.
            headers: only with these headers; 42 and "42" are alike.
            stamps: only with these values among its stamps.

        Raises:
            TypeError, ValueError: at once, if there can be no such queue, task, time or header.
            kombu.exceptions.OperationalError: Redis cannot be reached.
        """
        wanted = Filter.of(queue, task, start, end, headers, stamps)
        return (found for _, found in self._matching(wanted))

    def count(
        self,
        queue: str | None = None,
        task: object = None,
        start: datetime | float | None = None,
        end: datetime | float | None = None,
        headers: Mapping[str, Any] | None = None,
        stamps: Mapping[str, Any] | None = None,
    ) -> int:
        """How many tasks :meth:`scheduled` would give. By queue and time at once; else each message is read."""
        wanted = Filter.of(queue, task, start, end, headers, stamps)
        return sum(1 for _ in self._matching(wanted)) if wanted.reads_messages else sum(self._spread(wanted).values())

    def queues(self) -> list[str]:
        """The queues for which a task waits, and those that are paused; by name."""
        with self._store() as store:
            return sorted({*store.topics(), *store.paused()})

    def paused(self) -> set[str]:
        """The queues that are paused."""
        with self._store() as store:
            return store.paused()

    def agenda(
        self, start: datetime | float, end: datetime | float, step: timedelta | float
    ) -> list[tuple[datetime, dict[str, int]]]:
        """How many tasks become due when: for each step from *start* up to *end*, its beginning and how many of each
        queue are due in it. Queues without any are left out, steps without any are not.

        Args:
            step: a timedelta or seconds.

        Raises:
            ValueError: no step, or too many of them.
        """
        begin_us, end_us = to_us(moment_of(start, "start")), to_us(moment_of(end, "end"))
        step_us = round((step if isinstance(step, timedelta) else timedelta(seconds=step)) / timedelta(microseconds=1))
        if step_us <= 0:
            raise ValueError(f"step must be more than 0, not {step!r}")
        if (end_us - begin_us) / step_us > AGENDA_STEPS:
            raise ValueError(f"more than {AGENDA_STEPS} steps from {start!r} to {end!r}: step must be greater")
        begins = range(begin_us, end_us, step_us)
        ranges = [(begin, min(begin + step_us, end_us)) for begin in begins]
        with self._store() as store:
            queues = sorted(store.topics())
            counts = store.count(queues, ranges)
        return [
            (from_us(begin), {queue: row[number] for queue, row in zip(queues, counts, strict=True) if row[number]})
            for number, begin in enumerate(begins)
        ]

    def stats(self, *queues: str, limit: int | None = None) -> dict[str, QueueStats]:
        """What each queue holds and has done: those of which a task waits or has ever waited, and the paused ones.

        Args:
            queues: of these only.
            limit: of so many at most, the first by name.
        """
        now_us, loads = self._loads(queues, limit)
        return {
            queue: QueueStats(
                waiting=load.waiting,
                due=load.due,
                overdue=timedelta(microseconds=load.overdue_us(now_us)),
                paused=load.paused,
                ready=load.ready,
                moved=load.moved,
                cancelled=load.cancelled,
                dropped=load.dropped,
                orphans=load.orphans,
                reserved=load.reserved,
                dead=load.dead,
                requeued=load.requeued,
                buried=load.buried,
            )
            for queue, load in sorted(loads.items())
        }

    def _loads(self, queues: Collection[str], limit: int | None) -> tuple[int, dict[str, Load]]:
        """Redis's clock (us), and what :meth:`stats` is made of."""
        with self._store() as store:
            known = queues or {*store.topics(), *store.paused(), *store.counted(), *store.leased()}
            return store.loads(self._deliveries(set(sorted(known)[:limit])))

    def _spread(self, wanted: Filter, shard: int | None = None) -> dict[str, int]:
        """The queues that *wanted* may mean, and how many tasks of the right time wait for each; in one shard, or in
        all.
        """
        with self._store() as store:
            part = store if shard is None else store.parts[shard]
            queues = [wanted.queue] if wanted.queue is not None else sorted(part.topics())
            counts = part.count(queues, [(wanted.start_us, wanted.stop_us)])
        return {queue: row[0] for queue, row in zip(queues, counts, strict=True)}

    def _matching(self, wanted: Filter) -> Iterator[tuple[Waiting, ScheduledTask]]:
        """What *wanted* means, in due order over all queues."""
        with self._store() as store:
            shards = range(len(store.parts))
        queues = self._spread(wanted)
        limit = max(WALK // max(len(queues) * len(shards), 1), 10)
        walks = [self._walk(queue, wanted, limit, shard) for queue in queues for shard in shards]
        for _, job in heapq.merge(*walks):
            found = ScheduledTask.read(job)
            if wanted.matches(found):
                yield job, found

    def _walk(
        self, queue: str, wanted: Filter, limit: int, shard: int
    ) -> Iterator[tuple[tuple[int, bytes, str, int], Waiting]]:
        for page in self._pages(queue, wanted, limit, shard):
            for job in page.jobs:
                yield (job.due_us, job.id, queue, shard), job

    def _pages(
        self,
        queue: str,
        wanted: Filter,
        limit: int,
        shard: int,
        *,
        behind: Place | None = None,
        backwards: bool = False,
    ) -> Iterator[Page]:
        """The jobs of one queue that *wanted* may mean, in one shard, page by page; a page may be empty, and others
        come.
        """
        left = 1
        while left:
            with self._store() as store:  # for this page only: whoever walks may take his time, or never come back
                page = store.parts[shard].page(
                    queue,
                    start_us=wanted.start_us,
                    stop_us=wanted.stop_us,
                    behind=behind,
                    limit=limit,
                    backwards=backwards,
                    needles=wanted.needles,
                )
            yield page
            behind, left = page.end, page.left


def checked_ids(task_ids: Iterable[object]) -> list[bytes]:
    """Ids as the store holds them.

    Raises:
        TypeError, ValueError: one of *task_ids* cannot be a task's id.
    """
    checked = []
    for task_id in task_ids:
        if not isinstance(task_id, str):
            raise TypeError(f"a task id must be a string, not {shortened(task_id)}")
        if not task_id:
            raise ValueError("a task id must not be empty")
        checked.append(task_id.encode(errors="surrogateescape"))
    return checked
