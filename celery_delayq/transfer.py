"""What waits, as lines of JSON and back: for a backup, a move to another Redis, or a look with other tools.

One job a line, by queue, each queue in due order. Memory stays flat in both directions, and Redis works on the next
page or batch while this process encodes or decodes one.

=========  =============================================================================================
field      what it holds
=========  =============================================================================================
id         the task's id; ``id_base64`` instead if it is no UTF-8
queue      its queue
due        ISO 8601, exact to the microsecond
body       the message, byte for byte; ``body_base64`` instead if it is no UTF-8
step       its priority step, if that is not 0
first_put  when its id was first put (ISO 8601), if it has a ``max_wait``
grace      how late (s) it may be handed over, if it is dropped when it is later
=========  =============================================================================================
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import lru_cache
from json.encoder import encode_basestring_ascii as encode_string
from typing import Any

from .clock import LATEST_US, SECOND_US, is_number, text_of, to_us
from .errors import AlreadyScheduled, ImportRefused, shortened
from .inspection import Inspection
from .job import OnConflict, Page, Put, Waiting
from .scheduled import Filter, ScheduledTask
from .scripts import Begun
from .sharding import Together

#: Jobs, and about how many bytes of them, in memory at once.
BATCH, BATCH_BYTES = 1000, 4 * 1024 * 1024

#: All fields that a line can have.
FIELDS = frozenset(["id", "id_base64", "queue", "due", "body", "body_base64", "step", "first_put", "grace"])


def export_jobs(delayq: Inspection, wanted: Filter | None = None) -> Iterator[list[bytes]]:
    """What waits, or what *wanted* means of it, as lines; many at a time.

    A job that keeps its place comes exactly once, whatever else comes and goes meanwhile. One whose message is
    missing, and that will never be handed over, is left out; so is what does not wait: reserved jobs and dead ones.

    Raises:
        kombu.exceptions.OperationalError: Redis cannot be reached.
    """
    wanted = wanted or Filter()
    for queue in [wanted.queue] if wanted.queue is not None else delayq.queues():
        name = encode_string(queue).encode()
        for page in _pages(delayq, queue, wanted):
            jobs: Iterable[Waiting] = page.jobs
            if wanted.reads_messages:
                jobs = (job for job in jobs if wanted.matches(ScheduledTask.read(job)))
            yield [_line(name, job, job.body) for job in jobs if job.body is not None]


def _pages(delayq: Inspection, queue: str, wanted: Filter) -> Iterator[Page]:
    """The pages of one queue; while the caller has one, Redis reads the next."""

    def begin(page: Page | None = None) -> Begun[Page] | Together[Page]:
        with delayq._store() as store:
            return store.begin_page(
                queue,
                start_us=wanted.start_us,
                stop_us=wanted.stop_us,
                behind=page.end if page else None,
                limit=BATCH,
                needles=wanted.needles,
            )

    begun: Begun[Page] | Together[Page] | None = begin()
    try:
        while begun is not None:
            with delayq._store():  # whatever happens is told as Kombu tells it
                page = begun.result()
            begun = begin(page) if page.left else None
            yield page
    finally:
        if begun is not None:
            begun.drop()


#: Bytes that JSON takes as they are, or behind a backslash.
_PLAIN = bytes(range(32, 127))


def _line(queue: bytes, job: Waiting, body: bytes) -> bytes:
    # Piece by piece: json.dumps of a mapping takes three times as long.
    more = b""
    if job.step:
        more += b', "step": %d' % job.step
    if job.first_us is not None:
        more += b', "first_put": "%b"' % text_of(job.first_us).encode()
    if job.grace_us is not None:
        more += b', "grace": %b' % repr(job.grace_us / SECOND_US).encode()
    id, due = _field(b"id", job.id), text_of(job.due_us).encode()
    return b'{%b, "queue": %b, "due": "%b"%b, %b}\n' % (id, queue, due, more, _field(b"body", body))


def _field(name: bytes, value: bytes) -> bytes:
    if not value.translate(None, _PLAIN):
        return b'"%b": "%b"' % (name, value.replace(b"\\", b"\\\\").replace(b'"', b'\\"'))
    try:
        return b'"%b": %b' % (name, encode_string(value.decode()).encode())
    except UnicodeDecodeError:
        return b'"%b_base64": "%b"' % (name, b64encode(value))


@dataclass
class Imported:
    """What an import has done so far.

    Attributes:
        lines: lines read, empty ones among them.
        written: jobs that were put.
        unchanged: jobs that were there already: the same, or others that were kept.
    """

    lines: int = 0
    written: int = 0
    unchanged: int = 0


def import_jobs(
    delayq: Inspection,
    lines: Iterable[bytes],
    on_conflict: OnConflict = OnConflict.ERROR,
    progress: Callable[[Imported], None] | None = None,
) -> Imported:
    """Put what :func:`export_jobs` has written, as it was: what is past is due at once.

    In batches of some lines, each all or nothing. Importing the same again changes nothing, so that one that was broken
    off can be begun anew.

    Args:
        on_conflict: what to do with a line whose id waits in its queue already, but is due at another time or has
            another message.
        progress: called after each batch.

    Raises:
        ImportRefused: a line cannot be read, or its id waits already and *on_conflict* is ``ERROR``. The batches before
            it have been imported, and nothing else.
        kombu.exceptions.OperationalError: Redis cannot be reached.
    """
    transfer = _Import(delayq, on_conflict, progress)
    try:
        for batch in _batches(lines):
            transfer.put(batch)
    except ImportRefused:
        transfer.finish()
        raise
    except BaseException:
        transfer.drop()
        raise
    transfer.finish()
    return transfer.done


#: Jobs with the numbers of their lines; no id of a queue is in it twice.
Batch = list[tuple[int, Put]]


class _Import:
    """One import: while Redis stores a batch, the next one is read."""

    def __init__(
        self, delayq: Inspection, on_conflict: OnConflict, progress: Callable[[Imported], None] | None
    ) -> None:
        self.done = Imported()
        self._delayq = delayq
        self._on_conflict = on_conflict
        self._progress = progress
        self._begun: tuple[Begun[int] | Together[int], Batch] | None = None
        with delayq._store() as store:
            self._deliveries = store.topics()

    def put(self, batch: Batch) -> None:
        """Finish the batch before, and begin with this one."""
        jobs = [job for _, job in batch]
        self._deliveries.update(self._delayq._deliveries({job.topic for job in jobs} - self._deliveries.keys()))
        self.finish()
        with self._delayq._store() as store:
            self._begun = store.begin_restore(jobs, self._deliveries, self._on_conflict), batch

    def finish(self) -> None:
        """Wait for the batch that Redis has, if any."""
        if self._begun is None:
            return
        (begun, batch), self._begun = self._begun, None
        with self._delayq._store():  # whatever happens is told as Kombu tells it
            try:
                written = begun.result()
            except AlreadyScheduled as error:
                raise _conflict(batch, error.task_id) from None
        self.done.lines = batch[-1][0]
        self.done.written += written
        self.done.unchanged += len(batch) - written
        if self._progress is not None:
            self._progress(self.done)

    def drop(self) -> None:
        """Do not wait for it."""
        if self._begun is not None:
            self._begun[0].drop()


def _conflict(batch: Batch, task_id: str) -> ImportRefused:
    # The first, should the batch have the id in several queues.
    number, job = next((number, job) for number, job in batch if _text(job.id) == task_id)
    reason = f"task id {shortened(task_id)} waits already in queue {shortened(job.topic)}, with another time or message"
    return ImportRefused(number, reason, is_conflict=True)


def _text(id: str | bytes) -> str:
    return id.decode(errors="replace") if isinstance(id, bytes) else id


def _batches(lines: Iterable[bytes]) -> Iterator[Batch]:
    batch: Batch = []
    held: set[tuple[str, str | bytes]] = set()
    size = 0
    for number, line in enumerate(lines, start=1):
        if line.isspace():
            continue
        try:
            job = _job(line)
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
            raise ImportRefused(number, str(error)) from None
        key = (job.topic, job.id)
        if len(batch) == BATCH or size > BATCH_BYTES or key in held:
            yield batch
            batch, size = [], 0
            held.clear()
        batch.append((number, job))
        held.add(key)
        size += len(line)
    if batch:
        yield batch


_decode = json.JSONDecoder().raw_decode


def _job(line: bytes) -> Put:
    """Read one line.

    Raises:
        ValueError, TypeError, OverflowError, RecursionError: it is none of ours.
    """
    text = line.decode().strip()
    fields: Any
    fields, end = _decode(text)
    if end != len(text) or type(fields) is not dict:
        raise ValueError("not one JSON object")
    queue, id, due, body = fields.get("queue"), fields.get("id"), fields.get("due"), fields.get("body")
    if len(fields) == 4 and type(queue) is type(id) is type(due) is type(body) is str:  # as most are
        return Put(_queue(queue), id.encode(), body.encode(), _us("due", due))
    if not fields.keys() <= FIELDS:
        raise ValueError(f"unknown field {shortened(min(fields.keys() - FIELDS))}")
    step, first, grace = fields.get("step", 0), fields.get("first_put"), fields.get("grace")
    if not isinstance(queue, str):
        raise TypeError("queue must be a name")
    if type(step) is not int or not 0 <= step <= 255:
        raise TypeError("step must be a whole number from 0 to 255")
    if grace is not None and not (is_number(grace) and 0 <= grace <= LATEST_US / SECOND_US):
        raise TypeError("grace must be a number of seconds")
    return Put(
        _queue(queue),
        _bytes(fields, "id"),
        _bytes(fields, "body"),
        _us("due", due),
        step=step,
        max_wait_us=None if first is None else _us("first_put", first),
        grace_us=None if grace is None else round(grace * SECOND_US),
    )


@lru_cache(maxsize=256)
def _queue(name: str) -> str:
    if not name.encode():
        raise ValueError("queue must be a name")
    return name


def _bytes(fields: dict[str, Any], name: str) -> bytes:
    text = fields.get(name)
    if isinstance(text, str):
        return text.encode()
    coded = fields.get(f"{name}_base64")
    if not isinstance(coded, str):
        raise TypeError(f"{name} must be a string")
    return b64decode(coded, validate=True)


def _us(name: str, text: Any) -> int:
    try:
        moment = datetime.fromisoformat(f"{text[:-1]}+00:00" if text[-1:] == "Z" else text)  # Z: for Python 3.10
    except (ValueError, TypeError):
        raise ValueError(f"{name} must be a time as in 2030-01-02T03:04:05.000006+00:00") from None
    moment_us = to_us(moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc))
    if moment_us < 0:
        raise ValueError(f"{name} must not be before 1970")
    return moment_us
