"""Jobs: as they are put and moved, as they wait, are reserved and dead, and as they lie aside."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import NamedTuple

from .clock import LATEST_US
from .delivery import Delivery
from .errors import shortened


class OnConflict(str, Enum):
    """What a put does when a job of the same id waits already."""

    #: Raise :class:`~celery_delayq.errors.AlreadyScheduled`.
    ERROR = "error"
    #: Leave the one that waits.
    KEEP = "keep"
    #: Overwrite it.
    REPLACE = "replace"


class Origin(str, Enum):
    """Where the jobs of a put come from."""

    #: Somebody who would know if it had been put before.
    NEW = "new"
    #: Perhaps a put whose reply was lost: the same body under the same id is that very put, and no conflict.
    RETRIED = "retried"
    #: A record of what waited: such a put is a :meth:`~celery_delayq.store.Store.restore`.
    RESTORED = "restored"


@dataclass  # not frozen: that takes three times as long to make, and an import makes a million
class Put:
    """One job to be stored.

    Attributes:
        id: unique in its topic; 1 byte or more.
        body: handed over as it is.
        at_us: due, in microseconds since the epoch; or
        in_us: due so many microseconds from now on Redis's clock. Exactly one of the two.
        step: priority step; 0 for the plain ready list.
        max_wait_us: due at the latest so long after the first put of this id, or None. Of a restored job: when its id
            was first put, in microseconds since the epoch.
        grace_us: dropped when it is found later than this after its due time; None to be handed over however late.
    """

    topic: str
    id: str | bytes
    body: bytes
    at_us: int | None = None
    in_us: int | None = None
    step: int = 0
    max_wait_us: int | None = None
    grace_us: int | None = None

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("a job's id must not be empty")
        if (self.at_us is None) == (self.in_us is None):
            raise ValueError("give a job either at_us or in_us")
        if (self.at_us or self.in_us or 0) > LATEST_US:
            raise ValueError(f"job {shortened(self.id)} is due after the year 2255, the latest that can be kept")

    @property
    def due(self) -> str:
        """The due time as put.lua reads it."""
        return str(self.at_us) if self.at_us is not None else f"+{max(self.in_us or 0, 0)}"


class Tell(str, Enum):
    """What a dispatch tells of the jobs that it has moved. Each of these costs something, so the default is nothing."""

    #: How many they were.
    NOTHING = ""
    #: When each was due.
    DUES = "dues"
    #: Also which each was, and a part of its body.
    JOBS = "jobs"


class Moved(Enum):
    """What became of a move."""

    OK = "OK"
    #: It does not wait (any more).
    MISSING = "MISSING"
    #: It waits, but is not due when the caller thought, or is another one by now.
    CHANGED = "CHANGED"


class Adopted(Enum):
    """What became of a message that was to be adopted."""

    #: It waits, and its delivery is acknowledged.
    OK = "OK"
    #: The delivery is no longer the caller's: its message was given to somebody else.
    GONE = "GONE"
    #: It is due too soon.
    SOON = "SOON"
    #: No dispatcher lives.
    UNATTENDED = "UNATTENDED"
    #: A job of its id waits, and must not be replaced.
    EXISTS = "EXISTS"
    #: Nobody can tell which queue it came from.
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True)
class Move:
    """Another due time for one waiting job.

    Attributes:
        at_us, in_us: as of a :class:`Put`.
        if_due_us: only while it is due then.
        if_body: only while it has this body.
    """

    id: str | bytes
    at_us: int | None = None
    in_us: int | None = None
    if_due_us: int | None = None
    if_body: bytes | None = None


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
        state: "waiting"; or "reserved" or "dead", of a job that waited and was due then.
    """

    topic: str
    id: bytes
    due_us: int
    body: bytes | None
    step: int = 0
    first_us: int | None = None
    grace_us: int | None = None
    state: str = "waiting"

    @property
    def place(self) -> Place:
        """Where it stands."""
        return Place(self.due_us, self.id)


class Reserved(NamedTuple):
    """One job under a lease.

    Attributes:
        due_us: when it was due, at first or since it came back.
        attempts: how often it was reserved, with this time; 1: the first.
        token: what its lease is known by. Whoever has it may ack, release or extend it.
    """

    topic: str
    id: bytes
    body: bytes
    due_us: int
    step: int
    attempts: int
    token: str


class Job(NamedTuple):
    """One job that was taken from a queue.

    Attributes:
        id: unique in its topic; bytes that are no UTF-8 stand in it as surrogates, as in names of files.
        body: as it was put.
        due: when it was due, at first or since it came back; aware, UTC.
        attempts: how often it was reserved, with this time; 1: the first.
        token: what its lease is known by; "" if it was pulled, and nobody will come back to it.
        shard: in which it is.
    """

    id: str
    body: bytes
    due: datetime
    attempts: int = 1
    token: str = ""
    shard: int = 0


class Dead(NamedTuple):
    """One job that was reserved as often as it may be, and never acked.

    Attributes:
        body: None if it is missing.
        died_us: when it was given up.
        due_us: when it was due for the last time.
        attempts: how often it was reserved.
        reason: why it came back for the last time.
    """

    topic: str
    id: bytes
    body: bytes | None
    died_us: int
    due_us: int
    step: int
    attempts: int
    reason: str

    @property
    def place(self) -> Place:
        """Where it stands among the dead: by the time of its death."""
        return Place(self.died_us, self.id)


def topic_named(name: bytes) -> str:
    """A topic, of its name in Redis. One that is no UTF-8, which other clients can make, is one like any other."""
    return name.decode(errors="surrogateescape")


@dataclass(frozen=True)
class Upcoming:
    """The topic that is due next: when (us), which, and where its jobs go (None if that is not known)."""

    due_us: int
    topic: str
    delivery: Delivery | None

    @classmethod
    def read(cls, due_us: int, topic: bytes, delivery: bytes) -> Upcoming | None:
        """From a script's reply; None if nothing waits."""
        return None if due_us < 0 else cls(due_us, topic_named(topic), Delivery.loads(delivery))


@dataclass(frozen=True)
class Reservation:
    """What one reserve did.

    Attributes:
        jobs: those that are reserved now, in the order in which they were due.
        dropped, orphans: jobs laid aside, being later than their grace; ids without a body.
        requeued, buried: jobs whose lease had run out: that wait again; that are dead.
        left: whether more of the topic may leave now, or more of its leases have run out.
        now_us: Redis's clock.
        next: what is due next, of all topics.
    """

    jobs: tuple[Reserved, ...]
    dropped: int
    orphans: int
    requeued: int
    buried: int
    left: bool
    now_us: int
    next: Upcoming | None


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
class DeadPage:
    """Some dead jobs of one topic.

    Attributes:
        left, end: as of a :class:`Page`.
    """

    jobs: tuple[Dead, ...]
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
        ready: messages on its ready lists; None if they are not in this Redis.
        reserved, dead: jobs under a lease; and given up.
        moved, cancelled, dropped, orphans, requeued, buried: in total, since the first job; buried: that were given up.
    """

    waiting: int
    due: int
    head_us: int | None
    held_us: float | None
    ready: int | None
    reserved: int
    dead: int
    moved: int
    cancelled: int
    dropped: int
    orphans: int
    requeued: int
    buried: int

    @property
    def paused(self) -> bool:
        """Whether nothing leaves until somebody says so."""
        return self.held_us == float("inf")

    def overdue_us(self, now_us: int) -> int:
        """Since when the first of them is due; 0 if none is."""
        return 0 if self.head_us is None else max(now_us - self.head_us, 0)
