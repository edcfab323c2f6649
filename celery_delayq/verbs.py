"""What each verb sends, and what its answer means. No I/O, so that every kind of client says the same.

Only the verbs that more than one kind of client has; those of the dispatcher and of long operations are the store's.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Generic, TypeVar

import redis

from .delivery import Delivery
from .errors import AlreadyScheduled, Outdated, Unattended
from .job import Dead, DeadPage, Move, Moved, Needle, OnConflict, Origin, Page, Place, Put, Reserved, Upcoming, Waiting
from .keys import VERSION, Keys
from .scripts import Begun, Prepared, Value, script

T = TypeVar("T")

#: What a lease is known by: the id of its job, and its token.
Lease = tuple[bytes, str]

#: So many random bytes begin the tokens of one call, and make each ticket longer than 64 bytes: a hash of shorter ones
#: is a list at first, which Redis searches from its start.
NONCE = 20

#: Of a reason so many characters are kept with a dead job.
REASON = 1000

#: A page of jobs ends after the portion that passes so many bytes, so that no reply is huge.
PAGE_BYTES = 4 * 1024 * 1024


def or_empty(value: int | float | None) -> Value:
    """As scripts take an argument that may be missing."""
    return "" if value is None else value


def name_of(id: str | bytes) -> bytes:
    """An id as Redis holds it."""
    return id if isinstance(id, bytes) else id.encode(errors="surrogateescape")


def digest_of(body: bytes | None) -> str:
    """As scripts take a body that they shall compare."""
    return "" if body is None else hashlib.sha1(body, usedforsecurity=False).hexdigest()


@dataclass  # not frozen: that takes three times as long to make
class Call(Generic[T]):
    """One call of a script.

    Attributes:
        prepared: the script, with what many calls have in common.
        args: the rest of its arguments.
        read: makes the result of the reply, or raises what that means.
        again: what to send in place of *prepared* once nobody knows whether it has arrived; None: the same.
    """

    prepared: Prepared
    args: Sequence[Value]
    read: Callable[[Any], T]
    again: Prepared | None = None

    def __call__(self, client: redis.Redis) -> T:
        """Make it; raises what :class:`~celery_delayq.scripts.Script` does."""
        return self.read(self.prepared(client, self.args, self.again))

    def by_words(self, client: Any) -> T:
        """Make it on a client that is not one server's, but a cluster's."""
        return self.read(self.prepared.by_words(client, self.args))

    def begin(self, client: redis.Redis) -> Begun[T]:
        """Send it now, and read the reply later."""
        return self.prepared.begin(client, self.args, self.read)


@dataclass(frozen=True)
class Taken:
    """What a reserve has taken.

    Attributes:
        jobs: those that are reserved now, in the order in which they were due.
        dropped, orphans: jobs laid aside, being later than their grace; ids without a body.
        expired: whether leases of the topic have run out.
        left: whether more of the topic may leave now.
        now_us: Redis's clock.
        next: what is due next, of all topics.
    """

    jobs: tuple[Reserved, ...]
    dropped: int
    orphans: int
    expired: bool
    left: bool
    now_us: int
    next: Upcoming | None


@dataclass(frozen=True)
class Ended:
    """What a requeue has done with leases that had run out.

    Attributes:
        requeued, buried: jobs that wait again; that are dead.
        left, now_us, next: as of :class:`Taken`; left also if more leases have run out.
    """

    requeued: int
    buried: int
    left: bool
    now_us: int
    next: Upcoming | None


class Verbs:
    """The calls for one key space. For what they mean, see the methods of the same names of the store.

    Args:
        leases: jobs of this key space are reserved.
    """

    def __init__(self, keys: Keys, *, leases: bool) -> None:
        self._keys = keys
        self._leases = leases
        # What many calls have in common is packed once.
        self._put = lru_cache(maxsize=256)(self._prepare_put)
        self._reserve = lru_cache(maxsize=256)(self._prepare_reserve)
        self._ack = lru_cache(maxsize=256)(self._prepare_ack)

    def put(
        self,
        jobs: Sequence[Put],
        deliveries: dict[str, Delivery],
        on_conflict: OnConflict,
        origin: Origin,
        silence_us: int | None = None,
        *,
        refuses: bool = False,
        now_us: int | None = None,
    ) -> Call[int]:
        """How many were written; raises AlreadyScheduled and Unattended.

        Args:
            silence_us: no dispatcher lives if none has given a sign of life for longer; None: one does.
            refuses: to put nothing then.
        """
        names = dict.fromkeys(job.topic for job in jobs)
        topics = {topic: b"%d" % number for number, topic in enumerate(names, start=1)}
        ways = tuple((topic, deliveries[topic]) for topic in topics)
        args: list[Value] = []
        for job in jobs:
            limit = "" if job.max_wait_us is None else job.max_wait_us
            grace = "" if job.grace_us is None else job.grace_us
            args += topics[job.topic], job.id, job.due, job.step, limit, grace, job.body
        prepared = self._put(ways, on_conflict, origin, silence_us, refuses, now_us)
        retried = prepared if origin is not Origin.NEW else None
        if retried is None:
            retried = self._put(ways, on_conflict, Origin.RETRIED, silence_us, refuses, now_us)
        return Call(prepared, args, read_put, retried)

    def _prepare_put(
        self,
        ways: tuple[tuple[str, Delivery], ...],
        on_conflict: OnConflict,
        origin: Origin,
        silence_us: int | None,
        refuses: bool,
        now_us: int | None,
    ) -> Prepared:
        """What all puts to the same topics have in common."""
        keys = [self._keys.index, self._keys.topics, self._keys.holds, self._keys.beat]
        args: list[Value] = [self._keys.wake, or_empty(now_us), on_conflict.value, origin.value]
        args += or_empty(silence_us), "refuse" if refuses else "store", len(ways)
        for topic, delivery in ways:
            keys += self._keys.of_topic(topic)
            args += topic, delivery.dumps()
        return Prepared(script("put"), keys + self.lease_keys(ways), args)

    def lease_keys(self, ways: tuple[tuple[str, Delivery], ...]) -> list[str]:
        """What a script that puts takes besides, where there are leases."""
        if not self._leases:
            return []
        return [self._keys.expiries, *(key for topic, _ in ways for key in self._keys.of_leases(topic))]

    def of_topic(self, topic: str) -> list[str]:
        """The keys of a topic's waiting jobs; their attempts last, where there are leases."""
        keys = [*self._keys.of_topic(topic)]
        return [*keys, self._keys.attempts(topic)] if self._leases else keys

    def delete(
        self,
        topic: str,
        ids: Sequence[str | bytes],
        *,
        bodies: Sequence[bytes] | None = None,
        lease_us: int | None = None,
        reserved: bool = False,
        now_us: int | None = None,
    ) -> Call[list[bool]]:
        """For each id, whether it is gone now."""
        keys = self._keys
        names = [keys.index, keys.topics, keys.holds, keys.rates, keys.totals, keys.aside, keys.remains]
        names += self.of_topic(topic)
        if reserved:
            _, *of_leases = keys.of_leases(topic)
            names += [keys.expiries, keys.ways, *of_leases, keys.dead(topic)]
        args: list[Value] = [or_empty(now_us), topic, or_empty(lease_us)]
        for number, id in enumerate(ids):
            args += name_of(id), digest_of(bodies[number] if bodies is not None else None)
        return Call(Prepared(script("delete"), names, args), (), _truths)

    def move(
        self,
        topic: str,
        moves: Sequence[Move],
        *,
        progress: tuple[str, str, int] | None = None,
        now_us: int | None = None,
    ) -> Call[list[Moved]]:
        """For each job, what became of its move."""
        operation, text, keep_ms = progress or ("", "", 0)
        keys = self._keys
        names = [keys.index, keys.holds, keys.schedule(topic), keys.jobs(topic), keys.ties(topic)]
        written = text.encode(errors="surrogateescape")  # it may name an id of any bytes
        args: list[Value] = [keys.wake, or_empty(now_us), topic, written, keep_ms]
        for move in moves:
            due = Put(topic, move.id, b"", move.at_us, move.in_us).due
            args += name_of(move.id), due, or_empty(move.if_due_us), digest_of(move.if_body)
        return Call(Prepared(script("move"), [*names, keys.journal(operation)], args), (), _read_moved)

    def reserve(
        self,
        topic: str,
        limit: int,
        lease_us: int,
        *,
        until_us: int | None = None,
        now_us: int | None = None,
        nonce: str | None = None,
    ) -> Call[Taken]:
        """What was taken; if it says that leases have expired, a :meth:`requeue` ought to follow."""
        nonce = nonce or secrets.token_hex(NONCE)
        return Call(
            self._reserve(topic, limit, lease_us, now_us), (nonce, or_empty(until_us)), partial(_read_taken, topic)
        )

    def _prepare_reserve(self, topic: str, limit: int, lease_us: int, now_us: int | None) -> Prepared:
        keys = self._keys
        names = [keys.index, keys.topics, keys.holds, keys.rates, keys.totals, keys.aside, keys.remains, keys.expiries]
        names += [keys.ways, *keys.of_topic(topic), *keys.of_leases(topic)]
        return Prepared(script("reserve"), names, [or_empty(now_us), topic, limit, lease_us])

    def ack(self, topic: str, leases: Sequence[Lease]) -> Call[list[bool]]:
        """For each: False if it was lost."""
        return Call(self._ack(topic), _words(leases), partial(_read_acked, len(leases)))

    def _prepare_ack(self, topic: str) -> Prepared:
        keys = self._keys
        _, *of_leases = keys.of_leases(topic)
        return Prepared(script("ack"), [keys.totals, keys.expiries, keys.ways, *of_leases, keys.dead(topic)], [topic])

    def extend(
        self, topic: str, leases: Sequence[Lease], lease_us: int, *, now_us: int | None = None
    ) -> Call[list[bool]]:
        """For each: False if it was lost."""
        keys = self._keys
        args: list[Value] = [or_empty(now_us), topic, lease_us, *_words(leases)]
        names = [keys.expiries, keys.leases(topic), keys.tickets(topic)]
        return Call(Prepared(script("extend"), names, args), (), _truths)

    def release(
        self,
        topic: str,
        leases: Sequence[Lease],
        *,
        at_us: int | None = None,
        in_us: int | None = None,
        max_attempts: int | None = None,
        reason: str = "",
        counted: bool = True,
        now_us: int | None = None,
    ) -> Call[list[bool]]:
        """For each: False if it was lost."""
        due = Put(topic, "due", b"", at_us, 0 if at_us is None and in_us is None else in_us).due
        args: list[Value] = [self._keys.wake, or_empty(now_us), topic, due, or_empty(max_attempts)]
        args += reason[:REASON].encode(errors="backslashreplace"), int(counted)
        args += _words(leases)
        return Call(Prepared(script("release"), self._end_keys(topic), args), (), _truths)

    def requeue(
        self,
        topic: str,
        limit: int,
        *,
        max_attempts: int | None = None,
        backoff_us: int = 1_000_000,
        now_us: int | None = None,
    ) -> Call[Ended]:
        """What became of jobs whose leases had run out."""
        args = [self._keys.wake, or_empty(now_us), topic, limit, backoff_us, or_empty(max_attempts)]
        return Call(Prepared(script("requeue"), self._end_keys(topic), args), (), _read_ended)

    def _end_keys(self, topic: str) -> list[str]:
        """What a script that ends leases takes."""
        keys = self._keys
        names = [keys.index, keys.topics, keys.holds, keys.totals, keys.expiries, keys.ways]
        return [*names, *keys.of_topic(topic), *keys.of_leases(topic), *keys.of_dead(topic)]

    def pull(self, topic: str, limit: int, *, now_us: int | None = None) -> Call[list[Waiting]]:
        """The jobs that were taken, once and for all."""
        keys = self._keys
        names = [keys.index, keys.topics, keys.holds, keys.rates, keys.totals, keys.aside, keys.remains]
        names += [*keys.of_topic(topic), keys.attempts(topic)]
        return Call(Prepared(script("pull"), names, [or_empty(now_us), topic, limit]), (), partial(_read_pulled, topic))

    def page(
        self,
        topic: str,
        *,
        start_us: int | None = None,
        stop_us: int | None = None,
        behind: Place | None = None,
        limit: int = 1000,
        backwards: bool = False,
        needles: Sequence[Needle] = (),
    ) -> Call[Page]:
        """Some waiting jobs."""
        schedule, jobs, _, *sparse = self._keys.of_topic(topic)
        order = "desc" if backwards else "asc"
        args = _page_args(order, or_empty(start_us), or_empty(stop_us), behind, limit)
        args += [word for needle in needles for word in needle]
        return Call(Prepared(script("page"), [schedule, jobs, *sparse], args), (), partial(_read_page, topic))

    def dead(self, topic: str, *, behind: Place | None = None, limit: int = 1000) -> Call[DeadPage]:
        """Some dead jobs."""
        args = _page_args("asc", "", "", behind, limit)
        return Call(Prepared(script("page"), self._keys.of_dead(topic), args), (), partial(_read_dead_page, topic))

    def revive(self, topic: str, ids: Sequence[str | bytes], *, now_us: int | None = None) -> Call[list[bool]]:
        """For each id, whether it was dead and waits now."""
        keys = self._keys
        schedule, jobs, ties, steps, firsts, _ = keys.of_topic(topic)
        names = [keys.index, keys.topics, keys.holds, keys.ways, schedule, jobs, ties, steps, firsts]
        names += [keys.tickets(topic), *keys.of_dead(topic)]
        args = [keys.wake, or_empty(now_us), topic, *map(name_of, ids)]
        return Call(Prepared(script("revive"), names, args), (), _truths)

    def version(self, *, marks: bool = True) -> Call[int]:
        """The version of the key space, ours if it has none; raises Outdated."""
        prepared = Prepared(script("version"), [self._keys.version], [VERSION, "mark" if marks else "look"])
        return Call(prepared, (), partial(_read_version, self._keys.beginning.removesuffix(":")))

    def discard(self, topic: str, ids: Iterable[str | bytes]) -> Call[list[bool]]:
        """For each id, whether it was dead and is gone."""
        names = [self._keys.ways, self._keys.leases(topic), *self._keys.of_dead(topic)]
        return Call(Prepared(script("discard"), names, [topic, *map(name_of, ids)]), (), _truths)


