"""The way out: what waits is given back to stock Celery, each task once, with its eta."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery

from celery_delayq import DelayQ
from celery_delayq.clock import to_us
from celery_delayq.embedded import RedisServer
from celery_delayq.job import Put
from celery_delayq.store import Store

from .command import run
from .conftest import Inside
from .test_parity import OPTIONS, QUEUES, bind_everything, everything_ready
from .worker import Project, newest_redis, put_many, wait_for

#: Redis is seen through the store, whose own tests run on every version.
ONE_REDIS = True

THEN = datetime(2100, 1, 1, 12, 30, 15, 123456, tzinfo=timezone.utc)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_drained_message_is_what_stock_celery_would_have_sent(
    make_app: Callable[..., Celery], inside: Inside, name: str
) -> None:
    """Queue, key, body, headers with the eta, properties: nothing tells that it has waited."""
    options = {"task_id": "the-id", "reply_to": "us", **OPTIONS[name]}
    stock, ours = (make_app(joined=joined, task_queues=QUEUES) for joined in (False, True))
    bind_everything(ours)
    stock.send_task("tasks.add", (1, 2), {}, **options, eta=THEN)
    expected = everything_ready(inside)
    inside.client.delete(*expected)

    ours.send_task("tasks.add", (1, 2), {}, **options, eta=THEN)
    done = ours.delayq.drain()

    assert everything_ready(inside) == expected
    assert (done.count, done.unreadable, done.paused) == (sum(map(len, expected.values())), {}, [])
    assert inside.waiting() == []


def test_the_eta_is_when_it_is_due(app: Celery, inside: Inside) -> None:
    """As it was asked for, in the words of the producer; or the new time, where a task was moved."""
    ids = ["asked", "moved", "equal", "counted"]
    there = timezone(timedelta(hours=2))
    for task_id in ("asked", "moved", "equal"):
        app.send_task("add", eta=THEN.astimezone(there), task_id=task_id)
    counted_from = datetime.now(timezone.utc)
    app.send_task("add", countdown=60, task_id="counted")
    later = THEN + timedelta(days=3, microseconds=7)
    app.delayq.reschedule("moved", later)

    assert app.delayq.drain().count == 4

    etas = {message["headers"]["id"]: message["headers"]["eta"] for message in inside.ready()}
    assert set(etas) == set(ids)
    assert etas["asked"] == etas["equal"] == THEN.astimezone(there).isoformat()
    assert datetime.fromisoformat(etas["moved"]) == later
    assert abs(datetime.fromisoformat(etas["counted"]) - counted_from - timedelta(seconds=60)) < timedelta(seconds=5)
    assert not any(set(message["properties"]) & {"delayq_due", "delayq_put"} for message in inside.ready())


def test_due_late_and_limited_tasks(app: Celery, inside: Inside) -> None:
    """What is due already goes with a past eta, which stock Celery runs at once; grace and max_wait are no more."""
    app.delayq.apply_at("add", 1, task_id="past")
    app.send_task("add", countdown=3600, task_id="droppable", late="drop", grace=5)
    app.send_task("add", countdown=3600, task_id="debounced", max_wait=7200)

    assert app.delayq.drain().count == 3

    assert {message["headers"]["id"] for message in inside.ready()} == {"past", "droppable", "debounced"}
    assert set(inside.client.scan_iter("delayq:*")) == {inside.keys.totals.encode(), inside.keys.version.encode()}


def test_the_header_keeps_what_python_cannot(app: Celery, inside: Inside) -> None:
    """Large integers, empty lists, any letters: what is not ours comes back as it was."""
    odd = {"n": 12345678901234567890, "empty": [], "ü": "☃ \u2028", "deep": {"a": [{}]}}
    app.send_task("add", ("é",), countdown=60, headers={"odd": odd})
    body = inside.one().message["body"]

    app.delayq.drain()

    (message,) = inside.ready()
    assert (message["headers"]["odd"], message["body"]) == (odd, body)


def test_a_paused_queue_is_left_alone_unless_it_is_named(app: Celery, inside: Inside) -> None:
    """Whoever has paused it did not want it to run."""
    for queue in ("a", "b"):
        app.send_task("add", eta=THEN, queue=queue)
    app.delayq.pause("a")

    done = app.delayq.drain()
    assert (done.count, done.paused) == (1, ["a"])
    assert (len(inside.ready("a")), len(inside.ready("b"))) == (0, 1)

    assert app.delayq.drain("a").count == 1
    assert len(inside.ready("a")) == 1
    assert app.delayq.paused() == {"a"}


def test_what_is_no_message_stays(app: Celery, inside: Inside) -> None:
    """Somebody else's job, or one whose body is gone: it cannot get an eta, so it is not lost by trying."""
    app.send_task("add", eta=THEN, task_id="good")
    bad = {"bytes": b"\xff", "list": b"[]", "bare": b"{}", "odd": b'{"headers": [], "properties": 1}'}
    delivery = inside.store.topics()["celery"]
    inside.store.put([Put("celery", id, body, at_us=to_us(THEN)) for id, body in bad.items()], {"celery": delivery})
    inside.client.zadd(inside.keys.schedule("celery"), {"orphan": to_us(THEN)})

    done = app.delayq.drain()

    assert (done.count, done.unreadable) == (1, {"celery": 5})
    assert {job for (job,) in zip(inside.client.zrange(inside.keys.schedule("celery"), 0, -1), strict=True)} == {
        id.encode() for id in (*bad, "orphan")
    }


