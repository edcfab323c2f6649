"""What waits, given back to stock Celery: published with its eta, as if celery_delayq had never been there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from .delivery import Delivery
from .inspection import Inspection
from .job import Waiting
from .message import with_eta

#: Jobs that one call of the script pushes, since Redis does nothing else meanwhile; and that are in memory at once.
BATCH, PAGE = 100, 1000


@dataclass
class Drained:
    """What a drain has done so far.

    Attributes:
        count: tasks given back.
        unreadable: tasks that stay, since their messages cannot be read; by queue.
        paused: queues that were left alone.
    """

    count: int = 0
    unreadable: dict[str, int] = field(default_factory=dict)
    paused: list[str] = field(default_factory=list)


def drain(delayq: Inspection, queue: str | None = None, progress: Callable[[int, int], None] | None = None) -> Drained:
    """Give back what waits; see :meth:`celery_delayq.app.DelayQ.drain`."""
    done = Drained()
    with delayq._store() as store:
        deliveries, paused = store.topics(), store.paused()
    if queue is None:
        done.paused = sorted(paused & deliveries.keys())
    queues = sorted(deliveries.keys() - set(done.paused)) if queue is None else [queue]
    total = sum(delayq.count(name) for name in queues)
    for name in queues:
        delivery = deliveries.get(name)
        while delivery is not None and not _walk(delayq, name, delivery, done, progress, total):
            pass  # somebody has moved or replaced a task meanwhile, which may stand where we have been already
    return done


def _walk(
    delayq: Inspection,
    queue: str,
    delivery: Delivery,
    done: Drained,
    progress: Callable[[int, int], None] | None,
    total: int,
) -> bool:
    """One walk through a queue. False: something was no longer as it was read."""
    agreed, unreadable, behind = True, 0, None
    while True:
        with delayq._store() as store:  # the broker's own, which has one shard
            page = store.parts[0].page(queue, behind=behind, limit=PAGE)
        for some in _portions(page.jobs):
            told = [(job, body) for job in some if (body := _told(job)) is not None]
            unreadable += len(some) - len(told)
            with delayq._store() as store:
                given = store.parts[0].drain(queue, delivery, told)
            done.count += sum(given)
            agreed = agreed and all(given)
            if progress is not None:
                progress(min(done.count, total), total)
        behind = page.end
        if not page.left:
            break
    if unreadable:
        done.unreadable[queue] = unreadable
    return agreed


def _portions(jobs: Iterable[Waiting]) -> Iterator[list[Waiting]]:
    waiting = iter(jobs)
    while some := list(islice(waiting, BATCH)):
        yield some


def _told(job: Waiting) -> bytes | None:
    """A job's message for stock Celery; None if it is no message."""
    try:
        return None if job.body is None else with_eta(job.body, job.due_us)
    except (ValueError, TypeError, LookupError, AttributeError):
        return None
