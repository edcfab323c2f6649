"""The doctor on real faults: each check finds its own, on a Redis, an app or a worker that has it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Queue

from celery_delayq.bootstep import CheckUpStep
from celery_delayq.delivery import Delivery
from celery_delayq.doctor import CHECKS, Finding, Level, Patient, examine
from celery_delayq.doctor.rights import OURS, READY
from celery_delayq.embedded import RedisServer
from celery_delayq.job import Move, OnConflict, Put
from celery_delayq.store import Store
from celery_delayq.version import __version__

from .command import run
from .conftest import Inside
from .worker import ROOT, wait_for

Look = Callable[..., list[Finding]]


@pytest.fixture
def look(app: Celery) -> Look:
    """Makes the checks of those names on the app, with its Redis, and gives what they find."""

    def look(*names: str, on: Celery = app, **more: Any) -> list[Finding]:
        delayq = on.delayq
        patient = Patient(on, delayq.settings, lambda: delayq.connect(5.0), **more)
        try:
            return examine(patient, [check for check in CHECKS if check.name in names])
        finally:
            patient.close()

    return look


def levels(found: Sequence[Finding]) -> list[str]:
    return [finding.level.value for finding in found]


def one(found: Sequence[Finding]) -> tuple[str, str]:
    """Level and text of the one finding."""
    (finding,) = found
    return finding.level.value, finding.text


@contextmanager
def configured(server: RedisServer, **config: object) -> Iterator[None]:
    """The server with these settings, for a while."""
    with server.client() as client:
        names = {name.replace("_", "-"): value for name, value in config.items()}
        before = {name: client.config_get(name)[name] for name in names}
        for name, value in names.items():
            client.config_set(name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                client.config_set(name, value)


def test_reachable(look: Look, make_app: Callable[..., Celery]) -> None:
    """Nobody listens; and a password is wrong. Nothing more is looked at then, and no password is told."""
    away = make_app(broker_url="redis://:secret@127.0.0.1:1/0").delayq.doctor()
    assert [finding.check for finding in away] == ["reachable"]
    assert away[0].level is Level.BROKEN
    assert "refused" in away[0].text
    assert "secret" not in away[0].text
    assert levels(look("reachable")) == ["ok"]


def test_a_wrong_password(look: Look, own_server: RedisServer, make_app: Callable[..., Celery]) -> None:
    """Is told in Redis's own words."""
    with own_server.client() as client:
        client.config_set("requirepass", "right")
    level, text = one(look("reachable", on=make_app(broker_url=f"redis://:wrong@127.0.0.1:{own_server.port}/0")))
    assert level == "broken"
    assert "WRONGPASS" in text or "invalid" in text


def test_a_redis_that_hangs(own_server: RedisServer, make_app: Callable[..., Celery]) -> None:
    """Costs a timeout, not an evening."""
    app = make_app(broker_url=own_server.url())
    assert own_server._process is not None
    own_server._process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    level, text = one(app.delayq.doctor(timeout=0.3))
    own_server._process.send_signal(signal.SIGCONT)
    assert (level, "TimeoutError" in text) == ("broken", True)
    assert time.monotonic() - began < 30  # it takes 0.6 s; without a limit, for ever


def test_role(look: Look, own_server: RedisServer, server: RedisServer, make_app: Callable[..., Celery]) -> None:
    """A replica refuses what we put."""
    with own_server.client() as client:
        client.replicaof("127.0.0.1", server.port)
    app = make_app(broker_url=own_server.url())
    wait_for(lambda: levels(look("role", on=app)) == ["broken"], "it says that it is a replica")
    assert one(look("version", on=app))[1].startswith("Redis ")


def test_eviction(look: Look, server: RedisServer) -> None:
    """What may drop a schedule is broken; what spares keys without an expiry is not."""
    with configured(server, maxmemory="1gb", maxmemory_policy="allkeys-lfu"):
        assert one(look("eviction"))[0] == "broken"
    with configured(server, maxmemory_policy="allkeys-lru"):
        assert one(look("eviction"))[0] == "warning"
    with configured(server, maxmemory="1gb", maxmemory_policy="volatile-ttl"):
        assert one(look("eviction")) == ("ok", "volatile-ttl")


