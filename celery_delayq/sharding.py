"""Jobs spread over shards by their ids: several stores that look like one to whoever puts, looks and changes.

A shard is a store of its own, with dispatchers of its own; what one script does is done in one shard. So a put of jobs
of several shards is all or nothing in each of them only.

The number of shards can be raised while jobs wait. None of them is moved: a number that was ever in use is remembered,
in the first shard, and an id is looked for where it would be under each of them. It is put where it waits already, else
where it belongs now. Numbers are not forgotten: that no job is left in an old place could only be known by looking at
each, and what it saves is one look in a second shard.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Generic, TypeVar
from zlib import crc32

from .delivery import Delivery
from .errors import ReplicasMissing, Unattended
from .job import (
    Aside,
    DeadPage,
    Load,
    Move,
    Moved,
    Needle,
    OnConflict,
    Origin,
    Page,
    Place,
    Put,
    Waiting,
)
from .liveness import Liveness
from .scripts import Begun
from .store import Store
from .verbs import name_of

T = TypeVar("T")
AnyPage = TypeVar("AnyPage", Page, DeadPage)

#: Calls that are under way at once: each has a connection, of which Kombu's pools give ten.
AT_ONCE = 8

#: Gives the store of the shard of that number.
StoreOf = Callable[[int], Store]

#: What finds a job first: one that waits before one that is being handed over, and that before a dead one.
_STATES = ("waiting", "reserved", "dead")

#: Of what a move says in two places, the better.
_MOVED = (Moved.MISSING, Moved.CHANGED, Moved.OK)


def shard_of(id: bytes, count: int) -> int:
    """The shard in which a job of that id belongs, of so many. The same for ever, on every machine."""
    return crc32(id) % count


def known_counts(first: Store, own: int) -> tuple[int, ...]:
    """The numbers of shards under which jobs may wait, the greatest last. Changes nothing.

    Args:
        first: the store of the first shard.
        own: into how many the caller spreads.
    """
    counts = first.shard_counts() or ((1,) if own == 1 or first.serves() is not None else ())
    return counts if counts and counts[-1] >= own else (*counts, own)


def raise_count(store_of: StoreOf, own: int) -> None:
    """Let all know that jobs are spread over *own* shards from now on, if that is more than before.

    To be called before the caller puts; and who puts with a single shard looks at the counts after he has made the
    store his (:meth:`~celery_delayq.store.Store.serve`). Of two who begin at once, one thus sees the other.
    """
    if own == 1:
        return
    first = store_of(0)
    before = first.shard_counts()
    if own <= max(before, default=1):
        return
    paused, broker = first.paused(), first.serves()
    for number in range(max(before, default=1), own):
        part = store_of(number)
        for topic in paused:
            part.pause(topic)
        if broker is not None:
            part.serve(broker)
    first.add_shard_count(own)
    if not before and first.serves() is not None:  # it was in use when nobody counted
        first.add_shard_count(1)


class Sharded:
    """The stores of all shards. Each method does what that of :class:`~celery_delayq.store.Store` does, if need be in
    several shards; what is about an id, only in those where it may be.

    Attributes:
        parts: the stores, by number of the shard.

    Args:
        counts: the numbers of shards under which jobs may wait, the greatest last; that is the one in force.
    """

    def __init__(self, parts: Sequence[Store], counts: Sequence[int]) -> None:
        self.parts = tuple(parts)
        self._counts = tuple(reversed(counts))

    def close(self) -> None:
        """Close all."""
        for part in self.parts:
            part.close()

    def places(self, id: bytes) -> tuple[int, ...]:
        """The shards in which a job of that id may be; the first is where it belongs now."""
        return tuple(dict.fromkeys(shard_of(id, count) for count in self._counts))

    def _routed(self, ids: Sequence[str | bytes]) -> Iterator[tuple[Store, list[int]]]:
        """Each shard in which some of *ids* may be, and the numbers of those."""
        numbers: dict[int, list[int]] = defaultdict(list)
        for number, id in enumerate(ids):
            for place in self.places(name_of(id)):
                numbers[place].append(number)
        return ((self.parts[place], some) for place, some in sorted(numbers.items()))

    def _sorted(self, jobs: Sequence[Put]) -> list[tuple[Store, list[Put]]]:
        """The shards that *jobs* go to: where their ids wait or are reserved, else where they belong."""
        older: dict[int, dict[str, list[bytes]]] = defaultdict(lambda: defaultdict(list))
        places = [self.places(name_of(job.id)) for job in jobs]
        for job, (_, *others) in zip(jobs, places, strict=True):
            for place in others:
                older[place][job.topic].append(name_of(job.id))
        held = {place: self.parts[place].held(wanted) for place, wanted in older.items()}
        by_place: dict[int, list[Put]] = defaultdict(list)
        for job, (newest, *others) in zip(jobs, places, strict=True):
            name = (job.topic, name_of(job.id))
            by_place[next((place for place in others if name in held[place]), newest)].append(job)
        return [(self.parts[place], some) for place, some in sorted(by_place.items())]

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
        """Store *jobs*; those of one shard all or none, so those of other shards may be stored when it raises.

        But for a lack of dispatchers and of replicas: then either none is stored, or all are.
        """
        if origin is Origin.RESTORED:
            return self.begin_restore(jobs, deliveries, on_conflict).result()
        options: dict[str, Any] = {"origin": origin, "replicas": replicas, "now_us": now_us}
        calls = [partial(part.put, some, deliveries, on_conflict, **options) for part, some in self._sorted(jobs)]
        count, missing, refused = 0, None, []
        for call in calls:
            try:
                count += call(liveness=liveness)
            except ReplicasMissing as error:
                missing = error
            except Unattended:
                refused.append(call)
        if calls and len(refused) == len(calls):
            raise Unattended
        for call in refused:  # in a shard that nobody has served yet; but others are stored
            try:
                count += call()
            except ReplicasMissing as error:
                missing = error
        if missing is not None:
            raise missing
        return count

    def begin_restore(
        self, jobs: Sequence[Put], deliveries: dict[str, Delivery], on_conflict: OnConflict
    ) -> Together[int]:
        """Store *jobs* of a record; those of one shard all or none."""
        return Together(
            [(part, some) for part, some in self._sorted(jobs)],
            lambda part, some: part.begin_restore(some, deliveries, on_conflict),
            sum,
        )

    def delete(
        self,
        topic: str,
        ids: Iterable[str | bytes],
        *,
        bodies: Sequence[bytes] | None = None,
        lease_us: int | None = None,
        now_us: int | None = None,
    ) -> list[bool]:
        """Take back waiting jobs."""
        ids = list(ids)
        gone = [False] * len(ids)
        for part, numbers in self._routed(ids):
            some = None if bodies is None else [bodies[number] for number in numbers]
            won = part.delete(topic, [ids[n] for n in numbers], bodies=some, lease_us=lease_us, now_us=now_us)
            for number, ours in zip(numbers, won, strict=True):
                gone[number] = gone[number] or ours
        return gone

    def move(self, topic: str, moves: Sequence[Move], *, now_us: int | None = None) -> list[Moved]:
        """Give waiting jobs other due times."""
        words = [Moved.MISSING] * len(moves)
        for part, numbers in self._routed([move.id for move in moves]):
            found = part.move(topic, [moves[number] for number in numbers], now_us=now_us)
            for number, word in zip(numbers, found, strict=True):
                words[number] = max(words[number], word, key=_MOVED.index)
        return words

    def purge(self, topic: str) -> int:
        """Take back all that waits in a topic."""
        return sum(part.purge(topic) for part in self.parts)

    def pause(self, topic: str) -> bool:
        """Let none of a topic's jobs leave."""
        answers = [part.pause(topic) for part in self.parts]
        return any(answers)

    def resume(self, topic: str, interval_us: float | None = None, *, now_us: int | None = None) -> bool:
        """Let a topic's jobs leave again; at an interval, of which each shard keeps its part."""
        each = None if interval_us is None else interval_us * len(self.parts)
        answers = [part.resume(topic, each, now_us=now_us) for part in self.parts]
        return any(answers)

    def claim(self, lease_us: int, limit: int, *, now_us: int | None = None) -> list[Aside]:
        """Take up jobs that lie aside."""
        jobs: list[Aside] = []
        for part in self.parts:
            if len(jobs) < limit:
                jobs += part.claim(lease_us, limit - len(jobs), now_us=now_us)
        return jobs

    def revoked(self, ids: Sequence[str | bytes]) -> list[Aside]:
        """Those of *ids* that lie aside since somebody deleted them with a lease."""
        found = (part.revoked([ids[number] for number in numbers]) for part, numbers in self._routed(ids))
        return list(dict.fromkeys(job for jobs in found for job in jobs))

    def forget(self, jobs: Iterable[Aside]) -> int:
        """Throw away jobs that lie aside."""
        jobs = list(jobs)
        routed = self._routed([job.id for job in jobs])
        return sum(part.forget([jobs[number] for number in numbers]) for part, numbers in routed)

    def topics(self) -> dict[str, Delivery]:
        """The topics in which a job waits."""
        return {topic: delivery for part in self.parts for topic, delivery in part.topics().items()}

    def paused(self) -> set[str]:
        """The topics that are paused."""
        return {topic for part in self.parts for topic in part.paused()}

    def counted(self) -> set[str]:
        """The topics of which anything was ever counted."""
        return {topic for part in self.parts for topic in part.counted()}

    def leased(self) -> set[str]:
        """The topics with reserved or dead jobs."""
        return {topic for part in self.parts for topic in part.leased()}

    def find(self, id: str | bytes) -> list[Waiting]:
        """The jobs of that id."""
        found = [job for place in self.places(name_of(id)) for job in self.parts[place].find(id)]
        return sorted(found, key=lambda job: (_STATES.index(job.state), job.place))

    def where(self, ids: Sequence[str | bytes]) -> Iterator[tuple[str, list[str | bytes]]]:
        """The topics in which any of *ids* waits; a topic may come for each shard anew."""
        for part, numbers in self._routed(ids):
            yield from part.where([ids[number] for number in numbers])

    def read(self, topic: str, ids: Sequence[str | bytes]) -> list[Waiting | None]:
        """What waits under each of *ids*."""
        found: list[Waiting | None] = [None] * len(ids)
        for part, numbers in self._routed(ids):
            for number, job in zip(numbers, part.read(topic, [ids[number] for number in numbers]), strict=True):
                found[number] = found[number] or job
        return found

    def begin_page(
        self,
        topic: str,
        *,
        start_us: int | None = None,
        stop_us: int | None = None,
        behind: Place | None = None,
        limit: int = 1000,
        needles: Sequence[Needle] = (),
    ) -> Together[Page]:
        """Read waiting jobs, those of all shards in one order, while the caller does something else.

        Who walks through many does better to walk through each of :attr:`parts`: of what the shards send here some is
        sent again with the next page.
        """
        return Together(
            [(part, ()) for part in self.parts],
            lambda part, _: part.begin_page(
                topic, start_us=start_us, stop_us=stop_us, behind=behind, limit=self._share(limit), needles=needles
            ),
            lambda pages: merged(pages, limit),
        )

    def _share(self, limit: int) -> int:
        """How many of *limit* jobs one shard is asked for. They are spread evenly; what is too much is read again."""
        return -(-limit // len(self.parts))

    def count(self, topics: Sequence[str], ranges: Sequence[tuple[int | None, int | None]]) -> list[list[int]]:
        """How many jobs of each topic are due in each half-open range."""
        tables = [part.count(topics, ranges) for part in self.parts]
        return [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*tables, strict=True)]

    def loads(self, deliveries: dict[str, Delivery]) -> tuple[int, dict[str, Load]]:
        """The first shard's clock (us), and what the topics named hold and have done."""
        (now_us, _), *_ = found = [part.loads(deliveries) for part in self.parts]
        return now_us, {topic: _sum([loads[topic] for _, loads in found]) for topic in deliveries}

    def expiries(self) -> dict[str, int]:
        """When the first lease of each topic runs out (us)."""
        first: dict[str, int] = {}
        for part in self.parts:
            for topic, at_us in part.expiries().items():
                first[topic] = min(at_us, first.get(topic, at_us))
        return first

    def sizes(self, topics: Iterable[str]) -> dict[str, tuple[int, int]]:
        """How many ids and how many bodies each topic has."""
        topics = list(topics)
        found = [part.sizes(topics) for part in self.parts]
        return {topic: (sum(s[topic][0] for s in found), sum(s[topic][1] for s in found)) for topic in topics}

    def dead(self, topic: str, *, behind: Place | None = None, limit: int = 1000) -> DeadPage:
        """Read dead jobs, the longest dead first."""
        return merged([part.dead(topic, behind=behind, limit=self._share(limit)) for part in self.parts], limit)

    def revive(self, topic: str, ids: Iterable[str | bytes], *, now_us: int | None = None) -> list[bool]:
        """Let dead jobs wait again; not one whose id waits or is reserved in another of its places."""
        ids = list(ids)
        done = [False] * len(ids)
        for part, numbers in self._routed(ids):
            busy = self._held_elsewhere(part, topic, [name_of(ids[number]) for number in numbers])
            free = [number for number in numbers if name_of(ids[number]) not in busy]
            for number, revived in zip(
                free, part.revive(topic, [ids[number] for number in free], now_us=now_us), strict=True
            ):
                done[number] = done[number] or revived
        return done

    def _held_elsewhere(self, part: Store, topic: str, names: Sequence[bytes]) -> set[bytes]:
        others: dict[int, list[bytes]] = defaultdict(list)
        for name in names:
            for place in self.places(name):
                if self.parts[place] is not part:
                    others[place].append(name)
        found = (self.parts[place].held({topic: some}) for place, some in others.items())
        return {name for held in found for _, name in held}

    def discard(self, topic: str, ids: Iterable[str | bytes]) -> list[bool]:
        """Throw dead jobs away."""
        ids = list(ids)
        done = [False] * len(ids)
        for part, numbers in self._routed(ids):
            for number, gone in zip(numbers, part.discard(topic, [ids[number] for number in numbers]), strict=True):
                done[number] = done[number] or gone
        return done

    def beat_us(self) -> int | None:
        """When a dispatcher was last at work, in the shard that has waited for one the longest; None: never there."""
        beats = [part.beat_us() for part in self.parts]
        known = [beat_us for beat_us in beats if beat_us is not None]
        return min(known) if len(known) == len(beats) else None

    def now_us(self) -> int:
        """The clock of the first shard, when all have answered."""
        now_us, *_ = [part.now_us() for part in self.parts]
        return now_us

    def serves(self) -> str | None:
        """The broker that the jobs are for."""
        return next((served for part in self.parts if (served := part.serves()) is not None), None)

    def serve(self, broker: str) -> str:
        """Remember that the jobs are for *broker*; return which one they are for."""
        return next((known for part in self.parts if (known := part.serve(broker)) != broker), broker)


