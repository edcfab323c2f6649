"""`celery-delayq dispatch-zset`, as a program of its own on a bare sorted set that other clients write."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner

from celery_delayq.cli import main
from celery_delayq.cluster import slot_of
from celery_delayq.embedded import RedisServer, free_port
from tests.clustering import Nodes
from tests.replication import Server, until

from .certificates import write_certificate
from .test_worker_brokers import tls_server
from .test_zset import popped as popped_from

#: What may differ from one Redis to the next is tested in test_zset.py, test_tracking.py and tests/lua.
ONE_REDIS = True

PROGRAM = str(Path(sys.executable).with_name("celery-delayq"))


class Running:
    """One program, and what it says."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def end(self, number: signal.Signals = signal.SIGINT) -> tuple[str, str]:
        """Tell it to end; what it has printed, and what it has told on stderr."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=20)
        assert self.process.returncode == 0, err
        return out, err


def running(server: RedisServer, *options: str) -> AbstractContextManager[Running]:
    return started("-u", server.url(), *options)


@contextmanager
def started(*options: str) -> Iterator[Running]:
    command = [PROGRAM, "dispatch-zset", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield Running(process)
        finally:
            process.kill()


popped = partial(popped_from, key="readytasklist")


def now(client: redis.Redis) -> float:
    seconds, microseconds = client.time()
    return float(seconds + microseconds / 1e6)


def test_by_default(own_server: RedisServer) -> None:
    """The keys, the unit and the order that its README names; members come untouched, and none before it is due."""
    with running(own_server) as program, own_server.client() as client:
        begin = now(client)
        client.zadd(
            "delayedtaskset", {"taskB": begin + 0.5, "taskA": begin + 0.2, b"\x00\xff{}": 0, "far": begin + 3600}
        )
        assert popped(client, 1) == [b"\x00\xff{}"]
        assert popped(client, 2) == [b"taskA", b"taskB"]
        assert now(client) >= begin + 0.5
        out, err = program.end()
        assert (out, err) == ("dispatched 3 in total\n", "")
        assert client.zrange("delayedtaskset", 0, -1) == [b"far"]


def test_its_options(own_server: RedisServer) -> None:
    """Other keys, batch size and unit, and a table."""
    with running(own_server, "-d", "mine", "-r", "due", "-n", "2", "--unit", "ms", "-v") as program:
        with own_server.client() as client:
            client.zadd("mine", {f"{number}": number for number in range(5)} | {"far": (now(client) + 3600) * 1000})
            assert popped_from(client, 5, "due") == [b"0", b"1", b"2", b"3", b"4"]
        out, err = program.end(signal.SIGTERM)
    rule, head, _, *rows, last, total = out.splitlines()
    assert rule == last == f"+{'-' * 15}" * 4 + "+"
    assert head == "|  dispatched   |    delayed    |     ready     |  backing_off  |"
    numbers = [[float(cell) for cell in row.strip("|").split("|")] for row in rows]
    assert sum(moved for moved, *_ in numbers) == 5
    assert max(moved for moved, *_ in numbers) == 2
    assert numbers[-1][1] == 1
    assert (total, err) == ("dispatched 5 in total", "")
    assert out.replace("\n", "").isprintable()  # no colours, nothing that moves a cursor


def test_json(own_server: RedisServer) -> None:
    """The same, for machines: an object for each row, and one for the total."""
    with running(own_server, "--json", "-n", "3") as program, own_server.client() as client:
        client.zadd("delayedtaskset", {f"{number}": number for number in range(5)})
        popped(client, 5)
        out, _ = program.end()
    *rows, total = map(json.loads, out.splitlines())
    assert {tuple(row) for row in rows} == {("dispatched", "delayed", "ready", "backing_off")}
    assert sum(row["dispatched"] for row in rows) == 5
    assert total == {"total": 5}


def test_it_sleeps_until_something_is_due_and_wakes_for_what_is_earlier(own_server: RedisServer) -> None:
    """Nothing due, one look a second; a member that anybody adds with an earlier time is not kept waiting for it."""
    with running(own_server) as program, own_server.client() as client:
        client.zadd("delayedtaskset", {"far": now(client) + 3600})
        await_looks(client, 2)
        began, before = now(client), looks(client)
        while looks(client) < before + 3:
            pass
        assert now(client) - began > 1.9
        for number in range(60):
            client.zadd("delayedtaskset", {f"{number}": now(client) + 0.02})
            popped(client, 1)
        assert now(client) - began < 45, "it has polled, once a second"
        assert program.end()[0] == "dispatched 60 in total\n"


def looks(client: redis.Redis) -> int:
    """How often a script was called so far."""
    stats: Any = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"] for command in ("evalsha", "eval"))


def await_looks(client: redis.Redis, number: int) -> None:
    until(lambda: looks(client) >= number, f"{number} looks")


@pytest.mark.parametrize("kind", ["killed", "shut down"])
def test_a_redis_that_restarts(own_server: RedisServer, kind: str) -> None:
    """It goes on, as soon as there is a Redis that has loaded its data, and moves what had waited."""
    with running(own_server) as program:
        with own_server.client() as client:
            client.zadd("delayedtaskset", {"a": 0})
            popped(client, 1)
            client.set("filler", "x")
            client.mset({f"filler {number}": "x" for number in range(1000)})
            client.zadd("delayedtaskset", {"b": now(client) + 1})
            client.save()
            if kind == "shut down":
                client.shutdown(nosave=True)
        own_server.stop()
        own_server._options += ["--key-load-delay", "1000"]  # us: it says LOADING for a second
        own_server.start()
        with own_server.client() as client:
            assert popped(client, 1) == [b"b"]
            client.zadd("delayedtaskset", {"c": 0})
            assert popped(client, 1) == [b"c"]
        out, err = program.end()
    assert out == "dispatched 3 in total\n"
    *outage, last = err.splitlines()
    assert last == "working again"
    assert all("trying again" in line for line in outage)
    assert 1 <= len(outage) <= 2


def test_a_redis_that_hangs(redis_server: RedisServer) -> None:
    """Ctrl-C need not wait for it."""
    with Server(redis_server._program) as server:
        url = f"{server.url()}?socket_timeout=600"
        with started("-u", url) as program, server.client() as client:
            client.zadd("delayedtaskset", {"a": 0})
            popped(client, 1)
            await_looks(client, looks(client) + 1)  # it has heard of that
            server.hang()
            assert program.end()[0] == "dispatched 1 in total\n"
        server.go_on()


def test_started_before_redis(own_server: RedisServer) -> None:
    """It says so once, waits, ends all the same when it is told; and goes on when there is one."""
    own_server.stop()
    with running(own_server) as program, running(own_server) as other:
        for one in (program, other):
            assert one.process.stderr is not None
            assert "trying again" in one.process.stderr.readline()
        assert other.end()[0] == "dispatched 0 in total\n"
        own_server.start()
        assert program.process.stderr.readline() == "working again\n"
        assert program.end() == ("dispatched 0 in total\n", "")


def test_several_at_once_and_one_killed(own_server: RedisServer) -> None:
    """Each member comes once."""
    with ExitStack() as stack, own_server.client() as client:
        programs = [stack.enter_context(running(own_server, "-n", "7")) for _ in range(3)]
        begin = now(client) + 1
        members = [f"{number:05}" for number in range(5000)]
        client.zadd("delayedtaskset", {member: begin + int(member) / 5000 for member in members})
        first = popped(client, 1000)
        programs[0].process.kill()
        assert sorted(first + popped(client, 4000)) == sorted(member.encode() for member in members)
        assert (client.llen("readytasklist"), client.zcard("delayedtaskset")) == (0, 0)


def refused(url: str, *options: str) -> str:
    """What it says when it cannot work like this."""
    command = [PROGRAM, "dispatch-zset", "-u", url, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "dispatched 0 in total\n")
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("key", ["delayedtaskset", "readytasklist"])
def test_a_foreign_key(own_server: RedisServer, key: str) -> None:
    """Is told, and nothing is touched."""
    with own_server.client() as client:
        client.set(key, "x")
        assert f"Error: {key} is a string, expected a" in refused(own_server.url())
        assert client.get(key) == b"x"


def test_a_key_that_becomes_foreign(own_server: RedisServer) -> None:
    """Ends it, too; what is due waits for a better day, and the total is right."""
    with running(own_server) as program, own_server.client() as client:
        client.zadd("delayedtaskset", {"a": 0})
        popped(client, 1)
        client.set("readytasklist", "x")
        client.zadd("delayedtaskset", {"b": 0})
        out, err = program.process.communicate(timeout=20)
        assert (program.process.returncode, out) == (1, "dispatched 1 in total\n")
        assert "readytasklist is a string, expected a list" in err
        assert client.zrange("delayedtaskset", 0, -1) == [b"b"]


def test_a_password(own_server: RedisServer) -> None:
    """In the URL; without it, or with a wrong one, it ends at once and says so, but not the password."""
    with own_server.client() as client:
        client.zadd("delayedtaskset", {"a": 0})
        client.config_set("requirepass", "right")
        address = f"127.0.0.1:{own_server.port}"
        assert "Authentication required" in refused(f"redis://{address}")
        said = refused(f"redis://:wrong@{address}")
        assert "invalid" in said
        assert "wrong@" not in said
        with (
            started("-u", f"redis://:right@{address}") as program,
            redis.Redis(port=own_server.port, password="right") as consumer,
        ):
            assert popped(consumer, 1) == [b"a"]
            program.end()


def test_a_unix_socket(redis_server: RedisServer, tmp_path: Path) -> None:
    """``unix://``, and another database."""
    path = tmp_path / "redis.sock"
    with (
        RedisServer(redis_server._program, ["--unixsocket", str(path)]) as server,
        started("-u", f"unix://{path}?db=3") as program,
        server.client(3) as client,
    ):
        client.zadd("delayedtaskset", {"a": 0})
        assert popped(client, 1) == [b"a"]
        assert program.end()[0] == "dispatched 1 in total\n"