def test_memory(look: Look, server: RedisServer) -> None:
    """A full Redis."""
    with configured(server, maxmemory="1mb"):
        with server.client() as client, suppress(redis.ResponseError):
            for number in range(1000):
                client.set(f"filler{number}", b"." * 10_000)
        assert one(look("memory"))[0] == "broken"


def test_persistence(look: Look, own_server: RedisServer, make_app: Callable[..., Celery]) -> None:
    """None; snapshots; AOF; and a disk on which nothing can be written."""
    app = make_app(broker_url=own_server.url())
    with own_server.client() as client:
        assert one(look("persistence", on=app))[1].startswith("neither AOF nor snapshots")
        client.config_set("save", "3600 1")
        assert one(look("persistence", on=app))[1].startswith("no AOF")
        client.config_set("appendonly", "yes")
        assert one(look("persistence", on=app)) == ("ok", "AOF, appendfsync everysec")
        client.config_set("appendonly", "no")
        shutil.rmtree(own_server.folder)
        client.bgsave()
        wait_for(lambda: client.info()["rdb_last_bgsave_status"] == "err", "Redis cannot write")
        level, text = one(look("reachable", "persistence", on=app))
        assert (level, text.partition("MISCONF")[0]) == ("broken", "Redis answers, and refuses: ")
        client.config_set("stop-writes-on-bgsave-error", "no")
        assert levels(look("reachable", "persistence", on=app)) == ["ok", "broken", "warning"]


