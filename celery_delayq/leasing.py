"""Leases on jobs, and what becomes of those that nobody acks: the store, for whoever hands jobs over himself.

A reserved job does not wait. It is acked, released, or comes back when its lease runs out; after too many attempts it
is dead, until a person revives or discards it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import redis

from .job import DeadPage, Place, Reservation, Reserved, Waiting, topic_named
from .keys import Keys
from .verbs import Lease, Verbs, read_terms

#: Leases that one reserve ends at most before it goes on.
ENDED = 250


class Leasing:
    """The part of the store that reserves. For *now_us*, and for what every method raises, see the store.

    A token holds until its job is acked, released, requeued, or put anew; also beyond the end of the lease, as long as
    nobody has taken the job back. Whoever comes with an old one is told so, and has changed nothing.
    """

    def __init__(self, client: redis.Redis, keys: Keys, *, leases: bool) -> None:
        self.client = client
        self.keys = keys
        self._redis: Any = client  # redis-py's types leave open what a client that does not decode answers
        self._verbs = Verbs(keys, leases=leases)

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
        call = self._verbs.reserve(topic, limit, lease_us, until_us=until_us, now_us=now_us, nonce=nonce)
        taken = call(self.client)
        requeued = buried = 0
        left, next = taken.left, taken.next
        if taken.expired:
            ended = self._verbs.requeue(
                topic, min(limit, ENDED), max_attempts=max_attempts, backoff_us=backoff_us, now_us=now_us
            )(self.client)
            requeued, buried, next = ended.requeued, ended.buried, ended.next
            left = left or ended.left
        return Reservation(taken.jobs, taken.dropped, taken.orphans, requeued, buried, left, taken.now_us, next)

    def ack(self, topic: str, jobs: Sequence[Reserved]) -> list[bool]:
        """The jobs are handed over: forget them. For each: False if its lease was lost, and nothing was touched."""
        return self._verbs.ack(topic, _leases(jobs))(self.client) if jobs else []

    def extend(self, topic: str, jobs: Sequence[Reserved], lease_us: int, *, now_us: int | None = None) -> list[bool]:
        """Let the leases end *lease_us* from now. For each job: False if its lease was lost."""
        return self._verbs.extend(topic, _leases(jobs), lease_us, now_us=now_us)(self.client) if jobs else []

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
        call = self._verbs.release(
            topic,
            _leases(jobs),
            at_us=at_us,
            in_us=in_us,
            max_attempts=max_attempts,
            reason=reason,
            counted=counted,
            now_us=now_us,
        )
        return call(self.client)

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
        call = self._verbs.requeue(topic, limit, max_attempts=max_attempts, backoff_us=backoff_us, now_us=now_us)
        ended = call(self.client)
        return ended.requeued + ended.buried

    def pull(self, topic: str, limit: int, *, now_us: int | None = None) -> list[Waiting]:
        """Take at most *limit* due jobs of *topic*, once and for all. Whoever dies with them has lost them."""
        return self._verbs.pull(topic, limit, now_us=now_us)(self.client)

    def dead(self, topic: str, *, behind: Place | None = None, limit: int = 1000) -> DeadPage:
        """Read at most *limit* dead jobs of *topic*, the longest dead first.

        Args:
            behind: only what comes behind this place: the end of the page before.
        """
        return self._verbs.dead(topic, behind=behind, limit=limit)(self.client)

    def revive(self, topic: str, ids: Iterable[str | bytes], *, now_us: int | None = None) -> list[bool]:
        """Let dead jobs wait again, due now, as if they had never been reserved; their grace is over. For each id:
        False if it is not dead, or has been put anew and waits or is reserved.
        """
        ids = list(ids)
        return self._verbs.revive(topic, ids, now_us=now_us)(self.client) if ids else []

    def discard(self, topic: str, ids: Iterable[str | bytes]) -> list[bool]:
        """Throw dead jobs away. For each id: False if it is not dead."""
        ids = list(ids)
        return self._verbs.discard(topic, ids)(self.client) if ids else []

    def leased(self) -> set[str]:
        """The topics with reserved or dead jobs."""
        return {topic_named(topic) for topic in self._redis.hkeys(self.keys.ways)}  # topics, never jobs

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


def _leases(jobs: Sequence[Reserved]) -> list[Lease]:
    return [(job.id, job.token) for job in jobs]


def _read_leased(state: str, topic: str, id: bytes, terms: bytes, body: bytes | None) -> Waiting:
    _, due_us, step, first_us, grace_us = read_terms(terms)
    return Waiting(topic, id, due_us, body, step, first_us, grace_us, state)
