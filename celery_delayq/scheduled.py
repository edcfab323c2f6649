"""A waiting task as people ask about it: what it is, when it is due, and whether it is one of those they mean."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from .clock import checked_due_us, from_us, moment_of
from .errors import shortened
from .job import Dead, Needle, Waiting
from .message import PUT_PROPERTY

#: Text that all who write JSON write alike.
_PLAIN = re.compile(r"[A-Za-z0-9_.:@-]+")


@dataclass(frozen=True)
class ScheduledTask:
    """One task that waits.

    Attributes:
        id: the task's id. (One that is no text, as another program may put it, holds lone surrogates, as a file's name
            would.)
        task: the task's name; None if its message cannot be read.
        argsrepr, kwargsrepr: the arguments as Celery writes them into the message, shortened by Celery.
        queue: the queue that it goes to when due.
        priority: its message's priority.
        due: when it may be handed over; aware, UTC.
        put_at: when it was put, by the producer's clock (with ``max_wait``: when its id was first put, by Redis's);
            None if its message does not say.
        state: "waiting"; "reserved", while somebody hands it over who has to say so when he is done; or "dead", when
            that has failed too often.
        headers: the headers of its message, those of Celery and the sender's own, stamps among them.
    """

    id: str
    task: str | None
    argsrepr: str | None
    kwargsrepr: str | None
    queue: str
    priority: int | None
    due: datetime
    put_at: datetime | None
    state: str = "waiting"
    headers: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def read(cls, job: Waiting) -> ScheduledTask:
        """From a job of the store. A body that is no message of Kombu's leaves what it would have said None."""
        try:
            message = json.loads(job.body or b"")
            headers, properties = message["headers"], message["properties"]
            headers.keys(), properties.keys()  # mappings, or this raises
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            headers, properties = {}, {}
        put_us = properties.get(PUT_PROPERTY) if job.first_us is None else job.first_us
        priority = properties.get("priority")
        return cls(
            id=job.id.decode(errors="surrogateescape"),
            task=_text(headers.get("task")),
            argsrepr=_text(headers.get("argsrepr")),
            kwargsrepr=_text(headers.get("kwargsrepr")),
            queue=job.topic,
            priority=priority if isinstance(priority, int) else None,
            due=from_us(job.due_us),
            put_at=from_us(put_us) if isinstance(put_us, int) and 0 <= put_us <= 2**53 else None,
            state=job.state,
            headers=headers,
        )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


@dataclass(frozen=True)
class Filter:
    """Which of the waiting tasks are meant: those for which all that is given holds.

    Attributes:
        queue: its name.
        task: the task's name, or a pattern with ``*``.
        start_us, stop_us: due from the one on, and before the other.
        headers: a header of that name has that value.
        stamps: a stamp of that name has that value among its values.
    """

    queue: str | None = None
    task: str | None = None
    start_us: int | None = None
    stop_us: int | None = None
    headers: Mapping[str, Any] = field(default_factory=dict)
    stamps: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        queue: object = None,
        task: object = None,
        start: object = None,
        end: object = None,
        headers: object = None,
        stamps: object = None,
    ) -> Filter:
        """From what users give.

        Raises:
            TypeError, ValueError: no such queue, task, time or header can be.
        """
        name = getattr(task, "name", None) or getattr(task, "task", None) or task  # a task, a signature, or a name
        for what, value in (("queue", queue), ("task", name)):
            if value is not None and not (isinstance(value, str) and value):
                raise TypeError(f"{what} must be a name, not {shortened(value)}")
        for what, value in (("headers", headers), ("stamps", stamps)):
            if value is not None and not (isinstance(value, Mapping) and all(isinstance(name, str) for name in value)):
                raise TypeError(f"{what} must be a mapping of names to values, not {shortened(value)}")
        start_us = None if start is None else checked_due_us(moment_of(start, "start"))
        stop_us = None if end is None else checked_due_us(moment_of(end, "end"))
        if start_us is not None and stop_us is not None and start_us > stop_us:
            raise ValueError(f"start {shortened(start)} must not be after end {shortened(end)}")
        return cls(queue, name, start_us, stop_us, headers or {}, stamps or {})  # type: ignore[arg-type]  # checked

    @property
    def is_all(self) -> bool:
        """Whether it means every task that waits."""
        return self == Filter()

    @cached_property
    def reads_messages(self) -> bool:
        """Whether it takes the message to tell; else the schedule is enough."""
        return bool(self.task or self.headers or self.stamps)

    @cached_property
    def needles(self) -> tuple[Needle, ...]:
        """What every message that is meant must hold; so that Redis need not send the others."""
        needles = [Needle(part) for part in (self.task or "").split("*") if _PLAIN.fullmatch(part)]
        for wanted in (self.headers, self.stamps):
            for name, value in wanted.items():
                text = str(value) if _is_written_one_way(value) else None
                if text is not None:
                    needles.append(Needle(text))
                if _PLAIN.fullmatch(name):
                    # The value itself, or a list or an object that may hold it.
                    tails = () if text is None else (f'^%s*:%s*"?{_escaped(text)}["%s,}}.]', "^%s*:%s*[%[{]")
                    needles.append(Needle(f'"{name}"', *tails))
        return tuple(needles)

    def matches(self, task: ScheduledTask) -> bool:
        """Whether *task*, of the right queue and time, is meant."""
        if self.task is not None:
            if task.task is None:
                return False
            if task.task != self.task and not ("*" in self.task and fnmatchcase(task.task, self.task)):
                return False
        stamps = task.headers.get("stamps")
        return _has(task.headers, self.headers) and _has(stamps if isinstance(stamps, Mapping) else {}, self.stamps)


