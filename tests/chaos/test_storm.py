"""A short storm; and that a storm would notice if a promise were broken."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from threading import Thread

import pytest

from celery_delayq.embedded import servers
from tests import rabbit
from tests.integration.worker import PATIENCE, ROOT, newest_redis

from .storm.network import Network
from .storm.participants import faketime
from .storm.plan import DECK, KILLS_OF_A_DECK, RELAY, faults
from .storm.records import STAMP, Attempt, Copy, Watch, copy_of, read_attempts, read_runs
from .storm.verdict import BROKER_LOST, DIED, ENDED, LATE, Excuses, judge

ONE_REDIS = True

GROUPS = {"producer": ["p"], "worker": ["w-1", "w-2"], "dispatcher": ["d"], "rack": ["r"]}

SENT = Attempt("watched", 10.0, 0, begun=100.0, ended=100.1, outcome="acked")


@pytest.mark.parametrize("relay", [None, "redis", "rabbitmq"])
def test_a_short_storm_breaks_no_promise(tmp_path: Path, relay: str | None) -> None:
    """Every kind of fault, once at least: each acknowledged task is handed over exactly once, by a relay at least once;
    and none too early.
    """
    if relay == "rabbitmq":
        rabbit.program()
    if not servers() or faketime() is None:
        missing = "faketime (apt install faketime)" if servers() else "a Redis server"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{missing} is not here")
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "tests.chaos.storm", "--report", str(report), "--seed", "20261122"]
    command += ["--tasks", "500", "--kills", str(KILLS_OF_A_DECK), "--every", "0.45", "--countdown", "3", "6"]
    command += ["--pace", "200", "--stock-patience", "3"]
    if relay:  # which does not differ from pool to pool
        command += ["--relay", relay, "--pools", "prefork", "threads"]
    storm = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said, _ = storm.communicate()
    finally:  # it ends what it has started
        with suppress(ProcessLookupError):
            storm.send_signal(signal.SIGTERM)
        storm.wait(PATIENCE)
    assert storm.returncode == 0, said
    told = json.loads(report.read_text())
    assert told["put"]["acknowledged"] >= 500
    assert told["watched"]["handed over"] > 300
    assert told["faults"].keys() == {card.kind for card in (*DECK, *RELAY[relay])}


def test_the_seed_fixes_the_faults() -> None:
    """The same seed, the same faults, victims and times; and each kind comes once in a deck."""

    def of(seed: int) -> list[object]:
        return list(islice(faults(seed, 0.5, GROUPS), 100))

    assert of(1) == of(1) != of(2)
    assert {fault.kind for fault in islice(faults(1, 0.5, GROUPS), sum(card.copies for card in DECK))} == {
        card.kind for card in DECK
    }


@pytest.mark.parametrize(
    ("attempt", "taken", "violation"),
    [
        (SENT, [110.1], None),
        (SENT, [], "lost"),
        (SENT, [110.1, 111.0], "doubled"),
        (SENT, [105.0], "early"),
        (None, [110.1], "alien"),
        (replace(SENT, outcome="kombu.exceptions.OperationalError"), [], None),
        (replace(SENT, outcome="kombu.exceptions.OperationalError"), [110.1], None),
        (replace(SENT, outcome="kombu.exceptions.OperationalError"), [110.1, 110.2], "doubled"),
        (replace(SENT, outcome="cut off"), [110.1, 110.2], "doubled"),
        (replace(SENT, ended=110.0), [110.1, 120.0], None),  # as documented: sent again after its hand-over
    ],
)
def test_the_judge_sees_each_violation(attempt: Attempt | None, taken: list[float], violation: str | None) -> None:
    """Lost, doubled, early and never sent are told apart from what may happen."""
    copies = [Copy(at) for at in taken]
    verdict = judge({"id": attempt} if attempt else {}, {"id": copies} if taken else {}, "consumed", [])
    assert verdict.violations == ({violation: ["id"]} if violation else {})
    assert verdict.is_good == (violation is None)


TWICE = [Copy(110.1, "d.1"), Copy(116.0, "w.2")]


@pytest.mark.parametrize(
    ("copies", "cause"),
    [
        (TWICE, DIED),
        ([Copy(130.0, "d.1"), Copy(136.0, "w.2")], None),  # d.1 had died before that, the broker was there again
        ([Copy(130.0, "w.2"), Copy(130.5, "d.2")], None),
        ([Copy(119.0, "w.2"), Copy(122.0, "w.2")], BROKER_LOST),
        ([Copy(141.0, "d.2"), Copy(142.0, "w.2")], ENDED),
        ([Copy(130.0, "e.1"), Copy(136.0, "w.2")], LATE),
        ([Copy(130.0, "w.2"), Copy(136.0, "e.1")], LATE),
        ([Copy(130.0, "w.2"), Copy(136.0, "e.1"), Copy(140.0, "e.1")], None),  # it has told of one
        ([*TWICE, Copy(122.0, "w.2")], DIED),
        ([*TWICE, Copy(130.0, "w.2")], DIED),
        ([*TWICE, Copy(119.0, "w.2"), Copy(119.5, "w.2")], None),  # the last one for no reason
    ],
)
def test_the_judge_sees_why_a_relay_published_again(copies: list[Copy], cause: str | None) -> None:
    """A second copy has a cause that came between the two, or that its publisher has told; else it is a violation, in
    the queue that workers consume, too.
    """
    excuses = Excuses({"d.1": (110.0, 115.0)}, {"d.2": (140.0, 141.5)}, [(120.0, 121.0)], {"e": 1})
    for queue in ("watched", "consumed"):
        found = {"taken": {"id": copies}, "ran": {}} if queue == "watched" else {"taken": {}, "ran": {"id": copies}}
        verdict = judge({"id": replace(SENT, queue=queue)}, **found, consumed="consumed", outages=[], excuses=excuses)
        assert verdict.violations == ({} if cause else {"doubled": ["id"]})
        if cause:
            assert verdict.republished[cause] == ["id"]


def test_a_message_tells_who_published_it_and_when(tmp_path: Path) -> None:
    """In its headers, and where it was run; without that it is known when it was there."""
    assert copy_of({STAMP: "d-1.3 12.500000"}, 99.0) == Copy(12.5, "d-1.3")
    assert (Copy(12.5, "d-1.3").participant, copy_of({}, 99.0)) == ("d-1", Copy(99.0))
    runs = tmp_path / "runs"
    runs.write_text("a d-1.3 12.500000\na d-1.3 12.500000\na w.1 13.000000\nb \n")
    assert read_runs(runs) == {"a": {Copy(12.5, "d-1.3"): 2, Copy(13.0, "w.1"): 1}, "b": {Copy(0.0): 1}}


def test_the_judge_sees_a_torn_batch() -> None:
    """Of a call that stored several at once, and failed, all or none are handed over."""
    part = replace(SENT, batch=7, outcome="cut off")
    attempts = {"p.1.7": part, "p.1.8": part}
    assert judge(attempts, {}, "consumed", []).is_good
    assert judge(attempts, {"p.1.7": [Copy(111.0)], "p.1.8": [Copy(112.0)]}, "consumed", []).is_good
    assert judge(attempts, {"p.1.8": [Copy(112.0)]}, "consumed", []).torn == ["p.1: batch 7"]


def test_the_judge_sees_a_foreign_exception() -> None:
    """``apply_async`` raises ``OperationalError``, as Celery's own does, and nothing else."""
    odd = replace(SENT, outcome="redis.exceptions.ConnectionError")
    assert judge({"id": odd}, {}, "consumed", []).faults != []


