"""What a queue of jobs does: which calls it makes, in which shards, and what becomes of the answers. No I/O.

Each operation is a generator: it yields what to ask, is sent the answer, or thrown what Redis or the connection has
against it, and returns its result. The queue of
:mod:`~celery_delayq.queue` runs it on redis-py, that of :mod:`~celery_delayq.asyncio` on redis.asyncio.

A queue has leases, and all its keys for itself: no dispatcher of Celery's ever sees its jobs. The number of its shards
can be raised while jobs wait, as :mod:`~celery_delayq.sharding` says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, NamedTuple, TypeVar

import redis

from .clock import SECOND_US, from_us, seconds_of
from .delivery import Delivery
from .errors import shortened
from .job import DeadPage, Job, Move, Moved, OnConflict, Origin, Page, Place, Put, Reserved
from .keys import Keys
from .scripts import Value
from .sharding import merged, shard_of
from .verbs import Call, Verbs, name_of

T = TypeVar("T")

#: The jobs of a queue go to whoever reserves them.
DELIVERY = Delivery.relayed()

#: A lease is this long (s) if nobody says otherwise.
LEASE = 60.0

#: So often a job is reserved if nobody says otherwise; then it is dead.
MAX_ATTEMPTS = 16

#: Who waits looks this often (s), even if nobody wakes him: a message on a channel can be lost with its connection.
POLL = 5.0

#: Leases that one call ends, extends, acks or releases at most, so that Redis is not busy with one caller for long.
PORTION = 1000


class Command(NamedTuple):
    """One command of Redis's own, that changes nothing or one key."""

    words: tuple[Value, ...]


class Ask(NamedTuple):
    """What to ask, and the shard that knows."""

    shard: int
    call: Call[Any] | Command


#: An operation: yields questions, is sent their answers, returns its result.
Steps = Generator[Ask, Any, T]


@dataclass(frozen=True)
class Batch:
    """What one look for due jobs has found.

    Attributes:
        jobs: those that are the caller's now.
        wait: seconds until there may be more; 0: at once.
    """

    jobs: list[Job]
    wait: float


@dataclass(frozen=True)
class QueueLoad:
    """What a queue holds.

    Attributes:
        waiting, due: jobs that wait; and how many of them are due.
        reserved, dead: jobs under a lease; and given up.
    """

    waiting: int
    due: int
    reserved: int
    dead: int