def test_tls(tmp_path: Path) -> None:
    """``rediss://``, with the certificate that the URL names."""
    certificate, key = write_certificate(tmp_path)
    port = free_port()
    url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}"
    with tls_server(port, certificate, key) as server, started("-u", url) as program, server.client() as client:
        begin = now(client)
        client.zadd("delayedtaskset", {"b": begin + 0.3})
        client.zadd("delayedtaskset", {"a": 0})
        assert popped(client, 2) == [b"a", b"b"]
        assert program.end() == ("dispatched 2 in total\n", "")


def test_a_cluster(redis_server: RedisServer) -> None:
    """It works on the node that owns both keys, and says what to do elsewhere."""
    with Nodes(masters=2, program=redis_server._program) as nodes:
        urls = [server.url() for server in nodes.servers]
        owner = nodes.owner(slot_of("{tasks}"))
        assert "{tasks}:delayed and {tasks}:ready" in refused(urls[0])
        keys = ("-d", "{tasks}:delayed", "-r", "{tasks}:ready")
        assert f"name 127.0.0.1:{nodes.servers[owner].port}" in refused(urls[1 - owner], *keys)
        with running(nodes.servers[owner], *keys) as program, nodes.servers[owner].client() as client:
            client.zadd("{tasks}:delayed", {"a": 0})
            assert popped_from(client, 1, "{tasks}:ready") == [b"a"]
            program.end()


