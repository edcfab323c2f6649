"""All scripts against a model in plain Python: after every step, all of Redis is as the model says.

The model knows what each verb means, and nothing of how a script does it. It says what every key must hold, to the
score, the byte and the order; so what a step leaves behind, or forgets to write, is found at that step.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from celery_delayq.delivery import Delivery
from celery_delayq.errors import AlreadyScheduled
from celery_delayq.job import Adopted, Aside, Move, Moved, OnConflict, Origin, Put, Reserved, Tell
from celery_delayq.job import Waiting as JobAsRead
from celery_delayq.keys import VERSION
from celery_delayq.store import Store

from .conftest import NOW, QUEUE, Contents, contents_of

#: What dispatch.lua calls by these names (us).
SLICE, SLACK, FULL_PAUSE = 10_000, 100_000, 50_000

#: Where the jobs of each topic go; "e" has lists that expire, in so long a time that none does.
DELIVERIES = {"q": QUEUE, "r": Delivery.plain("r"), "e": Delivery((0, 5), ("e", "e5"), expires_ms=10**9)}
#: A producer with other priority steps; its put is told to the dispatchers.
OTHER_DELIVERIES = {"q": Delivery((0, 9), ("q", "q\x06\x169"))}


@dataclass
class Job:
    """One waiting job."""

    score: int
    body: bytes
    step: int
    first: int | None
    grace: int | None
    attempts: int = 0

    def terms(self) -> bytes:
        """As tickets and causes hold them."""
        options = (self.step or None, self.first, self.grace)
        words = [b"-" if option is None else b"%d" % option for option in options]
        return b" ".join([b"%d %d" % (self.attempts, self.score), *words])


@dataclass
class Lease:
    """One reserved job: its attempts count this one."""

    job: Job
    until: int
    token: str


@dataclass
class Grave:
    """One dead job."""

    job: Job
    died: int
    reason: str


@dataclass
class Topic:
    """What waits in one topic, and the last score given to a job of each due, while that matters; what is reserved, and
    what is dead.
    """

    jobs: dict[str, Job] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    graves: dict[str, Grave] = field(default_factory=dict)
    way: Delivery | None = None
    ties: dict[int, int] = field(default_factory=dict)
    delivery: Delivery | None = None

    def in_order(self) -> list[tuple[str, Job]]:
        return sorted(self.jobs.items(), key=lambda item: (item[1].score, item[0].encode()))

    def head(self) -> int | None:
        return min((job.score for job in self.jobs.values()), default=None)

    def slot(self, due: int) -> int:
        """The score of one more job of this due: behind all others of it, within a millisecond."""
        scores = {job.score for job in self.jobs.values()}
        if not any(due <= score <= due + 999 for score in scores) or (due not in self.ties and due not in scores):
            return due
        self.ties[due] = min(self.ties.get(due, due) + 1, due + 999)
        return self.ties[due]


class Model:
    """What the verbs mean."""

    def __init__(self) -> None:
        self.topics = {name: Topic() for name in DELIVERIES}
        self.holds: dict[str, float] = {}
        self.rates: dict[str, float] = {}
        self.totals: Counter[str] = Counter()
        self.aside: dict[str, int] = {}
        self.remains: dict[str, bytes] = {}
        self.ready: dict[str, list[bytes]] = {}  # leftmost first, as Redis has them
        self.version: int | None = None
        self.unacked: dict[str, float] = {}  # tag -> when it was delivered

    # What follows from the rest.

    def index(self) -> dict[str, float]:
        """When to look at each topic: when its first job is due and it is not held back."""
        places = {
            name: max(head, self.holds.get(name, head))
            for name, topic in self.topics.items()
            if (head := topic.head()) is not None
        }
        return {name: place for name, place in places.items() if place < math.inf}

    def contents(self, store: Store) -> Contents:
        """All that Redis must hold."""
        keys = store.keys
        held: dict[str, object] = {
            keys.index: encoded(self.index()),
            keys.holds: encoded(self.holds),
            keys.rates: {name.encode(): b"%.17g" % interval for name, interval in self.rates.items()},
            keys.totals: texts(self.totals),
            keys.aside: encoded(self.aside),
            keys.remains: {name.encode(): body for name, body in self.remains.items()},
            keys.topics: {
                name.encode(): topic.delivery.dumps().encode()
                for name, topic in self.topics.items()
                if topic.jobs and topic.delivery
            },
            keys.expiries: encoded(self.expiries()),
            keys.ways: {name.encode(): topic.way.dumps().encode() for name, topic in self.topics.items() if topic.way},
            **self.ready,
            "unacked": {tag.encode(): b"message" for tag in self.unacked},
            "unacked_index": encoded(self.unacked),
        }
        for name, topic in self.topics.items():
            schedule, jobs, ties, steps, firsts, graces = keys.of_topic(name)
            held[schedule] = {id.encode(): job.score for id, job in topic.jobs.items()}
            held[jobs] = {id.encode(): job.body for id, job in topic.jobs.items()}
            held[ties] = {b"%d" % due: last for due, last in topic.ties.items()}
            held[steps] = texts({id: job.step for id, job in topic.jobs.items() if job.step})
            held[firsts] = texts({id: job.first for id, job in topic.jobs.items() if job.first is not None})
            held[graces] = texts({id: job.grace for id, job in topic.jobs.items() if job.grace is not None})
            attempts, leases, tickets, reserved = keys.of_leases(name)
            held[attempts] = texts({id: job.attempts for id, job in topic.jobs.items() if job.attempts})
            held[leases] = {id.encode(): lease.until for id, lease in topic.leases.items()}
            held[tickets] = {
                id.encode(): lease.token.encode() + b" " + lease.job.terms() for id, lease in topic.leases.items()
            }
            held[reserved] = {id.encode(): lease.job.body for id, lease in topic.leases.items()}
            dead, letters, causes = keys.of_dead(name)
            held[dead] = {id.encode(): grave.died for id, grave in topic.graves.items()}
            held[letters] = {id.encode(): grave.job.body for id, grave in topic.graves.items()}
            held[causes] = {
                id.encode(): grave.job.terms() + b"\n" + grave.reason.encode() for id, grave in topic.graves.items()
            }
        if self.version is not None:
            held[keys.version] = b"%d" % self.version
        return {key.encode(): value for key, value in held.items() if value}

    def expiries(self) -> dict[str, int]:
        """When the first lease of each topic runs out."""
        return {
            name: min(lease.until for lease in topic.leases.values())
            for name, topic in self.topics.items()
            if topic.leases
        }

    def tick(self, now: int) -> tuple[bool, list[tuple[int, str]], tuple[int, str] | None]:
        """Whether a job lies aside for anybody, the topics that are due, and the next one."""
        places = sorted((int(place), name) for name, place in self.index().items())
        due = [(place, name) for place, name in places if place <= now]
        later = [(place, name) for place, name in places if place > now]
        return any(until <= now for until in self.aside.values()), due, later[0] if later else None

    # The verbs.

    def put(
        self, jobs: Sequence[Put], deliveries: dict[str, Delivery], on_conflict: OnConflict, origin: Origin, now: int
    ) -> int | None:
        """How many were written; None: refused, for one of them waits."""
        writes: list[tuple[Put, Job]] = []
        batch: dict[tuple[str, str], tuple[bytes, int]] = {}
        for put in jobs:
            id, key = str(put.id), (put.topic, str(put.id))
            held = self.topics[put.topic].jobs.get(id)
            due = put.at_us if put.at_us is not None else now + (put.in_us or 0)
            taken = batch.get(key) or ((held.body, held.score) if held else None)
            batch[key] = (put.body, due)
            if taken is not None:
                same = (origin is Origin.RETRIED and taken[0] == put.body) or (
                    origin is Origin.RESTORED and taken == (put.body, due)
                )
                if same or on_conflict is OnConflict.KEEP:
                    continue
                if on_conflict is OnConflict.ERROR:
                    return None
            lease = self.topics[put.topic].leases.get(id)
            if (
                taken is None
                and lease is not None
                and (
                    (origin is Origin.RETRIED and lease.job.body == put.body)
                    or (origin is Origin.RESTORED and (lease.job.body, lease.job.score) == (put.body, due))
                )
            ):
                if origin is Origin.RESTORED:
                    del batch[key]
                continue
            first = None
            if origin is Origin.RESTORED:
                first = put.max_wait_us
            else:
                if put.max_wait_us is not None:
                    first = held.first if held and held.first is not None else now
                    due = min(due, first + put.max_wait_us)
                due = max(due, now)
            writes.append((put, Job(due, put.body, put.step, first, put.grace_us)))
        for put, job in writes:
            topic = self.topics[put.topic]
            topic.jobs.pop(str(put.id), None)
            topic.leases.pop(str(put.id), None)
            if origin is not Origin.RESTORED:
                job.score = topic.slot(job.score)
            topic.jobs[str(put.id)] = job
        if writes:
            for put in jobs:
                self.topics[put.topic].delivery = deliveries[put.topic]
        return len(writes)

    def adopt(self, put: Put, on_conflict: OnConflict, tag: str, least: int, now: int) -> Adopted:
        if tag not in self.unacked:
            return Adopted.GONE
        assert put.at_us is not None
        if put.at_us <= now or put.at_us < now + least:
            return Adopted.SOON
        if self.put([put], DELIVERIES, on_conflict, Origin.NEW, now) is None:
            return Adopted.EXISTS
        del self.unacked[tag]
        return Adopted.OK

    def delete(
        self,
        name: str,
        ids: Sequence[str],
        bodies: Sequence[bytes] | None,
        lease: int | None,
        now: int,
        *,
        reserved: bool,
    ) -> list[bool]:
        topic, gone = self.topics[name], []
        for number, id in enumerate(ids):
            meant = topic.jobs.get(id)
            if meant is not None and (bodies is None or meant.body == bodies[number]):
                del topic.jobs[id]
            else:
                held = topic.leases.get(id) if reserved else None
                meant = held.job if held and (bodies is None or held.job.body == bodies[number]) else None
                if meant is not None:
                    del topic.leases[id]
                    self._end_way(topic)
            gone.append(meant is not None)
            if meant is not None and lease is not None:
                self._lay_aside(f"revoked:{id}", meant.body, now + lease)
        self._count("cancelled", name, sum(gone))
        self._tidy(name)
        return gone

    def move(self, name: str, moves: Sequence[Move], now: int) -> list[Moved]:
        topic = self.topics[name]
        words, agreed = [], []
        for move in moves:
            job = topic.jobs.get(str(move.id))
            due = max(move.at_us if move.at_us is not None else now + (move.in_us or 0), now)
            if job is None:
                words.append(Moved.MISSING)
            elif move.if_due_us not in (None, job.score) or move.if_body not in (None, job.body):
                words.append(Moved.CHANGED)
            else:
                words.append(Moved.OK)
                if due > now or job.score > now:
                    agreed.append((str(move.id), due))
        for id, due in agreed:
            job = topic.jobs.pop(id)
            job.score = topic.slot(due)
            topic.jobs[id] = job
        return words

    def purge(self, name: str) -> int:
        purged = len(self.topics[name].jobs)
        self.topics[name].jobs.clear()
        self._count("cancelled", name, purged)
        self._tidy(name)
        return purged

    def drain(self, name: str, delivery: Delivery, jobs: Sequence[tuple[JobAsRead, bytes]]) -> list[bool]:
        topic, pushed = self.topics[name], []
        for told, body in jobs:
            id = told.id.decode()
            job = topic.jobs.get(id)
            pushed.append(job is not None and (job.score, job.body) == (told.due_us, told.body))
            if job is not None and pushed[-1]:
                del topic.jobs[id]
                key = [key for step, key in zip(delivery.steps, delivery.lists, strict=True) if step <= job.step][-1]
                self.ready[key] = [body, *self.ready.get(key, [])]
        self._count("moved", name, sum(pushed))
        if any(pushed):
            self._tidy(name)
        return pushed

    def pause(self, name: str) -> bool:
        paused = self.holds.get(name) != math.inf
        self.holds[name] = math.inf
        self.rates.pop(name, None)
        return paused

    def resume(self, name: str, interval: float | None, now: int) -> bool:
        paused = self.holds.pop(name, None) == math.inf
        self.rates.pop(name, None)
        head = self.topics[name].head()
        if interval is not None and head is not None and head <= now:
            self.holds[name], self.rates[name] = now, interval
        return paused

    def claim(self, lease: int, limit: int, now: int) -> list[Aside]:
        free = sorted((until, name) for name, until in self.aside.items() if until <= now)[:limit]
        for _, name in free:
            self.aside[name] = now + lease
        return [Aside.read(name.encode(), self.remains[name]) for _, name in free]

    def forget(self, names: Sequence[str]) -> int:
        there = [name for name in dict.fromkeys(names) if name in self.aside]
        for name in there:
            del self.aside[name], self.remains[name]
        return len(there)

    def dispatch(
        self, name: str, delivery: Delivery, limit: int, position: str, ceiling: int | None, now: int
    ) -> tuple[list[tuple[str, Job]], int, bool]:
        """What moved, how many were dropped, and whether more may leave now."""
        room = math.inf
        if ceiling is not None:
            room = max(ceiling - sum(len(self.ready.get(key, ())) for key in delivery.lists), 0)
        taken, dropped, left = self._take(name, limit, room, now)
        pushed: dict[str, list[bytes]] = {}
        for _, job in taken:
            key = [key for step, key in zip(delivery.steps, delivery.lists, strict=True) if step <= job.step][-1]
            pushed.setdefault(key, []).append(job.body)
        for key, bodies in pushed.items():
            # Consumers pop the right end: those in front must come out first.
            there = self.ready.get(key, [])
            self.ready[key] = there + bodies[::-1] if position == "front" else bodies[::-1] + there
        self._count("moved", name, len(taken))
        return taken, dropped, left

    def pull(self, name: str, limit: int, now: int) -> list[tuple[str, bytes]]:
        """The ids and the bodies that come."""
        taken, _, _ = self._take(name, limit, math.inf, now)
        self._count("moved", name, len(taken))
        return [(id, job.body) for id, job in taken]

    def reserve(
        self,
        name: str,
        limit: int,
        lease: int,
        nonce: str,
        max_attempts: int | None,
        backoff: int,
        until: int | None,
        now: int,
    ) -> tuple[list[Reserved], int, int, int]:
        """The jobs, and how many were dropped, came back, and died."""
        topic = self.topics[name]
        expired = any(held.until <= now for held in topic.leases.values())
        delivery = topic.delivery
        taken, dropped, _ = self._take(name, limit, math.inf, now, until)
        jobs = []
        for number, (id, job) in enumerate(taken, start=1):
            job.attempts += 1
            topic.leases[id] = Lease(job, now + lease, f"{nonce}.{number}")
            jobs.append(
                Reserved(name, id.encode(), job.body, job.score, job.step, job.attempts, topic.leases[id].token)
            )
            topic.way = delivery
        ended = self.requeue(name, min(limit, 250), max_attempts, backoff, now) if expired else (0, 0)
        return jobs, dropped, *ended

    def requeue(self, name: str, limit: int, max_attempts: int | None, backoff: int, now: int) -> tuple[int, int]:
        """How many came back, and how many died."""
        topic = self.topics[name]
        expired = sorted((lease.until, id.encode(), id) for id, lease in topic.leases.items() if lease.until <= now)
        ends = []
        for _, _, id in expired[:limit]:
            pause = min(backoff * 2 ** (topic.leases[id].job.attempts - 1), 60_000_000)
            ends.append(self._end_lease(name, id, now + pause, max_attempts, "its lease ran out", now))
        self._end_way(topic)
        return ends.count("requeued"), ends.count("dead")

    def release(
        self,
        name: str,
        jobs: Sequence[Reserved],
        due: int,
        max_attempts: int | None,
        reason: str,
        counted: bool,
        now: int,
    ) -> list[bool]:
        ours = []
        for job in jobs:
            ours.append(self._holds(job))
            if ours[-1]:
                self.topics[name].leases[job.id.decode()].job.attempts -= not counted
                self._end_lease(name, job.id.decode(), max(due, now), max_attempts, reason, now)
        self._end_way(self.topics[name])
        return ours

    def ack(self, name: str, jobs: Sequence[Reserved]) -> list[bool]:
        topic, ours = self.topics[name], []
        for job in jobs:
            ours.append(self._holds(job))
            if ours[-1]:
                del topic.leases[job.id.decode()]
        self._count("moved", name, sum(ours))
        if any(ours):
            self._end_way(topic)
        return ours

    def extend(self, name: str, jobs: Sequence[Reserved], until: int) -> list[bool]:
        ours = [self._holds(job) for job in jobs]
        for job, is_ours in zip(jobs, ours, strict=True):
            if is_ours:
                self.topics[name].leases[job.id.decode()].until = until
        return ours

    def revive(self, name: str, ids: Sequence[str], now: int) -> list[bool]:
        topic, revived = self.topics[name], []
        for id in ids:
            revived.append(id in topic.graves and id not in topic.jobs and id not in topic.leases)
            if revived[-1]:
                dead = topic.graves.pop(id).job
                topic.jobs[id] = Job(topic.slot(now), dead.body, dead.step, dead.first, None)
                topic.delivery = topic.delivery if len(topic.jobs) > 1 else topic.way
        if any(revived):
            self._end_way(topic)
        return revived

    def discard(self, name: str, ids: Sequence[str]) -> list[bool]:
        topic = self.topics[name]
        gone = [topic.graves.pop(id, None) is not None for id in ids]
        self._end_way(topic)
        return gone

    def _holds(self, job: Reserved) -> bool:
        lease = self.topics[job.topic].leases.get(job.id.decode())
        return lease is not None and lease.token == job.token

    def _end_lease(self, name: str, id: str, due: int, max_attempts: int | None, reason: str, now: int) -> str:
        topic = self.topics[name]
        job = topic.leases.pop(id).job
        if max_attempts is not None and job.attempts >= max_attempts:
            topic.graves[id] = Grave(job, now, reason)
            self._count("dead", name, 1)
            return "dead"
        due = max(due, job.score)
        if job.grace is not None:
            last = job.score + job.grace
            due = min(due, last)
            job.grace = last - due
        job.score = topic.slot(due)
        topic.delivery = topic.delivery if topic.jobs else topic.way
        topic.jobs[id] = job
        self._count("requeued", name, 1)
        return "requeued"

    def _end_way(self, topic: Topic) -> None:
        """What is neither reserved nor dead needs no way back."""
        if not topic.leases and not topic.graves:
            topic.way = None

    def _take(
        self, name: str, limit: int, room: float, now: int, until: int | None = None
    ) -> tuple[list[tuple[str, Job]], int, bool]:
        """What may leave now, how many were dropped since they came too late, and whether more may leave."""
        topic, hold, interval = self.topics[name], self.holds.get(name), self.rates.get(name)
        if interval is not None and until is None:
            limit = min(limit, max(1, math.floor(SLICE / interval)))
        takes = 0 if hold is not None and hold > now and until is None else min(limit, room)

        taken, dropped, last = [], 0, now if until is None else until
        for id, job in [item for item in topic.in_order() if item[1].score <= last][: int(min(takes, 1000))]:
            del topic.jobs[id]
            if job.grace is not None and until is None and job.score + job.grace < now:
                self._lay_aside(f"late:{id}", job.body, now)
                dropped += 1
            else:
                taken.append((id, job))
        moved = len(taken)
        self._count("dropped", name, dropped)

        head = topic.head()
        overdue = head is not None and head <= now
        if hold is None or hold <= now:
            self.holds.pop(name, None)
            if overdue and moved >= room:
                self.holds[name] = now + FULL_PAUSE
            elif overdue and interval is not None:
                self.holds[name] = math.ceil(max(hold or 0, now - SLACK) + moved * interval)
            if name not in self.holds:
                self.rates.pop(name, None)
        if not overdue:
            topic.ties = {due: last for due, last in topic.ties.items() if last > now}
        self._tidy(name)
        return taken, dropped, self.index().get(name, math.inf) <= now

    def _lay_aside(self, name: str, body: bytes, until: int) -> None:
        self.aside[name], self.remains[name] = until, body

    def _count(self, word: str, name: str, count: int) -> None:
        if count:
            self.totals[f"{word}:{name}"] += count

    def _tidy(self, name: str) -> None:
        """Nothing of a topic outlives its last job but a pause."""
        if not self.topics[name].jobs:
            self.topics[name].ties.clear()
            if self.holds.get(name, math.inf) < math.inf:
                del self.holds[name]
                self.rates.pop(name, None)


def encoded(scores: dict[str, float] | dict[str, int]) -> dict[bytes, float]:
    return {name.encode(): score for name, score in scores.items()}


def texts(numbers: dict[str, int] | Counter[str]) -> dict[bytes, bytes]:
    return {name.encode(): b"%d" % number for name, number in numbers.items()}


# One topic more often than the others, and most jobs due soon, so that states come up that take several steps.
TOPICS = st.sampled_from(["q", "q", "q", "r", "e"])
IDS = st.sampled_from(["a", "b", "c", "d", "e", "f", "é", "\x00"])
BODIES = st.sampled_from([b"one", b"two", b"\xff\x00"])
#: Distances from now (us): the past, the very same moment, within a millisecond, and far beyond every pause.
AWAY = st.sampled_from([0, 0, 0, 1, 2, 3, 7, 150, 500, 1_000, 20_000, 60_000, 60_000, 1_000_000, -7, -200_000])
PUTS = st.fixed_dictionaries(
    {"topic": TOPICS, "id": IDS, "body": BODIES, "away": AWAY},
    optional={
        "relative": st.just(1),
        "step": st.sampled_from([1, 3, 5, 9]),
        "max_wait_us": st.sampled_from([0, 30, 50_000]),
        "grace_us": st.sampled_from([0, 500, 30_000]),
    },
)
#: The first, second ... of those that wait; now and then one that does not.
PICKS = st.integers(0, 9)
MOVES = st.fixed_dictionaries(
    {"pick": PICKS, "away": AWAY},
    optional={"relative": st.just(1), "if_due": st.booleans(), "if_body": BODIES},
)
INTERVALS = st.sampled_from([None, 1.0, 2_500.0, 10_000 / 3, 30_000.5, 1_000_000.0])


class Scripts(RuleBasedStateMachine):
    """Any verbs in any order, at moments that never go back."""

    store: Store  # given by the test

    @initialize()
    def begin(self) -> None:
        self.store.client.flushdb()
        self.model = Model()
        self.now = NOW

    @rule(by=st.sampled_from([1, 5, 500, 2_000, 10_000, 60_000]))
    def time_passes(self, by: int) -> None:
        self.now += by

    @rule(
        puts=st.lists(PUTS, min_size=1, max_size=9),
        on_conflict=st.sampled_from([*OnConflict, OnConflict.REPLACE, OnConflict.KEEP]),
        origin=st.sampled_from([*Origin, Origin.NEW, Origin.NEW]),
        other=st.booleans(),
    )
    def put(self, puts: list[dict], on_conflict: OnConflict, origin: Origin, other: bool) -> None:
        jobs = [self._put(origin, **put) for put in puts]
        deliveries = DELIVERIES | (OTHER_DELIVERIES if other else {})
        expected = self.model.put(jobs, deliveries, on_conflict, origin, self.now)
        try:
            stored = self.store.put(jobs, deliveries, on_conflict, origin=origin, now_us=self.now)
        except AlreadyScheduled:
            stored = None
        assert expected == stored

    @rule(
        put=PUTS,
        on_conflict=st.sampled_from([*OnConflict, OnConflict.REPLACE]),
        least=st.sampled_from([0, 0, 500]),
        delivered=st.sampled_from([True, True, False]),
    )
    def adopt(self, put: dict, on_conflict: OnConflict, least: int, delivered: bool) -> None:
        if delivered:
            self.model.unacked["tag"] = float(self.now)
            self.store.client.hset("unacked", "tag", "message")
            self.store.client.zadd("unacked_index", {"tag": self.now})
        job = self._put(Origin.NEW, **{**put, "relative": 0})
        if self._was_reserved(job.topic, str(job.id)):
            return
        expected = self.model.adopt(job, on_conflict, "tag", least, self.now)
        unacked = ("unacked", "unacked_index")
        delivery = DELIVERIES[job.topic]
        assert expected is self.store.adopt(job, delivery, on_conflict, "tag", unacked, least_us=least, now_us=self.now)

    def _was_reserved(self, name: str, id: str) -> bool:
        """Whether there is or was a lease, of which a verb for stores without leases knows nothing."""
        topic = self.model.topics[name]
        return id in topic.leases or (id in topic.jobs and topic.jobs[id].attempts > 0)

    def _put(self, origin: Origin, away: int, relative: int = 0, **given: object) -> Put:
        if origin is Origin.RESTORED and "max_wait_us" in given:  # the first put itself
            given["max_wait_us"] = self.now - int(str(given["max_wait_us"]))
        from_now = relative and origin is not Origin.RESTORED  # a record has the time itself
        when = {"in_us": max(away, 0)} if from_now else {"at_us": self.now + away}
        return Put(**given, **when)  # type: ignore[arg-type]

    def _pick(self, name: str, pick: int) -> str:
        there = sorted(self.model.topics[name].jobs)
        return there[pick % len(there)] if there and pick < 9 else "missing"

    @rule(
        name=TOPICS,
        picks=st.lists(PICKS, min_size=1, max_size=3),
        lease=st.sampled_from([None, 0, 30_000]),
        body=st.none() | BODIES,
        reserved=st.booleans(),
    )
    def delete(self, name: str, picks: list[int], lease: int | None, body: bytes | None, reserved: bool) -> None:
        self._delete(name, [self._pick(name, pick) for pick in picks], lease, body, reserved=reserved)

    def _delete(
        self, name: str, ids: list[str], lease: int | None, body: bytes | None, *, reserved: bool = False
    ) -> list[bool]:
        bodies = None if body is None else [body] * len(ids)
        gone = self.model.delete(name, ids, bodies, lease, self.now, reserved=reserved)
        options = {"bodies": bodies, "lease_us": lease, "reserved": reserved, "now_us": self.now}
        assert gone == self.store.delete(name, ids, **options)
        return gone

    @rule(name=TOPICS, moves=st.lists(MOVES, min_size=1, max_size=3))
    def move(self, name: str, moves: list[dict]) -> None:
        wanted = [self._move(name, **move) for move in moves]
        assert self.model.move(name, wanted, self.now) == self.store.move(name, wanted, now_us=self.now)

    def _move(
        self, name: str, pick: int, away: int, relative: int = 0, if_due: bool | None = None, **given: bytes
    ) -> Move:
        id = self._pick(name, pick)
        job = self.model.topics[name].jobs.get(id)
        due = None if if_due is None or job is None else job.score - (not if_due)
        when = {"in_us": max(away, 0)} if relative else {"at_us": self.now + away}
        return Move(id, if_due_us=due, **when, **given)  # type: ignore[arg-type]

    @rule(name=TOPICS, picks=st.lists(PICKS, min_size=1, max_size=2))
    def run_now(self, name: str, picks: list[int]) -> None:
        moves = [Move(self._pick(name, pick), in_us=0) for pick in picks]
        assert self.model.move(name, moves, self.now) == self.store.move(name, moves, now_us=self.now)

    @rule(
        name=TOPICS,
        limit=st.sampled_from([1, 2, 1000, 1000]),
        position=st.sampled_from(["back", "front"]),
        ceiling=st.sampled_from([None, None, 1, 2, 5]),
        tell=st.sampled_from(Tell),
    )
    def dispatch(self, name: str, limit: int, position: str, ceiling: int | None, tell: Tell = Tell.NOTHING) -> None:
        delivery = self.model.topics[name].delivery or DELIVERIES[name]
        told, *expected = self.model.dispatch(name, delivery, limit, position, ceiling, self.now)
        done = self.store.dispatch(name, delivery, limit, position, ceiling, tell, b".*", now_us=self.now)

        assert [len(told), *expected] == [done.moved, done.dropped, done.left]
        assert done.dues_us == (() if tell is Tell.NOTHING else tuple(job.score for _, job in told))
        assert done.jobs == (tuple((id.encode(), job.body) for id, job in told) if tell is Tell.JOBS else ())
        assert (done.orphans, done.now_us) == (0, self.now)
        places = self.model.index()
        first = min(places.values(), default=None)
        assert first == (done.next and done.next.due_us)
        assert done.next is None or places[done.next.topic] == first
        assert done.next is None or done.next.delivery == self.model.topics[done.next.topic].delivery

    @rule(
        rounds=st.integers(1, 5), ceiling=st.sampled_from([None, None, 2]), lateness=st.sampled_from([0, 0, 90, 30_000])
    )
    def dispatchers_at_work(self, rounds: int, ceiling: int | None, lateness: int) -> None:
        """What a dispatcher does: it dispatches what is due, and sleeps until the next is, or a little longer."""
        for _ in range(rounds):
            for _, name in self.model.tick(self.now)[1]:
                self.dispatch(name, 1000, "back", ceiling)
                self.all_of_redis_is_as_the_model_says()
            _, due, later = self.model.tick(self.now)
            if not due and later is not None:
                self.now = later[0] + lateness

    @rule(
        name=TOPICS,
        puts=st.lists(PUTS, min_size=2, max_size=9),
        by=st.sampled_from([0, 3, 2_000, 40_000]),
        interval=INTERVALS,
        rounds=st.integers(0, 5),
        then=st.sampled_from(["pause", "purge", "delete all", "resume", "nothing"]),
    )
    def a_backlog_leaves(
        self, name: str, puts: list[dict], by: int, interval: float | None, rounds: int, then: str
    ) -> None:
        """Several steps that seldom follow each other by chance."""
        self.put([{**put, "topic": name} for put in puts], OnConflict.REPLACE, Origin.NEW, other=False)
        self.now += by
        self.resume(name, interval)
        self.all_of_redis_is_as_the_model_says()
        self.dispatchers_at_work(rounds, None, 0)
        if then == "resume":
            self.resume(name, None)
        elif then != "nothing":
            self.what_is_rare(name, then)

    @rule(consumed=st.sampled_from(["q", "r", "e", "q\x06\x169"]), count=st.integers(1, 3))
    def consume(self, consumed: str, count: int) -> None:
        there = self.model.ready.get(consumed, [])
        popped = [self.store.client.rpop(consumed) for _ in range(count)]
        assert (there[::-1] + [None] * count)[:count] == popped
        self.model.ready[consumed] = there[:-count]

    @rule(name=TOPICS, what=st.sampled_from(["pause", "pause", "purge", "delete all", "SCRIPT FLUSH"]))
    def what_is_rare(self, name: str, what: str) -> None:
        """One rule for what would otherwise leave the others too little to do."""
        if what == "pause":
            assert self.model.pause(name) is self.store.pause(name)
        elif what == "purge":
            assert self.model.purge(name) == self.store.purge(name)
        elif what == "delete all":
            self._delete(name, list(self.model.topics[name].jobs), None, None)
        else:
            self.store.client.script_flush()

    @rule(name=TOPICS, picks=st.lists(PICKS, min_size=1, max_size=3), as_read=st.booleans())
    def drain(self, name: str, picks: list[int], as_read: bool) -> None:
        jobs = []
        for pick in picks:
            id = self._pick(name, pick)
            if self._was_reserved(name, id):
                continue
            job = self.model.topics[name].jobs.get(id) or Job(self.now, b"one", 0, None, None)
            due_us, body = (job.score, job.body) if as_read else (job.score + pick % 2, b"two")
            jobs.append((JobAsRead(name, id.encode(), due_us, body), b"with an eta"))
        delivery = self.model.topics[name].delivery or DELIVERIES[name]
        assert self.model.drain(name, delivery, jobs) == self.store.drain(name, delivery, jobs)

    @rule(name=TOPICS, interval=INTERVALS)
    def resume(self, name: str, interval: float | None) -> None:
        assert self.model.resume(name, interval, self.now) is self.store.resume(name, interval, now_us=self.now)

    @rule(lease=st.sampled_from([0, 700, 90_000]), limit=st.sampled_from([1, 2, 100]))
    def claim(self, lease: int, limit: int) -> None:
        assert self.model.claim(lease, limit, self.now) == self.store.claim(lease, limit, now_us=self.now)

    @rule(picks=st.lists(PICKS, min_size=1, max_size=3))
    def forget(self, picks: list[int]) -> None:
        names = [*self.model.aside, "late:missing"]
        jobs = [Aside.read(names[pick % len(names)].encode(), b"") for pick in picks]
        assert self.model.forget([job.name for job in jobs]) == self.store.forget(jobs)

    @rule(marks=st.booleans())
    def version(self, marks: bool) -> None:
        if marks:
            self.model.version = VERSION
        assert self.store.version(marks=marks) == VERSION

    @invariant()
    def all_of_redis_is_as_the_model_says(self) -> None:
        assert self.model.contents(self.store) == contents_of(self.store)

    @invariant()
    def a_tick_tells_it(self) -> None:
        aside, due, later = self.model.tick(self.now)
        tick = self.store.tick(now_us=self.now)
        assert (aside, due) == (tick.aside, [(one.due_us, one.topic) for one in tick.due])
        assert {name for name, until in self.model.expiries().items() if until <= self.now} == set(tick.expired)
        assert later == (tick.next and (tick.next.due_us, tick.next.topic))
        for one in (*tick.due, *([tick.next] if tick.next else ())):
            assert one.delivery == self.model.topics[one.topic].delivery

    @rule(name=TOPICS)
    def a_tick_of_one_topic_tells_of_it(self, name: str) -> None:
        _, due, _ = self.model.tick(self.now)
        tick = self.store.tick(topics=[name], now_us=self.now)
        assert [at for at, topic in due if topic == name] == [one.due_us for one in tick.due]
        place = self.model.index().get(name, 0)
        assert (tick.next and tick.next.due_us) == (place if place > self.now else None)

    @rule(name=TOPICS)
    def a_page_shows_it(self, name: str) -> None:
        shown = [(job.id.decode(), job.due_us, job.body) for job in self.store.page(name).jobs]
        assert shown == [(id, job.score, job.body) for id, job in self.model.topics[name].in_order()]
        graves = self.model.topics[name].graves.items()
        dead = sorted((grave.died, id.encode(), grave.job.body, grave.job.attempts) for id, grave in graves)
        assert dead == [(one.died_us, one.id, one.body, one.attempts) for one in self.store.dead(name).jobs]


#: What a walk through leases does, the verbs that lead on more often; and times (us) that matter to them.
VERBS = ["reserve"] * 12 + ["release"] * 8 + ["put", "requeue", "ack", "wait", "revive"] * 4
VERBS += ["extend", "discard", "pull", "restore", "put again", "delete", "delete", "move", "dispatch", "version"]
VERBS += ["ack with a wrong token", "pause", "resume", "resume", "purge"]
TIMES = [0, 0, 1, 700, 60_000]


class Leases(Scripts):
    """A walk among jobs of which some are reserved: where any verb may follow any, these seldom meet one."""

    met: Counter[str]  # given by the test

    def walk(self, dice: random.Random, turns: int) -> None:
        self.begin()
        self.nonces = 0
        self.held: list[Reserved] = []
        for _ in range(turns):
            self._turn(dice)
            self.all_of_redis_is_as_the_model_says()
            self.a_tick_tells_it()

    def _turn(self, dice: random.Random) -> None:
        name, verb, by = dice.choice("qqqr"), dice.choice(VERBS), dice.choice(TIMES)
        limit, attempts = dice.choice([1, 2, 1000]), dice.choice([None, None, 1, 2, 3])
        ids = dice.sample("abcdefg", k=dice.randint(1, 5))
        held = [job for job in self.held if job.topic == name][-6:]  # some of their leases still hold
        jobs = dice.choices(held, k=dice.randint(1, 4)) if held else []
        model, store, now = self.model, self.store, self.now
        dead = [id for id in model.topics[name].graves if dice.random() < 0.7] or ids
        if verb == "reserve":
            self.now = max(int(model.index().get(name, now)), now)
            until = dice.choice([*[None] * 8, self.now + 700, 2**52])
            self._reserve(name, limit, dice.choice([1, 700, 60_000, 60_000]), attempts, until)
        elif verb == "wait":
            moments = [*model.index().values(), *model.expiries().values()]
            self.now = max(int(min(moments, default=now)), now) + by
        elif verb == "ack":
            assert model.ack(name, jobs) == store.ack(name, jobs)
        elif verb == "ack with a wrong token":
            assert [False] * len(jobs) == store.ack(name, [job._replace(token=job.token[:-1]) for job in jobs])
        elif verb == "release" and jobs:
            terms = {"max_attempts": attempts, "reason": "two\nlines", "counted": dice.random() < 0.7}
            expected = model.release(name, jobs, now + by, **terms, now=now)
            done = store.release(name, jobs, in_us=by, **terms, now_us=now)
            assert expected == done
        elif verb == "extend":
            assert model.extend(name, jobs, now + by + 1) == store.extend(name, jobs, by + 1, now_us=now)
        elif verb == "requeue":
            ended = sum(model.requeue(name, limit, attempts, by, now))
            assert ended == store.requeue(name, limit, max_attempts=attempts, backoff_us=by, now_us=now)
        elif verb == "revive":
            revived = store.revive(name, dead, now_us=now)
            assert model.revive(name, dead, now) == revived
            self.met["revived"] += sum(revived)
        elif verb == "discard":
            assert model.discard(name, dead[:1]) == store.discard(name, dead[:1])
        elif verb == "pull":
            pulled = [(job.id.decode(), job.body) for job in store.pull(name, limit, now_us=now)]
            assert model.pull(name, limit, now) == pulled
        elif verb in ("put", "restore", "put again"):
            origin = {"put": Origin.NEW, "restore": Origin.RESTORED, "put again": Origin.RETRIED}[verb]
            self.put([self._any_put(dice, name, id) for id in ids], OnConflict.REPLACE, origin, other=False)
        elif verb == "delete":
            there = [id for id in ids if id in model.topics[name].leases]
            gone = self._delete(name, ids, dice.choice([None, None, 5]), dice.choice([None, b"one"]), reserved=True)
            self.met["deleted while reserved"] += sum(was for id, was in zip(ids, gone, strict=True) if id in there)
        elif verb == "version":
            self.version(dice.random() < 0.5)
        elif verb == "move":
            moves = [Move(id, in_us=by) for id in ids]
            assert model.move(name, moves, now) == store.move(name, moves, now_us=now)
        elif verb == "dispatch":
            self.dispatch(name, limit, "back", None)
        elif verb in ("pause", "purge"):
            self.what_is_rare(name, verb)
        elif verb == "resume":
            self.resume(name, None)

    def _any_put(self, dice: random.Random, name: str, id: str) -> dict:
        put = {"topic": name, "id": id, "body": dice.choice([b"one", b"two"]), "away": dice.choice(TIMES)}
        options = {"step": 9, "max_wait_us": 50_000, "grace_us": dice.choice([500, 70_000])}
        return put | {option: value for option, value in options.items() if dice.random() < 0.3}

    def _reserve(self, name: str, limit: int, lease: int, max_attempts: int | None, until: int | None) -> None:
        self.nonces += 1
        nonce, backoff = f"n{self.nonces}", lease // 2
        expected = self.model.reserve(name, limit, lease, nonce, max_attempts, backoff, until, self.now)
        done = self.store.reserve(
            name,
            limit,
            lease,
            max_attempts=max_attempts,
            backoff_us=backoff,
            until_us=until,
            now_us=self.now,
            nonce=nonce,
        )

        assert expected == (list(done.jobs), done.dropped, done.requeued, done.buried)
        assert (done.orphans, done.now_us) == (0, self.now)
        places = self.model.index()
        first = min(places.values(), default=None)
        assert first == (done.next and done.next.due_us)
        assert done.next is None or places[done.next.topic] == first
        assert done.left >= (places.get(name, math.inf) <= self.now)
        self.held += done.jobs
        self.met["reserved again"] += sum(job.attempts > 1 for job in done.jobs)
        self.met["reserved early"] += sum(job.due_us > self.now for job in done.jobs)


def test_redis_is_as_the_model_says(store: Store) -> None:
    """Thousands of random steps, the same ones in every run."""
    machine = type("Scripts", (Scripts,), {"store": Store(store.client, store.keys, leases=True)})
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=60, stateful_step_count=50, derandomize=True, deadline=None),
    )


def test_redis_is_as_the_model_says_where_jobs_are_reserved(store: Store) -> None:
    """Thousands of random steps, the same ones in every run; and enough of what these verbs are for."""
    machine = type("Walk", (Leases,), {"store": Store(store.client, store.keys, leases=True), "met": Counter()})()
    for seed in range(50):
        machine.walk(random.Random(seed), 60)
    assert machine.met["reserved again"] > 40
    assert machine.met["reserved early"] > 20
    assert machine.met["revived"] > 10
    assert machine.met["deleted while reserved"] > 10