def test_replicas(
    look: Look,
    own_server: RedisServer,
    server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One in step, one that is silent, and fewer than Redis wants."""
    with own_server.client() as client:
        client.replicaof("127.0.0.1", server.port)
        wait_for(lambda: one(look("replicas")) == ("ok", "1 in step"), "the replica is in step")
        assert own_server._process is not None
        own_server._process.send_signal(signal.SIGSTOP)
        monkeypatch.setattr("celery_delayq.doctor.server.REPLICA_LAG", 1)
        wait_for(lambda: "last heard of" in one(look("replicas"))[1], "the replica lags")
        own_server._process.send_signal(signal.SIGCONT)
        client.replicaof("no", "one")
    wait_for(lambda: one(look("replicas")) == ("ok", "none"), "the replica is gone")
    with configured(server, min_replicas_to_write=1):
        assert one(look("replicas"))[0] == "broken"


@contextmanager
def acl_user(server: RedisServer, make_app: Callable[..., Celery], *rules: str) -> Iterator[Celery]:
    """An app that logs in as a user with these rules."""
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "shop", "reset", "on", ">secret", *rules)
        try:
            yield make_app(broker_url=f"redis://shop:secret@127.0.0.1:{server.port}/0")
        finally:
            client.execute_command("ACL", "DELUSER", "shop")


#: Just what we need, and no category.
COMMANDS = ["time", "ping", "eval", "evalsha", "publish", "subscribe", "unsubscribe", "multi", "exec", "select"]
COMMANDS += [command.lower() for command in {**OURS, **READY}]
NEEDED = ["~delayq:*", "~celery*", "resetchannels", "&delayq:*", *(f"+{command}" for command in COMMANDS)]


def test_rights(look: Look, server: RedisServer, make_app: Callable[..., Celery]) -> None:
    """Each that is missing is named, and nothing is changed in the trial."""
    with acl_user(server, make_app, *NEEDED) as app, server.client() as client:
        assert levels(look("rights", on=app)) == ["ok"]
        assert client.keys() == []

        def without(*rules: str) -> tuple[str, str]:
            client.execute_command("ACL", "SETUSER", "shop", *rules)
            try:
                return one(look("rights", on=app))
            finally:
                client.execute_command("ACL", "SETUSER", "shop", "resetkeys", *NEEDED)

        for command in {*OURS, *READY, "EVAL", "EVALSHA", "TIME", "UNSUBSCRIBE"}:
            level, text = without(f"-{command.lower()}")
            assert (level, text.split()[0]) == ("broken", command)
        assert without("-exec")[1].startswith("a transaction is refused")
        assert without("-multi")[1].startswith("a transaction is refused")
        level, text = without("resetkeys", "~celery*")
        assert level == "broken"
        assert text.startswith("access to delayq:{0}:index, delayq:{0}:topics, ")
        assert without("resetkeys", "~delayq:*")[1].startswith("access to celery is refused")
        client.execute_command("ACL", "SETUSER", "shop", "resetchannels")
        assert levels(look("rights", on=app)) == ["warning"] * 4
        assert client.keys() == []


def test_the_rights_that_are_tried_are_enough(
    server: RedisServer, make_app: Callable[..., Celery], app: Celery
) -> None:
    """With them, and no others, a store does all that it can."""
    with acl_user(server, make_app, *NEEDED) as limited, closing(limited.delayq.connect()) as store:
        everything(store)


def everything(store: Store) -> None:
    """Each verb and each look, on the queue "celery"."""
    way = {"celery": Delivery.plain("celery")}

    def put(*ids: str, **more: Any) -> None:
        store.put([Put("celery", id, id.encode(), in_us=0, **more) for id in ids], way, OnConflict.REPLACE)

    put("a", "b", "c", step=3, max_wait_us=10**9, grace_us=10**12)
    put("a", max_wait_us=10**9)
    store.restore([Put("celery", "r", b"r", at_us=10**15)], way, OnConflict.ERROR)
    assert store.find("a")
    assert list(store.where(["a"]))
    assert store.page("celery").jobs
    assert store.count(["celery"], [(None, None)])
    assert store.loads(store.topics())
    assert store.sizes(["celery"]) == {"celery": (4, 4)}
    store.move("celery", [Move("a", in_us=5)], progress=("shift", "so far", 1000))
    store.journal("shift")
    store.end_journal("shift")
    store.pause("celery")
    store.paused()
    store.resume("celery", 1.0)
    store.resume("celery")
    store.delete("celery", ["b"], lease_us=0)
    store.revoked(["b"])
    store.forget(store.claim(10**6, 10))
    store.tick(beat="one")
    store.tick(topics=["celery"])
    store.beat_us()
    store.tell_fleet(b"farewell one")
    for position in ("back", "front"):
        put("a", "b", step=3)
        assert store.dispatch("celery", Delivery((0,), ("celery",), 60_000), 100, position, 1000).moved
    put("late", grace_us=0)
    put("a")
    store.counted()
    assert store.purge("celery")
    store.rest()

    leasing = Store(store.client, store.keys, leases=True)
    put("a", "b", "c", "d", step=3, max_wait_us=10**9)
    jobs = leasing.reserve("celery", 3, 10**9, max_attempts=1).jobs
    assert leasing.extend("celery", jobs, 10**9) == [True] * 3
    assert leasing.ack("celery", jobs[:1]) == [True]
    assert leasing.release("celery", jobs[1:], max_attempts=1, reason="why") == [True] * 2
    assert leasing.pull("celery", 1)
    assert len(leasing.dead("celery").jobs) == 2
    assert leasing.find("b")
    assert leasing.leased() == {"celery"}
    assert leasing.expiries() == {}
    assert leasing.discard("celery", ["b"]) == [True]
    assert leasing.revive("celery", ["c"]) == [True]
    leasing.reserve("celery", 1, 1)
    leasing.requeue("celery", 10)


def test_a_user_who_may_not_look(look: Look, server: RedisServer, make_app: Callable[..., Celery]) -> None:
    """No INFO, no CONFIG, no PUBSUB, as on a managed Redis: says so, and that is no fault."""
    with acl_user(server, make_app, *NEEDED) as app:
        for name in ("version", "role", "eviction", "memory", "persistence", "replicas", "dispatchers"):
            (finding,) = look(name, on=app, reply_timeout=0.1)
            assert (finding.level, "not allowed" in finding.text) == (Level.UNKNOWN, True), finding
    with acl_user(server, make_app, *NEEDED, "+info") as app:
        assert one(look("persistence", on=app))[0] == "unknown"
        assert levels(look("version", "role", "eviction", "memory", "replicas", on=app)) == ["ok"] * 5


def test_clock(look: Look) -> None:
    """An hour ahead, and a minute behind."""
    assert one(look("clock"))[0] == "ok"
    level, text = one(look("clock", clock=lambda: time.time() + 3600))
    assert (level, "ahead of Redis's" in text) == ("warning", True)
    assert one(look("clock", clock=lambda: time.time() - 60))[0] == "warning"


def put(inside: Inside, id: str, topic: str = "celery", at_us: int | None = None) -> None:
    job = Put(topic, id, id.encode(), at_us=at_us or inside.store.now_us() + 3600 * 10**6)
    inside.store.restore([job], {topic: Delivery.plain(topic)}, OnConflict.ERROR)  # which can be overdue


def test_dispatchers(look: Look, app: Celery, inside: Inside, make_app: Callable[..., Celery]) -> None:
    """None, with something to hand over and without; one; one for some queues only; and one that is gone again."""

    def found(on: Celery = app) -> tuple[str, str]:
        return one(look("dispatchers", on=on, reply_timeout=0.1))

    assert found()[0] == "warning"
    put(inside, "a")
    assert found() == ("broken", "none lives: 1 task will not be handed over")
    some = app.delayq.dispatcher(["q"])
    some.start()
    wait_for(lambda: found()[1].startswith("1 with --queues, none for all, the last one"), "it is seen")
    some.stop()
    dispatcher = app.delayq.dispatcher()
    dispatcher.start()
    wait_for(lambda: found()[1].startswith("1 live, the last one was at work"), "it is seen")
    assert found()[0] == "ok"
    dispatcher.stop()
    wait_for(lambda: found()[0] == "broken", "it is missed")
    assert "was at work" in found()[1]


def test_what_waits(look: Look, app: Celery, inside: Inside) -> None:
    """Overdue tasks, a paused queue, ids without messages and messages without ids."""
    names = ("overdue", "paused", "orphans")
    put(inside, "a")
    assert levels(look(*names)) == ["ok"] * 3
    put(inside, "late", at_us=inside.store.now_us() - 30 * 10**6)
    assert one(look("overdue"))[0] == "warning"
    put(inside, "later", at_us=inside.store.now_us() - 600 * 10**6)
    level, text = one(look("overdue"))
    assert (level, text) == ("broken", "2 tasks of 'celery' are overdue, the first for 10 min")
    app.delayq.pause("celery")
    assert [finding.level.value for finding in look(*names)] == ["ok", "warning", "ok"]
    assert look("paused")[0].fix == "celery -A proj delayq resume celery"
    app.delayq.resume("celery")

    inside.client.hdel(inside.keys.jobs("celery"), "late")
    assert one(look("orphans")) == ("warning", "1 id has no message in 'celery'; dropped when due")
    inside.hand_over()
    (finding,) = look("orphans")
    assert finding.text == "1 id of 'celery' had no message and were dropped"
    command = finding.fix.partition("redis-cli ")[2].replace("'", "").split()
    assert inside.client.execute_command(*command) == 1
    assert one(look("orphans"))[0] == "ok"
    put(inside, "b")
    inside.client.zrem(inside.keys.schedule("celery"), "b")
    assert one(look("orphans"))[0] == "warning"


def test_leases(look: Look, inside: Inside) -> None:
    """A job that was reserved and never acked: while its lease runs, when nobody takes it back, and when it is dead."""
    store = Store(inside.client, inside.keys, leases=True)
    put(inside, "a", at_us=store.now_us() - 60 * 10**6)
    minute = 60 * 10**6

    def reserve(at_us: int) -> None:
        store.reserve("celery", 10, minute, max_attempts=1, now_us=at_us)

    reserve(store.now_us())
    assert one(look("leases")) == ("ok", "1 task under way")
    inside.client.zadd(inside.keys.expiries, {"celery": store.now_us() - minute})  # as if a minute had gone by
    assert one(look("leases")) == ("warning", "a lease of 'celery' ran out 60 s ago, and nobody takes the task back")
    reserve(store.now_us() + 2 * minute)
    level, text = one(look("leases"))
    assert (level, text.split(" could")[0]) == ("warning", "1 task of 'celery'")


PROJECT = """
import os, time
from celery import Celery

app = Celery("shop", broker=os.environ["BROKER"])
app.conf.broker_transport_options = {"visibility_timeout": 1}
app.conf.broker_connection_retry_on_startup = True
if os.environ.get("JOINED", "1") == "1":
    import celery_delayq.bootstep
    from celery_delayq import DelayQ
    DelayQ(app)
    celery_delayq.bootstep.__version__ = os.environ["VERSION"]

@app.task(name="block", acks_late=True)
def block(path):
    while os.path.exists(path):
        time.sleep(0.05)
"""


@pytest.fixture
def worker(tmp_path: Path, server: RedisServer) -> Iterator[Callable[..., Path]]:
    """Starts workers: ``worker("name", VERSION="0.9")`` -> the log."""
    (tmp_path / "proj.py").write_text(PROJECT)
    with ExitStack() as stack:

        def start(name: str, **environment: str) -> Path:
            log = tmp_path / f"{name}.log"
            path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
            command = [sys.executable, "-m", "celery", "-A", "proj", "worker", "-P", "threads", "-c", "2", "-n", name]
            with log.open("wb") as out:
                process = subprocess.Popen(
                    [*command, "--without-gossip", "--without-mingle", "-Q", "celery,mail", "-l", "INFO"],
                    cwd=tmp_path,
                    env={**os.environ, "BROKER": server.url(), "PYTHONPATH": path, "VERSION": "0", **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return log

        yield start


def test_workers(
    look: Look, worker: Callable[..., Path], make_app: Callable[..., Celery], inside: Inside, tmp_path: Path
) -> None:
    """None; some, of other versions or none; queues that nobody consumes; a task that runs too long for its broker."""
    names = ("workers", "versions", "queues", "visibility")
    app = make_app(broker_transport_options={"visibility_timeout": 1})
    assert levels(look(*names, on=app, reply_timeout=0.1)) == ["warning", "ok", "unknown", "ok"]
    put(inside, "a", "mail")
    put(inside, "b", "typo")
    logs = [worker("older", VERSION="0.0.1"), worker("same", VERSION=__version__), worker("stock", JOINED="0")]
    for log in logs:
        wait_for(lambda log=log: " ready." in log.read_text(), "it is ready")
    flag = tmp_path / "flag"
    flag.touch()
    app.send_task("block", (str(flag),))

    def found() -> dict[str, list[str]]:
        told: dict[str, list[str]] = {}
        for finding in look(*names, on=app, reply_timeout=1.0):
            told.setdefault(finding.check, []).append(finding.text)
        return told

    def complete() -> Any:
        told = found()
        return told if "visibility_timeout is 1 s" in told["visibility"][0] and "3: " in told["workers"][0] else None

    told = wait_for(complete, "all answer, and the task runs for too long")
    flag.unlink()
    assert told["workers"] == ["3: celery@older, celery@same, celery@stock"]
    assert told["versions"] == [
        f"celery_delayq is {__version__} here, and 0.0.1 in celery@older",
        "without celery_delayq, or without the time to answer: celery@stock",
    ]
    assert told["queues"] == ["no worker consumes 'typo': 1 wait for it, 0 are ready"]
    assert told["visibility"][0].startswith("block['")
    app.conf.task_queues = [Queue("celery"), Queue("mail")]
    assert "not in task_queues either" in one(look("queues", on=app, reply_timeout=1.0))[1]


def test_a_worker_looks_at_its_start(worker: Callable[..., Path], server: RedisServer) -> None:
    """What can be seen cheaply is a line each in its log; it starts all the same."""
    with configured(server, maxmemory="1gb", maxmemory_policy="allkeys-lru"):
        log = worker("w")
        wait_for(lambda: " ready." in log.read_text() and "delayq persistence: " in log.read_text(), "it says so")
    warnings = [line for line in log.read_text().splitlines() if "WARNING" in line and "delayq" in line]
    assert [line.split("delayq ")[1].split(":")[0] for line in warnings] == ["eviction", "persistence"]
    assert "redis-cli CONFIG SET maxmemory-policy noeviction" in warnings[0]


def test_a_check_up_delays_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Redis hangs, or something raises: the worker knows nothing of it."""
    import threading
    from types import SimpleNamespace

    hanging = threading.Event()

    def hang() -> list[Finding]:
        hanging.wait(60)
        raise RuntimeError("at last")

    worker = SimpleNamespace(app=SimpleNamespace(delayq=SimpleNamespace(check_up=hang, can_dispatch=True)))
    began = time.monotonic()
    step = CheckUpStep(worker)
    assert step.include_if(worker)
    step.create(worker)
    assert time.monotonic() - began < 30
    hanging.set()
    for thread in threading.enumerate():
        if thread.name == "delayq-check-up":
            thread.join(60)
    assert caplog.text == ""


def test_late_limits(look: Look, make_app: Callable[..., Celery]) -> None:
    """A task that acknowledges late and may run longer than its message stays invisible."""
    app = make_app(broker_transport_options={"visibility_timeout": 60}, task_time_limit=3600)
    for name, options in (
        ("late", {"acks_late": True}),
        ("early", {}),
        ("short", {"acks_late": True, "time_limit": 30}),
    ):

        @app.task(name=name, shared=False, **options)
        def task() -> None: ...

    level, text = one(look("visibility", on=app, reply_timeout=0.1))
    assert (level, text) == (
        "warning",
        "late acknowledges late and may run 60 min, visibility_timeout is 60 s",
    )


def test_the_command(app: Celery, server: RedisServer, inside: Inside) -> None:
    """For people, for machines, and its exit status: by the worst that it found."""
    said = run(app, "doctor", "--timeout", "0.1")
    assert said.code == 1
    assert said.lines[0].startswith("ok       reachable    redis://127.0.0.1:")
    position = said.lines.index(
        "warning  persistence  neither AOF nor snapshots: a restart of Redis loses all that waits"
    )
    assert said.lines[position + 1].startswith(" " * 22 + "fix: redis-cli CONFIG SET appendonly yes")
    assert said.lines[-1] == "14 ok, 1 unknown, 3 warning"

    put(inside, "a\x1b[31m", "bad\nname")
    said = run(app, "doctor", "--timeout", "0.1", "--json")
    assert said.code == 2
    assert {*said.objects[0]} == {"check", "level", "text", "fix"}
    assert [found["check"] for found in said.objects] == [check.name for check in CHECKS]
    assert {found["check"]: found["level"] for found in said.objects}["dispatchers"] == "broken"
    inside.store.purge("bad\nname")

    dispatcher = app.delayq.dispatcher()
    dispatcher.start()
    wait_for(inside.store.beat_us, "it is at work")
    with configured(server, appendonly="yes"):
        app.conf.worker_enable_remote_control = False
        assert run(app, "doctor", "--timeout", "0.1").code == 0
    dispatcher.stop()


def test_a_broker_that_is_not_redis(make_app: Callable[..., Celery]) -> None:
    """There is nothing to look at."""
    said = run(make_app(broker_url="memory://"), "doctor")
    assert (said.code, "is not Redis" in said.err) == (2, True)
