"""A store on Redis Cluster: connections go to whichever node owns the shard's slot, and notice when it leaves."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import pytest
import redis

from celery_delayq.cluster import Address, Cluster, slot_of
from celery_delayq.delivery import Delivery
from celery_delayq.embedded import RedisServer
from celery_delayq.errors import ImproperlyConfigured
from celery_delayq.job import Origin, Put
from celery_delayq.keys import Keys
from celery_delayq.store import Store
from celery_delayq.subscription import Heard, Subscription
from tests.clustering import Nodes, slots_of_shards
from tests.conftest import NO_REDIS, SERVERS, skip_or_fail
from tests.replication import until

RELAYED = {"q": Delivery.relayed()}


@pytest.fixture(scope="module", params=list(SERVERS) or ["none"])
def program(request: pytest.FixtureRequest) -> str:
    """Each Redis that is here: they say different things of a slot that is on its way."""
    if request.param == "none":
        skip_or_fail(NO_REDIS)
    return SERVERS[request.param]


@pytest.fixture(scope="module")
def nodes(program: str) -> Iterator[Nodes]:
    """Three masters."""
    with Nodes(3, program=program) as nodes:
        yield nodes


@pytest.fixture
def cluster(nodes: Nodes) -> Iterator[Cluster]:
    cluster, _ = Cluster.from_url(f"{nodes.url}?socket_timeout=5&socket_connect_timeout=5")
    yield cluster
    nodes.empty()


def store_of(cluster: Cluster, shard: int, *, own: bool = False) -> Store:
    keys = Keys("delayq", shard=shard)
    client = redis.Redis(connection_pool=cluster.pool(slot_of(keys.index)), single_connection_client=own)
    return Store(client, keys, leases=True)


def insist(call: Callable[[], object], what: str) -> None:
    """Call until the cluster has come to terms; only what a retry may cure is tried again."""

    def tried() -> bool:
        try:
            call()
        except (redis.ConnectionError, redis.TimeoutError):
            return False
        return True

    until(tried, what)


def put(store: Store, id: str, at_us: int = 1) -> None:
    store.put([Put("q", id, b"body", at_us=at_us)], RELAYED)


def test_each_shard_is_served_by_the_owner_of_its_slot(nodes: Nodes, cluster: Cluster) -> None:
    """Four shards on three nodes: every verb goes to the one that owns the shard's slot."""
    for shard, slot in enumerate(slots_of_shards(4)):
        with closing(store_of(cluster, shard)) as store:
            put(store, "a")
            put(store, "b")
            with pytest.raises(Exception, match="waits already"):
                put(store, "a")
            (first, second) = store.reserve("q", 10, 1_000_000).jobs
            assert store.ack("q", [first]) == [True]
            assert store.release("q", [second]) == [True]
            assert [job.id for job in store.find(second.id)] == [second.id]
            assert store.read("q", [second.id]) != [None]
            assert store.page("q").jobs[0].id == second.id
            owner = nodes.owner(slot)
            assert nodes.client(owner).zcard(store.keys.schedule("q")) == 1
            assert store.count(["q"], [(None, None)]) == [[1]]
            assert store.loads(RELAYED)[1]["q"].waiting == 1
            assert store.begin_page("q").result().jobs[0].id == second.id
            assert all(
                not nodes.tell(number, "CLUSTER", "COUNTKEYSINSLOT", slot) for number in range(3) if number != owner
            )
    assert {nodes.owner(slot) for slot in slots_of_shards(4)} == {0, 1, 2}


def test_the_fleet_hears_each_other_on_whatever_node(nodes: Nodes, cluster: Cluster) -> None:
    """What a script publishes goes over the cluster's bus: also who listens on another node hears it."""
    slot = slots_of_shards(1)[0]
    away = next(number for number in range(3) if number != nodes.owner(slot))
    elsewhere = Store(redis.Redis(port=nodes.servers[away].port), Keys("delayq"))
    with closing(elsewhere), closing(store_of(cluster, 0)) as store, Subscription(elsewhere) as subscription:
        store.tick(beat="me")
        put(store, "a", 7_000_000_000_000_000)
        missing = {Heard(b"beat me", False), Heard(b"7000000000000000", True)}
        while missing:
            heard = subscription.hear(10)
            assert heard is not None, f"not heard: {missing}"
            missing.discard(heard)  # the bus may still bring what another test has said


@pytest.mark.parametrize("own", [False, True])
def test_a_slot_that_moves_is_followed(nodes: Nodes, cluster: Cluster, own: bool) -> None:
    """On its way it is as a server that is away: nothing is done by half. When it has arrived, all goes on there."""
    slot = slots_of_shards(1)[0]
    target = (nodes.owner(slot) + 1) % 3
    with closing(store_of(cluster, 0, own=own)) as store, closing(store_of(cluster, 0, own=own)) as idle:
        for id in ("a", "b"):
            put(idle, id)
        source = nodes.begin_move(slot, target)
        with pytest.raises(redis.ConnectionError, match="does not serve slot"):  # ASK: some of its keys are not there
            put(store, "c")
        nodes.move_keys(slot, source, target, limit=1)
        with pytest.raises(redis.ConnectionError, match="does not serve slot"):  # TRYAGAIN
            store.reserve("q", 10, 1_000_000)
        while nodes.move_keys(slot, source, target):
            pass
        nodes.end_move(slot, source, target)
        assert [job.id for job in idle.find("a")] == [b"a"]  # MOVED
        insist(lambda: put(store, "c"), "the new owner serves")

        assert cluster.owner(slot).port == nodes.servers[target].port
        assert [job.id for job in store.page("q").jobs] == [b"a", b"b", b"c"]
        assert len(store.reserve("q", 10, 1_000_000).jobs) == 3
    nodes.move(slot, source)


