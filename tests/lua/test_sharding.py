"""Jobs spread over shards: each shard a store, together one; and more of them while jobs wait."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from celery_delayq.delivery import Delivery
from celery_delayq.embedded import RedisServer
from celery_delayq.errors import AlreadyScheduled, Unattended
from celery_delayq.job import Move, Moved, Needle, OnConflict, Page, Place, Put
from celery_delayq.keys import Keys
from celery_delayq.liveness import Liveness
from celery_delayq.sharding import Sharded, joined, known_counts, raise_count, shard_of
from celery_delayq.store import Store

from .conftest import NOW

ONE_REDIS = True

RELAYED = {"q": Delivery.relayed()}
IDS = [f"id-{number}" for number in range(200)]


class Stores:
    """Opens the store as processes do that spread over so many shards."""

    def __init__(self, server: RedisServer) -> None:
        self._client = server.client()

    def of(self, shard: int) -> Store:
        return Store(self._client, Keys("delayq", shard=shard), leases=True)

    def open(self, count: int) -> Store | Sharded:
        """As one who puts."""
        raise_count(self.of, count)
        self.of(0).serve("amqp://b")
        store = joined(self.of, known_counts(self.of(0), count))
        store.serve("amqp://b")
        return store

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def stores(server: RedisServer) -> Iterator[Stores]:
    stores = Stores(server)
    yield stores
    stores.close()


def put(store: Store | Sharded, ids: Sequence[str], on_conflict: OnConflict = OnConflict.ERROR, due: int = 0) -> int:
    jobs = [Put("q", id, b"body of " + id.encode(), at_us=NOW + due + number) for number, id in enumerate(ids)]
    return store.put(jobs, RELAYED, on_conflict, now_us=NOW)


def page(store: Store | Sharded, limit: int = 10_000, **more: Any) -> Page:
    return store.begin_page("q", limit=limit, **more).result()


def walk(store: Store | Sharded, limit: int, needles: Sequence[Needle] = ()) -> list[Place]:
    """All places, page by page."""
    found: list[Place] = []
    behind, left = None, 1
    while left:
        some = page(store, limit, behind=behind, needles=needles)
        assert len(some.jobs) <= limit
        assert some.left < left or left == 1
        found += [job.place for job in some.jobs]
        behind, left = some.end, some.left
    return found


def test_an_id_is_always_in_the_same_shard() -> None:
    """On every machine, in every version: these numbers stand in stores."""
    assert [shard_of(b"a", count) for count in (1, 2, 3, 4, 6)] == [0, 1, 0, 3, 3]
    assert [shard_of(b"\xff\x00", 16), shard_of("ä".encode(), 16), shard_of(b"", 16)] == [13, 3, 0]
    shares = [sum(shard_of(id.encode(), 4) == shard for id in IDS) for shard in range(4)]
    assert min(shares) > 30


def test_looking_an_id_up_touches_one_shard(server: RedisServer, stores: Stores) -> None:
    """As do putting, moving and deleting it: no command names a key of another shard."""
    store = stores.open(4)
    put(store, IDS)
    with server.client() as client, client.monitor() as monitor:
        store.find("id-7")
        list(store.where(["id-7"]))
        store.read("q", ["id-7"])
        store.move("q", [Move("id-7", at_us=NOW + 5)])
        store.delete("q", ["id-7"])
        put(store, ["id-7"])
        store.now_us()
        commands = []
        while not (commands and commands[-1] == "TIME"):
            line = monitor.next_command()
            commands += [] if line["client_type"] == "lua" else [line["command"]]

    assert len(commands) > 5
    keys = [word for command in commands for word in command.split() if word.startswith("delayq:")]
    assert {key.split(":")[1] for key in keys} == {f"{{{shard_of(b'id-7', 4)}}}"}


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("limit", [7, 64, 1000])
def test_a_walk_goes_through_all_shards_in_one_order(stores: Stores, count: int, limit: int) -> None:
    """Each job once; also with a filter over bodies."""
    store = stores.open(count)
    chance = random.Random(count * limit)
    jobs = [Put("q", id, b"red" if chance.random() < 0.1 else b"blue", at_us=NOW + chance.randrange(99)) for id in IDS]
    store.put(jobs, RELAYED, now_us=NOW)
    whole = page(store).jobs
    places = [job.place for job in whole]

    assert sorted(places) == places
    assert {job.id for job in whole} == {id.encode() for id in IDS}
    assert walk(store, limit) == places
    assert walk(store, limit, [Needle("red")]) == [job.place for job in whole if job.body == b"red"]
    store.begin_page("q", limit=limit).drop()


def test_what_is_of_all_is_the_sum(stores: Stores) -> None:
    """Counts, loads, topics, holds, dead jobs, what lies aside."""
    store = stores.open(4)
    put(store, IDS)
    assert store.count(["q", "r"], [(None, None), (NOW, NOW + 50)]) == [[200, 50], [0, 0]]
    assert list(store.topics()) == ["q"]
    assert store.pause("q")
    assert not store.pause("q")
    assert store.paused() == {"q"}
    (now_us, loads) = store.loads({**RELAYED, "r": Delivery.relayed()})
    assert now_us > 0
    assert (loads["q"].waiting, loads["q"].head_us, loads["q"].paused, loads["r"].waiting) == (200, NOW, True, 0)
    assert store.sizes(["q"]) == {"q": (200, 200)}
    assert store.resume("q")
    gone = store.delete("q", IDS[:20], lease_us=0, now_us=NOW)
    assert gone == [True] * 20
    assert {job.id for job in store.revoked(IDS)} == set(IDS[:20])
    claimed = store.claim(1_000_000, 15, now_us=NOW + 1)
    assert len(claimed) == 15
    assert store.forget(claimed) == 15
    for part in store.parts:
        some = part.reserve("q", 100, 1_000_000, now_us=NOW + 10_000).jobs
        part.release("q", some, max_attempts=1, reason="why", now_us=NOW + 10_000)
    assert store.leased() == {"q"}
    page = store.dead("q", limit=100)
    rest = store.dead("q", limit=100, behind=page.end)
    assert (len(page.jobs) + len(rest.jobs), rest.left) == (180, 0)
    assert store.revive("q", [IDS[50], "x"]) == [True, False]
    assert store.discard("q", [IDS[51], IDS[51]]) == [True, False]
    assert [job.state for job in store.find(IDS[50]) + store.find(IDS[52])] == ["waiting", "dead"]
    assert store.loads(RELAYED)[1]["q"].dead == 178
    assert store.purge("q") == 1
    assert store.counted() == {"q"}


def test_a_rate_is_that_of_all_shards_together(stores: Stores) -> None:
    """Ten a second from two shards are five from each."""
    store = stores.open(2)
    put(store, IDS)
    store.pause("q")
    store.resume("q", 100_000, now_us=NOW + 10_000)
    assert [float(part.client.hget(part.keys.rates, "q")) for part in store.parts] == [200_000, 200_000]


def test_a_conflict_leaves_its_shard_as_it_was(stores: Stores) -> None:
    """A batch is all or nothing in each shard, and no promise goes beyond that."""
    store = stores.open(2)
    first, second = (next(id for id in IDS if shard_of(id.encode(), 2) == shard) for shard in (0, 1))
    sibling = next(id for id in IDS if shard_of(id.encode(), 2) == 1 and id != second)
    put(store, [second])
    with pytest.raises(AlreadyScheduled):
        put(store, [first, second, sibling])
    assert {job.id.decode() for job in page(store).jobs} == {first, second}


def test_where_nobody_dispatches_a_batch_is_stored_whole_or_not_at_all(stores: Stores) -> None:
    """Else who publishes natively what is refused would not know which that is."""
    store, liveness = stores.open(3), Liveness(1.0, refuses=True)
    jobs = [Put("q", id, b"", at_us=NOW) for id in IDS]
    with pytest.raises(Unattended):
        store.put(jobs, RELAYED, liveness=liveness)
    assert store.count(["q"], [(None, None)]) == [[0]]
    store.parts[1].tick(beat="me")
    assert store.put(jobs, RELAYED, liveness=liveness) == 200
    assert store.beat_us() is None


@pytest.mark.parametrize("counts", [(1, 4, 6), (1, 2), (2, 3, 16)])
def test_more_shards_while_jobs_wait(stores: Stores, counts: tuple[int, ...]) -> None:
    """Whatever was put before is found, moved, deleted; an id has one job, wherever it was put first."""
    for number, count in enumerate(counts):
        put(stores.open(count), IDS[number * 60 : number * 60 + 60])
    store = stores.open(counts[0])  # who knows of fewer spreads over all the same
    total = 60 * len(counts)
    assert len(store.parts) == counts[-1]
    assert len(walk(store, 50)) == total
    assert all(len(store.find(id)) == 1 for id in IDS[:total])
    with pytest.raises(AlreadyScheduled):
        put(store, ["id-5"])
    assert put(store, IDS[:total], OnConflict.KEEP) == 0
    assert put(store, IDS[:total], OnConflict.REPLACE, due=1000) == total
    assert store.begin_restore([Put("q", "id-5", b"other", NOW)], RELAYED, OnConflict.KEEP).result() == 0
    assert len(walk(store, 50)) == total
    assert min(job.due_us for job in page(store).jobs) >= NOW + 1000
    moved = store.move("q", [Move(id, at_us=NOW + 9) for id in IDS])
    assert moved.count(Moved.OK) == total
    assert [job is not None for job in store.read("q", IDS)] == [True] * total + [False] * (200 - total)
    assert store.delete("q", IDS) == [True] * total + [False] * (200 - total)
    put(store, IDS)  # nothing waits any more: each goes where it belongs
    places = {job.id: shard for shard, part in enumerate(store.parts) for job in part.page("q", limit=1000).jobs}
    assert places == {id.encode(): shard_of(id.encode(), counts[-1]) for id in IDS}


def test_a_reserved_job_is_replaced_where_it_is(stores: Stores) -> None:
    """It starts anew in its old place: the old lease is lost, as ever."""
    old = stores.open(1)
    put(old, IDS[:20])
    reserved = stores.of(0).reserve("q", 100, 1_000_000, now_us=NOW + 1000).jobs
    store = stores.open(7)
    put(store, IDS[:20])
    assert stores.of(0).ack("q", reserved) == [False] * 20
    assert len(walk(store, 7)) == 20


def test_a_dead_job_is_not_revived_beside_a_new_one(stores: Stores) -> None:
    """A job that was put again since waits elsewhere."""
    put(stores.open(1), IDS[:20])
    first = stores.of(0)
    first.release("q", first.reserve("q", 100, 1_000_000, now_us=NOW + 1000).jobs, max_attempts=1)
    store = stores.open(7)
    put(store, IDS[:10])
    assert store.revive("q", IDS[:20]) == [False] * 10 + [True] * 10
    assert all(len([job for job in store.find(id) if job.state == "waiting"]) == 1 for id in IDS[:20])


def test_new_shards_know_what_the_old_ones_do(stores: Stores) -> None:
    """Which broker they serve, and which topics are paused."""
    stores.open(1).pause("q")
    store = stores.open(3)
    assert [part.paused() for part in store.parts] == [{"q"}] * 3
    assert [part.serves() for part in store.parts] == ["amqp://b"] * 3
    assert store.serve("amqp://c") == "amqp://b"


def test_what_is_remembered(stores: Stores) -> None:
    """A store that begins with four shards has never had one; one that was in use before has."""
    stores.open(4)
    assert stores.of(0).shard_counts() == (4,)
    stores.of(0).client.flushall()
    stores.of(0).serve("amqp://b")  # by an older version, or by who has one shard
    assert known_counts(stores.of(0), 4) == (1, 4)
    assert stores.of(0).shard_counts() == ()
    stores.open(4)
    stores.open(6)
    stores.open(2)
    assert stores.of(0).shard_counts() == (1, 4, 6)
