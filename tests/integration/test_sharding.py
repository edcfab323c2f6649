"""Apps whose delayed tasks wait in several shards, of one Redis or of a Redis Cluster."""

from __future__ import annotations

import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, group
from kombu.exceptions import OperationalError

from celery_delayq import AlreadyScheduled, ImproperlyConfigured
from celery_delayq.command.dispatching import STUCK
from celery_delayq.embedded import RedisServer, free_port
from celery_delayq.errors import ImportRefused
from celery_delayq.health import Health
from celery_delayq.job import OnConflict
from celery_delayq.keys import Keys
from celery_delayq.sharding import Sharded
from celery_delayq.transfer import export_jobs, import_jobs
from tests.clustering import Nodes, slots_of_shards
from tests.conftest import NO_REDIS, SERVERS, skip_or_fail

from .command import run
from .test_relay_workers import check
from .worker import Project, wait_for

ONE_REDIS = True

#: A broker that is not there.
AWAY = f"amqp://127.0.0.1:{free_port()}//"

WHEN = datetime(2040, 1, 2, tzinfo=timezone.utc)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Three masters, of the oldest Redis that is here."""
    if not SERVERS:
        skip_or_fail(NO_REDIS)
    with Nodes(3) as nodes:
        yield nodes


@pytest.fixture
def cluster(nodes: Nodes) -> Iterator[Nodes]:
    """Emptied afterwards."""
    yield nodes
    nodes.empty()


@pytest.fixture(params=["one Redis", "a cluster"])
def url(request: pytest.FixtureRequest, server: RedisServer) -> str:
    """Where tasks wait."""
    if request.param == "one Redis":
        return server.url()
    nodes: Nodes = request.getfixturevalue("cluster")
    return nodes.url


@pytest.fixture
def make_sharded(make_app: Callable[..., Celery]) -> Callable[..., Celery]:
    """Makes apps with so many shards at a store; the broker is a queue in this process's memory."""

    def make(url: str, shards: int, queue: str | None = None, **more: Any) -> Celery:
        settings = {"task_default_queue": queue or uuid4().hex, "worker_enable_remote_control": False, **more}
        return make_app(**{"broker_url": "memory://", "delayq_store_url": url, "delayq_shards": shards, **settings})

    return make