def _words(leases: Sequence[Lease]) -> list[Value]:
    return [word for lease in leases for word in lease]


def _truths(reply: Any) -> list[bool]:
    return [bool(one) for one in reply]


def read_put(reply: Any) -> int:
    """How many jobs a put has written."""
    word, detail = reply[:2]
    if word == b"EXISTS":
        raise AlreadyScheduled(detail.decode(errors="surrogateescape"))
    if word == b"UNATTENDED":
        raise Unattended
    return int(detail)


def _read_version(place: str, reply: Any) -> int:
    word, version = reply
    if word == b"NEWER":
        raise Outdated(place, version, VERSION)
    return int(version)


def _read_moved(reply: Any) -> list[Moved]:
    return [Moved(word.decode()) for word in reply]


def _read_acked(count: int, reply: Any) -> list[bool]:
    lost = set(reply)
    return [number not in lost for number in range(1, count + 1)]


def _read_taken(topic: str, reply: Any) -> Taken:
    dropped, orphans, expired, left, now, next_us, next_topic, delivery, tickets, ids, bodies = reply
    if isinstance(ids, bytes):
        ids = ids.split(b"\n")
    jobs = []
    for ticket, id, body in zip(tickets.decode().splitlines(), ids, bodies, strict=True):
        token, attempts, due, step, _ = ticket.split(" ", 4)
        jobs.append(Reserved(topic, id, body, int(due), 0 if step == "-" else int(step), int(attempts), token))
    upcoming = Upcoming.read(next_us, next_topic, delivery)
    return Taken(tuple(jobs), dropped, orphans, bool(expired), bool(left), now, upcoming)


