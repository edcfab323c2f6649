"""What the callers of a queue say, read and checked, and how they are answered; the same for both kinds of queue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from .clock import SECOND_US, from_us, moment_of, seconds_of, to_us
from .errors import LeaseLost, shortened
from .job import Job, Page, Put
from .queue_protocol import text_of_id
from .verbs import name_of

#: Jobs that one put takes at most: it is one command, and Redis does nothing else meanwhile.
LARGEST_PUT = 100_000


def due_of(at: object = None, delay: object = None) -> tuple[int | None, int | None]:
    """Read when a job is due: *at*, a datetime or epoch seconds; or *delay* from now, seconds or a timedelta; or now.

    Returns:
        Microseconds since the epoch, or None; microseconds from now on Redis's clock, or None.

    Raises:
        TypeError: of another type, or both are given.
        ValueError: not finite, or beyond the year 2255.
    """
    if at is not None and delay is not None:
        raise TypeError("give either at or delay, not both")
    if at is None:
        return None, 0 if delay is None else max(round(seconds_of(delay) * SECOND_US), 0)
    return max(to_us(moment_of(at, "at")), 0), None


def put_of(topic: str, id: object, body: object, at: object = None, delay: object = None) -> Put:
    """Read one job; for *at* and *delay* see :func:`due_of`.

    Raises:
        TypeError: of a wrong type.
        ValueError: the id is empty, or the time cannot be kept.
    """
    name = checked_id(id)
    if not isinstance(body, bytes | bytearray | memoryview):
        raise TypeError(f"a job's body must be bytes, not {type(body).__name__}: encode it first")
    at_us, in_us = due_of(at, delay)
    return Put(topic, name, bytes(body), at_us, in_us)


def puts_of(topic: str, jobs: Iterable[tuple[str | bytes, bytes, Any]]) -> list[Put]:
    """Read a batch of jobs: an id, a body, and when it is due; a timedelta is from now, None is now."""
    puts = []
    for number, job in enumerate(jobs):
        try:
            id, body, at = job
        except (TypeError, ValueError):
            raise TypeError(f"job {number} of the batch must be (id, body, at), not {shortened(job)}") from None
        is_delay = isinstance(at, timedelta)
        puts.append(put_of(topic, id, body, None if is_delay else at, at if is_delay else None))
    if len(puts) > LARGEST_PUT:
        raise ValueError(f"{len(puts)} jobs are too many for one batch: {LARGEST_PUT} at most")
    return puts


def range_of(start: datetime | float | None, end: datetime | float | None) -> tuple[int | None, int | None]:
    """Read a half-open range of times (us); None for no bound."""
    start_us = None if start is None else to_us(moment_of(start, "start"))
    return start_us, None if end is None else to_us(moment_of(end, "end"))


def found_of(page: Page) -> list[Job]:
    """The jobs of a page that waits: nobody has them yet."""
    return [Job(text_of_id(job.id), job.body or b"", from_us(job.due_us), 0) for job in page.jobs]


def checked_id(id: object) -> bytes:
    """The id of a job, as Redis has it.

    Raises:
        TypeError: neither text nor bytes.
    """
    if not isinstance(id, str | bytes):
        raise TypeError(f"a job's id must be a str or bytes, not {type(id).__name__} {shortened(id)}")
    return name_of(id)


def checked_ids(ids: Iterable[object]) -> list[bytes]:
    """Ids, each as of :func:`checked_id`."""
    return [checked_id(id) for id in ids]


def checked_jobs(jobs: Sequence[object]) -> list[Job]:
    """Jobs that were reserved.

    Raises:
        TypeError: one is none.
    """
    for job in jobs:
        if not isinstance(job, Job):
            raise TypeError(f"give the Job that reserve returned, not {type(job).__name__} {shortened(job)}")
    return [job for job in jobs if isinstance(job, Job)]


def checked_limit(limit: int) -> int:
    """How many jobs to take at most.

    Raises:
        ValueError: less than one.
    """
    if limit < 1:
        raise ValueError(f"limit must be 1 or more, not {limit}")
    return limit


def lost(jobs: Sequence[Job]) -> LeaseLost:
    """The error of jobs whose lease was lost."""
    return LeaseLost(*(job.id for job in jobs))