class Consumer:
    """Takes what is handed over to the default queue of an app."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._queue = app.conf.task_default_queue
        #: Task id -> how often it has come.
        self.runs: Counter[str] = Counter()

    def take(self) -> int:
        with self._app.connection_for_read() as connection, connection.channel() as channel:
            channel.queue_declare(self._queue)
            while (message := channel.basic_get(self._queue, no_ack=True)) is not None:
                self.runs[message.headers["id"]] += 1
        return len(self.runs)

    def await_all(self, ids: list[str]) -> None:
        """Wait until these have come; no other has, and none twice."""
        wait_for(lambda: self.take() >= len(ids), f"{len(ids)} tasks are handed over")
        assert self.runs == Counter(ids)


@pytest.fixture
def running() -> Iterator[Callable[[Any], Any]]:
    """Starts a dispatcher; stops it in the end."""
    started: list[Any] = []

    def start(dispatcher: Any) -> Any:
        started.append(dispatcher)
        dispatcher.start()
        return dispatcher

    yield start
    for dispatcher in started:
        dispatcher.stop(10)


def ids_of(app: Celery) -> list[str]:
    return [task.id for task in app.delayq.scheduled()]


def test_all_that_can_be_done(make_sharded: Callable[..., Celery], url: str) -> None:
    """What waits in several shards is put, seen, changed and taken back as if it were in one."""
    app = make_sharded(url, 4, "mail")
    delayq = app.delayq
    moments = [(WHEN + timedelta(seconds=number), f"t{number}") for number in range(40)]
    delayq.apply_many([(app.signature("shop.remind", task_id=id, queue="mail"), at) for at, id in moments[:30]])
    for at, id in moments[30:39]:
        delayq.apply_at("shop.remind", at, (id,), task_id=id, headers={"shop": 7})
    delayq.apply_at(group(app.signature("shop.remind", task_id="t39")), WHEN + timedelta(seconds=39))

    assert ids_of(app) == [id for _, id in moments]
    assert delayq.get("t31").due == moments[31][0]
    assert delayq.get("nobody") is None
    assert delayq.count() == 40
    assert delayq.count(headers={"shop": 7}) == 9
    assert [sum(row.values()) for _, row in delayq.agenda(WHEN, WHEN + timedelta(seconds=40), 10)] == [10] * 4
    with pytest.raises(AlreadyScheduled):
        delayq.apply_at("shop.remind", WHEN, task_id="t3")
    delayq.apply_at("shop.remind", WHEN, task_id="t3", on_conflict="keep")
    assert delayq.reschedule("t3", WHEN + timedelta(seconds=100), if_due=moments[3][0])
    assert ids_of(app)[-1] == "t3"
    assert delayq.run_now("t4", "t5", "nobody") == 2
    assert delayq.cancel("t4", "t5", "t6", mark=False) == 3
    assert delayq.cancel_where(queue="mail", headers={"shop": 7}, mark=False) == 9
    assert delayq.shift_where(queue="mail", by=timedelta(hours=1), batch_size=3) == 28
    assert delayq.shift_where(queue="mail", by=timedelta(hours=-1), batch_size=3) == 28
    assert delayq.get("t7").due == moments[7][0]
    assert delayq.pause("mail")
    assert delayq.queues() == ["mail"]
    assert delayq.stats()["mail"].paused
    assert delayq.resume("mail")
    stats = delayq.stats()["mail"]
    assert (stats.waiting, stats.cancelled, stats.paused) == (28, 12, False)

    lines = b"".join(line for some in export_jobs(delayq) for line in some)
    assert delayq.purge() == 28
    assert import_jobs(delayq, io.BytesIO(lines)).written == 28
    assert import_jobs(delayq, io.BytesIO(lines)).unchanged == 28
    assert b"".join(line for some in export_jobs(delayq) for line in some) == lines
    with delayq._store() as store:
        assert isinstance(store, Sharded)
        assert all(part.topics() for part in store.parts)


def test_more_shards_than_connections(
    make_sharded: Callable[..., Celery], url: str, running: Callable[[Any], Any]
) -> None:
    """Kombu's pools give ten connections at most; who looks, transfers and dispatches needs one, or a few at once."""
    app = make_sharded(url, 40, "mail")
    delayq = app.delayq
    delayq.apply_many([(app.signature("record", task_id=f"t{n}"), WHEN + timedelta(seconds=n)) for n in range(300)])
    ids = [f"t{number}" for number in range(300)]
    assert ids_of(app) == ids
    lines = b"".join(line for some in export_jobs(delayq) for line in some)
    assert delayq.cancel(*ids[:100], mark=False) == 100
    assert import_jobs(delayq, io.BytesIO(lines), OnConflict.KEEP).written == 100
    with pytest.raises(ImportRefused):
        import_jobs(delayq, io.BytesIO(lines.replace(b"2040-01-02", b"2041-01-02")))
    assert {finding.check for finding in delayq.doctor() if finding.level.value == "broken"} <= {
        "dispatchers",
        "broker",
    }
    store = delayq.connect()
    assert len(store.parts) == 40
    store.close()