def test_a_database_that_is_not_there(own_server: RedisServer) -> None:
    """Is told, at once."""
    assert "out of range" in refused(f"redis://127.0.0.1:{own_server.port}/99")


def test_a_reader_that_goes_away(own_server: RedisServer) -> None:
    """As `head` does: it ends without a word, and nothing is lost."""
    with running(own_server, "-v") as program, own_server.client() as client:
        assert program.process.stdout is not None
        program.process.stdout.readline()
        program.process.stdout.close()
        client.zadd("delayedtaskset", {f"{number}": 0 for number in range(50)})
        assert program.process.wait(20) == 1
        assert program.process.stderr is not None
        assert program.process.stderr.read() == ""
        assert client.zcard("delayedtaskset") + client.llen("readytasklist") == 50


WRONG_URLS = [
    *("http://x", "", "localhost:6379", "redis://h:port", "redis://h:99999", "redis://h/queue", "redis://h?colour=red"),
    *("redis://h?socket_timeout=soon", "redis-cluster://h:1", "rediss://h?ssl_cert_reqs=perhaps", "redis://[::1"),
]


@pytest.mark.parametrize("url", WRONG_URLS)
def test_a_wrong_url(url: str) -> None:
    """Is told at once, with the option's name."""
    done = CliRunner().invoke(main, ["dispatch-zset", "-u", url])
    assert done.exit_code == 2
    assert "'--redis-url'" in done.stderr


@pytest.mark.parametrize(
    "options", [["-n", "0"], ["-n", "-1"], ["-n", "1e9"], ["-n", ""], ["--unit", "h"], ["-d", "readytasklist"], ["-x"]]
)
def test_wrong_use(options: list[str]) -> None:
    """Is told at once, with the status of wrong use."""
    done = CliRunner().invoke(main, ["dispatch-zset", *options])
    assert done.exit_code == 2
    assert options[0] in done.stderr


def test_its_help_and_its_page() -> None:
    """-h, too; both know all options and their defaults."""
    said = CliRunner().invoke(main, ["dispatch-zset", "-h"]).stdout
    page = (Path(__file__).parents[2] / "docs" / "dispatch-zset.md").read_text()
    command = main.commands["dispatch-zset"]
    for option in command.params:
        for word in (*option.opts, *([] if option.is_flag else [str(option.default)])):
            assert word in said
            assert f"`{word}`" in page
    assert {"-u", "-d", "-r", "-n", "-v"} < {word for option in command.params for word in option.opts}
