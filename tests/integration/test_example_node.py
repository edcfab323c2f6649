"""The Node example does what its README says; and what Node and Python put, move and take are the same jobs."""

from __future__ import annotations

import base64
import json
import re
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from celery_delayq import DelayQueue
from celery_delayq.clock import SECOND_US, to_us
from celery_delayq.embedded import RedisServer
from celery_delayq.errors import LeaseLost
from celery_delayq.keys import Keys
from celery_delayq.message import read_eta

from .conftest import Inside
from .programs import FOLDER, Nodes, Program, installed
from .worker import wait_for

#: They show what other languages do; what the scripts ask of Redis is tested on every version elsewhere.
ONE_REDIS = True

#: Bytes that are no text, and what Lua, Redis's protocol and our replies use between words.
BINARY_IDS = [b"\xff\x00\xfe", b"two\nlines", b" ", "zwölf".encode()]
BINARY_BODY = bytes(range(256)) * 3


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, installed once."""
    return installed(tmp_path_factory.mktemp("example"))


@pytest.fixture
def nodes(folder: Path, server: RedisServer, tmp_path: Path) -> Nodes:
    return Nodes(folder, server.url(), tmp_path)


@pytest.fixture
def queue(server: RedisServer) -> Iterator[DelayQueue]:
    """Python's side of the topic."""
    with DelayQueue(server.url(), "greetings") as queue:
        yield queue


def shape(lines: Sequence[str]) -> list[str]:
    """*lines* without what differs each time: how late something was."""
    return [re.sub(r"-?\d+ ms", "N ms", line) for line in lines]


def test_the_commands_of_the_readme(nodes: Nodes, server: RedisServer) -> None:
    """One after the other as they stand there, they print what it shows; the Python worker runs what Node has
    scheduled, and marks what Node has revoked.
    """
    readme = (FOLDER / "README.md").read_text()
    blocks = re.findall(r"^```(sh|text)\n(.*?)^```$", readme, flags=re.MULTILINE | re.DOTALL)
    (printed, consumed) = [text.splitlines() for language, text in blocks if language == "text"]
    commands = [line for language, text in blocks if language == "sh" for line in text.splitlines()]
    assert commands[0] == "npm ci"
    said: dict[str, str] = {}
    background: dict[str, Program] = {}
    with ExitStack() as stack:
        for command in commands[1:]:
            words = shlex.split(command)
            if "consume.js" in command or "dispatch.js" in command or " worker " in command:
                background[command] = stack.enter_context(nodes.background(*words))
            else:
                said[command] = nodes.run(*words)
            if command == "node consume.js greetings":
                background[command].await_lines("consuming")
            elif command.startswith("node cancel.js"):
                background["node consume.js greetings"].await_lines("bob: Hello")
                background["node consume.js greetings"].end(signal.SIGINT)
            elif " worker " in command:
                background[command].await_lines(" ready.")
        first, second, dispatcher, worker = background.values()
        puts = [text for command, text in said.items() if command.startswith("node ")][: len(printed)]
        assert "".join(puts).splitlines() == printed
        assert sorted(shape(first.lines)) == sorted([*shape(consumed), "stopped"])
        second.await_lines("consuming greetings")
        dispatcher.await_lines("dispatching")
        assert dispatcher.end(signal.SIGINT) == 0
        assert dispatcher.lines == ["dispatching greetings to out", "0 jobs moved"]

        table, shown, revoked = list(said.values())[-3:]
        assert "tasks.greet  bob" in table
        assert "args      ('Bob',)" in shown
        assert revoked == "bob is revoked\n"
        worker.await_lines("Good morning Ada")
        with server.client() as client:
            wait_for(lambda: b'"REVOKED"' in (client.get("celery-task-meta-bob") or b""), "bob is marked")
            assert client.zcard(Keys("delayq").index) == 0