def test_a_shift_that_is_broken_off_moves_nothing_twice(
    make_sharded: Callable[..., Celery], server: RedisServer
) -> None:
    """Each shard remembers how far it has come."""
    app = make_sharded(server.url(), 3, "mail")
    delayq = app.delayq
    at = {f"t{number}": WHEN + timedelta(seconds=number) for number in range(60)}
    for id, when in at.items():
        delayq.apply_at("shop.remind", when, task_id=id)

    class BreakOff(Exception):
        pass

    def stop_after(done: int, _: int, most: int = 0) -> None:
        if done > 30:
            raise BreakOff

    with pytest.raises(BreakOff):
        delayq.shift_where(queue="mail", by=timedelta(seconds=5), batch_size=4, progress=stop_after)
    assert any(task.due != at[task.id] for task in delayq.scheduled())
    delayq.shift_where(queue="mail", by=timedelta(seconds=5), batch_size=4)
    assert {task.id: task.due for task in delayq.scheduled()} == {
        id: when + timedelta(seconds=5) for id, when in at.items()
    }


def test_dead_letters(make_sharded: Callable[..., Celery], url: str, running: Callable[[Any], Any]) -> None:
    """Those of all shards are seen, retried and deleted."""
    app = make_sharded(url, 4, "mail", broker_url=AWAY)
    delayq = app.delayq
    ids = sorted(f"d{number}" for number in range(12))
    for id in ids:
        delayq.apply_delayed("shop.remind", -1, task_id=id)
    with delayq._store() as store:
        for part in store.parts:
            part.release("mail", part.reserve("mail", 9, 1_000_000).jobs, max_attempts=1, reason="no such exchange")

    assert sorted(letter.id for letter in delayq.dead()) == ids
    assert delayq.retry_dead(*ids[:3]) == 3
    assert delayq.delete_dead(ids[5]) == 1
    assert delayq.retry_dead(queue="mail") == 8
    assert delayq.count() == 11


def test_tasks_are_handed_over_from_every_shard(
    make_sharded: Callable[..., Celery], url: str, running: Callable[[Any], Any]
) -> None:
    """One dispatcher for each, by one object: it counts, is active, healthy, and stops as one."""
    app = make_sharded(url, 4)
    dispatcher = running(app.delayq.dispatcher())
    ids = [app.send_task("record", countdown=0.2).id for _ in range(40)]
    consumer = Consumer(app)
    consumer.await_all(ids)

    wait_for(lambda: app.delayq.stats()[app.conf.task_default_queue].reserved == 0, "all is acked")
    assert dispatcher.counts.moved == 40
    assert dispatcher.running
    assert dispatcher.active
    health = Health(dispatcher, lambda: app.delayq.connect(5.0), STUCK)
    assert health.check().healthy
    health.close()
    threads = [thread.name for thread in threading.enumerate()]
    assert threads.count("delayq-dispatcher") == 4
    began = time.monotonic()
    dispatcher.stop()
    assert time.monotonic() - began < 3
    assert not dispatcher.running


def test_more_shards_while_tasks_wait_and_come(
    make_sharded: Callable[..., Celery], url: str, running: Callable[[Any], Any]
) -> None:
    """1, then 4, then 6: processes of all three put, take back and hand over; each task comes once."""
    old = make_sharded(url, 1)
    queue = old.conf.task_default_queue
    running(old.delayq.dispatcher())
    waiting = [old.send_task("record", countdown=3600).id for _ in range(20)]
    ids: list[str] = []
    done = threading.Event()

    def put() -> None:
        while not done.is_set():
            ids.append(old.send_task("record", countdown=0.1).id)
            time.sleep(0.01)

    thread = threading.Thread(target=put)
    thread.start()
    apps = []
    try:
        for shards in (4, 6):
            app = make_sharded(url, shards, queue)
            apps.append(app)
            # Nobody dispatches for it but who was there before.
            mine = [app.send_task("record", countdown=0.1).id for _ in range(30)]
            ids.extend(mine)
            waiting += [app.send_task("record", countdown=3600).id for _ in range(20)]
            assert sorted(ids_of(app)[-len(waiting) :]) == sorted(waiting)
    finally:
        done.set()
        thread.join()
    consumer = Consumer(old)
    consumer.await_all(ids)

    newest = apps[-1].delayq
    assert all(len(newest.get_all(id)) == 1 for id in waiting)
    assert newest.run_now(*waiting[:30]) == 30
    assert newest.cancel(*waiting[30:], mark=False) == 30
    consumer.await_all(ids + waiting[:30])


