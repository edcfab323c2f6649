"""Dead letters: tasks that were due and could not be handed over, however often that was tried. Only where tasks are
relayed to a broker elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from .errors import shortened
from .inspection import Inspection, checked_ids
from .scheduled import DeadTask
from .sharding import Sharded
from .store import Store

#: Dead letters that are read or changed at once.
BATCH = 500

#: What is done to some ids of a queue; which of them it was done to.
Change = Callable[[Store | Sharded, str, Sequence[bytes]], list[bool]]


class DeadLetters(Inspection):
    """The part of DelayQ that looks at dead letters, and lets a person decide on them."""

    def dead(self, queue: str | None = None) -> Iterator[DeadTask]:
        """Walk through the dead letters of one queue or of all, by queue, the longest dead first; in flat memory."""
        for name in self._dead_queues(queue):
            behind, left = None, 1
            while left:
                with self._store() as store:
                    page = store.dead(name, behind=behind, limit=BATCH)
                yield from map(DeadTask.read, page.jobs)
                behind, left = page.end, page.left

    def retry_dead(self, *task_ids: str, queue: str | None = None) -> int:
        """Let dead letters wait again, due now, as if they had never been tried.

        Args:
            task_ids: those of these ids; or
            queue: all of this queue.

        Returns:
            How many tasks that were. One that is not counted is no dead letter, or has been sent anew meanwhile.
        """
        return self._change(task_ids, queue, lambda store, name, ids: store.revive(name, ids))

    def delete_dead(self, *task_ids: str, queue: str | None = None) -> int:
        """Throw dead letters away; else like :meth:`retry_dead`. Their results are not marked."""
        return self._change(task_ids, queue, lambda store, name, ids: store.discard(name, ids))

    def _change(self, task_ids: Sequence[str], queue: str | None, change: Change) -> int:
        if bool(task_ids) == (queue is not None):
            raise ValueError("give ids of dead letters, or a queue")
        wanted = checked_ids(task_ids)
        changed = 0
        for name in self._dead_queues(queue):
            if not wanted:
                changed += self._change_all(name, change)
            for start in range(0, len(wanted), BATCH):
                with self._store() as store:
                    changed += sum(change(store, name, wanted[start : start + BATCH]))
        return changed

    def _change_all(self, queue: str, change: Change) -> int:
        changed, behind, left = 0, None, 1
        while left:
            with self._store() as store:
                page = store.dead(queue, behind=behind, limit=BATCH)
                changed += sum(change(store, queue, [job.id for job in page.jobs]))
            behind, left = page.end, page.left
        return changed

    def _dead_queues(self, queue: str | None) -> list[str]:
        if queue is not None and not (isinstance(queue, str) and queue):
            raise TypeError(f"queue must be a name, not {shortened(queue)}")
        with self._store() as store:
            return [queue] if queue is not None else sorted(store.leased())