def _escaped(text: str) -> str:
    """As it stands for itself in a Lua pattern."""
    return re.sub(r"([^A-Za-z0-9])", r"%\1", text)


def _is_written_one_way(value: object) -> bool:
    """Whether whatever is :func:`_same` as *value* has the text of it in its JSON."""
    if isinstance(value, str):
        return bool(_PLAIN.fullmatch(value)) and value.lower() not in ("true", "false", "none", "nan", "inf")
    return isinstance(value, int) and not isinstance(value, bool) and 1 < value < 10**15


def _has(values: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(name in values and _same(values[name], value) for name, value in wanted.items())


def _same(value: Any, wanted: Any) -> bool:
    """Whether they are equal, one is among the other, or they are written alike: 42 and "42"."""
    values = value if isinstance(value, (list, tuple, set)) else [value]
    candidates = wanted if isinstance(wanted, (list, tuple, set)) else [wanted]
    return value == wanted or any(one == other or str(one) == str(other) for one in values for other in candidates)


@dataclass(frozen=True)
class DeadTask:
    """One dead letter: a task that could not be handed over to its broker, however often that was tried.

    Attributes:
        id, task, argsrepr, kwargsrepr, queue, priority, headers: as of a :class:`ScheduledTask`.
        due: when it was due for the last attempt; aware, UTC.
        died: when it was given up; aware, UTC.
        attempts: how often it was tried.
        reason: why the last attempt failed; empty if whoever made it died over it.
    """

    id: str
    task: str | None
    argsrepr: str | None
    kwargsrepr: str | None
    queue: str
    priority: int | None
    due: datetime
    died: datetime
    attempts: int
    reason: str
    headers: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def read(cls, job: Dead) -> DeadTask:
        """From a job of the store."""
        task = ScheduledTask.read(Waiting(job.topic, job.id, job.due_us, job.body, job.step))
        return cls(
            id=task.id,
            task=task.task,
            argsrepr=task.argsrepr,
            kwargsrepr=task.kwargsrepr,
            queue=task.queue,
            priority=task.priority,
            due=task.due,
            died=from_us(job.died_us),
            attempts=job.attempts,
            reason=job.reason,
            headers=task.headers,
        )


@dataclass(frozen=True)
class QueueStats:
    """What one queue holds and has done.

    Attributes:
        waiting: delayed tasks that wait.
        due: how many of them are due, and not handed over yet.
        overdue: since when the first of them is; zero if none is.
        paused: whether it is paused.
        ready: messages that are ready for workers; None where the broker is not the Redis in which they wait.
        moved, cancelled, dropped, orphans: in total: handed over; taken back; dropped since they came too late; ids
            found without a message.
        reserved, dead: tasks that are being handed over; dead letters. Both only where tasks are relayed.
        requeued, buried: in total: hand-overs that failed and are tried again; tasks that became dead letters.
    """

    waiting: int
    due: int
    overdue: timedelta
    paused: bool
    ready: int | None
    moved: int
    cancelled: int
    dropped: int
    orphans: int
    reserved: int = 0
    dead: int = 0
    requeued: int = 0
    buried: int = 0
