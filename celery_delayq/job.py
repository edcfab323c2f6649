"""Jobs as the store gives them back: waiting, or laid aside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Place(NamedTuple):
    """Where a job stands in its topic: jobs leave in this order."""

    due_us: int
    id: bytes


class Waiting(NamedTuple):
    """One job as it waits.

    Attributes:
        body: None if it is missing; such a job is never handed over.
        first_us: when its id was first put, if it has a max_wait; else None.
        grace_us: how late it may be handed over; None for however late.
    """

    topic: str
    id: bytes
    due_us: int
    body: bytes | None
    step: int = 0
    first_us: int | None = None
    grace_us: int | None = None

    @property
    def place(self) -> Place:
        """Where it stands."""
        return Place(self.due_us, self.id)


class Needle(NamedTuple):
    """What a body must hold to be meant: some bytes, anywhere, with one of two things behind them.

    Attributes:
        tail, or_tail: Lua patterns that begin with ``^``; "" for whatever.
    """

    text: str
    tail: str = ""
    or_tail: str = ""


@dataclass(frozen=True)
class Page:
    """Some waiting jobs of one topic.

    Attributes:
        left: how many come behind this page.
        end: the last place that was looked at, behind which the next page begins; None: there is nothing.
    """

    jobs: tuple[Waiting, ...]
    left: int
    end: Place | None


@dataclass(frozen=True)
class Aside:
    """One job that will never be handed over, and whose end somebody still has to tell.

    Attributes:
        reason: "revoked", or "late": found later than its grace.
    """

    reason: str
    id: str
    body: bytes

    @property
    def name(self) -> str:
        """What it is called where it lies."""
        return f"{self.reason}:{self.id}"

    @classmethod
    def read(cls, name: bytes, body: bytes) -> Aside:
        """From a script's reply."""
        reason, _, id = name.partition(b":")
        return cls.of(reason.decode(), id, body)

    @classmethod
    def of(cls, reason: str, id: bytes, body: bytes) -> Aside:
        """From an id as the store holds it."""
        return cls(reason, id.decode(errors="surrogateescape"), body)


@dataclass(frozen=True)
class Load:
    """What one topic holds and has done.

    Attributes:
        waiting, due: jobs that wait; and how many of them are due.
        head_us: when the first of them is due, or None.
        held_us: nothing leaves before; infinity: paused; None: not held back.
        ready: messages on its ready lists.
        moved, cancelled, dropped, orphans: in total, since the first job.
    """

    waiting: int
    due: int
    head_us: int | None
    held_us: float | None
    ready: int
    moved: int
    cancelled: int
    dropped: int
    orphans: int