def _read_ended(reply: Any) -> Ended:
    requeued, buried, left, now, *upcoming = reply
    return Ended(requeued, buried, bool(left), now, Upcoming.read(*upcoming))


def _read_pulled(topic: str, reply: Any) -> list[Waiting]:
    _, _, _, _, pairs, bodies, steps = reply
    rows = zip(pairs[::2], pairs[1::2], bodies, steps or [None] * len(bodies), strict=True)
    return [Waiting(topic, id, int(due), body, int(step or 0)) for id, due, body, step in rows]


def _page_args(order: str, start: Value, stop: Value, behind: Place | None, limit: int) -> list[Value]:
    due_us, id = behind or ("", "")
    return [order, start, stop, due_us, id, limit, PAGE_BYTES]


def _read_page(topic: str, reply: Any) -> Page:
    left, end_us, end_id, pairs, bodies, *columns = reply
    if isinstance(pairs, bytes):
        pairs = pairs.split(b"\n")
    end = Place(int(float(end_us)), end_id) if end_id else None
    if not any(columns):  # as it mostly is
        plain = zip(pairs[::2], pairs[1::2], bodies, strict=True)
        return Page(tuple([Waiting(topic, id, int(float(due)), body) for id, due, body in plain]), left, end)
    absent: list[bytes | None] = [None] * len(bodies)
    rows = zip(pairs[::2], pairs[1::2], bodies, *(column or absent for column in columns), strict=True)
    return Page(tuple(read_waiting(topic, *row) for row in rows), left, end)