class Together(Generic[T]):
    """Calls that are under way in several shards, some of them at once; like :class:`~celery_delayq.scripts.Begun`.

    Args:
        some: the shards, and what each is called with.
        begin: begins one call.
        join: makes one result of all.
    """

    def __init__(
        self,
        some: Sequence[tuple[Store, Sequence[Put]]],
        begin: Callable[[Store, Sequence[Put]], Begun[T]],
        join: Callable[[list[T]], T],
    ) -> None:
        self._rest = deque(some)
        self._begin = begin
        self._join = join
        self._begun: deque[Begun[T]] = deque()
        try:
            self._begin_some()
        except BaseException:
            self.drop()
            raise

    def _begin_some(self) -> None:
        while self._rest and len(self._begun) < AT_ONCE:
            self._begun.append(self._begin(*self._rest.popleft()))

    def result(self) -> T:
        """Wait for all. If one raises, those that are not begun yet never are."""
        found: list[T] = []
        try:
            while self._begun:
                found.append(self._begun.popleft().result())
                self._begin_some()
        except BaseException:
            self._rest.clear()
            while self._begun:  # they have been sent: what becomes of them should be known before anybody goes on
                with suppress(Exception):
                    self._begun.popleft().result()
            raise
        return self._join(found)

    def drop(self) -> None:
        """Never read the replies."""
        while self._begun:
            self._begun.popleft().drop()