def test_old_processes_see_new_shards(make_sharded: Callable[..., Celery], server: RedisServer) -> None:
    """Within seconds, without being restarted."""
    old = make_sharded(server.url(), 1, "mail")
    old.send_task("record", countdown=3600, task_id="old")
    new = make_sharded(server.url(), 5, "mail")
    ids = [f"n{number}" for number in range(20)]
    for id in ids:
        new.send_task("record", countdown=3600, task_id=id)

    wait_for(lambda: len(ids_of(old)) == 21, "the old process sees all")
    with pytest.raises(AlreadyScheduled):
        old.delayq.apply_delayed("record", 60, task_id=ids[0])
    assert old.delayq.cancel(*ids, mark=False) == 20
    assert new.delayq.get("old") is not None


def test_the_brokers_own_redis_has_one_shard(make_app: Callable[..., Celery], server: RedisServer) -> None:
    """There a due task is moved within it; that is said before anything is put, and by a worker at its start."""
    for more in ({}, {"delayq_store_url": server.url()}):
        app = make_app(delayq_shards=2, **more)
        with pytest.raises(ImproperlyConfigured, match="delayq_shards = 2 needs a delayq_store_url"):
            app.send_task("record", countdown=5)
        with pytest.raises(ImproperlyConfigured, match="delayq_shards"):
            assert app.delayq.can_dispatch
    with server.client() as client:
        assert not client.keys("delayq*")


def test_a_cluster_that_is_away(make_sharded: Callable[..., Celery], running: Callable[[Any], Any]) -> None:
    """It is told as Kombu tells it, without the password; a dispatcher starts all the same."""
    url = f"redis-cluster://user:secret@127.0.0.1:{free_port()},127.0.0.1:{free_port()}"
    app = make_sharded(url, 2, task_publish_retry_policy={"max_retries": 2, "interval_start": 0.01})
    errors = []

    def errback(error: Exception, pause: float) -> None:
        errors.append((error, pause))

    with pytest.raises(OperationalError, match="no node of redis-cluster"):
        app.send_task("record", countdown=5, retry_policy={"errback": errback, "interval_step": 0})
    assert [pause for _, pause in errors] == [0.01, 0.01]
    with pytest.raises(OperationalError):
        app.delayq.get("x")
    dispatcher = running(app.delayq.dispatcher())
    wait_for(lambda: dispatcher.counts.errors, "it tries")
    answer = run(app, "list")
    assert answer.code == 1
    assert "cannot be reached at redis-cluster://user:**@127.0.0.1" in answer.err
    assert "secret" not in answer.err


@pytest.mark.parametrize("wrong", ["redis-cluster://", "redis-cluster://h:1/3", "redis-cluster://u:secret@:x"])
def test_a_url_that_names_no_cluster(make_sharded: Callable[..., Celery], wrong: str) -> None:
    """Said with the setting's name, without the password."""
    app = make_sharded(wrong, 1)
    with pytest.raises(ImproperlyConfigured, match="delayq_store_url redis-cluster://") as caught:
        app.send_task("record", countdown=5)
    assert "secret" not in str(caught.value)


def test_replicas_that_are_missing(make_sharded: Callable[..., Celery], cluster: Nodes) -> None:
    """``delayq_wait_replicas`` asks the node that owns the shard; all is stored, whatever is missing."""
    app = make_sharded(cluster.url, 4, delayq_wait_replicas=1, task_publish_retry=False)
    with pytest.raises(Exception, match="0 of 1 replicas"):
        app.delayq.apply_many([(app.signature("record"), WHEN)] * 8)
    assert app.delayq.count() == 8