def read_waiting(topic: str, id: bytes, due: Any, body: bytes | None, step: Any, first: Any, grace: Any) -> Waiting:
    """From what Redis holds of a job."""
    return Waiting(
        topic,
        id,
        int(float(due)),
        body,
        int(step or 0),
        None if first is None else int(float(first)),
        None if grace is None else int(float(grace)),
    )


def _read_dead_page(topic: str, reply: Any) -> DeadPage:
    left, end_us, end_id, pairs, bodies, causes = reply
    if isinstance(pairs, bytes):
        pairs = pairs.split(b"\n")
    rows = zip(pairs[::2], pairs[1::2], bodies, causes or [None] * len(bodies), strict=True)
    end = Place(int(float(end_us)), end_id) if end_id else None
    return DeadPage(tuple(_read_dead(topic, *row) for row in rows), left, end)


def _read_dead(topic: str, id: bytes, died: bytes, body: bytes | None, cause: bytes | None) -> Dead:
    terms, _, reason = (cause or b"0 0 - - -").partition(b"\n")
    attempts, due_us, step, _, _ = read_terms(terms)
    return Dead(topic, id, body, int(float(died)), due_us, step, attempts, reason.decode(errors="replace"))


def read_terms(terms: bytes) -> tuple[int, int, int, int | None, int | None]:
    """Attempts, due, step, first and grace, as tickets and causes hold them."""
    attempts, due, step, first, grace = (None if word == b"-" else int(float(word)) for word in terms.split(b" "))
    return attempts or 0, due or 0, step or 0, first, grace