def test_a_task_is_stored_as_python_stores_it(nodes: Nodes, make_app: Callable[..., Celery], inside: Inside) -> None:
    """Key by key and field by field, but for what is each message's own."""
    app = make_app()
    args: list[Any] = ["Ada", 1, 2.5, None, True, {"a": [1, "b"]}, "it's", "zwölf"]
    kwargs = {"x": "é", "empty": {}}

    @app.task(name="tasks.greet", shared=False)
    def greet(*args: Any, **kwargs: Any) -> None: ...

    greet.apply_async(tuple(args), kwargs, countdown=100, expires=500, priority=5, headers={"user": 42})
    of_python = stored(inside)
    inside.client.flushall()

    nodes.evaluate(
        """
        const expires = new Date(Date.now() + 500000);
        await new CeleryTasks(redis).schedule(
            "tasks.greet", args, kwargs, { delay: 100, expires, priority: 5, headers: { user: 42 } });
        """,
        args=args,
        kwargs=kwargs,
    )
    of_node = stored(inside)
    assert of_node == of_python


def stored(inside: Inside) -> dict[str, Any]:
    """All of celery_delayq's keys and what they hold, without what differs from message to message."""
    job, client = inside.one(), inside.client
    message = job.message
    headers, properties = message["headers"], message["properties"]
    assert headers.pop("id") == headers.pop("root_id") == properties.pop("correlation_id") == job.id
    assert re.fullmatch(r"gen\d+@.+", headers.pop("origin"))
    put_us = properties.pop("delayq_put")
    for text, seconds in ((properties.pop("delayq_due"), 100), (headers.pop("expires"), 500)):
        assert abs(to_us(read_eta(text)) - put_us - seconds * SECOND_US) < SECOND_US
    assert re.fullmatch(r"500000|499\d{3}", properties.pop("expiration"))
    assert len({properties.pop("delivery_tag"), properties.pop("reply_to"), job.id}) == 3
    return {
        **message,
        "body": json.loads(base64.b64decode(message["body"])),
        "keys": {key.decode(): client.type(key) for key in client.scan_iter("delayq:*")},
        "topics": client.hgetall(inside.keys.topics),
        "steps": client.hvals(inside.keys.steps("celery")),
    }


def test_what_node_puts_python_takes(nodes: Nodes, queue: DelayQueue) -> None:
    """Ids and bodies of any bytes; one that was moved, one that was taken back; a batch as a whole or not at all."""
    found = nodes.evaluate(
        """
        const queue = new DelayQueue(redis, "greetings");
        const bytes = (text) => Buffer.from(text, "base64");
        const stored = await queue.putMany(ids.map((id) => ({ id: bytes(id), body: bytes(body) })));
        await queue.put("moved", "m", { delay: 3600 });
        await queue.put("gone", "g", { at: new Date(Date.now() + 3600000) });
        const moved = [await queue.move("moved", { at: new Date() }), await queue.move("none", { delay: 1 })];
        const gone = [await queue.delete("gone"), await queue.delete("gone")];
        const again = queue.putMany([{ id: "new", body: "n" }, { id: bytes(ids[0]), body: "other" }]);
        const refused = await again.catch((error) => [error instanceof AlreadyScheduled, error.message]);
        const kept = await queue.putMany([{ id: bytes(ids[0]), body: "other" }], { onConflict: "keep" });
        return { stored, moved, gone, refused, kept };
        """,
        ids=[base64.b64encode(id).decode() for id in BINARY_IDS],
        body=base64.b64encode(BINARY_BODY).decode(),
    )
    assert found["stored"] == len(BINARY_IDS)
    assert (found["moved"], found["gone"]) == ([True, False], [True, False])
    assert found["refused"][0] is True
    assert found["kept"] == 0
    jobs = queue.reserve(limit=10)
    ids = [job.id if isinstance(job.id, bytes) else job.id.encode(errors="surrogateescape") for job in jobs]
    assert ids == [*BINARY_IDS, b"moved"]
    assert [job.body for job in jobs] == [BINARY_BODY] * len(BINARY_IDS) + [b"m"]
    queue.ack(*jobs)
    assert (len(queue), queue.stats().reserved) == (0, 0)


