"""The checks of the doctor, each by itself: what it needs goes in, what it finds comes out."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

import pytest

from celery_delayq.doctor import CHECKS, Check, Finding, Level, examine, fleet, server, waiting
from celery_delayq.doctor.finding import broken, ok
from celery_delayq.doctor.rights import OURS, READY
from celery_delayq.job import Load

MINUTE_US = 60_000_000
NOW = 1_800_000_000_000_000


def told(found: Iterable[Finding]) -> list[str]:
    """Level and text of each. What is wrong comes with what to do about it, what is well without."""
    found = list(found)
    for finding in found:
        assert bool(finding.fix) is (finding.level in (Level.WARNING, Level.BROKEN)) or finding.level is Level.UNKNOWN
    return [f"{finding.level.value}: {finding.text}" for finding in found]


def load(**fields: Any) -> Load:
    nothing: dict[str, Any] = {field.name: 0 for field in dataclasses.fields(Load)}
    return Load(**{**nothing, "head_us": None, "held_us": None, **fields})


def replica(**fields: Any) -> dict[str, Any]:
    return {"ip": "10.0.0.2", "port": 6379, "state": "online", "offset": 1000, "lag": 0, **fields}


FULL = {"maxmemory": 1000, "maxmemory_policy": "noeviction"}


@pytest.mark.parametrize(
    "case",
    [
        (server.version({"redis_version": "7.0.15"}), "ok: Redis 7.0.15"),
        (server.version({"redis_version": "6.2.0"}), "ok: Redis 6.2.0"),
        (server.version({"redis_version": "7.2.4", "valkey_version": "8.1.0"}), "ok: Valkey 8.1.0"),
        (server.version({"redis_version": "6.0.16"}), "broken: Redis 6.0.16 is too old, it must be 6.2 or newer"),
        (server.role({"role": "master"}), "ok: a master"),
        (
            server.role({"role": "slave", "master_host": "m", "master_port": 6379}),
            "broken: this is a replica of m:6379; it refuses every delayed task",
        ),
        (server.eviction({"maxmemory_policy": "noeviction", "maxmemory": 1}), "ok: noeviction"),
        (server.eviction({"maxmemory_policy": "volatile-lru", "maxmemory": 1}), "ok: volatile-lru"),
        (
            server.eviction({"maxmemory_policy": "allkeys-lru", "maxmemory": 2 * 1024**3}),
            "broken: maxmemory-policy is allkeys-lru: at 2.0 GB Redis may drop a whole schedule",
        ),
        (
            server.eviction({"maxmemory_policy": "allkeys-random", "maxmemory": 0}),
            "warning: maxmemory-policy is allkeys-random: once maxmemory is set, Redis may drop a whole schedule",
        ),
        (server.memory({"used_memory": 2048, "maxmemory": 0}), "ok: 2.0 KB used, no maxmemory"),
        (server.memory({**FULL, "used_memory": 899}), "ok: 899 bytes of 1,000 bytes used"),
        (
            server.memory({**FULL, "used_memory": 900}),
            "warning: 900 bytes of 1,000 bytes used: when it is full, new tasks are refused",
        ),
        (
            server.memory({**FULL, "used_memory": 1000}),
            "broken: 1,000 bytes of 1,000 bytes used: new tasks are refused, those that wait still go out",
        ),
        (
            server.memory({**FULL, "used_memory": 1000, "maxmemory_policy": "volatile-lru"}),
            "ok: 1,000 bytes of 1,000 bytes used",
        ),
        (server.persistence({"aof_enabled": 1}, {"appendfsync": "everysec"}), "ok: AOF, appendfsync everysec"),
        (server.persistence({"aof_enabled": 1}, None), "ok: AOF"),
        (
            server.persistence({"aof_enabled": 1}, {"appendfsync": "no"}),
            "warning: AOF with appendfsync no: a crash of the machine may cost half a minute",
        ),
        (
            server.persistence({"aof_enabled": 0}, {"save": "3600 1"}),
            "warning: no AOF: a crash costs all since the last snapshot (save 3600 1)",
        ),
        (
            server.persistence({"aof_enabled": 0}, {"save": ""}),
            "warning: neither AOF nor snapshots: a restart of Redis loses all that waits",
        ),
        (
            server.persistence({"aof_enabled": 0}, None),
            "unknown: no AOF; not allowed to look whether there are snapshots (CONFIG GET)",
        ),
        (
            server.persistence({"aof_enabled": 1, "rdb_last_bgsave_status": "err"}, {"appendfsync": "always"}),
            "broken: Redis could not write its last snapshot, and refuses writes",
            "ok: AOF, appendfsync always",
        ),
        (
            server.persistence({"aof_enabled": 1, "aof_last_write_status": "err"}, None),
            "broken: Redis cannot write its AOF, and refuses writes until it can",
            "ok: AOF",
        ),
        (server.replicas({}, {}), "ok: none"),
        (server.replicas({"slave0": replica(), "slave1": replica()}, None), "ok: 2 in step"),
        (
            server.replicas({"slave0": replica(lag=9), "master_repl_offset": 3048}, {}),
            "warning: replica 10.0.0.2:6379 was last heard of 9 s ago, 2.0 KB behind: a failover to it loses that",
        ),
        (
            server.replicas({"slave0": replica(state="wait_bgsave")}, {}),
            "warning: replica 10.0.0.2:6379 is not in step yet: wait_bgsave",
        ),
        (
            server.replicas({"min_slaves_good_slaves": 0}, {"min-replicas-to-write": "1"}),
            "broken: Redis wants 1 good replicas (min-replicas-to-write) and has 0: it refuses writes",
        ),
        (
            server.replicas({"slave0": replica()}, {}, wanted=2),
            "broken: delayq_wait_replicas is 2, and 1 replicas are online: every put ends with an error",
            "ok: 1 in step",
        ),
        (server.rights({}, "u"), "ok: all commands, keys and channels that are needed"),
        (server.rights({"HDEL": "NOPERM"}, "u"), "broken: HDEL is refused: NOPERM"),
        (
            server.rights({"SUBSCRIBE c": "NOPERM"}, "u"),
            "warning: SUBSCRIBE c is refused (NOPERM): earlier tasks are noticed by polling only",
        ),
        (server.clock(0.25), "ok: this host's clock is 0.250 s ahead of Redis's"),
        (
            server.clock(-3600.0),
            "warning: this host's clock is 3600.000 s behind Redis's: "
            "a countdown is exact all the same, an eta that is computed here is off by that",
        ),
    ],
)
def test_the_server(case: tuple[Any, ...]) -> None:
    """What INFO and CONFIG say of a server, and what that means for what waits there."""
    found, *expected = case
    assert told(found) == expected


RUNNING, IDLE = {"w": {"running": True, "version": "1.0"}}, {"w": {"running": False, "version": "1.0"}}


@pytest.mark.parametrize(
    ("listeners", "beat_age", "answers", "waiting", "expected"),
    [
        ((3, 1), 0.5, RUNNING, 7, "ok: 3 live, the last one was at work 0.5 s ago"),
        ((1, 1), 0.5, {}, 7, "ok: 1 live, the last one was at work 0.5 s ago"),
        ((0, 2), 0.5, {}, 7, "ok: 2 with --queues, none for all, the last one was at work 0.5 s ago"),
        ((1, 1), 30.0, {}, 7, "warning: 1 live, the last one was at work 30 s ago"),
        ((1, 1), None, RUNNING, 7, "warning: 1 live, and none was ever at work"),
        (
            (0, 0),
            0.5,
            IDLE,
            1,
            "broken: none lives, the last one was at work 0.5 s ago: 1 task will not be handed over",
        ),
        ((0, 0), None, {}, 2, "broken: none lives: 2 tasks will not be handed over"),
        (
            (0, 0),
            7200.0,
            {},
            0,
            "warning: none lives, the last one was at work 2.0 h ago: nothing would be handed over",
        ),
        (None, None, {}, 2, "unknown: not allowed to see whether one lives"),
        (None, 0.5, RUNNING, 2, "ok: 1 live, the last one was at work 0.5 s ago"),
        (None, 0.5, {}, 2, "ok: alive, the last one was at work 0.5 s ago"),
    ],
)
def test_dispatchers(listeners: Any, beat_age: float | None, answers: Any, waiting: int, expected: str) -> None:
    """Who listens, who said when that he is at work, and who answers."""
    assert told(fleet.dispatchers(listeners, beat_age, answers, waiting, 1.0, wanted=True)) == [expected]


def test_the_fix_names_the_setting_that_lets_workers_have_none() -> None:
    """Else one would look for a fault in them."""
    (finding,) = fleet.dispatchers((0, 0), None, IDLE, 2, 1.0, wanted=False)
    assert "delayq_dispatch = False" in finding.fix


@pytest.mark.parametrize(
    "case",
    [
        (fleet.workers({"b": [], "a": []}, remote_control=True), "ok: 2: a, b"),
        (fleet.workers({}, remote_control=True), "warning: no worker answers: due tasks lie in their queues"),
        (
            fleet.workers({}, remote_control=False),
            "unknown: workers of this app take no remote control (worker_enable_remote_control)",
        ),
        (fleet.versions("1.0", {}, {}), "ok: 1.0"),
        (fleet.versions("1.0", RUNNING, {"w": []}), "ok: 1.0 here and in 1 worker"),
        (
            fleet.versions("1.1", {**RUNNING, "v": {"running": True}}, {}),
            "warning: celery_delayq is 1.1 here, and 1.0 in w; an older one in v",
        ),
        (
            fleet.versions("1.0", {"w": {"error": "KeyError('delayq')"}, "v": {"joined": False}}, {"w": [], "x": []}),
            "warning: without celery_delayq, or without the time to answer: v, w, x",
        ),
    ],
)
def test_workers(case: tuple[Any, ...]) -> None:
    """Who answers, and with what."""
    found, *expected = case
    assert told(found) == expected


@pytest.mark.parametrize(
    "case",
    [
        (waiting.overdue({}, NOW, {}), "ok: nothing that may leave"),
        (waiting.overdue({"q": load(waiting=1, head_us=NOW + 9)}, NOW, {}), "ok: nothing that may leave"),
        (waiting.overdue({"q": load(due=1, head_us=NOW - 9_000_000)}, NOW, {}), "ok: nothing that may leave"),
        (
            waiting.overdue({"q": load(due=1, head_us=NOW - MINUTE_US)}, NOW, {}),
            "warning: 1 task of 'q' is overdue, the first for 60 s",
        ),
        (
            waiting.overdue({"q": load(due=2000, head_us=NOW - 60 * MINUTE_US)}, NOW, {}),
            "broken: 2,000 tasks of 'q' are overdue, the first for 60 min",
        ),
        (
            waiting.overdue({"q": load(due=1, head_us=NOW - MINUTE_US, held_us=float("inf"))}, NOW, {}),
            "ok: nothing that may leave",
        ),
        (
            waiting.overdue({"q": load(due=1, head_us=NOW - 60 * MINUTE_US, held_us=NOW + 1)}, NOW, {}),
            "warning: 1 task of 'q' is overdue, the first for 60 min: it catches up at a rate",
        ),
        (
            waiting.overdue({"q": load(due=1, head_us=NOW - 60 * MINUTE_US, held_us=NOW + 1, ready=5)}, NOW, {"q": 5}),
            "warning: 1 task of 'q' is overdue, the first for 60 min: 5 are ready already (delayq_ready_limit)",
        ),
        (waiting.paused({"q": load(waiting=1, held_us=NOW)}), "ok: none"),
        (
            waiting.paused({"q": load(waiting=3, due=2, held_us=float("inf"))}),
            "warning: 'q' is paused: 3 tasks wait, 2 of them due",
        ),
        (waiting.leases({"q": load(waiting=1)}, {}, NOW), "ok: none"),
        (waiting.leases({"q": load(reserved=2)}, {"q": NOW - 9_000_000}, NOW), "ok: 2 tasks under way"),
        (
            waiting.leases({"q": load(reserved=2, dead=3)}, {"q": NOW - MINUTE_US}, NOW),
            "warning: a lease of 'q' ran out 60 s ago, and nobody takes the task back",
            "warning: 3 tasks of 'q' could not be published, and nobody tries any more",
        ),
        (waiting.orphans({"q": load(waiting=1)}, {"q": (1, 1)}, "totals"), "ok: none"),
        (
            waiting.orphans({"q": load(orphans=4)}, {"q": (3, 1)}, "totals"),
            "warning: 2 ids have no message in 'q'; dropped when due",
            "warning: 4 ids of 'q' had no message and were dropped",
        ),
        (
            waiting.orphans({}, {"q": (1, 2)}, "totals"),
            "warning: 1 message has no id in 'q'; never handed over",
        ),
    ],
)
def test_what_waits(case: tuple[Any, ...]) -> None:
    """How late, held back by whom, and whole or not."""
    found, *expected = case
    assert told(found) == expected


LOADS = {"mail": load(waiting=2), "idle": load(moved=7), "typo": load(waiting=1, ready=3)}
CONSUMED = {"w": [{"name": "mail"}], "broken": {"error": "?"}}


@pytest.mark.parametrize(
    "case",
    [
        (fleet.queues({"mail": load(waiting=2)}, CONSUMED, (), remote_control=True), "ok: 1 with tasks, all consumed"),
        (fleet.queues({}, CONSUMED, (), remote_control=True), "ok: nothing waits"),
        (
            fleet.queues(LOADS, CONSUMED, (), remote_control=True),
            "warning: no worker consumes 'typo': 1 wait for it, 3 are ready",
        ),
        (
            fleet.queues(LOADS, CONSUMED, {"mail"}, remote_control=True),
            "warning: no worker consumes 'typo': 1 wait for it, 3 are ready; it is not in task_queues either",
        ),
        (fleet.queues(LOADS, {}, (), remote_control=True), "unknown: no worker tells what it consumes"),
    ],
)
def test_queues(case: tuple[Any, ...]) -> None:
    """What waits for whom, and who consumes."""
    found, *expected = case
    assert told(found) == expected


def running(**fields: Any) -> dict[str, list[dict[str, Any]]]:
    return {"w": [{"name": "t", "id": "i", "time_start": 1000.0, "acknowledged": False, **fields}]}


@pytest.mark.parametrize(
    "case",
    [
        (fleet.visibility(None, running(), {}, 9e9), "ok: the broker has none"),
        (fleet.visibility(3600.0, running(), {"t": 3600.0}, 1100.0), "ok: 60 min, nothing runs longer"),
        (fleet.visibility(3600.0, running(time_start=None), {}, 9e9), "ok: 60 min, nothing runs longer"),
        (
            fleet.visibility(60.0, running(), {}, 1100.0),
            "warning: t['i'] runs for 100 s in w, visibility_timeout is 60 s: it is delivered again",
        ),
        (
            fleet.visibility(60.0, running(acknowledged=True), {}, 1100.0),
            "warning: t['i'] runs for 100 s in w, visibility_timeout is 60 s: "
            "what waits behind it in that worker is delivered again",
        ),
        (
            fleet.visibility(60.0, {}, {"t": 61.0}, 0.0),
            "warning: t acknowledges late and may run 61 s, visibility_timeout is 60 s",
        ),
    ],
)
def test_visibility(case: tuple[Any, ...]) -> None:
    """How long tasks run, and may run, against the time after which the broker delivers again."""
    found, *expected = case
    assert told(found) == expected


def test_a_check_that_crashes_hides_no_other() -> None:
    """It says so itself, keeps what it had found, and the others are made; but behind what is vital and broken."""

    def crashing(_: Any) -> Iterable[Finding]:
        yield ok("one thing is well")
        raise ZeroDivisionError("of its own")

    checks = (
        Check("crashing", crashing),
        Check("fine", lambda _: [ok("fine")]),
        Check("vital", lambda _: [broken("no Redis", "start it")], vital=True),
        Check("late", lambda _: [ok("never seen")]),
    )
    found = examine(None, checks)  # type: ignore[arg-type]  # none of them looks at it
    assert [(finding.check, finding.level, finding.text) for finding in found] == [
        ("crashing", Level.OK, "one thing is well"),
        ("crashing", Level.WARNING, "the check itself failed: ZeroDivisionError: of its own"),
        ("fine", Level.OK, "fine"),
        ("vital", Level.BROKEN, "no Redis"),
    ]


def test_the_names_of_checks_fit_their_column() -> None:
    """And are given once."""
    names = [check.name for check in CHECKS]
    assert max(map(len, names)) < 13
    assert len(set(names)) == len(names)


def test_all_commands_of_the_scripts_are_tried() -> None:
    """A script that uses a new command needs a new right: the doctor tries it, and docs/operations.md names it."""
    used = {
        command
        for file in files("celery_delayq.lua").iterdir()
        if file.name.endswith(".lua")
        for command in re.findall(r"redis\.p?call\('(\w+)'", file.read_text())
    }
    assert used <= {*OURS, *READY, "TIME", "PUBLISH"}
