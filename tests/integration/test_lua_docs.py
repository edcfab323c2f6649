"""docs/lua.md and lua/README.md keep their word: what a machine can check of them, and a client made of them alone.

The client has a socket and Python's standard library; what it knows of the scripts stands in docs/lua.md.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from celery_delayq.embedded import RedisServer
from celery_delayq.queue import DelayQueue
from tests.lua.contract import DOCS, SOURCES, written

from .worker import Project, newest_redis, wait_for

ROOT = Path(__file__).parents[2]
LUA = ROOT / "lua"
ONE_REDIS = True

TOPIC = ("schedule", "jobs", "ties", "steps", "firsts", "graces")
LEASES = ("attempts", "leases", "tickets", "reserved")
DEAD = ("dead", "letters", "causes")


class Refused(Exception):
    """Redis answered with an error."""


class BareClient:
    """A Redis client that knows the protocol and nothing else."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._file = self._socket.makefile("rb")
        self.loaded = 0

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def send(self, *words: Any) -> Any:
        parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        self._socket.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts))
        return self.read()

    def read(self) -> Any:
        line = self._file.readline()[:-2]
        kind, rest = line[:1], line[1:]
        if kind == b"-":
            raise Refused(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self._file.read(int(rest) + 2)[:-2]
        return [self.read() for _ in range(int(rest))] if kind == b"*" else rest

    def call(self, verb: str, keys: list[str], *args: Any) -> Any:
        text = (LUA / f"{verb}.lua").read_bytes()
        try:
            return self.send("EVALSHA", hashlib.sha1(text).hexdigest(), len(keys), *keys, *args)
        except Refused as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
            self.loaded += 1
            return self.send("EVAL", text, len(keys), *keys, *args)


class BareQueue:
    """A queue of one's own, by the steps of docs/lua.md."""

    def __init__(self, client: BareClient, topic: str) -> None:
        self.client, self.topic = client, topic
        self.space = f"delayq:{{0:{topic}}}:"
        self.wake = f"{self.space}wake:0"
        self._calls = 0
        assert client.call("version", self.keys("version"), 1, "mark")[0] == b"OK"

    def keys(self, *names: str) -> list[str]:
        of_topic = {*TOPIC, *LEASES, *DEAD}
        return [f"{self.space}{name}:{self.topic}" if name in of_topic else self.space + name for name in names]

    def put(self, *jobs: tuple[Any, Any, bytes], on_conflict: str = "error") -> Any:
        words = [word for id, due, body in jobs for word in (1, id, due, 0, "", "", body)]
        keys = self.keys("index", "topics", "holds", "beat", *TOPIC, "expiries", *LEASES)
        options = (self.wake, "", on_conflict, "new", "", "store", 1, self.topic, "[[],[],null]")
        return self.client.call("put", keys, *options, *words)

    def reserve(self, limit: int = 10, lease: int = 30_000_000) -> tuple[list[tuple[bytes, bytes, bytes]], Any]:
        """Jobs (id, token, body), and the reply."""
        self._calls += 1
        keys = self.keys("index", "topics", "holds", "rates", "totals", "aside", "remains", "expiries", "ways")
        keys += self.keys(*TOPIC, *LEASES)
        reply = self.client.call("reserve", keys, "", self.topic, limit, lease, f"nobodyguesses{self._calls}", "")
        *_, tickets, ids, bodies = reply
        names = ids if isinstance(ids, list) else ids.split(b"\n")
        tokens = [line.split(b" ")[0] for line in tickets.split(b"\n")] if tickets else []
        if reply[2] == 1:
            self.requeue()
        return list(zip(names, tokens, bodies, strict=True)), reply

    def requeue(self, max_attempts: int = 3) -> Any:
        return self.client.call("requeue", self._ending(), self.wake, "", self.topic, 250, 0, max_attempts)

    def _ending(self) -> list[str]:
        names = ("index", "topics", "holds", "totals", "expiries", "ways", *TOPIC, *LEASES, *DEAD)
        return self.keys(*names)

    def ack(self, *jobs: tuple[bytes, bytes, bytes]) -> Any:
        keys = self.keys("totals", "expiries", "ways", "leases", "tickets", "reserved", "dead")
        return self.client.call("ack", keys, self.topic, *[word for id, token, _ in jobs for word in (id, token)])

    def release(self, job: tuple[bytes, bytes, bytes], due: str, counted: int = 1) -> Any:
        args = (self.wake, "", self.topic, due, 3, "it failed", counted, job[0], job[1])
        return self.client.call("release", self._ending(), *args)

    def extend(self, job: tuple[bytes, bytes, bytes], lease: int) -> Any:
        keys = self.keys("expiries", "leases", "tickets")
        return self.client.call("extend", keys, "", self.topic, lease, job[0], job[1])

    def delete(self, *ids: Any) -> Any:
        keys = self.keys("index", "topics", "holds", "rates", "totals", "aside", "remains", *TOPIC, "attempts")
        keys += self.keys("expiries", "ways", "leases", "tickets", "reserved", "dead")
        return self.client.call("delete", keys, "", self.topic, "", *[word for id in ids for word in (id, "")])

    def move(self, id: str, due: Any) -> Any:
        keys = [*self.keys("index", "holds", "schedule", "jobs", "ties"), f"{self.space}journal:none"]
        return self.client.call("move", keys, self.wake, "", self.topic, "", 0, id, due, "", "")


@pytest.fixture
def client(server: RedisServer) -> Iterator[BareClient]:
    with closing(BareClient(server.port)) as client:
        yield client


def test_what_is_made_of_the_headers_is_up_to_date() -> None:
    """The tables and the reference in docs/lua.md are what the headers say of themselves."""
    text = DOCS.read_text(encoding="utf-8")
    assert written(text) == text, "run python -m tests.lua.contract"


def test_every_verb_has_its_place_in_the_docs() -> None:
    """In the reference, and in the tables of lua/README.md."""
    short, whole = (LUA / "README.md").read_text(encoding="utf-8"), DOCS.read_text(encoding="utf-8")
    for verb in SOURCES:
        assert f"\n### {verb}\n" in whole
        assert f"`{verb}`" in short


def test_the_links_lead_somewhere() -> None:
    """To files that are there, and to headings."""
    for path in (LUA / "README.md", DOCS):
        text = path.read_text(encoding="utf-8")
        titles = [line.lstrip("# ").lower() for line in text.splitlines() if line.startswith("#")]
        headings = {re.sub(r"[^\w -]", "", title).replace(" ", "-") for title in titles}
        for target in re.findall(r"\]\(([^)]+)\)", text):
            file, _, anchor = target.partition("#")
            assert (path.parent / file).exists()
            assert file or not anchor or anchor.removesuffix("-1") in headings


def test_the_walk_in_the_shell(server: RedisServer) -> None:
    """lua/README.md typed into a shell: stored, taken, acked."""
    (script,) = re.findall(r"^```sh\n(.*?)^```$", (LUA / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    on_our_port = f'redis-cli() {{ command redis-cli -p {server.port} "$@"; }}\n'
    words = ["bash", "-ec", on_our_port + script]
    environment = {**os.environ, "PATH": path}
    said = subprocess.run(words, cwd=LUA, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert said.returncode == 0, said.stderr
    lines = said.stdout.splitlines()
    assert lines[:4] == ["OK", "1", "OK", "1"]
    assert lines[-3:] == ["welcome-17", "Dear Ada", ""]
    with server.client() as client:
        assert set(client.scan_iter("*")) == {b"delayq:{0:emails}:totals", b"delayq:{0:emails}:version"}


def test_a_queue_by_a_client_made_of_the_docs(client: BareClient) -> None:
    """Each step of the chapter, with ids and bodies of any bytes."""
    queue = BareQueue(client, "emails")
    odd, body = b"a\x00\n\xff b", b"\x00\xff\r\n" * 10
    assert queue.put((odd, 0, body), ("soon", "+1000", b"1"), ("later", "+3600000000", b"2")) == [b"OK", 3, 0]
    assert queue.put(("new", 0, b"3"), ("later", 0, b"4")) == [b"EXISTS", b"later"]

    taken, reply = wait_for(lambda: (found := queue.reserve())[0] and found, "the first is due")
    assert taken[0][::2] == (odd, body)
    assert (reply[6], reply[7]) in {(b"emails", b"[[],[],null]"), (b"", b"")}
    soon = taken[1] if len(taken) > 1 else wait_for(lambda: queue.reserve()[0], "the second is due")[0]
    assert queue.extend(taken[0], 60_000_000) == [1]
    assert queue.ack(taken[0]) == []
    assert queue.ack(taken[0]) == [1]  # LEASE_LOST, the first of those that were named
    assert queue.extend(taken[0], 60_000_000) == [0]

    assert queue.release(soon, "+0", counted=0) == [1]
    (again,), _ = queue.reserve()
    assert (again[0], again[1] != soon[1]) == (b"soon", True)
    assert queue.release(soon, "+0") == [0]
    assert queue.delete("soon", "nothing") == [1, 0]  # while it is reserved
    assert queue.ack(again) == [1]

    assert queue.move("later", 0) == [b"OK"]
    assert queue.move("missing", 0) == [b"MISSING"]
    for attempt in (1, 2, 3):
        ((id, token, _),), reply = wait_for(lambda: (found := queue.reserve(lease=1))[0] and found, "it is due again")
        assert (id, reply[8].split(b" ")[1]) == (b"later", b"%d" % attempt)
        requeued, buried, *_ = wait_for(lambda: (done := queue.requeue())[0] + done[1] and done, "its lease is over")
        assert (requeued, buried) == ((1, 0) if attempt < 3 else (0, 1))
        assert queue.ack((id, token, b"")) == [1]
    assert client.send("HKEYS", *queue.keys("letters")) == [b"later"]


def test_a_consumer_sleeps_until_it_is_woken(client: BareClient, server: RedisServer) -> None:
    """As the docs say: the channel tells of a job that became the earliest, the reply when to look again."""
    queue = BareQueue(client, "emails")
    with closing(BareClient(server.port)) as ear:
        assert ear.send("SUBSCRIBE", queue.wake)[0] == b"subscribe"
        assert queue.reserve()[1][5] == -1
        queue.put(("far", "+3600000000", b""))
        queue.put(("near", "+600000000", b""))
        queue.put(("between", "+1200000000", b""))
        heard = [int(ear.read()[2]) for _ in range(2)]
        _, reply = queue.reserve()
        assert reply[5] == heard[1] < heard[0]
        assert 0 < reply[5] - reply[4] <= 600_000_000
        assert reply[2] == 0


def test_another_language_finds_what_python_put(client: BareClient, server: RedisServer) -> None:
    """And the other way round: both use the same keys."""
    queue = BareQueue(client, "emails")
    with server.client() as owned:
        python = DelayQueue(owned, "emails")
        python.put("from-python", b"1")
        queue.put(("from-afar", 0, b"2"))
        (mine, theirs), _ = queue.reserve()
        assert {mine[::2], theirs[::2]} == {(b"from-python", b"1"), (b"from-afar", b"2")}
        queue.release(mine, "+0")
        queue.ack(theirs)
        (job,) = python.reserve()
        assert job.id.encode() == mine[0]
        python.ack(job)
    assert client.send("KEYS", "*{0:emails}:*emails") == []


def test_a_celery_task_as_the_docs_write_it() -> None:
    """The message of docs/lua.md, with another task and its arguments, put by a bare socket: a worker runs it."""
    (text,) = re.findall(r"^```json\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.M | re.S)
    message = json.loads(text)
    assert json.loads(base64.b64decode(message["body"]))[:2] == [[1, 2], {}]
    options = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    message["body"] = base64.b64encode(json.dumps([["hello"], {}, options]).encode()).decode()
    message["headers"]["task"] = "record"
    id = message["headers"]["id"]
    delivery = '[[0,3,6,9],["celery","celery\\u0006\\u00163","celery\\u0006\\u00166","celery\\u0006\\u00169"],null]'
    assert delivery in DOCS.read_text(encoding="utf-8")
    with newest_redis() as server, Project(server.url()) as project, closing(BareClient(server.port)) as client:
        names = ["index", "topics", "holds", "beat", *(f"{name}:celery" for name in TOPIC)]
        keys = [f"delayq:{{0}}:{name}" for name in names]
        with project.worker():
            reply = client.call(
                "put", keys, "delayq:{0}:wake:0", "", "replace", "retried", 30_000_000, "store", 1, "celery", delivery,
                1, id, "+300000", 0, "", "", json.dumps(message),
            )  # fmt: skip
            assert reply[:2] == [b"OK", 1]
            project.ledger.wait_for([id])
        (line,) = project.ledger.of(id)
        assert line["task"] == "record"