@pytest.mark.parametrize("verb", ["reserve", "pull"])
def test_what_python_puts_node_takes(nodes: Nodes, queue: DelayQueue, verb: str) -> None:
    """Ids and bodies of any bytes, in the order of their due times."""
    queue.put_many([(id, BINARY_BODY, None) for id in BINARY_IDS])
    found = nodes.evaluate(
        """
        const queue = new DelayQueue(redis, "greetings");
        const { jobs, left } = verb === "pull" ? await queue.pull(10) : await queue.reserve({ limit: 10, lease: 5 });
        if (verb === "reserve") await queue.ack(jobs);
        return { left, jobs: jobs.map(({ id, body }) => [id.toString("base64"), body.toString("base64")]) };
        """,
        verb=verb,
    )
    taken = [(base64.b64decode(id), base64.b64decode(body)) for id, body in found["jobs"]]
    assert taken == [(id, BINARY_BODY) for id in BINARY_IDS]
    assert found["left"] is False
    assert (len(queue), queue.stats().reserved) == (0, 0)


def test_an_old_token_is_worth_nothing(nodes: Nodes, queue: DelayQueue) -> None:
    """Whatever its holder tries: LEASE_LOST, and the job stays the new holder's; from Node as from Python."""
    queue.put("job", b"")
    found = nodes.evaluate(
        """
        const queue = new DelayQueue(redis, "greetings");
        const [old] = (await queue.reserve({ lease: 0.001 })).jobs;
        let job;
        while (!job || job.token === old.token) [job] = (await queue.reserve({ lease: 60 })).jobs;
        const word = (error) => [error instanceof LeaseLost, error.message, error.jobs.length];
        const words = [
            await queue.ack([old]).catch(word),
            await queue.extend([old], 60).catch(word),
            await queue.release([old]).catch(word),
            await queue.ack([job, old]).catch(word), // the one is done all the same
        ];
        return { words, attempts: job.attempts };
        """,
    )
    assert found == {"words": [[True, "LEASE_LOST: job", 1]] * 4, "attempts": 2}
    assert (len(queue), queue.stats().reserved) == (0, 0)

    queue.put("job", b"")
    (mine,) = queue.reserve()
    nodes.program("put", "greetings", "job", "60", "anew")
    with pytest.raises(LeaseLost):
        queue.ack(mine)
    assert len(queue) == 1


def test_a_killed_consumer(nodes: Nodes, queue: DelayQueue) -> None:
    """Of two at work on one topic one is killed: every job is done, those that it had after their leases are over."""
    with nodes.consumer("greetings", work=3600, lease=3) as killed:
        killed.await_lines("consuming")
        queue.put_many([(f"job-{number}", b"done", None) for number in range(40)])
        killed.await_lines("begins", 4)
        with nodes.consumer("greetings", work=0.01, lease=3) as other:
            wait_for(lambda: len(other.said(": done")) == 36, "the rest is done")
            assert not other.said("attempt 2")
            killed.end(signal.SIGKILL)
            other.await_lines(": done", 40)
            done = other.said(": done")
            assert sorted(done) == sorted(f"job-{number}: done" for number in range(40))
            again = {line.partition(":")[0] for line in other.said("attempt 2")}
            assert again == {line.partition(":")[0] for line in killed.said("begins")}
            wait_for(lambda: queue.stats().reserved == 0, "the last one is acked")
            assert other.end() == 0
    assert len(queue) == 0


