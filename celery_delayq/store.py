"""The store: jobs waiting in Redis. The only module that sends commands to our keys.

A method for each verb, each one script call; the states and moves stand in the headers of the Lua files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol

import redis
from redis.exceptions import NoPermissionError, ResponseError

from .clock import SECOND_US
from .delivery import Delivery
from .errors import ReplicasMissing, shortened
from .job import (
    Adopted,
    Aside,
    Load,
    Move,
    Moved,
    Needle,
    OnConflict,
    Origin,
    Page,
    Place,
    Put,
    Tell,
    Upcoming,
    Waiting,
    topic_named,
)
from .keys import Keys
from .leasing import Leasing
from .liveness import Liveness
from .scripts import PURPOSE, Begun, Packed, Prepared, Value, pack, packed, script
from .verbs import digest_of, name_of, or_empty, read_put, read_waiting


class Closable(Protocol):
    """Whatever has connections."""

    def close(self) -> None: ...


#: Topics whose loads are read in one round trip.
LOADS = 100

#: How long (s) a put waits for replicas; but at most half of what its socket waits, so that Redis answers before.
REPLICAS_TIMEOUT = 1.0


@dataclass(frozen=True)
class Dispatched:
    """What one dispatch did.

    Attributes:
        moved, dropped, orphans: jobs handed over; laid aside, being later than their grace; ids without a body.
        left: whether more of the topic may leave now.
        now_us: Redis's clock.
        next: what is due next, of all topics.
        dues_us: when each moved job was due, ascending; empty unless it was asked for.
        jobs: the id of each moved job, and what was looked for in its body; empty unless it was asked for.
    """

    moved: int
    dropped: int
    orphans: int
    left: bool
    now_us: int
    next: Upcoming | None
    dues_us: tuple[int, ...] = ()
    jobs: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True)
class Tick:
    """What is due at one moment.

    Attributes:
        now_us: Redis's clock.
        aside: whether a job lies aside for anybody to finish.
        next: the first topic that is not due yet, or not named here.
        due: the topics that are due, the longest overdue first.
        expired: the topics of which a lease has run out, due or not.
    """

    now_us: int
    aside: bool
    next: Upcoming | None
    due: tuple[Upcoming, ...]
    expired: tuple[str, ...] = ()


class Store(Leasing):
    """Jobs in one Redis, under one prefix.

    Every method takes *now_us* in place of Redis's own clock, for tests; and raises ``redis.RedisError`` when Redis
    cannot be reached, :class:`~celery_delayq.errors.DelayQError` when one of our keys holds something else.
    """

    def __init__(self, client: redis.Redis, keys: Keys, owner: Closable | None = None, *, leases: bool = False) -> None:
        """Use *client*; *owner* is what its connections belong to, and is closed with the store.

        *leases*: jobs of this store are reserved, so that whatever changes a job looks after its lease and its
        attempts, too. Everybody who uses the store must say the same.
        """
        super().__init__(client, keys, leases=leases)
        self._leases = leases
        self._owner = owner or client
        # What many calls have in common is packed once.
        self._dispatch = lru_cache(maxsize=256)(self._prepare_dispatch)
        self._restore = lru_cache(maxsize=256)(self._prepare_restore)

    def close(self) -> None:
        """Close the connections."""
        self._owner.close()

    def put(
        self,
        jobs: Sequence[Put],
        deliveries: dict[str, Delivery],
        on_conflict: OnConflict = OnConflict.ERROR,
        *,
        origin: Origin = Origin.NEW,
        liveness: Liveness | None = None,
        replicas: int = 0,
        now_us: int | None = None,
    ) -> int:
        """Store all of *jobs*, or none.

        Args:
            deliveries: where the jobs of each topic named by *jobs* go when due.
            origin: what may be taken for the same job, and no conflict.
            liveness: is told if no dispatcher lives; None to take it for granted that one does.
            replicas: wait until so many have acknowledged the jobs; a second, or half of the socket's timeout if that
                is less. (Not for restored ones.)

        Returns:
            How many were written; kept ones, and those that are there already, are not counted.

        Raises:
            AlreadyScheduled: a job of that id waits and *on_conflict* is ``ERROR``. Nothing was written.
            Unattended: no dispatcher lives, and *liveness* refuses puts then. Nothing was written.
            ReplicasMissing: all is written, but fewer than *replicas* have acknowledged it.
        """
        if origin is Origin.RESTORED:
            return self.restore(jobs, deliveries, on_conflict)
        silence_us, refuses = (liveness.silence_us, liveness.refuses) if liveness else (None, False)
        call = self._verbs.put(jobs, deliveries, on_conflict, origin, silence_us, refuses=refuses, now_us=now_us)
        acknowledged = replicas
        if replicas:
            timeout_ms = self._replicas_timeout_ms()
            reply, acknowledged = call.prepared.acknowledged(self.client, call.args, replicas, timeout_ms)
        else:
            reply = call.prepared(self.client, call.args, call.again)
        if liveness is not None and reply[0] != b"EXISTS" and reply[-1] != 0:
            liveness.miss(reply[-1], len(jobs), refused=reply[0] == b"UNATTENDED")
        stored = call.read(reply)
        if acknowledged < replicas:
            raise ReplicasMissing(acknowledged, replicas)
        return stored

    def _replicas_timeout_ms(self) -> int:
        limit = self.client.connection_pool.connection_kwargs.get("socket_timeout")
        return max(round(1000 * min(REPLICAS_TIMEOUT, REPLICAS_TIMEOUT if limit is None else limit / 2)), 1)

    def restore(self, jobs: Sequence[Put], deliveries: dict[str, Delivery], on_conflict: OnConflict) -> int:
        """Store *jobs* as a record has them, also if their time is past: all, or none. Their ``max_wait_us`` is when
        their id was first put.

        A job that waits as it is there already is no conflict; so to restore the same again changes nothing. For the
        rest as :meth:`put`, but several times as fast for many.
        """
        return self.begin_restore(jobs, deliveries, on_conflict).result()

    def begin_restore(
        self, jobs: Sequence[Put], deliveries: dict[str, Delivery], on_conflict: OnConflict
    ) -> Begun[int]:
        """Like :meth:`restore`, but Redis stores them while the caller does something else."""
        by_topic: dict[str, list[Put]] = {}
        for job in jobs:
            if job.at_us is None:
                raise ValueError(f"job {shortened(job.id)} of a record needs the time itself: give it at_us")
            by_topic.setdefault(job.topic, []).append(job)
        options: list[Value] = []
        data: list[bytes] = []
        for number, some in enumerate(by_topic.values(), start=1):
            data.append(pack((len(some),)))
            data += [packed(job.id if isinstance(job.id, bytes) else job.id.encode()) for job in some]
            data += [packed(job.due.encode()) for job in some]
            data += [packed(job.body) for job in some]
            for place, job in enumerate(some, start=1):
                if job.step or job.max_wait_us is not None or job.grace_us is not None:
                    options += number, place, job.step or "", or_empty(job.max_wait_us), or_empty(job.grace_us)
        ways = tuple((topic, deliveries[topic]) for topic in by_topic)
        words = Packed(
            1 + len(options) + len(by_topic) + 3 * len(jobs), pack((len(options) // 5, *options)) + b"".join(data)
        )
        return self._restore(ways, on_conflict).begin(self.client, words, read_put)

    def _prepare_restore(self, ways: tuple[tuple[str, Delivery], ...], on_conflict: OnConflict) -> Prepared:
        """What all restorations to the same topics have in common."""
        keys = [self.keys.index, self.keys.topics, self.keys.holds]
        args: list[Value] = [self.keys.wake, on_conflict.value, len(ways)]
        for topic, delivery in ways:
            keys += self.keys.of_topic(topic)
            args += topic, delivery.dumps()
        return Prepared(script("restore"), keys + self._verbs.lease_keys(ways), args)

    def adopt(
        self,
        job: Put,
        delivery: Delivery,
        on_conflict: OnConflict,
        tag: str,
        unacked: tuple[str, str],
        *,
        least_us: int = 0,
        silence_us: int | None = None,
        now_us: int | None = None,
    ) -> Adopted:
        """Store *job*, due at ``at_us``, and acknowledge the delivery of its message; both, or neither.

        Args:
            delivery: where the job goes when due.
            tag: of the delivery; "" if the broker keeps no record of deliveries.
            unacked: the broker's keys for what was delivered: the hash and the sorted set.
            least_us: leave alone what is due sooner.
            silence_us: no dispatcher lives if none has given a sign of life for longer; None to take it for granted.
        """
        keys = self.keys
        names = [keys.index, keys.topics, keys.holds, keys.beat, *unacked, *keys.of_topic(job.topic)]
        args: list[Value] = [keys.wake, or_empty(now_us), tag, least_us, or_empty(silence_us), on_conflict.value]
        args += job.topic, delivery.dumps(), job.id, job.due, job.step
        args += or_empty(job.max_wait_us), or_empty(job.grace_us), job.body
        return Adopted(script("adopt")(self.client, names, args).decode())

    def delete(
        self,
        topic: str,
        ids: Iterable[str | bytes],
        *,
        bodies: Sequence[bytes] | None = None,
        lease_us: int | None = None,
        reserved: bool = False,
        now_us: int | None = None,
    ) -> list[bool]:
        """Take back waiting jobs. For each id: True if it waited and is gone now.

        Args:
            bodies: one for each id: delete it only while that is its body.
            lease_us: lay the jobs aside, for the caller to :meth:`forget` within that time; else somebody may
                :meth:`claim` them.
            reserved: also those that are reserved; whoever has one under a lease has lost that.
        """
        ids = list(ids)
        call = self._verbs.delete(topic, ids, bodies=bodies, lease_us=lease_us, reserved=reserved, now_us=now_us)
        return call(self.client) if ids else []

    def move(
        self,
        topic: str,
        moves: Sequence[Move],
        *,
        progress: tuple[str, str, int] | None = None,
        now_us: int | None = None,
    ) -> list[Moved]:
        """Give waiting jobs other due times; what is due already, and moved to the past, keeps its place.

        Args:
            progress: the name of an operation, how far it has come in this topic, and for how long (ms) to remember
                that; see :meth:`journal`.
        """
        return self._verbs.move(topic, moves, progress=progress, now_us=now_us)(self.client) if moves else []

    def journal(self, operation: str) -> dict[str, str]:
        """How far a long change of that name has come, by topic; empty if none of that name was broken off."""
        found = self._redis.hgetall(self.keys.journal(operation))  # topics, never jobs
        return {topic.decode(): text.decode(errors="surrogateescape") for topic, text in found.items()}

    def end_journal(self, operation: str) -> None:
        """The long change of that name is complete."""
        self._redis.delete(self.keys.journal(operation))

    def purge(self, topic: str) -> int:
        """Take back all that waits in a topic; return how many that were. What is reserved or dead stays."""
        keys = self.keys
        names = [keys.index, keys.topics, keys.holds, keys.rates, keys.totals, *self._verbs.of_topic(topic)]
        return int(script("purge")(self.client, names, [topic]))

    def drain(self, topic: str, delivery: Delivery, jobs: Sequence[tuple[Waiting, bytes]]) -> list[bool]:
        """Push waiting jobs of *topic* to its ready lists, each with another body. For each: True if it was still as it
        was read, and waits no more.
        """
        if not jobs:
            return []
        keys = self.keys
        names = [keys.index, keys.topics, keys.holds, keys.rates, keys.totals, *keys.of_topic(topic), *delivery.lists]
        args: list[Value] = [topic, or_empty(delivery.expires_ms), *delivery.steps]
        for job, body in jobs:
            args += job.id, job.due_us, digest_of(job.body), body
        return [bool(pushed) for pushed in script("drain")(self.client, names, args)]

    def pause(self, topic: str) -> bool:
        """Let none of a topic's jobs leave. True: it was not paused before."""
        return bool(script("pause")(self.client, [self.keys.index, self.keys.holds, self.keys.rates], [topic]))

    def resume(self, topic: str, interval_us: float | None = None, *, now_us: int | None = None) -> bool:
        """Let a topic's jobs leave again; at an interval, if given, until nothing is overdue. True: it was paused.

        Without one, a topic that still catches up at an interval lets all leave at once.
        """
        keys = self.keys
        names = [keys.index, keys.holds, keys.rates, keys.schedule(topic)]
        args = [keys.wake, or_empty(now_us), topic, or_empty(interval_us)]
        return bool(script("resume")(self.client, names, args))

    def claim(self, lease_us: int, limit: int, *, now_us: int | None = None) -> list[Aside]:
        """Take up jobs that lie aside; they are the caller's for *lease_us*."""
        args = [or_empty(now_us), lease_us, limit]
        reply = script("claim")(self.client, [self.keys.aside, self.keys.remains], args)
        return [Aside.read(*pair) for pair in zip(reply[::2], reply[1::2], strict=True)]

    def revoked(self, ids: Sequence[str | bytes]) -> list[Aside]:
        """Those of *ids* that lie aside since somebody deleted them with a lease."""
        names = [b"revoked:" + (id if isinstance(id, bytes) else id.encode()) for id in ids]
        bodies = self._redis.hmget(self.keys.remains, names) if names else []
        return [Aside.read(name, body) for name, body in zip(names, bodies, strict=True) if body is not None]

    def forget(self, jobs: Iterable[Aside]) -> int:
        """Throw away jobs that lie aside; return how many were there."""
        names = [job.name.encode(errors="surrogateescape") for job in jobs]
        return int(script("forget")(self.client, [self.keys.aside, self.keys.remains], names)) if names else 0

    def dispatch(
        self,
        topic: str,
        delivery: Delivery,
        limit: int,
        position: str = "back",
        ceiling: int | None = None,
        tell: Tell = Tell.NOTHING,
        pattern: bytes = b"",
        *,
        counted: bool = False,
        now_us: int | None = None,
    ) -> Dispatched:
        """Move at most *limit* due jobs of *topic* to its ready lists, and none beyond *ceiling* ready messages.

        Args:
            tell: what to tell of the moved jobs, beyond how many they were.
            pattern: a Lua pattern; with ``Tell.JOBS``, tell what it finds in each body.
            counted: some may have come back from a lease; forget how often. Always so where there are leases.
        """
        question = (tell.value, pattern) if tell else ()
        reply = self._dispatch(topic, delivery, limit, position, ceiling, counted or self._leases, now_us, *question)(
            self.client, ()
        )
        moved, dropped, orphans, left, now, next_us, next_topic, next_delivery, *told = reply
        done = Dispatched(moved, dropped, orphans, bool(left), now, Upcoming.read(next_us, next_topic, next_delivery))
        if not told:
            return done
        dues, *jobs = told
        return replace(done, dues_us=tuple(map(int, dues.split())), jobs=tuple(zip(*jobs, strict=True)))

    def _prepare_dispatch(
        self,
        topic: str,
        delivery: Delivery,
        limit: int,
        position: str,
        ceiling: int | None,
        counted: bool,
        now_us: int | None,
        *question: str | bytes,
    ) -> Prepared:
        keys = self.keys
        names = [keys.index, keys.topics, keys.holds, keys.rates, keys.totals, keys.aside, keys.remains]
        names += [*keys.of_topic(topic), *delivery.lists, *([keys.attempts(topic)] if counted else [])]
        args = [or_empty(now_us), topic, limit, position, or_empty(delivery.expires_ms), or_empty(ceiling)]
        return Prepared(script("dispatch"), names, [*args, *delivery.steps, *question])

    def tick(
        self,
        limit: int = 100,
        *,
        topics: Iterable[str] = (),
        beat: str = "",
        aloud: bool = True,
        now_us: int | None = None,
    ) -> Tick:
        """Say which topics have due jobs, *limit* at most, and when to look again.

        Args:
            topics: look at these only, 1000 at most; at all if none is given.
            beat: the name of a dispatcher that leaves a sign of life with this call, for those who put.
            aloud: the beat is that of the active one, and told to the others of the fleet.

        Raises:
            redis.ReadOnlyError: with *beat*, on a replica.
        """
        keys = self.keys
        names = [keys.index, keys.topics, keys.aside, keys.beat, keys.expiries]
        args = [or_empty(now_us), limit, beat, keys.fleet if aloud else "", *topics]
        now, aside, expired, next_us, topic, delivery, *due = script("tick")(self.client, names, args)
        found = [Upcoming.read(at, *rest) for at, *rest in zip(due[1::3], due[::3], due[2::3], strict=True)]
        return Tick(
            now,
            bool(aside),
            Upcoming.read(next_us, topic, delivery),
            tuple(one for one in found if one),
            tuple(map(topic_named, expired)),
        )

    def tell_fleet(self, message: bytes) -> None:
        """Say something to all dispatchers that listen."""
        self._redis.publish(self.keys.fleet, message)

    def beat_us(self) -> int | None:
        """When a dispatcher was last at work, to a second; None: never."""
        said = self._redis.get(self.keys.beat)
        return None if said is None else int(said)

    def rest(self) -> None:
        """Have no connection open until the next call: an idle one may be dead, and nobody would know before he needs
        it.
        """
        own = self._redis.connection
        if own is not None:
            own.disconnect()
        else:
            self._redis.connection_pool.disconnect(inuse_connections=False)

    def serves(self) -> str | None:
        """The broker that the jobs are for, where that is not this Redis; None if nobody has said so yet."""
        found = self._redis.get(self.keys.serves)
        return None if found is None else str(found.decode())

    def serve(self, broker: str) -> str:
        """Remember that the jobs are for *broker*, unless it is known already for which; return which one that is."""
        known = self.serves()
        if known is None:
            self._redis.set(self.keys.serves, broker, nx=True)
            known = self.serves()
        return known or broker

    @property
    def parts(self) -> tuple[Store, ...]:
        """The stores of the single shards: this is one."""
        return (self,)

    def shard_counts(self) -> tuple[int, ...]:
        """The numbers of shards that jobs were ever spread over, the greatest last; of the first shard."""
        return tuple(int(count) for count in self._redis.zrange(self.keys.shards, 0, -1))

    def add_shard_count(self, count: int) -> None:
        """From now on jobs may be spread over so many shards, too; of the first shard."""
        self._redis.zadd(self.keys.shards, {str(count): count})

    def version(self, *, marks: bool = True) -> int:
        """The version of the key space; ours, if it has none.

        Args:
            marks: give it ours then, if Redis takes a write.

        Raises:
            Outdated: it is greater than ours.
        """
        return self._verbs.version(marks=marks)(self.client)

    def check_version(self, *, marks: bool = True) -> None:
        """Raise what :meth:`version` does, where Redis's ACL lets us look."""
        try:
            self.version(marks=marks)
        except ResponseError as error:
            if not _is_forbidden(error):  # that the doctor tells; and if it matters, each script
                raise

    def now_us(self) -> int:
        """Redis's clock."""
        seconds, microseconds = self._redis.time()
        return int(seconds) * SECOND_US + int(microseconds)

    def topics(self) -> dict[str, Delivery]:
        """The topics in which a job waits, and where their jobs go."""
        found = self._redis.hscan_iter(self.keys.topics, count=1000)
        names = ((topic_named(topic), Delivery.loads(delivery)) for topic, delivery in found)
        return {topic: delivery or Delivery.plain(self.keys.ready(topic)) for topic, delivery in names}

    def paused(self) -> set[str]:
        """The topics that are paused."""
        return {topic_named(topic) for topic in self._redis.zrangebyscore(self.keys.holds, "+inf", "+inf")}

    def counted(self) -> set[str]:
        """The topics of which anything was ever counted."""
        return {topic_named(name).partition(":")[2] for name, _ in self._redis.hscan_iter(self.keys.totals, count=1000)}

    def find(self, id: str | bytes) -> list[Waiting]:
        """The jobs of that id, at most one that waits or is reserved in each topic; the one that is due first comes
        first. Where there are leases also those that are dead, after all others.
        """
        name = name_of(id)
        return self._find_waiting(name) + (self._find_leased(name) if self._leases else [])

    def _find_waiting(self, name: bytes) -> list[Waiting]:
        topics = list(self.topics())
        with self._redis.pipeline(transaction=True) as pipe:
            for topic in topics:
                schedule, jobs, _, *sparse = self.keys.of_topic(topic)
                pipe.zscore(schedule, name)
                for key in (jobs, *sparse):
                    pipe.hget(key, name)
            replies = pipe.execute() if topics else []
        found = [
            read_waiting(topic, name, *replies[start : start + 5])
            for topic, start in zip(topics, range(0, len(replies), 5), strict=True)
            if replies[start] is not None
        ]
        return sorted(found, key=lambda job: job.place)

    def where(self, ids: Sequence[str | bytes]) -> Iterator[tuple[str, list[str | bytes]]]:
        """The topics in which any of *ids* waits, and which of them wait there."""
        topics = list(self.topics()) if ids else []
        with self._redis.pipeline(transaction=False) as pipe:
            for topic in topics:
                pipe.zmscore(self.keys.schedule(topic), list(ids))
            replies = pipe.execute() if topics else []
        for topic, scores in zip(topics, replies, strict=True):
            held = [id for id, score in zip(ids, scores, strict=True) if score is not None]
            if held:
                yield topic, held

    def held(self, wanted: Mapping[str, Sequence[bytes]]) -> set[tuple[str, bytes]]:
        """Topic and id of each of *wanted*, ids by topic, that waits or is reserved."""
        with self._redis.pipeline(transaction=True) as pipe:
            for topic, ids in wanted.items():
                pipe.zmscore(self.keys.schedule(topic), list(ids)).hmget(self.keys.tickets(topic), list(ids))
            replies = pipe.execute() if wanted else []
        found: set[tuple[str, bytes]] = set()
        for (topic, ids), scores, tickets in zip(wanted.items(), replies[::2], replies[1::2], strict=True):
            both = zip(ids, scores, tickets, strict=True)
            found.update((topic, id) for id, score, ticket in both if score is not None or ticket is not None)
        return found

    def read(self, topic: str, ids: Sequence[str | bytes]) -> list[Waiting | None]:
        """What waits under each of *ids*, with its body and its due time and no more; None: nothing does."""
        if not ids:
            return []
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.zmscore(self.keys.schedule(topic), list(ids)).hmget(self.keys.jobs(topic), list(ids))
            scores, bodies = pipe.execute()
        names = [name_of(id) for id in ids]
        return [
            None if score is None else Waiting(topic, name, int(score), body)
            for name, score, body in zip(names, scores, bodies, strict=True)
        ]

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
    ) -> Page:
        """Read at most *limit* waiting jobs of *topic*, due from *start_us* on and before *stop_us*.

        Args:
            behind: only what comes behind this place. A job that keeps its place is found once by pages that follow
                each other so, whatever else comes and goes.
            backwards: the last due first.
            needles: only jobs whose body holds all of them. The others are not sent here, but looked at; so a page may
                be empty, and others come.
        """
        call = self._verbs.page(
            topic,
            start_us=start_us,
            stop_us=stop_us,
            behind=behind,
            limit=limit,
            backwards=backwards,
            needles=needles,
        )
        return call(self.client)

    def begin_page(
        self,
        topic: str,
        *,
        start_us: int | None = None,
        stop_us: int | None = None,
        behind: Place | None = None,
        limit: int = 1000,
        needles: Sequence[Needle] = (),
    ) -> Begun[Page]:
        """Like :meth:`page`, but Redis reads it while the caller does something else."""
        call = self._verbs.page(topic, start_us=start_us, stop_us=stop_us, behind=behind, limit=limit, needles=needles)
        return call.begin(self.client)

    def count(self, topics: Sequence[str], ranges: Sequence[tuple[int | None, int | None]]) -> list[list[int]]:
        """How many jobs of each topic are due in each half-open range (us; None for no bound)."""
        with self._redis.pipeline(transaction=False) as pipe:
            for topic in topics:
                for start_us, stop_us in ranges:
                    low = "-inf" if start_us is None else start_us
                    pipe.zcount(self.keys.schedule(topic), low, "+inf" if stop_us is None else f"({stop_us}")
            counts = pipe.execute() if topics and ranges else []
        return [counts[start : start + len(ranges)] for start in range(0, len(counts), max(len(ranges), 1))]

    def loads(self, deliveries: dict[str, Delivery]) -> tuple[int, dict[str, Load]]:
        """Redis's clock (us), and what the topics named hold and have done."""
        now_us = self.now_us()
        counters = ("moved", "cancelled", "dropped", "orphans", "requeued", "dead")
        loads: dict[str, Load] = {}
        ways = iter(deliveries.items())
        while some := list(islice(ways, LOADS)):
            with self._redis.pipeline(transaction=False) as pipe:
                for topic, delivery in some:
                    schedule = self.keys.schedule(topic)
                    pipe.zcard(schedule).zcount(schedule, "-inf", now_us).zrange(schedule, 0, 0, withscores=True)
                    pipe.zscore(self.keys.holds, topic)
                    pipe.hmget(self.keys.totals, [f"{counter}:{topic}" for counter in counters])
                    pipe.zcard(self.keys.leases(topic)).zcard(self.keys.dead(topic))
                    for ready in delivery.lists:
                        pipe.llen(ready)
                replies = iter(pipe.execute())
            for topic, delivery in some:
                waiting, due, head, held_us, totals, reserved, dead = islice(replies, 7)
                ready_length = sum(islice(replies, len(delivery.lists))) if delivery.lists else None
                head_us = int(head[0][1]) if head else None
                counts = (int(total or 0) for total in totals)
                loads[topic] = Load(waiting, due, head_us, held_us, ready_length, reserved, dead, *counts)
        return now_us, loads

    def expiries(self) -> dict[str, int]:
        """When the first lease of each topic runs out (us), of topics with reserved jobs."""
        found = self._redis.zrange(self.keys.expiries, 0, -1, withscores=True)
        return {topic_named(topic): int(at) for topic, at in found}

    def sizes(self, topics: Iterable[str]) -> dict[str, tuple[int, int]]:
        """How many ids and how many bodies each topic has, at one moment. They are as many as each other."""
        sizes = {}
        for topic in topics:
            with self._redis.pipeline(transaction=True) as pipe:
                ids, bodies = pipe.zcard(self.keys.schedule(topic)).hlen(self.keys.jobs(topic)).execute()
            sizes[topic] = ids, bodies
        return sizes

    def refused(self, commands: Iterable[Sequence[Value]]) -> list[str]:
        """What Redis's ACL has against each of *commands*; empty where it has nothing. None of them is run.

        Redis asks who may when it queues a command of a transaction, and this transaction is never executed.

        Raises:
            NoPermissionError, ExecAbortError: a transaction itself is forbidden, so nothing can be tried.
        """
        pool = self.client.connection_pool
        connection: Any = pool.get_connection(*PURPOSE)
        try:
            for word in ("MULTI", "EXEC", "MULTI"):
                connection.send_packed_command([_command((word,))])
                connection.read_response()
            commands = list(commands)
            connection.send_packed_command([_command(command) for command in commands])
            return [_refusal(connection) for _ in commands]
        finally:
            connection.disconnect()  # whereupon Redis forgets what it has queued
            pool.release(connection)


def _command(words: Sequence[Value]) -> bytes:
    return b"*%d\r\n%b" % (len(words), pack(words))


def _refusal(connection: Any) -> str:
    try:
        connection.read_response()
    except NoPermissionError as error:
        return str(error)
    except ResponseError as error:  # a command may also be renamed away; all else is no matter of rights
        return str(error) if "unknown command" in str(error) else ""
    return ""


def _is_forbidden(error: ResponseError) -> bool:
    """Whether Redis's ACL does not allow it, be it a key or what a script calls; in the words of Redis 7 and 6.2."""
    words = ("ACL failure in script", "executing the script can't run")
    return isinstance(error, NoPermissionError) or any(word in str(error) for word in words)