def test_tasks_are_handed_over_while_slots_move(
    make_sharded: Callable[..., Celery], cluster: Nodes, running: Callable[[Any], Any]
) -> None:
    """Publishing retries, dispatchers reconnect: none is lost, none comes twice."""
    patient = {"max_retries": 100, "interval_start": 0.05, "interval_step": 0, "interval_max": 0.05}
    app = make_sharded(cluster.url, 4, task_publish_retry_policy=patient)
    running(app.delayq.dispatcher())
    slots = slots_of_shards(4)
    done = threading.Event()

    def travel() -> None:
        number = 0
        while not done.wait(0.1):
            slot = slots[number % 4]
            cluster.move(slot, (cluster.owner(slot) + 1) % 3)
            number += 1

    traveller = threading.Thread(target=travel)
    traveller.start()
    try:
        ids = [app.send_task("record", countdown=0.05).id for _ in range(150)]
        consumer = Consumer(app)
        wait_for(lambda: consumer.take() >= 100, "most have come while slots were moving")
    finally:
        done.set()
        traveller.join()
    consumer.await_all(ids)
    wait_for(lambda: app.delayq.stats()[app.conf.task_default_queue].reserved == 0, "all is acked")


def test_the_doctor_looks_at_all_shards(
    make_sharded: Callable[..., Celery], url: str, running: Callable[[Any], Any]
) -> None:
    """What waits and is overdue in any of them, and whether each has a dispatcher."""
    app = make_sharded(url, 4)
    found = {finding.check: finding for finding in app.delayq.doctor()}
    assert found["reachable"].level.value == "ok"
    assert found["rights"].level.value == "ok"
    assert found["dispatchers"].text.startswith("none lives")
    running(app.delayq.dispatcher())
    wait_for(lambda: "1 live" in _of(app, "dispatchers"), "a dispatcher for each shard")
    app.delayq.pause(app.conf.task_default_queue)
    app.delayq.apply_delayed("record", 60)
    assert "is paused: 1 task" in _of(app, "paused")


def test_the_doctor_looks_at_each_server(make_sharded: Callable[..., Celery], cluster: Nodes) -> None:
    """What is wrong with a node that is not the first shard's is told with its name; what is well is not repeated."""
    app = make_sharded(cluster.url, 4)
    first, other = (cluster.owner(slot) for slot in slots_of_shards(4)[:2])
    cluster.tell(other, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        found = [(finding.check, finding.text) for finding in app.delayq.check_up()]
    finally:
        cluster.tell(other, "CONFIG", "SET", "maxmemory-policy", "noeviction")
    name = f"127.0.0.1:{cluster.servers[other].port}"
    assert ("eviction", "noeviction") in found
    assert any(text.startswith(f"{name}: maxmemory-policy is allkeys-lru") for _, text in found)
    assert [check for check, _ in found].count("version") == 1
    assert first != other


def _of(app: Celery, check: str) -> str:
    return " ".join(finding.text for finding in app.delayq.doctor() if finding.check == check)


def test_a_real_worker(cluster: Nodes, tmp_path: Any) -> None:
    """Delayed tasks wait in the cluster and run from a broker that is a folder."""
    folders = {"data_folder_in": str(tmp_path), "data_folder_out": str(tmp_path), "control_folder": str(tmp_path / "c")}
    settings = {
        "delayq_store_url": cluster.url,
        "delayq_shards": 4,
        "task_default_queue": "mail",
        "worker_enable_remote_control": False,
        "broker_transport_options": {**folders, "polling_interval": 0.05},
    }
    with Project("filesystem://", **settings) as project, project.worker("--without-heartbeat") as worker:
        worker.await_ready()
        check(project, "mail")
        assert worker.said("Traceback") == 0
        for shard in range(4):
            worker.await_log(f"keys under {Keys('delayq', shard=shard).beginning}")