def test_puts_and_hand_overs_while_slots_move(nodes: Nodes, cluster: Cluster) -> None:
    """Whatever is put, with retries, while the slot goes to and fro, is reserved and acked once."""
    slot = slots_of_shards(1)[0]

    def travel() -> None:
        for _ in range(6):
            nodes.move(slot, (nodes.owner(slot) + 1) % 3)

    acked: list[bytes] = []
    count = 0
    with (
        closing(store_of(cluster, 0)) as putting,
        closing(store_of(cluster, 0, own=True)) as taking,
        ThreadPoolExecutor(1) as traveller,
    ):
        journey = traveller.submit(travel)
        while count < 60 or not journey.done():
            insist(partial(_put_again, putting, str(count)), "a put")
            insist(lambda: acked.extend(_hand_over(taking)), "a hand-over")
            count += 1
        journey.result()
        insist(lambda: acked.extend(_hand_over(taking)), "the last hand-over")

        assert sorted(acked, key=int) == [str(number).encode() for number in range(count)]
        assert taking.loads(RELAYED)[1]["q"].waiting == 0


def _put_again(store: Store, id: str) -> None:
    store.put([Put("q", id, b"body", at_us=1)], RELAYED, origin=Origin.RETRIED)


def _hand_over(store: Store) -> list[bytes]:
    jobs = store.reserve("q", 10, 60_000_000).jobs
    handed: list[bytes] = []

    def ack() -> None:
        won = store.ack("q", jobs)
        handed.extend(job.id for job, ours in zip(jobs, won, strict=True) if ours)

    insist(ack, "an ack")
    return handed


def test_a_replica_that_is_promoted_is_found(program: str) -> None:
    """A node dies, its replica takes its place: the same store goes on with what was replicated."""
    with Nodes(3, 1, program) as nodes:
        cluster, _ = Cluster.from_url(f"{nodes.url}?socket_timeout=5&socket_connect_timeout=5")
        shard = next(shard for shard, slot in enumerate(slots_of_shards(20)) if nodes.owner(slot) == 0)
        with closing(store_of(cluster, shard)) as store:
            put(store, "a")
            nodes.await_replica(0)
            nodes.servers[0].stop()
            with pytest.raises((redis.ConnectionError, redis.TimeoutError)):
                store.find("a")
            insist(lambda: put(store, "b"), "the replica is promoted")

            assert cluster.owner(slots_of_shards(20)[shard]).port == nodes.servers[3].port
            assert [job.id for job in store.page("q").jobs] == [b"a", b"b"]


def test_a_pool_survives_a_fork(nodes: Nodes, cluster: Cluster) -> None:
    """A child does not share its parent's sockets; both go on."""
    with closing(store_of(cluster, 1)) as store:
        put(store, "parent")
        pid = os.fork()
        if not pid:
            status = 1
            try:
                put(store, "child")
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        put(store, "after")

        assert [job.id for job in store.page("q").jobs] == [b"parent", b"child", b"after"]


def test_a_redis_that_is_no_cluster(server: RedisServer) -> None:
    """The error names the URL to use."""
    cluster, _ = Cluster.from_url(f"redis-cluster://127.0.0.1:{server.port}")
    with pytest.raises(ImproperlyConfigured, match="redis://"):
        cluster.owner(0)


def test_a_url() -> None:
    """Several nodes, credentials, TLS, options of connections and of ours; no password is ever shown."""
    url = "rediss-cluster://us%40r:p%3Ass@h1:7000,[::1]:7001,h3/0?socket_timeout=2.5&ssl_cert_reqs=none&global_keyprefix=x"
    cluster, more = Cluster.from_url(url, {"socket_timeout": 1, "visibility_timeout": 5, "client_name": "c"})

    assert cluster.nodes == (Address("h1", 7000), Address("::1", 7001), Address("h3", 6379))
    assert more == {"global_keyprefix": "x"}
    assert cluster.pool(1).connection_kwargs.items() >= {
        ("username", "us@r"),
        ("password", "p:ss"),
        ("socket_timeout", 2.5),
        ("ssl_cert_reqs", "none"),
        ("client_name", "c"),
    }
    assert str(cluster) == "rediss-cluster://us@r:**@h1:7000,[::1]:7001,h3:6379"
    for wrong, reason in (("h/1", "database"), ("", "host"), ("h:x", "integer|Port")):
        with pytest.raises(ValueError, match=reason):
            Cluster.from_url(f"redis-cluster://{wrong}")
