"""Leases on jobs, and what becomes of those that nobody acks: the store, for whoever hands jobs over himself.

A reserved job does not wait. It is acked, released, or comes back when its lease runs out; after too many attempts it
is dead, until a person revives or discards it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import redis

from .job import Dead, DeadPage, Place, Put, Reservation, Reserved, Upcoming, Waiting
from .keys import Keys
from .scripts import Packed, Prepared, Value, packed, script

#: Leases that one reserve ends at most before it goes on.
ENDED = 250

#: So many random bytes begin the tokens of one call, and make each ticket longer than 64 bytes: a hash of shorter ones
#: is a list at first, which Redis searches from its start.
NONCE = 20

#: Of a reason so many characters are kept with a dead job.
REASON = 1000

#: A page of dead jobs ends after the portion that passes so many bytes.
PAGE_BYTES = 4 * 1024 * 1024


def or_empty(value: int | float | None) -> Value:
    """As scripts take an argument that may be missing."""
    return "" if value is None else value


class Leasing:
    """The part of the store that reserves. For *now_us*, and for what every method raises, see the store.

    A token holds until its job is acked, released, requeued, or put anew; also beyond the end of the lease, as long as
    nobody has taken the job back. Whoever comes with an old one is told so, and has changed nothing.
    """

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self.client = client
        self.keys = keys
        self._redis: Any = client  # redis-py's types leave open what a client that does not decode answers
        # What many calls have in common is packed once.
        self._reserve = lru_cache(maxsize=256)(self._prepare_reserve)
        self._ack = lru_cache(maxsize=256)(self._prepare_ack)

    def reserve(
        self,
        topic: str,
        limit: int,
        lease_us: int,
        *,
        max_attempts: int | None = None,
        backoff_us: int = 1_000_000,
        until_us: int | None = None,
        now_us: int | None = None,
        nonce: str | None = None,
    ) -> Reservation:
        """Take at most *limit* due jobs of *topic* under a lease, and give back those whose lease has run out.

        A process that dies over it has lost nothing: what it took comes back when the lease is over.

        Args:
            max_attempts, backoff_us: as of :meth:`requeue`.
            until_us: take also what becomes due by then, whether or not the topic is paused or held back, and however
                late: to give it all back.
            nonce: letters and digits that nobody can guess, for tests; the tokens begin with it.
        """
        nonce = nonce or secrets.token_hex(NONCE)
        reply = self._reserve(topic, limit, lease_us, now_us)(self.client, [nonce, or_empty(until_us)])
        dropped, orphans, expired, left, now, next_us, next_topic, delivery, *columns = reply
        jobs = _read_reserved(topic, *columns)
        requeued = buried = 0
        if expired:
            ended = self._requeue(topic, min(limit, ENDED), backoff_us, max_attempts, now_us)
            requeued, buried, more, _, next_us, next_topic, delivery = ended
            left = left or more
        upcoming = Upcoming.read(next_us, next_topic, delivery)
        return Reservation(jobs, dropped, orphans, requeued, buried, bool(left), now, upcoming)

    def _prepare_reserve(self, topic: str, limit: int, lease_us: int, now_us: int | None) -> Prepared:
        keys = self.keys
        names = [keys.index, keys.topics, keys.holds, keys.rates, keys.totals, keys.aside, keys.remains, keys.expiries]
        names += [keys.ways, *keys.of_topic(topic), *keys.of_leases(topic)]
        return Prepared(script("reserve"), names, [or_empty(now_us), topic, limit, lease_us])

    def ack(self, topic: str, jobs: Sequence[Reserved]) -> list[bool]:
        """The jobs are handed over: forget them. For each: False if its lease was lost, and nothing was touched."""
        if not jobs:
            return []
        words = [packed(word) for job in jobs for word in (job.id, job.token.encode())]
        lost = set(self._ack(topic)(self.client, Packed(len(words), b"".join(words))))
        return [number not in lost for number in range(1, len(jobs) + 1)]

    def _prepare_ack(self, topic: str) -> Prepared:
        keys = self.keys
        _, *of_leases = keys.of_leases(topic)
        return Prepared(script("ack"), [keys.totals, keys.expiries, keys.ways, *of_leases, keys.dead(topic)], [topic])

    def extend(self, topic: str, jobs: Sequence[Reserved], lease_us: int, *, now_us: int | None = None) -> list[bool]:
        """Let the leases end *lease_us* from now. For each job: False if its lease was lost."""
        if not jobs:
            return []
        keys = self.keys
        args: list[Value] = [or_empty(now_us), topic, lease_us]
        args += [word for job in jobs for word in (job.id, job.token)]
        names = [keys.expiries, keys.leases(topic), keys.tickets(topic)]
        return [bool(done) for done in script("extend")(self.client, names, args)]

    def release(
        self,
        topic: str,
        jobs: Sequence[Reserved],
        *,
        at_us: int | None = None,
        in_us: int | None = None,
        max_attempts: int | None = None,
        reason: str = "",
        counted: bool = True,
        now_us: int | None = None,
    ) -> list[bool]:
        """Give the jobs back: they wait again, or are dead if they were reserved *max_attempts* times. For each: False
        if its lease was lost, and nothing was touched.

        Args:
            at_us, in_us: due then, as of a :class:`~celery_delayq.job.Put`; neither: now. One with a grace comes back
                by the end of that.
            reason: why; kept with a dead job.
            counted: whether this was an attempt; not if nobody could be reached.
        """
        if not jobs:
            return []
        due = Put(topic, "due", b"", at_us, 0 if at_us is None and in_us is None else in_us).due
        args: list[Value] = [self.keys.wake, or_empty(now_us), topic, due, or_empty(max_attempts), reason[:REASON]]
        args.append(int(counted))
        args += [word for job in jobs for word in (job.id, job.token)]
        return [bool(done) for done in script("release")(self.client, self._end_keys(topic), args)]

    def requeue(
        self,
        topic: str,
        limit: int,
        *,
        max_attempts: int | None = None,
        backoff_us: int = 1_000_000,
        now_us: int | None = None,
    ) -> int:
        """End at most *limit* leases of *topic* that have run out; return how many that were. Whoever calls
        :meth:`reserve` need not.

        Args:
            max_attempts: jobs that were reserved so often are dead then; None: none is, the others wait again.
            backoff_us: due so long from now after the first attempt, twice as long after each further one, but 60 s
                at most.
        """
        requeued, buried, *_ = self._requeue(topic, limit, backoff_us, max_attempts, now_us)
        return int(requeued + buried)

    def _requeue(self, topic: str, limit: int, backoff_us: int, max_attempts: int | None, now_us: int | None) -> Any:
        args = [self.keys.wake, or_empty(now_us), topic, limit, backoff_us, or_empty(max_attempts)]
        return script("requeue")(self.client, self._end_keys(topic), args)

    def _end_keys(self, topic: str) -> list[str]:
        """What a script that ends leases takes."""
        keys = self.keys
        names = [keys.index, keys.topics, keys.holds, keys.totals, keys.expiries, keys.ways]
        return [*names, *keys.of_topic(topic), *keys.of_leases(topic), *keys.of_dead(topic)]

    def pull(self, topic: str, limit: int, *, now_us: int | None = None) -> list[Waiting]:
        """Take at most *limit* due jobs of *topic*, once and for all. Whoever dies with them has lost them."""
        keys = self.keys
        names = [keys.index, keys.topics, keys.holds, keys.rates, keys.totals, keys.aside, keys.remains]
        names += [*keys.of_topic(topic), keys.attempts(topic)]
        reply = script("pull")(self.client, names, [or_empty(now_us), topic, limit])
        _, _, _, _, pairs, bodies, steps = reply
        rows = zip(pairs[::2], pairs[1::2], bodies, steps or [None] * len(bodies), strict=True)
        return [Waiting(topic, id, int(due), body, int(step or 0)) for id, due, body, step in rows]

    def dead(self, topic: str, *, behind: Place | None = None, limit: int = 1000) -> DeadPage:
        """Read at most *limit* dead jobs of *topic*, the longest dead first.

        Args:
            behind: only what comes behind this place: the end of the page before.
        """
        died_us, id = behind or ("", "")
        args: list[Value] = ["asc", "", "", died_us, id, limit, PAGE_BYTES]
        left, end_us, end_id, pairs, bodies, causes = script("page")(self.client, self.keys.of_dead(topic), args)
        if isinstance(pairs, bytes):
            pairs = pairs.split(b"\n")
        rows = zip(pairs[::2], pairs[1::2], bodies, causes or [None] * len(bodies), strict=True)
        end = Place(int(float(end_us)), end_id) if end_id else None
        return DeadPage(tuple(_read_dead(topic, *row) for row in rows), left, end)

    def revive(self, topic: str, ids: Iterable[str | bytes], *, now_us: int | None = None) -> list[bool]:
        """Let dead jobs wait again, due now, as if they had never been reserved; their grace is over. For each id:
        False if it is not dead, or has been put anew and waits or is reserved.
        """
        ids = list(ids)
        keys = self.keys
        schedule, jobs, ties, steps, firsts, _ = keys.of_topic(topic)
        names = [keys.index, keys.topics, keys.holds, keys.ways, schedule, jobs, ties, steps, firsts]
        names += [keys.tickets(topic), *keys.of_dead(topic)]
        args = [keys.wake, or_empty(now_us), topic, *ids]
        return [bool(done) for done in script("revive")(self.client, names, args)] if ids else []

    def discard(self, topic: str, ids: Iterable[str | bytes]) -> list[bool]:
        """Throw dead jobs away. For each id: False if it is not dead."""
        ids = list(ids)
        names = [self.keys.ways, self.keys.leases(topic), *self.keys.of_dead(topic)]
        return [bool(done) for done in script("discard")(self.client, names, [topic, *ids])] if ids else []

    def leased(self) -> set[str]:
        """The topics with reserved or dead jobs."""
        return {topic.decode() for topic in self._redis.hkeys(self.keys.ways)}  # topics, never jobs

    def _find_leased(self, name: bytes) -> list[Waiting]:
        """The reserved jobs of that id, then the dead ones."""
        topics = sorted(self.leased())
        with self._redis.pipeline(transaction=True) as pipe:
            for topic in topics:
                _, _, tickets, reserved = self.keys.of_leases(topic)
                _, letters, causes = self.keys.of_dead(topic)
                pipe.hget(tickets, name).hget(reserved, name).hget(causes, name).hget(letters, name)
            replies = pipe.execute() if topics else []
        found = [(topic, replies[4 * number : 4 * number + 4]) for number, topic in enumerate(topics)]
        return [
            _read_leased("reserved", topic, name, ticket.partition(b" ")[2], body)
            for topic, (ticket, body, _, _) in found
            if ticket is not None
        ] + [
            _read_leased("dead", topic, name, cause.partition(b"\n")[0], body)
            for topic, (_, _, cause, body) in found
            if cause is not None
        ]


def _read_reserved(topic: str, tickets: bytes, ids: Any, bodies: list[bytes]) -> tuple[Reserved, ...]:
    if isinstance(ids, bytes):
        ids = ids.split(b"\n")
    jobs = []
    for ticket, id, body in zip(tickets.decode().splitlines(), ids, bodies, strict=True):
        token, attempts, due, step, _ = ticket.split(" ", 4)
        jobs.append(Reserved(topic, id, body, int(due), 0 if step == "-" else int(step), int(attempts), token))
    return tuple(jobs)


def _read_terms(terms: bytes) -> tuple[int, int, int, int | None, int | None]:
    """Attempts, due, step, first and grace, as tickets and causes hold them."""
    attempts, due, step, first, grace = (None if word == b"-" else int(float(word)) for word in terms.split(b" "))
    return attempts or 0, due or 0, step or 0, first, grace


def _read_dead(topic: str, id: bytes, died: bytes, body: bytes | None, cause: bytes | None) -> Dead:
    terms, _, reason = (cause or b"0 0 - - -").partition(b"\n")
    attempts, due_us, step, _, _ = _read_terms(terms)
    return Dead(topic, id, body, int(float(died)), due_us, step, attempts, reason.decode(errors="replace"))


def _read_leased(state: str, topic: str, id: bytes, terms: bytes, body: bytes | None) -> Waiting:
    _, due_us, step, first_us, grace_us = _read_terms(terms)
    return Waiting(topic, id, due_us, body, step, first_us, grace_us, state)
