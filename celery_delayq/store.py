"""The store: jobs waiting in Redis. The only module that sends commands to our keys.

A method for each verb, each one script call; the states and moves stand in the headers of the Lua files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Protocol

import redis

from .clock import LATEST_US
from .delivery import Delivery
from .errors import AlreadyScheduled, shortened
from .keys import Keys
from .scripts import Prepared, Value, script


class Closable(Protocol):
    """Whatever has connections."""

    def close(self) -> None: ...


class OnConflict(str, Enum):
    """What a put does when a job of the same id waits already."""

    #: Raise :class:`~celery_delayq.errors.AlreadyScheduled`.
    ERROR = "error"
    #: Leave the one that waits.
    KEEP = "keep"
    #: Overwrite it.
    REPLACE = "replace"


@dataclass(frozen=True)
class Put:
    """One job to be stored.

    Attributes:
        id: unique in its topic; 1 byte or more.
        body: handed over as it is.
        at_us: due, in microseconds since the epoch; or
        in_us: due so many microseconds from now on Redis's clock. Exactly one of the two.
        step: priority step; 0 for the plain ready list.
        max_wait_us: due at the latest so long after the first put of this id, or None.
    """

    topic: str
    id: str | bytes
    body: bytes
    at_us: int | None = None
    in_us: int | None = None
    step: int = 0
    max_wait_us: int | None = None

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


class Moved(Enum):
    """What became of a move."""

    OK = "OK"
    #: It does not wait (any more).
    MISSING = "MISSING"
    #: It waits, but is not due when the caller thought.
    CHANGED = "CHANGED"


@dataclass(frozen=True)
class Upcoming:
    """The topic that is due next: when (us), which, and where its jobs go (None if that is not known)."""

    due_us: int
    topic: str
    delivery: Delivery | None

    @classmethod
    def read(cls, due_us: int, topic: bytes, delivery: bytes) -> Upcoming | None:
        """From a script's reply; None if nothing waits."""
        return None if due_us < 0 else cls(due_us, topic.decode(), Delivery.loads(delivery) if delivery else None)


@dataclass(frozen=True)
class Dispatched:
    """What one dispatch did.

    Attributes:
        moved, orphans: jobs handed over; ids dropped for want of a body.
        left: whether more of the topic is due.
        now_us: Redis's clock.
        next: what is due next, of all topics.
    """

    moved: int
    orphans: int
    left: bool
    now_us: int
    next: Upcoming | None


@dataclass(frozen=True)
class Tick:
    """What is due at one moment.

    Attributes:
        now_us: Redis's clock.
        next: the first topic that is not due yet, or not named here.
        due: the topics that are due, the longest overdue first.
    """

    now_us: int
    next: Upcoming | None
    due: tuple[Upcoming, ...]


def _now(now_us: int | None) -> Value:
    return "" if now_us is None else now_us