def test_what_changes_meanwhile_is_met_again(app: Celery, inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that is moved to where the walk has been already is not forgotten."""
    for number in range(5):
        app.send_task("add", eta=THEN + timedelta(days=number), task_id=f"{number}")
    drain = Store.drain
    calls = 0

    def move_first(store: Store, *args: Any) -> list[bool]:
        nonlocal calls
        calls += 1
        if calls == 1:
            app.delayq.reschedule("4", THEN - timedelta(days=1))
        return drain(store, *args)

    monkeypatch.setattr(Store, "drain", move_first)
    progress: list[tuple[int, int]] = []

    assert app.delayq.drain(progress=lambda done, total: progress.append((done, total))).count == 5
    assert inside.waiting() == []
    assert progress == [(4, 5), (5, 5)]


def test_many_in_flat_portions(server: RedisServer, app: Celery, inside: Inside) -> None:
    """More than a page, in due order; the script is called for a hundred at a time."""
    with Project(server.url()) as project:
        ids = put_many(project, "celery", [to_us(THEN) + number for number in range(2_345)])
    before = inside.calls("evalsha") + inside.calls("eval")

    assert app.delayq.drain().count == 2_345

    assert [message["headers"]["id"] for message in inside.ready()] == ids
    assert inside.calls("evalsha") + inside.calls("eval") - before <= 30


# The command.


def test_the_command_asks_and_tells(app: Celery, inside: Inside) -> None:
    """How many, what stock Celery will do with those that are due late, and that this app still delays."""
    app.send_task("add", countdown=60)
    app.send_task("add", countdown=7200)

    asked = run(app, "drain", typed="n\n")
    assert (asked.code, "Give 2 tasks of all queues back to Celery?" in asked.err) == (1, True)
    assert len(inside.waiting()) == 2

    said = run(app, "drain", "--yes")
    assert (said.code, said.out) == (0, "2 tasks drained\n")
    assert said.err.splitlines() == [
        "delayq_intercept is on in this app: what it sends from now on waits again",
        "1 of these is due later than the broker's visibility timeout of 1h: stock Celery may run such a task twice; "
        "broker_transport_options can raise it",
    ]
    assert len(inside.ready()) == 2

    said = run(app, "drain", "--yes")
    assert (said.code, said.out, said.err) == (1, "", "nothing waits\n")


def test_the_command_for_machines(make_app: Callable[..., Celery], inside: Inside) -> None:
    """One object; and exit 1 as long as something stays."""
    app = make_app(delayq_intercept=False)
    for queue in ("a", "b"):
        app.delayq.apply_delayed("add", 60, queue=queue)
    app.delayq.pause("a")

    said = run(app, "drain", "--yes", "--json")
    assert (said.code, said.objects) == (1, [{"drained": 1, "unreadable": {}, "refused": {}, "paused": ["a"]}])
    assert said.err == "queue a is paused, and stays as it is; --queue a drains it\n"

    said = run(app, "drain", "--yes", "--json", "--queue", "a")
    assert (said.code, said.objects, said.err) == (
        0,
        [{"drained": 1, "unreadable": {}, "refused": {}, "paused": []}],
        "",
    )


# With real processes.


@pytest.fixture(scope="module")
def own() -> Iterator[RedisServer]:
    with newest_redis() as server:
        yield server


def test_a_rolling_deploy_out_and_in_again(own: RedisServer) -> None:
    """Adopting workers stop the drain; without them stock workers run what was drained; nothing runs twice."""
    with (
        Project(own.url(0)) as joined,
        Project(own.url(0), joined=False) as bare,
        own.client(0) as client,
    ):
        with joined.worker() as worker:
            worker.await_ready()
            ids = [joined.send(countdown=3600) for _ in range(20)]
            refused = run(joined.app, "drain", "--yes")
            assert refused.code == 1
            assert f"celery@{worker.name} would put the tasks back" in refused.err
            assert client.zcard("delayq:{0}:schedule:celery") == 20

            assert run(joined.app, "drain", "--yes", "--force").out == "20 tasks drained\n"
            wait_for(lambda: client.zcard("delayq:{0}:schedule:celery") == 20, "the worker has put them back")
            worker.signal(signal.SIGTERM)
            worker.wait()
        soon = datetime.now(timezone.utc) + timedelta(seconds=4)
        assert all(joined.app.delayq.reschedule(task_id, soon) for task_id in ids)
        assert run(joined.app, "drain", "--yes", "--json").objects[0]["drained"] == 20
        with bare.worker() as worker:
            worker.await_ready(dispatcher=False)
            bare.ledger.wait_for(ids)
        assert bare.ledger.runs() == dict.fromkeys(ids, 1)
        assert joined.ledger.runs() == {}
        assert client.zcard("delayq:{0}:schedule:celery") == 0


def _drain(url: str) -> None:
    app = Celery("drainer", broker=url, set_as_current=False)
    DelayQ(app).drain()


def test_a_drain_that_is_killed_loses_and_doubles_nothing(own: RedisServer) -> None:
    """Killed at any moment and begun anew, with a dispatcher at work: each task is on the ready list once."""
    spawn = multiprocessing.get_context("spawn")
    with Project(own.url(1)) as project, own.client(1) as client:
        now = time.time_ns() // 1000
        soon = put_many(project, "idle", [now + 1_000_000 + number * 10_000 for number in range(200)])
        far = put_many(project, "idle", [to_us(THEN) + number for number in range(1_500)])

        def left() -> int:
            return int(client.zcount("delayq:{0}:schedule:idle", to_us(THEN), "+inf"))

        dispatcher = project.app.delayq.dispatcher()
        dispatcher.start()
        try:
            for _ in range(2):
                process = spawn.Process(target=_drain, args=(own.url(1),))
                process.start()
                enough = left() - 300
                wait_for(lambda enough=enough: left() < enough, "it drains")  # type: ignore[misc]
                os.kill(process.pid or 0, signal.SIGKILL)
                process.join()
            project.app.delayq.drain("idle")
        finally:
            dispatcher.stop()
        messages = [json.loads(message) for message in client.lrange("idle", 0, -1)]

    assert Counter(message["headers"]["id"] for message in messages) == dict.fromkeys(soon + far, 1)
    drained = {message["headers"]["id"] for message in messages if message["headers"]["eta"] is not None}
    assert drained >= set(far)