class QueueProtocol:
    """The operations of one queue.

    Args:
        topic: its name.
        prefix: first part of every key.
        shards: its jobs are spread over so many.
        database: number of the Redis database.
        max_attempts: a job that was reserved so often, and not acked, is dead; None: it comes back for ever.

    Raises:
        ValueError: the topic or the number of shards cannot be used.
    """

    def __init__(
        self, topic: str, prefix: str, shards: int, database: int = 0, max_attempts: int | None = MAX_ATTEMPTS
    ) -> None:
        if not topic or set(topic) & set("{}"):
            raise ValueError(f"a topic needs a name without braces, not {shortened(topic)}")
        if shards < 1:
            raise ValueError(f"shards must be 1 or more, not {shards}")
        if max_attempts is not None and max_attempts < 1:
            raise ValueError(f"max_attempts must be 1 or more, or None for no limit, not {max_attempts}")
        self.topic = topic
        self.max_attempts = max_attempts
        self._keys = partial(Keys, prefix, database=database, queue=topic)
        self._own = shards
        self._counts: tuple[int, ...] = ()  # the numbers of shards under which jobs may wait, the greatest first
        self._verbs: dict[int, Verbs] = {}
        self._turns = count()

    def keys(self, shard: int) -> Keys:
        """The keys of one shard."""
        return self._keys(shard=shard)

    @property
    def channels(self) -> list[str]:
        """Where puts announce a job that became the earliest of its shard."""
        return [self.keys(shard).wake for shard in range(self._shards)]

    @property
    def _shards(self) -> int:
        return max(self._counts, default=self._own)

    def _in(self, shard: int) -> Verbs:
        if shard not in self._verbs:
            self._verbs[shard] = Verbs(self.keys(shard), leases=True)
        return self._verbs[shard]

    def _open(self) -> Steps[None]:
        """Before the first call: see that we know this version of the keys, learn over how many shards jobs were ever
        spread, and let others know of ours.
        """
        if self._counts:
            return
        for shard in range(self._own):
            yield Ask(shard, self._in(shard).version())
        keys = self.keys(0)
        known = yield from self._known()
        if self._own > max(known, default=1):
            in_use = (keys.jobs(self.topic), keys.leases(self.topic), keys.dead(self.topic), keys.totals)
            if not known and (yield Ask(0, Command(("EXISTS", *in_use)))):
                yield Ask(0, Command(("ZADD", keys.shards, 1, "1")))
                known.append(1)
            yield Ask(0, Command(("ZADD", keys.shards, self._own, str(self._own))))
            known.append(self._own)
        self._counts = tuple(sorted(known or [1], reverse=True))

    def _known(self) -> Steps[list[int]]:
        found = yield Ask(0, Command(("ZRANGE", self.keys(0).shards, 0, -1)))
        return [int(number) for number in found]

    def _places(self, id: str | bytes) -> tuple[int, ...]:
        """The shards in which a job of that id may be; the first is where it belongs now."""
        name = name_of(id)
        return tuple(dict.fromkeys(shard_of(name, number) for number in self._counts))

    def put(self, jobs: Sequence[Put], on_conflict: OnConflict) -> Steps[int]:
        """Store *jobs*, those of one shard all or none; return how many were written."""
        yield from self._open()
        by_place: dict[int, list[Put]] = defaultdict(list)
        for place, some in (yield from self._sorted(jobs)).items():
            by_place[place] += some
        stored = 0
        for place, some in sorted(by_place.items()):
            call = self._in(place).put(some, {self.topic: DELIVERY}, on_conflict, Origin.NEW)
            stored += yield Ask(place, call)
        return stored

    def _sorted(self, jobs: Sequence[Put]) -> Steps[dict[int, list[Put]]]:
        """The shards that *jobs* go to: where their ids wait or are reserved, else where they belong."""
        if self._counts == (1,):
            return {0: list(jobs)}
        places = [self._places(job.id) for job in jobs]
        older: dict[int, set[bytes]] = defaultdict(set)
        for job, (_, *others) in zip(jobs, places, strict=True):
            for place in others:
                older[place].add(name_of(job.id))
        held: set[tuple[int, bytes]] = set()
        for place, names in older.items():
            some = list(names)
            scores = yield Ask(place, Command(("ZMSCORE", self.keys(place).schedule(self.topic), *some)))
            tickets = yield Ask(place, Command(("HMGET", self.keys(place).tickets(self.topic), *some)))
            both = zip(some, scores, tickets, strict=True)
            held.update((place, name) for name, score, ticket in both if score is not None or ticket is not None)
        by_place: dict[int, list[Put]] = defaultdict(list)
        for job, (newest, *others) in zip(jobs, places, strict=True):
            by_place[next((at for at in others if (at, name_of(job.id)) in held), newest)].append(job)
        return by_place

    def delete(self, id: str | bytes) -> Steps[bool]:
        """Take back a job that waits or is reserved."""
        yield from self._open()
        for place in self._places(id):
            [gone] = yield Ask(place, self._in(place).delete(self.topic, [id], reserved=True))
            if gone:
                return True
        return False

    def move(self, move: Move) -> Steps[bool]:
        """Give a waiting job another due time."""
        yield from self._open()
        for place in self._places(move.id):
            [word] = yield Ask(place, self._in(place).move(self.topic, [move]))
            if word is Moved.OK:
                return True
        return False

    def reserve(self, lease: float, limit: int) -> Steps[Batch]:
        """Take due jobs under a lease, and give back those whose lease has run out."""
        yield from self._open()
        lease_us, taken, waits, failure = _lease_us(lease), list[Job](), [POLL], None
        for shard in self._in_turn():
            try:
                found = yield Ask(shard, self._in(shard).reserve(self.topic, limit - len(taken), lease_us))
                taken += [_job(job, shard) for job in found.jobs]
                left, next = found.left, found.next
                if found.expired:
                    ended = yield Ask(shard, self._requeue(shard, PORTION))
                    left, next = left or ended.left, ended.next
            except redis.RedisError as error:  # one shard may be away; what the others gave must not be forgotten
                failure = error
                continue
            if left or next is not None:
                waits.append(0.0 if left or next is None else (next.due_us - found.now_us) / SECOND_US)
            if len(taken) >= limit:
                break
        if failure is not None and not taken:
            raise failure
        return Batch(taken, max(min(waits), 0.0))

    def rest(self) -> Steps[float]:
        """Seconds until a lease runs out, or the queue should be looked at in any case; for who has found nothing."""
        known = yield from self._known()
        if known:  # somebody may have raised it
            self._counts = tuple(sorted({*self._counts, *known}, reverse=True))
        seconds, microseconds = yield Ask(0, Command(("TIME",)))
        wait = POLL
        for shard in range(self._shards):
            runs_out = yield Ask(shard, Command(("ZSCORE", self.keys(shard).expiries, self.topic)))
            if runs_out is not None:
                wait = min(wait, float(runs_out) / SECOND_US - (int(seconds) + int(microseconds) / SECOND_US))
        return max(wait, 0.0)

    def pull(self, limit: int) -> Steps[Batch]:
        """Take due jobs once and for all."""
        yield from self._open()
        taken, failure = list[Job](), None
        for shard in self._in_turn():
            try:
                found = yield Ask(shard, self._in(shard).pull(self.topic, limit - len(taken)))
            except redis.RedisError as error:  # as above; these would be lost for good
                failure = error
                continue
            taken += [Job(text_of_id(job.id), job.body or b"", from_us(job.due_us), shard=shard) for job in found]
            if len(taken) >= limit:
                break
        if failure is not None and not taken:
            raise failure
        return Batch(taken, 0.0)

    def _in_turn(self) -> Iterable[int]:
        """All shards, beginning with another one each time."""
        first = next(self._turns)
        return ((first + number) % self._shards for number in range(self._shards))

    def ack(self, jobs: Sequence[Job]) -> Steps[list[Job]]:
        """Forget jobs that are done; return those whose lease was lost."""
        return self._with_leases(jobs, lambda shard, some: self._in(shard).ack(self.topic, some))

    def extend(self, jobs: Sequence[Job], lease: float) -> Steps[list[Job]]:
        """Let leases begin anew; return the jobs whose lease was lost."""
        lease_us = _lease_us(lease)
        return self._with_leases(jobs, lambda shard, some: self._in(shard).extend(self.topic, some, lease_us))

    def release(
        self, jobs: Sequence[Job], due: tuple[int | None, int | None], reason: str = "", *, counted: bool = True
    ) -> Steps[list[Job]]:
        """Give jobs back, due then (as :func:`due_of` says it); return those whose lease was lost."""
        at_us, in_us = due
        return self._with_leases(
            jobs,
            lambda shard, some: self._in(shard).release(
                self.topic,
                some,
                at_us=at_us,
                in_us=in_us,
                max_attempts=self.max_attempts,
                reason=reason,
                counted=counted,
            ),
        )

    def _with_leases(self, jobs: Sequence[Job], call: Any) -> Steps[list[Job]]:
        yield from self._open()
        by_shard: dict[int, list[Job]] = defaultdict(list)
        for job in jobs:
            by_shard[job.shard].append(job)
        lost = []
        for shard, all_of_it in by_shard.items():
            for start in range(0, len(all_of_it), PORTION):
                some = all_of_it[start : start + PORTION]
                ours = yield Ask(shard, call(shard, [(name_of(job.id), job.token) for job in some]))
                lost += [job for job, is_ours in zip(some, ours, strict=True) if not is_ours]
        return lost

    def requeue(self, limit: int) -> Steps[int]:
        """End at most *limit* leases that have run out; return how many that were."""
        yield from self._open()
        ended = 0
        for shard in self._in_turn():
            if ended < limit:
                done = yield Ask(shard, self._requeue(shard, limit - ended))
                ended += done.requeued + done.buried
        return ended

    def _requeue(self, shard: int, limit: int) -> Call[Any]:
        # Due at once: the lease was pause enough.
        return self._in(shard).requeue(self.topic, limit, max_attempts=self.max_attempts, backoff_us=0)

    def page(self, start_us: int | None, stop_us: int | None, behind: Place | None, limit: int = 1000) -> Steps[Page]:
        """Read some waiting jobs, due from *start_us* on and before *stop_us*, in the order in which they leave."""
        yield from self._open()
        pages: list[Page] = []
        for shard in range(self._shards):
            call = self._in(shard).page(self.topic, start_us=start_us, stop_us=stop_us, behind=behind, limit=limit)
            pages.append((yield Ask(shard, call)))
        return merged(pages, limit)

    def dead(self, behind: Place | None, limit: int = 1000) -> Steps[DeadPage]:
        """Read some dead jobs, the longest dead first."""
        yield from self._open()
        pages: list[DeadPage] = []
        for shard in range(self._shards):
            pages.append((yield Ask(shard, self._in(shard).dead(self.topic, behind=behind, limit=limit))))
        return merged(pages, limit)

    def revive(self, ids: Sequence[str | bytes]) -> Steps[int]:
        """Let dead jobs wait again; return how many that were."""
        yield from self._open()
        revived = 0
        for shard, some in self._routed(ids):
            revived += sum((yield Ask(shard, self._in(shard).revive(self.topic, some))))
        return revived

    def discard(self, ids: Sequence[str | bytes]) -> Steps[int]:
        """Throw dead jobs away; return how many that were."""
        yield from self._open()
        gone = 0
        for shard, some in self._routed(ids):
            gone += sum((yield Ask(shard, self._in(shard).discard(self.topic, some))))
        return gone

    def _routed(self, ids: Sequence[str | bytes]) -> Iterable[tuple[int, list[str | bytes]]]:
        by_place: dict[int, list[str | bytes]] = defaultdict(list)
        for id in ids:
            for place in self._places(id):
                by_place[place].append(id)
        return sorted(by_place.items())

    def count(self) -> Steps[int]:
        """How many jobs wait."""
        yield from self._open()
        waiting = 0
        for shard in range(self._shards):
            waiting += yield Ask(shard, Command(("ZCARD", self.keys(shard).schedule(self.topic))))
        return waiting

    def load(self) -> Steps[QueueLoad]:
        """Count what the queue holds."""
        yield from self._open()
        seconds, microseconds = yield Ask(0, Command(("TIME",)))
        now_us = int(seconds) * SECOND_US + int(microseconds)
        waiting = due = reserved = dead = 0
        for shard in range(self._shards):
            keys = self.keys(shard)
            waiting += yield Ask(shard, Command(("ZCARD", keys.schedule(self.topic))))
            due += yield Ask(shard, Command(("ZCOUNT", keys.schedule(self.topic), "-inf", now_us)))
            reserved += yield Ask(shard, Command(("ZCARD", keys.leases(self.topic))))
            dead += yield Ask(shard, Command(("ZCARD", keys.dead(self.topic))))
        return QueueLoad(waiting, due, reserved, dead)


def _lease_us(lease: float) -> int:
    lease_us = round(seconds_of(lease, "lease") * SECOND_US)
    if lease_us < 1:
        raise ValueError(f"a lease must be more than 0 seconds, not {lease!r}")
    return lease_us


def text_of_id(name: bytes) -> str:
    """An id as jobs have it; what is no UTF-8 stands in it as surrogates."""
    return name.decode(errors="surrogateescape")


def _job(job: Reserved, shard: int) -> Job:
    return Job(text_of_id(job.id), job.body, from_us(job.due_us), job.attempts, job.token, shard)