class Store:
    """Jobs in one Redis, under one prefix.

    Every method takes *now_us* in place of Redis's own clock, for tests; and raises ``redis.RedisError`` when Redis
    cannot be reached, :class:`~celery_delayq.errors.DelayQError` when one of our keys holds something else.
    """

    def __init__(self, client: redis.Redis, keys: Keys, owner: Closable | None = None) -> None:
        """Use *client*; *owner* is what its connections belong to, and is closed with the store."""
        self.client = client
        self.keys = keys
        self._owner = owner or client
        # What many calls have in common is packed once; both lie on the path from a due time to a started task.
        self._put = lru_cache(maxsize=256)(self._prepare_put)
        self._dispatch = lru_cache(maxsize=256)(self._prepare_dispatch)

    def close(self) -> None:
        """Close the connections."""
        self._owner.close()

    def _prepare_put(
        self, ways: tuple[tuple[str, Delivery], ...], on_conflict: OnConflict, retried: bool, now_us: int | None
    ) -> Prepared:
        """What all puts to the same topics have in common."""
        keys = [self.keys.index, self.keys.topics]
        args: list[Value] = [self.keys.wake, _now(now_us), on_conflict.value, "1" if retried else "0", len(ways)]
        for topic, delivery in ways:
            keys += self.keys.of_topic(topic)
            args += topic, delivery.dumps()
        return Prepared(script("put"), keys, args)

    def put(
        self,
        jobs: Sequence[Put],
        deliveries: dict[str, Delivery],
        on_conflict: OnConflict = OnConflict.ERROR,
        *,
        retried: bool = False,
        now_us: int | None = None,
    ) -> int:
        """Store all of *jobs*, or none.

        Args:
            deliveries: where the jobs of each topic named by *jobs* go when due.
            retried: the same body under the same id is this very put, sent again, and no conflict.

        Returns:
            How many were written; kept ones and retried ones are not counted.

        Raises:
            AlreadyScheduled: a job of that id waits and *on_conflict* is ``ERROR``. Nothing was written.
        """
        topics = {topic: number for number, topic in enumerate(dict.fromkeys(job.topic for job in jobs), start=1)}
        ways = tuple((topic, deliveries[topic]) for topic in topics)
        args: list[Value] = []
        for job in jobs:
            limit = "" if job.max_wait_us is None else job.max_wait_us
            args += topics[job.topic], job.id, job.due, job.step, limit, job.body
        word, detail = self._put(ways, on_conflict, retried, now_us)(self.client, args)
        if word == b"EXISTS":
            raise AlreadyScheduled(detail.decode(errors="replace"))
        return int(detail)

    def delete(self, topic: str, ids: Iterable[str | bytes]) -> list[bool]:
        """Take back waiting jobs. For each id: True if it waited and is gone now."""
        ids = list(ids)
        if not ids:
            return []
        keys = [self.keys.index, self.keys.topics, *self.keys.of_topic(topic)]
        return [bool(gone) for gone in script("delete")(self.client, keys, [topic, *ids])]

    def move(
        self,
        topic: str,
        id: str | bytes,
        *,
        at_us: int | None = None,
        in_us: int | None = None,
        if_due_us: int | None = None,
        now_us: int | None = None,
    ) -> Moved:
        """Make a waiting job due *at_us*, or *in_us* from now; with *if_due_us* only while it is due then."""
        due = Put(topic, id, b"", at_us, in_us).due
        expected = "" if if_due_us is None else if_due_us
        keys = [self.keys.index, self.keys.schedule(topic), self.keys.ties(topic)]
        reply = script("move")(self.client, keys, [self.keys.wake, _now(now_us), topic, id, due, expected])
        return Moved(reply[0].decode())

    def dispatch(
        self,
        topic: str,
        delivery: Delivery,
        limit: int,
        position: str = "back",
        *,
        now_us: int | None = None,
    ) -> Dispatched:
        """Move at most *limit* due jobs of *topic* to its ready lists."""
        reply = self._dispatch(topic, delivery, limit, position, now_us)(self.client, ())
        moved, orphans, left, now, *upcoming = reply
        return Dispatched(moved, orphans, bool(left), now, Upcoming.read(*upcoming))

    def _prepare_dispatch(
        self, topic: str, delivery: Delivery, limit: int, position: str, now_us: int | None
    ) -> Prepared:
        keys = [self.keys.index, self.keys.topics, *self.keys.of_topic(topic), *delivery.lists]
        expires = "" if delivery.expires_ms is None else delivery.expires_ms
        return Prepared(script("dispatch"), keys, [_now(now_us), topic, limit, position, expires, *delivery.steps])

    def tick(self, limit: int = 100, *, now_us: int | None = None) -> Tick:
        """Say which topics have due jobs, *limit* at most, and when to look again."""
        args = [_now(now_us), limit]
        now, next_us, topic, delivery, *due = script("tick")(self.client, [self.keys.index, self.keys.topics], args)
        found = [Upcoming.read(now, *pair) for pair in zip(due[::2], due[1::2], strict=True)]
        return Tick(now, Upcoming.read(next_us, topic, delivery), tuple(one for one in found if one))