def merged(pages: Sequence[AnyPage], limit: int) -> AnyPage:
    """One page of those of all shards. It ends where the first of them ends behind which there is more: what others
    have found beyond that is read again with the next page.
    """
    jobs = list(heapq.merge(*(page.jobs for page in pages), key=lambda job: job.place))
    ends = [page.end for page in pages if page.left and page.end is not None]
    if len(jobs) > limit:
        ends.append(jobs[limit - 1].place)
    if not ends:
        ends = [page.end for page in pages if page.end is not None]
        return replace(pages[0], jobs=tuple(jobs), left=0, end=max(ends, default=None))
    end = min(ends)
    kept = [job for job in jobs if job.place <= end]
    left = sum(page.left for page in pages) + len(jobs) - len(kept)
    return replace(pages[0], jobs=tuple(kept), left=left, end=end)


def _sum(loads: Sequence[Load]) -> Load:
    """What a topic holds in all shards."""
    counted = ("waiting", "due", "reserved", "dead", "moved", "cancelled", "dropped", "orphans", "requeued", "buried")
    heads = [load.head_us for load in loads if load.head_us is not None]
    holds = [load.held_us for load in loads if load.held_us is not None]
    return Load(
        head_us=min(heads, default=None),
        held_us=max(holds, default=None),
        ready=None,  # at a broker elsewhere
        **{name: sum(getattr(load, name) for load in loads) for name in counted},
    )


def joined(store_of: StoreOf, counts: Sequence[int]) -> Store | Sharded:
    """All shards as one store; one alone is just that."""
    return store_of(0) if tuple(counts) == (1,) else Sharded([store_of(n) for n in range(counts[-1])], counts)
