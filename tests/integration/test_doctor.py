"""The doctor on real faults: each check finds its own, on a Redis, or an app that has it."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from contextlib import closing, suppress

import pytest
import redis
from celery import Celery

from celery_delayq.doctor import Level
from celery_delayq.doctor.rights import OURS, READY
from celery_delayq.embedded import RedisServer
from celery_delayq.store import Store

from .conftest import Inside
from .diagnosis import Look, acl_user, configured, everything, levels, one, put
from .worker import wait_for


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
    level, text = one(app.delayq.doctor(timeout=0.3))
    own_server._process.send_signal(signal.SIGCONT)
    assert (level, "TimeoutError" in text) == ("broken", True)


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


def test_a_user_who_may_not_look(look: Look, server: RedisServer, make_app: Callable[..., Celery]) -> None:
    """No INFO, no CONFIG, no PUBSUB, as on a managed Redis: says so, and that is no fault."""
    with acl_user(server, make_app, *NEEDED) as app:
        for name in ("version", "role", "eviction", "memory", "persistence", "replicas", "dispatchers"):
            (finding,) = look(name, on=app, reply_timeout=0.1)
            assert (finding.level, "not allowed" in finding.text) == (Level.UNKNOWN, True), finding
    with acl_user(server, make_app, *NEEDED, "+info") as app:
        assert one(look("persistence", on=app))[0] == "unknown"
        assert levels(look("version", "role", "eviction", "memory", "replicas", on=app)) == ["ok"] * 5


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
    inside.client.zadd(inside.keys.expiries, {"celery": store.now_us() - 10 * minute})  # as if they had gone by
    assert one(look("leases")) == ("warning", "a lease of 'celery' ran out 10 min ago, and nobody takes the task back")
    reserve(store.now_us() + 2 * minute)
    level, text = one(look("leases"))
    assert (level, text.split(" could")[0]) == ("warning", "1 task of 'celery'")


def test_a_broker_of_its_own(look: Look, server: RedisServer, make_app: Callable[..., Celery]) -> None:
    """Where tasks wait elsewhere, the broker must be there, too; and the store must be for it."""
    assert one(look("broker")) == ("ok", "the same Redis")
    app = make_app(broker_url="memory://", delayq_store_url=server.url())
    assert [finding.level for finding in app.delayq.doctor() if finding.check != "workers"].count(Level.BROKEN) == 0
    assert one(look("reachable", on=app))[1] == server.url()
    level, text = one(
        look("broker", on=make_app(broker_url="redis://:secret@127.0.0.1:1", delayq_store_url=server.url()))
    )
    assert (level, "cannot be reached" in text, "secret" in text) == ("broken", True, False)

    app.delayq.apply_delayed("task", 60)
    level, text = one(make_app(broker_url="filesystem://", delayq_store_url=server.url()).delayq.doctor())
    assert (level, "are for the broker memory://" in text) == ("broken", True)