def test_a_ledger_tells_how_each_attempt_ended(tmp_path: Path) -> None:
    """What has no end was cut off by the death of its producer."""
    ledger = tmp_path / "p.ledger"
    ledger.write_text(
        "begun p.1.1 100.0 q 5.0 0\nacked p.1.1 100.1\n"
        "begun p.1.2 101.0 q 5.0 0\nkombu.exceptions.OperationalError p.1.2 102.0\n"
        "begun p.1.3 103.0 q 5.0 0\n"
    )
    attempts = read_attempts([(ledger, {1: 104.5})])
    assert [(a.outcome, a.ended) for a in attempts.values()] == [
        ("acked", 100.1),
        ("kombu.exceptions.OperationalError", 102.0),
        ("cut off", 104.5),
    ]


def test_the_watch_writes_each_message_down_once() -> None:
    """Also when a step of it is repeated since its answer was lost; and a message that is there twice, twice."""

    def message(task_id: str) -> str:
        return json.dumps({"headers": {"id": task_id}})

    with newest_redis() as server, server.client() as client:
        watch = Watch(server.port, ["one", "two"])
        client.rpush("one", message("a"), message("b"), message("b"))
        client.rename("one", "taken:0:0")  # as if the watch had done it, and not heard of it
        client.rpush("one", message("c"))
        client.rpush("two", message("d"))
        watch.take()
        watch.take()
        assert {task_id: len(times) for task_id, times in watch.taken.items()} == {"a": 1, "b": 2, "c": 1, "d": 1}
        assert client.keys() == []


@contextmanager
def echo() -> Iterator[tuple[int, list[bytes]]]:
    """A server that sends back what it gets; yields its port, and what it has got."""
    got: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    Thread(target=reflect, args=(connection,), daemon=True).start()

        def reflect(connection: socket.socket) -> None:
            with closing(connection), suppress(OSError):
                while data := connection.recv(1000):
                    got.append(data)
                    connection.sendall(data)

        Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1], got
        server.shutdown(socket.SHUT_RDWR)


def test_the_network_can_be_cut() -> None:
    """Reset, refused, or a black hole that lets through what was sent into it by who is still there."""
    with echo() as (port, got), Network({"rack": port, "other": port}) as network:

        def connect(rack: str = "rack") -> socket.socket:
            return socket.create_connection(("127.0.0.1", network.port(rack)), timeout=PATIENCE)

        with connect() as first, connect("other") as other:
            for end in (first, other):
                end.sendall(b"1")
                assert end.recv(1) == b"1"
            network.reset("rack")
            with pytest.raises(ConnectionResetError):
                first.recv(1)
            network.refuse("rack")
            with pytest.raises(ConnectionRefusedError):
                connect()
            network.heal("rack")
            with connect() as second, connect() as gone:
                network.hole("rack")
                second.sendall(b"2")
                gone.sendall(b"3")
                gone.close()
                second.settimeout(0.1)
                with pytest.raises(TimeoutError):
                    second.recv(1)
                second.settimeout(PATIENCE)
                network.heal("rack")
                assert second.recv(1) == b"2"
            other.sendall(b"4")
            assert other.recv(1) == b"4"
            assert got == [b"1", b"1", b"2", b"4"]
