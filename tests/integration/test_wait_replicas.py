"""``delayq_wait_replicas``: a put that returns is on replicas; else it says so, stays, and may be repeated."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any

import pytest
import redis
from celery import Celery, group

from celery_delayq import ReplicasMissing, store
from celery_delayq.delivery import Delivery
from celery_delayq.embedded import RedisServer
from celery_delayq.job import OnConflict, Origin, Put
from celery_delayq.keys import Keys
from celery_delayq.store import Store
from tests.replication import Server, until

SCHEDULE = "delayq:{0}:schedule:celery"
WAYS = {"q": Delivery.plain("q")}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine makes nothing fail."""
    monkeypatch.setattr(store, "REPLICAS_TIMEOUT", 20.0)


@pytest.fixture
def impatient(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests in which no replica answers."""
    monkeypatch.setattr(store, "REPLICAS_TIMEOUT", 0.2)


@pytest.fixture
def master(own_server: RedisServer) -> RedisServer:
    return own_server


@pytest.fixture
def replica(master: RedisServer) -> Iterator[Server]:
    """A replica of the master, of the same version."""
    follow = ["--replicaof", "127.0.0.1", str(master.port)]
    with master.client() as client:
        client.config_set("repl-diskless-sync-delay", 0)
        with Server(master._program, follow) as replica:
            until(lambda: client.wait(1, 1000) == 1, "the replica follows")
            yield replica


@pytest.fixture
def app(make_app: Callable[..., Celery], master: RedisServer) -> Celery:
    return make_app(broker_url=master.url(), delayq_wait_replicas=1)


def waiting(server: RedisServer) -> list[bytes]:
    """What waits, as that server knows it."""
    with server.client() as client:
        return client.zrange(SCHEDULE, 0, -1)


def waits_called(server: RedisServer) -> int:
    """How often it was asked to wait for replicas."""
    with server.client() as client:
        stats: Any = client.info("commandstats")
        return int(stats.get("cmdstat_wait", {"calls": 0})["calls"])


def test_a_put_that_returns_is_on_the_replica(app: Celery, replica: Server) -> None:
    """After each put the replica, asked at that moment, has it."""
    sent = []
    for _ in range(50):
        sent.append(app.send_task("t", countdown=600).id.encode())
        assert sent[-1] in waiting(replica)
    assert set(sent) == set(waiting(replica))


def test_a_put_that_no_replica_acknowledges_stays_and_says_so(
    app: Celery, master: RedisServer, replica: Server, impatient: None
) -> None:
    """With the replica hanging, publishing raises ReplicasMissing; the task is stored and reaches the replica later."""
    replica.hang()
    with pytest.raises(ReplicasMissing, match="only 0 of 1 replicas.*delayq_wait_replicas") as caught:
        app.send_task("t", countdown=600, task_id="a")
    assert (caught.value.acknowledged, caught.value.wanted) == (0, 1)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert waiting(master) == [b"a"]
    replica.go_on()
    until(lambda: waiting(replica) == [b"a"], "the replica has caught up")


def test_a_repeated_put_waits_for_what_it_finds(
    master: RedisServer, replica: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A put that finds its own bytes on another connection, and writes nothing, is acknowledged only with them."""
    job = Put("q", "a", b"body", in_us=600_000_000)

    def put() -> int:
        with master.client() as client:
            return Store(client, Keys("delayq")).put([job], WAYS, origin=Origin.RETRIED, replicas=1)

    replica.hang()
    with monkeypatch.context() as patch:
        patch.setattr(store, "REPLICAS_TIMEOUT", 0.2)
        for _ in range(2):
            with pytest.raises(ReplicasMissing):
                put()
    replica.go_on()
    assert put() == 0
    with replica.client() as client:
        assert client.hgetall("delayq:{0}:jobs:q") == {b"a": b"body"}


def test_kombus_retry_can_repeat_it(
    make_app: Callable[..., Celery], master: RedisServer, replica: Server, impatient: None
) -> None:
    """``retry_errors`` in the publish policy: the same message is put again until the replica is back; once."""
    policy = {"max_retries": 60, "retry_errors": (ReplicasMissing,)}
    app = make_app(broker_url=master.url(), delayq_wait_replicas=1, task_publish_retry_policy=policy)
    replica.hang()

    def return_when_tried_twice() -> None:
        until(lambda: waits_called(master) >= 2, "it was put again")
        replica.go_on()

    helper = Thread(target=return_when_tried_twice)
    helper.start()
    task_id = app.send_task("t", countdown=600).id
    helper.join()
    assert waiting(master) == waiting(replica) == [task_id.encode()]


def test_a_batch_waits_once(app: Celery, master: RedisServer, replica: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """``apply_many`` and a group wait once for each batch; a batch that fails says so, and is stored."""
    signature = app.signature("t")
    signature.apply_async(countdown=600)  # loads the script, for which Redis is asked twice
    before = waits_called(master)
    app.delayq.apply_many([(signature, 4_000_000_000 + number) for number in range(250)], batch_size=100)
    assert waits_called(master) == before + 3
    app.delayq.apply_delayed(group([signature] * 20), 600)
    assert waits_called(master) == before + 4
    assert len(waiting(replica)) == 1 + 250 + 20
    replica.hang()
    monkeypatch.setattr(store, "REPLICAS_TIMEOUT", 0.2)
    with pytest.raises(ReplicasMissing):
        app.delayq.apply_many([(signature, 4_000_000_000)] * 10)
    assert len(waiting(master)) == 1 + 250 + 20 + 10


def test_no_replica_wanted_none_waited_for(
    make_app: Callable[..., Celery], master: RedisServer, impatient: None
) -> None:
    """By default nobody waits; and with the setting, a master without replicas refuses nobody's put, but says so."""
    make_app(broker_url=master.url()).send_task("t", countdown=600)
    assert waits_called(master) == 0
    with pytest.raises(ReplicasMissing):
        make_app(broker_url=master.url(), delayq_wait_replicas=1).send_task("t", countdown=600)
    assert len(waiting(master)) == 2


def test_it_answers_before_the_socket_gives_up(master: RedisServer) -> None:
    """With a socket timeout shorter than the wait, the wait is shortened: the error is the named one."""
    with redis.Redis(port=master.port, socket_timeout=0.4) as client, pytest.raises(ReplicasMissing):
        Store(client, Keys("delayq")).put([Put("q", "a", b"", in_us=1)], WAYS, replicas=1)


def test_other_refusals_come_first(master: RedisServer, replica: Server) -> None:
    """A conflict is a conflict, a foreign key an error, unknown scripts are loaded; the connection stays usable."""
    with redis.Redis(port=master.port, single_connection_client=True) as client:
        jobs = Store(client, Keys("delayq"))
        for _ in range(3):
            client.script_flush()
            assert jobs.put([Put("q", "a", b"1", in_us=1)], WAYS, OnConflict.REPLACE, replicas=1) == 1
        with pytest.raises(Exception, match="waits already"):
            jobs.put([Put("q", "a", b"2", in_us=1)], WAYS, replicas=1)
        client.set("delayq:{0}:jobs:w", "foreign")
        with pytest.raises(Exception, match="is a string, expected a hash"):
            jobs.put([Put("w", "a", b"", in_us=1)], {"w": Delivery.plain("w")}, replicas=1)
        assert client.ping() is True
        assert jobs.put([Put("q", "b", b"", in_us=1)], WAYS, replicas=1) == 1
