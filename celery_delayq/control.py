"""What waits: taken back, moved, held up. Each call races the dispatchers for each task, and says what it has won."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

from .clock import SECOND_US, checked_due_us, is_number, moment_of
from .errors import shortened
from .events import Events
from .inspection import Inspection, checked_ids
from .job import Aside, Move, Moved, Place, Waiting
from .scheduled import Filter, ScheduledTask
from .sharding import Sharded
from .store import Store

#: Tasks that lie aside at once while their end is told, and for how long (us) they are ours. Should we die meanwhile, a
#: worker tells it after that.
TELLING, LEASE_US = 100, 300 * 1_000_000

#: Ids that are looked for at once.
BATCH = 1000

#: For how long (ms) a shift that was broken off can be taken up by the same call.
JOURNAL_MS = 24 * 3600 * 1000

#: Called with how many tasks were looked at, and how many there are to look at.
Progress = Callable[[int, int], None]


class Teller(Protocol):
    """Tells the world that tasks will never run: their results, the events, the signal."""

    def finish(self, jobs: Sequence[Aside], /) -> None: ...


class Control(Inspection):
    """The part of DelayQ that changes what waits."""

    @property
    def _teller(self) -> Teller:
        """Who tells that a task was taken back."""
        raise NotImplementedError

    @property
    def events(self) -> Events:
        """Who tells what was changed."""
        raise NotImplementedError

    def _seen(self, store: Store | Sharded, queue: str, ids: Sequence[str | bytes]) -> Sequence[Waiting | None]:
        """What waits under *ids* before it is changed, if that is to be told; else nothing."""
        return store.read(queue, ids) if self.events.wanted else ()

    def cancel(self, *task_ids: str, mark: bool = True) -> int:
        """Take back waiting tasks, in whatever queues they are.

        Unlike Celery's ``revoke`` it tells the workers nothing: what was handed over runs, and an id can be used again.

        Args:
            mark: mark the results REVOKED, and send the event and the signal ``task-revoked``, as a worker does that
                discards a revoked task. If this process dies over it, a worker will do it.

        Returns:
            How many ids were removed before dispatch. One that is not counted does not wait: it was handed over,
            cancelled already, or never put.
        """
        wanted = checked_ids(task_ids)
        size = TELLING if mark else BATCH
        cancelled: set[str | bytes] = set()
        for start in range(0, len(wanted), size):
            with self._store() as store:
                gone: set[str | bytes] = set()
                seen: list[Waiting] = []
                for queue, ids in store.where(wanted[start : start + size]):
                    before = self._seen(store, queue, ids)
                    deleted = store.delete(queue, ids, lease_us=LEASE_US if mark else None)
                    gone.update(id for id, won in zip(ids, deleted, strict=True) if won)
                    seen += [job for job, won in zip(before, deleted, strict=False) if job and won]
                jobs = store.revoked(sorted(gone, key=str)) if mark else []
            self.events.unscheduled(seen)
            self._tell(jobs)
            cancelled |= gone
        return len(cancelled)

    def cancel_where(
        self,
        queue: str | None = None,
        task: object = None,
        start: datetime | float | None = None,
        end: datetime | float | None = None,
        headers: Mapping[str, Any] | None = None,
        stamps: Mapping[str, Any] | None = None,
        *,
        dry_run: bool = False,
        progress: Progress | None = None,
        batch_size: int = 1000,
        mark: bool = True,
    ) -> int:
        """Take back all waiting tasks that the filters of :meth:`scheduled` mean; at least one must be given.

        In batches: if it is broken off, what it has cancelled is cancelled, and the same call goes on. A task is only
        deleted while it is still the one that was read.

        Args:
            dry_run: only count them.
            progress: called after each batch, with how many tasks were looked at and how many there are to look at.
            mark: as in :meth:`cancel`.

        Returns:
            How many were cancelled.
        """
        wanted = _some(Filter.of(queue, task, start, end, headers, stamps), "purge")
        return self._cancel_matching(wanted, dry_run, progress, batch_size, mark)

    def _cancel_stamped(self, stamps: Mapping[str, Any]) -> int:
        """Take back what ``revoke_by_stamped_headers`` means: tasks with any of these stamps."""
        each = [
            Filter.of(stamps={name: value})
            for name, values in stamps.items()
            for value in (values if isinstance(values, (list, tuple, set)) else [values])
        ]
        return sum(self._cancel_matching(one) for one in each)

    def _cancel_matching(
        self,
        wanted: Filter,
        dry_run: bool = False,
        progress: Progress | None = None,
        batch_size: int = 1000,
        mark: bool = True,
    ) -> int:
        cancelled = 0
        for _, jobs in self._batches(wanted, progress, batch_size):
            meant = [job for job in jobs if wanted.matches(ScheduledTask.read(job))]
            cancelled += len(meant) if dry_run else self._delete(meant, mark)
        return cancelled

    def _delete(self, jobs: list[Waiting], mark: bool) -> int:
        """Delete jobs of one queue that are still as they were read; return how many."""
        deleted = 0
        size = TELLING if mark else max(len(jobs), 1)
        for start in range(0, len(jobs), size):
            some = jobs[start : start + size]
            ids, bodies = [job.id for job in some], [job.body or b"" for job in some]
            with self._store() as store:
                won = store.delete(some[0].topic, ids, bodies=bodies, lease_us=LEASE_US if mark else None)
            gone = [job for job, mine in zip(some, won, strict=True) if mine]
            self.events.unscheduled(gone)
            if mark:
                self._tell([Aside.of("revoked", job.id, job.body or b"") for job in gone])
            deleted += len(gone)
        return deleted

    def _tell(self, jobs: list[Aside]) -> None:
        """Tell the end of jobs that lie aside for us. Nobody may hold a store meanwhile: telling takes connections of
        the same pool, which may have one only.
        """
        if jobs:
            self._teller.finish(jobs)
            with self._store() as store:
                store.forget(jobs)

    def reschedule(self, task_id: str, when: datetime | float, if_due: datetime | float | None = None) -> bool:
        """Make a waiting task due at another time. Its id, its message and the time of its put stay.

        Args:
            when: as of ``apply_at``; what is past is due now.
            if_due: only if it is due at this very time, as :meth:`get` has shown it.

        Returns:
            False: it does not wait any more, or is due at another time than *if_due*.
        """
        ids = checked_ids([task_id])
        at_us = checked_due_us(moment_of(when))
        if_due_us = None if if_due is None else checked_due_us(moment_of(if_due, "if_due"))
        return self._move(ids, lambda held: Move(held, at_us=at_us, if_due_us=if_due_us)) > 0

    def run_now(self, *task_ids: str) -> int:
        """Make waiting tasks due now; those of a paused queue go when it is resumed. Returns how many waited."""
        return self._move(checked_ids(task_ids), lambda held: Move(held, in_us=0))

    def _move(self, ids: Sequence[bytes], move_of: Callable[[str | bytes], Move]) -> int:
        """Move tasks in whatever queues they are; return how many ids that were."""
        moved: set[str | bytes] = set()
        for start in range(0, len(ids), BATCH):
            seen: list[tuple[Waiting, Move]] = []
            with self._store() as store:
                for queue, held in store.where(ids[start : start + BATCH]):
                    before, moves = self._seen(store, queue, held), [move_of(id) for id in held]
                    words = store.move(queue, moves)
                    moved.update(id for id, word in zip(held, words, strict=True) if word is Moved.OK)
                    both = zip(before, moves, words, strict=False)
                    seen += [(job, move) for job, move, word in both if job and word is Moved.OK]
            self.events.rescheduled(seen)
        return len(moved)

    def shift_where(
        self,
        queue: str | None = None,
        task: object = None,
        start: datetime | float | None = None,
        end: datetime | float | None = None,
        headers: Mapping[str, Any] | None = None,
        stamps: Mapping[str, Any] | None = None,
        *,
        by: timedelta,
        dry_run: bool = False,
        progress: Progress | None = None,
        batch_size: int = 1000,
    ) -> int:
        """Move all waiting tasks that the filters of :meth:`scheduled` mean, at least one, later or earlier *by* a
        time. What would become due in the past is due now.

        In batches: if it is broken off, the same call within a day goes on where it stopped, and moves nothing twice.

        Args:
            dry_run, progress: as of :meth:`cancel_where`.

        Returns:
            How many were moved.
        """
        if not isinstance(by, timedelta) or not by:
            raise ValueError(f"by must be a timedelta other than 0, not {by!r}")
        wanted = _some(Filter.of(queue, task, start, end, headers, stamps))
        by_us = by // timedelta(microseconds=1)
        operation = hashlib.sha1(repr((wanted, by_us)).encode(), usedforsecurity=False).hexdigest()
        with self._store() as store:
            behind = {
                (shard, name): _read_place(text)
                for shard, part in enumerate(() if dry_run else store.parts)
                for name, text in part.journal(operation).items()
            }
        shifted = 0
        # From the end that they move away to, so that none is met twice.
        for shard, jobs in self._batches(wanted, progress, batch_size, behind=behind, backwards=by_us > 0):
            meant = [job for job in jobs if wanted.matches(ScheduledTask.read(job))]
            if meant and not dry_run:
                moves = [Move(job.id, max(job.due_us + by_us, 0), None, job.due_us, job.body) for job in meant]
                come_to = (operation, _write_place(meant[-1].place), JOURNAL_MS)
                with self._store() as store:
                    words = store.parts[shard].move(meant[0].topic, moves, progress=come_to)
                both = zip(meant, moves, words, strict=True)
                self.events.rescheduled([(job, move) for job, move, word in both if word is Moved.OK])
                shifted += words.count(Moved.OK)
            else:
                shifted += len(meant)
        if not dry_run:
            with self._store() as store:
                for part in store.parts:
                    part.end_journal(operation)
        return shifted

    def _batches(
        self,
        wanted: Filter,
        progress: Progress | None,
        batch_size: int,
        *,
        behind: Mapping[tuple[int, str], Place] | None = None,
        backwards: bool = False,
    ) -> Iterator[tuple[int, tuple[Waiting, ...]]]:
        """Jobs of the right queue and time, in batches of one queue of one shard each, with the number of the shard.
        Tells of progress when one has been used.

        Args:
            behind: where to go on, by shard and queue.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or not 1 <= batch_size <= 100_000:
            raise ValueError(f"batch_size must be a whole number from 1 to 100000, not {batch_size!r}")
        with self._store() as store:
            shards = range(len(store.parts))
        spread = {(shard, queue): held for shard in shards for queue, held in self._spread(wanted, shard).items()}
        total, told, before = sum(spread.values()), 0, 0
        for (shard, queue), held in spread.items():
            place = (behind or {}).get((shard, queue))
            for page in self._pages(queue, wanted, batch_size, shard, behind=place, backwards=backwards):
                if page.jobs:
                    yield shard, page.jobs
                told = max(told, before + held - page.left)  # more may come meanwhile; a bar does not go back
                if progress is not None and total:
                    progress(min(told, total), total)
            before += held

    def pause(self, queue: str) -> bool:
        """Hold a queue's waiting tasks back, also those that become due, until it is resumed; more may come. It
        survives restarts. What was handed over already is not touched. Returns False if it was paused before.
        """
        _checked_queue(queue)
        with self._store() as store:
            return store.pause(queue)

    def resume(self, queue: str, rate: float | None = None) -> bool:
        """Let a queue's waiting tasks go again, in due order.

        Args:
            rate: so many a second at most, until nothing is overdue any more; without it all at once.

        Returns:
            False if it was not paused. A *rate* holds in either case.
        """
        _checked_queue(queue)
        if rate is not None and not (is_number(rate) and 0 < rate < float("inf")):
            raise ValueError(f"rate must be a number of tasks a second, more than 0, not {rate!r}")
        with self._store() as store:
            return store.resume(queue, None if rate is None else SECOND_US / float(rate))

    def purge(self, queue: str | None = None) -> int:
        """Take back all that waits for one queue, or for all, at once. Returns how many tasks that were.

        Like ``celery purge`` it marks no results and sends no events; to have those, :meth:`cancel_where`.
        """
        if queue is not None:
            _checked_queue(queue)
        with self._store() as store:
            return sum(store.purge(name) for name in ([queue] if queue is not None else sorted(store.topics())))


def _some(wanted: Filter, otherwise: str | None = None) -> Filter:
    if wanted.is_all:
        hint = f"; for all that waits there is {otherwise}()" if otherwise else ""
        raise ValueError(f"give at least one of queue, task, start, end, headers, stamps{hint}")
    return wanted


def _checked_queue(queue: object) -> None:
    if not isinstance(queue, str) or not queue:
        raise TypeError(f"queue must be a name, not {shortened(queue)}")


def _write_place(place: Place) -> str:
    return f"{place.due_us} {place.id.hex()}"


def _read_place(text: str) -> Place:
    due_us, id = text.split(" ")
    return Place(int(due_us), bytes.fromhex(id))