def test_a_consumer_keeps_what_it_works_on(nodes: Nodes, queue: DelayQueue, server: RedisServer) -> None:
    """Beyond its lease, beside another that has nothing to do; until somebody takes the job back, of which its handler
    learns. What it has not done when it is stopped it gives back, and that was no attempt.
    """
    leases = Keys("delayq", queue="greetings").leases("greetings")
    with server.client() as client, nodes.consumer("greetings", work=3600, lease=3, patience=0.2) as consumer:
        consumer.await_lines("consuming")
        queue.put_many([("long", b"", None), ("deleted", b"", None)])
        consumer.await_lines("begins", 2)
        begun = client.zscore(leases, "long")
        with nodes.consumer("greetings", work=3600, lease=3) as idle:
            idle.await_lines("consuming")
            assert nodes.program("cancel", "greetings", "deleted") == "deleted is cancelled\n"
            consumer.await_lines("LEASE_LOST: deleted")
            wait_for(lambda: client.zscore(leases, "long") > begun + 3 * SECOND_US, "its first lease is over")
            assert idle.end() == 0
            assert idle.lines == ["consuming greetings", "stopped"]
        assert consumer.end() == 0
        assert consumer.lines[-2:] == ["gave back 1 jobs that were not done", "stopped"]
    (job,) = queue.reserve(limit=10)
    assert (job.id, job.attempts) == ("long", 1)


def test_a_consumer_of_a_redis_that_goes_away(folder: Path, own_server: RedisServer, tmp_path: Path) -> None:
    """It goes on when Redis is back."""
    nodes = Nodes(folder, own_server.url(), tmp_path)
    with (
        DelayQueue(own_server.url(), "greetings") as queue,
        nodes.consumer("greetings", work=0.01, lease=5) as consumer,
    ):
        queue.put("before", b"1")
        consumer.await_lines("before: 1")
        own_server.stop()
        consumer.await_lines("redis: ")
        own_server.start()
        wait_for(lambda: takes_puts(queue), "Redis takes jobs again")
        consumer.await_lines("after: 2")
        assert consumer.end() == 0


def takes_puts(queue: DelayQueue) -> bool:
    try:
        queue.put("after", b"2", on_conflict="replace")
    except redis.RedisError:
        return False
    return True


def test_two_dispatchers_and_a_consumer(nodes: Nodes, queue: DelayQueue, server: RedisServer) -> None:
    """At once on one topic: each job goes to the list once, also what a consumer had that was killed."""
    with nodes.consumer("greetings", work=3600, lease=1) as killed:
        killed.await_lines("consuming")
        queue.put_many([(f"held-{number}", b"held-%d" % number, None) for number in range(4)])
        killed.await_lines("begins", 4)
        with ExitStack() as stack, server.client() as client:
            pair = [stack.enter_context(nodes.background("node", "dispatch.js", "greetings", "out")) for _ in "12"]
            for dispatcher in pair:
                dispatcher.await_lines("dispatching")
            ids = [f"job-{number}" for number in range(2000)]
            for start in range(0, 2000, 100):
                queue.put_many([(id, id.encode(), None) for id in ids[start : start + 100]])
            wait_for(lambda: client.llen("out") >= 2000, "all that is due is moved")
            killed.end(signal.SIGKILL)
            wait_for(lambda: client.llen("out") >= 2004, "what came back is moved, too")
            assert [dispatcher.end() for dispatcher in pair] == [0, 0]
            moved = client.lrange("out", 0, -1)
            assert sorted(moved) == sorted([id.encode() for id in ids] + [b"held-%d" % number for number in range(4)])
            totals = [int(dispatcher.lines[-1].split()[0]) for dispatcher in pair]
            assert sum(totals) == 2004
    assert (len(queue), queue.stats().reserved) == (0, 0)


def test_a_client_that_is_too_old(nodes: Nodes, queue: DelayQueue, server: RedisServer) -> None:
    """It says so, and touches nothing."""
    keys = Keys("delayq", queue="greetings")
    with server.client() as client:
        client.set(keys.version, 999)
        said = nodes.run("node", "put.js", "greetings", "job", "0", "body", code=1)
        assert "have version 999, this client knows" in said
        assert client.keys("delayq:{0:greetings}:*") == [keys.version.encode()]
