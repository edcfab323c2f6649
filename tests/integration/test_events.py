"""Celery's events about what waits, as a real receiver hears them and Celery's own State takes them."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone

import pytest
from celery import Celery
from kombu import Exchange, Queue

from celery_delayq.clock import text_of, to_us
from celery_delayq.embedded import RedisServer
from celery_delayq.events import EVENTS, PENDING, Dispatches
from celery_delayq.job import Put, Tell
from celery_delayq.message import TASK_PATTERN, read_name, task_in
from celery_delayq.store import Dispatched

from .conftest import Inside
from .hearing import Ear, listening
from .worker import Project, wait_for

ONE_REDIS = True

SOON = datetime(2100, 1, 1, 12, tzinfo=timezone.utc)

OURS = ("task-scheduled", "task-rescheduled", "task-unscheduled", "task-dispatched")


@pytest.fixture
def app(make_app: Callable[..., Celery]) -> Celery:
    """An app whose producers send events."""
    return make_app(task_send_sent_event=True)


@pytest.fixture
def ear(app: Celery, server: RedisServer) -> Iterator[Ear]:
    with listening(app, server) as ear:
        yield ear


def ours(ear: Ear) -> list[tuple[str, str, str | None, str, str]]:
    """What was heard of ours: type without "task-", id, name, queue, eta."""
    return [
        (event["type"].removeprefix("task-"), event["uuid"], event["name"], event["queue"], event["eta"])
        for event in ear.events()
        if event["type"] in OURS
    ]


def test_what_is_scheduled_is_told(app: Celery, ear: Ear) -> None:
    """With the task's name, its queue and its time; by eta, countdown and apply_at; not what goes at once."""
    first = app.send_task("shop.pay", eta=SOON, queue="mail").id
    second = app.delayq.apply_at("shop.pay", SOON).id
    third = app.send_task("shop.pay", countdown=3600).id
    app.send_task("shop.pay")

    *exact, counted = ours(ear)

    assert exact == [
        ("scheduled", first, "shop.pay", "mail", text_of(to_us(SOON))),
        ("scheduled", second, "shop.pay", "celery", text_of(to_us(SOON))),
    ]
    assert counted[:4] == ("scheduled", third, "shop.pay", "celery")
    assert abs(datetime.fromisoformat(counted[4]) - datetime.now(timezone.utc) - timedelta(hours=1)).seconds < 60


def test_it_comes_after_task_sent_and_says_by_whom(app: Celery, ear: Ear) -> None:
    """One host name for all producers of a host, since monitors make a worker of each; the process beside it."""
    app.send_task("add", eta=SOON, root_id="root", parent_id="parent")

    sent, scheduled = ear.events()

    assert (sent["type"], scheduled["type"]) == ("task-sent", "task-scheduled")
    assert scheduled["client"] == sent["hostname"]
    assert scheduled["hostname"].startswith("delayq@")
    assert scheduled["pid"] == sent["pid"]
    assert (scheduled["root_id"], scheduled["parent_id"], scheduled["retries"]) == ("root", "parent", 0)


def test_nothing_is_told_while_events_are_off(make_app: Callable[..., Celery], server: RedisServer) -> None:
    """Nor is anything read for them."""
    app = make_app()
    with listening(app, server) as ear, server.client() as client:
        ids = [app.send_task("add", eta=SOON).id for _ in range(3)]
        app.delayq.apply_many([(app.signature("add"), SOON)] * 3)
        app.delayq.shift_where(task="add", by=timedelta(hours=1))
        client.config_resetstat()
        app.delayq.reschedule(ids[0], SOON)
        app.delayq.cancel(*ids, mark=False)

        assert "cmdstat_hmget" not in client.info("commandstats")
        assert ear.events() == []


def test_a_task_that_was_kept_is_not_scheduled_again(app: Celery, ear: Ear) -> None:
    """ "keep" leaves what waits: no event; "replace" is one."""
    for on_conflict in ("keep", "keep", "replace"):
        app.delayq.apply_at("add", SOON, task_id="a", on_conflict=on_conflict)

    assert [event[:2] for event in ours(ear)] == [("scheduled", "a")] * 2


def test_a_task_that_waits_in_two_queues_is_told_twice(make_app: Callable[..., Celery], server: RedisServer) -> None:
    """Once for each."""
    exchange = Exchange("news", type="topic")
    queues = [Queue(name, exchange, routing_key="news.#") for name in ("a", "b")]
    app = make_app(task_send_sent_event=True, task_queues=queues, task_default_queue="a")
    with listening(app, server) as ear:
        with app.pool.acquire() as connection:  # the one that will send: it learns the exchanges' types
            for queue in queues:
                queue(connection.default_channel).declare()
        app.send_task("add", eta=SOON, exchange="news", routing_key="news.now")

        assert sorted(event[3] for event in ours(ear)) == ["a", "b"]


def test_a_batch_is_told_when_it_is_stored(app: Celery, ear: Ear, inside: Inside) -> None:
    """Of apply_many each task, in order, a hundred in a message; of a batch that was refused none."""
    before = inside.calls("publish")
    ids = [result.id for result in app.delayq.apply_many([(app.signature("add"), SOON)] * 250)]
    published = inside.calls("publish") - before - 250 - 1  # task-sent is Celery's, one by one; one put announces
    with pytest.raises(Exception, match="waits already"):
        app.delayq.apply_many([(app.signature("add", task_id=id), SOON) for id in ("new", ids[0])])
    kept = {"on_conflict": "keep"}
    app.delayq.apply_many([(app.signature("add", task_id=id, **kept), SOON) for id in ("other", ids[0])])
    app.delayq.apply_many([(app.signature("add", task_id="third", **kept), SOON)])

    assert [event[1] for event in ours(ear)] == [*ids, "third"]
    assert published <= 250 // EVENTS + 1


def test_what_is_moved_is_told(app: Celery, ear: Ear) -> None:
    """reschedule and shift_where with the new time, run_now with now; only what was moved."""
    later = SOON + timedelta(hours=1)
    for id in "ab":
        app.delayq.apply_at("add", SOON, task_id=id, queue="mail")
    app.delayq.reschedule("a", later)
    app.delayq.reschedule("a", later, if_due=SOON)
    app.delayq.reschedule("none", later)
    app.delayq.shift_where(queue="mail", start=later, by=timedelta(hours=-1))
    app.delayq.shift_where(queue="mail", by=timedelta(hours=1), dry_run=True)
    app.delayq.run_now("b", "none")

    moved = [event for event in ours(ear) if event[0] != "scheduled"]

    assert moved[:2] == [
        ("rescheduled", "a", "add", "mail", text_of(to_us(later))),
        ("rescheduled", "a", "add", "mail", text_of(to_us(SOON))),
    ]
    ((*ran, eta),) = moved[2:]
    assert ran == ["rescheduled", "b", "add", "mail"]
    assert abs((datetime.fromisoformat(eta) - datetime.now(timezone.utc)).total_seconds()) < 60


@pytest.mark.parametrize("mark", [True, False])
def test_what_is_taken_back_is_told(app: Celery, ear: Ear, mark: bool) -> None:
    """cancel, cancel_where and revoke; before task-revoked, which says that it will never run."""
    dues = {id: SOON + timedelta(seconds=number) for number, id in enumerate("abcd")}
    for id, due in dues.items():
        app.delayq.apply_at("add", due, task_id=id, queue="mail" if id == "c" else "celery")
    app.delayq.cancel("a", "none", mark=mark)
    app.delayq.cancel("a", mark=mark)
    app.delayq.cancel_where(queue="mail", mark=mark)
    app.delayq.cancel_where(queue="celery", dry_run=True)
    app.control.revoke("d")

    queues = {"a": "celery", "c": "mail", "d": "celery"}
    gone = [("unscheduled", id, "add", queue, text_of(to_us(dues[id]))) for id, queue in queues.items()]
    assert [event for event in ours(ear) if event[0] == "unscheduled"] == gone
    told = [event["type"] for event in ear.events() if event["uuid"] == "a"]
    assert told == ["task-sent", "task-scheduled", "task-unscheduled", *["task-revoked"] * mark]


def test_masses_are_told_in_few_messages(app: Celery, inside: Inside, server: RedisServer) -> None:
    """A hundred tasks a message, whatever takes them back or moves them."""
    app.delayq.apply_many([(app.signature("add"), SOON)] * 1000)
    for change in (
        lambda: app.delayq.shift_where(task="add", by=timedelta(hours=1)),
        lambda: app.delayq.cancel_where(task="add", mark=False),
    ):
        before = inside.calls("publish")
        assert change() == 1000
        assert inside.calls("publish") - before <= 1000 // EVENTS + 2  # and those that wake dispatchers


def test_an_event_that_cannot_be_sent_fails_nobody(
    make_app: Callable[..., Celery], own_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """An ACL forbids to publish: tasks are scheduled, moved and cancelled all the same, and the log says it."""
    with own_server.client() as client:
        client.execute_command("ACL", "SETUSER", "mute", "on", ">secret", "~*", "&*", "+@all", "-publish")
        app = make_app(task_send_sent_event=True, broker_url=own_server.url().replace("//", "//mute:secret@"))
        app.conf.task_publish_retry_policy = {"max_retries": 0}
        app.delayq.apply_at("add", SOON, task_id="a")
        assert app.delayq.reschedule("a", SOON + timedelta(hours=1))
        assert app.delayq.cancel("a", mark=False) == 1

    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [type for text in told for type in OURS if f" {type} " in text] == list(OURS[:3])


def test_a_monitor_shows_what_a_task_does_last(app: Celery) -> None:
    """Celery's State: each of our states gives way to what a worker or a revocation says, in whatever order they come;
    and to the next of ours.
    """

    def state_after(*types: str) -> str:
        state = app.events.State()
        for clock, type in enumerate(types):
            event = {"type": f"task-{type}", "uuid": "a", "name": "add", "hostname": "w", "clock": clock}
            state.event({**event, "timestamp": float(clock), "local_received": float(clock), "pid": 1})
        return str(state.tasks["a"].state)

    assert state_after("sent", "scheduled") == state_after("scheduled", "sent") == "SCHEDULED"
    assert state_after("scheduled", "rescheduled") == "RESCHEDULED"
    assert state_after("scheduled", "unscheduled") == "UNSCHEDULED"
    assert state_after("scheduled", "unscheduled", "revoked") == "REVOKED"
    assert state_after("scheduled", "dispatched", "received") == "RECEIVED"
    assert state_after("scheduled", "received", "dispatched", "started") == "STARTED"
    assert state_after("scheduled", "started", "dispatched") == "STARTED"
    assert state_after("scheduled", "dispatched", "succeeded") == "SUCCESS"
    assert state_after("started", "retried", "scheduled", "dispatched", "started", "succeeded") == "SUCCESS"


def test_workers_tell_what_they_dispatch(server: RedisServer) -> None:
    """With -E, for the whole life of a task, in a real State; by whom, from which queue, and how late it was."""
    with Project(server.url(), task_send_sent_event=True) as project, listening(project.app, server) as ear:
        # Prefork: with Celery 5.6 an event from a pool's thread may lie in a buffer until something wakes the worker.
        with project.worker("-E", pool="prefork") as worker:
            worker.await_ready()
            first = project.send(countdown=0.1)
            cancelled = project.send(countdown=3600)
            project.app.delayq.cancel(cancelled)
            project.ledger.wait_for([first])
            wait_for(lambda: any(event["type"] == "task-succeeded" for event in ear.events()), "the task's end is told")
            wait_for(lambda: any(event["type"] == "task-dispatched" for event in ear.events()), "its dispatch is told")
            assert "Traceback" not in worker.log()

        heard = ear.events()
        state = project.app.events.State()
        for event in heard:
            state.event(event)
        (dispatched,) = [event for event in heard if event["type"] == "task-dispatched"]
        (scheduled,) = [event for event in heard if event["type"] == "task-scheduled" and event["uuid"] == first]

    assert (dispatched["uuid"], dispatched["name"], dispatched["queue"]) == (first, "record", "celery")
    assert dispatched["hostname"] == f"celery@{worker.name}"
    assert 0 <= dispatched["lateness"] < 60
    assert (
        abs((datetime.fromisoformat(dispatched["eta"]) - datetime.fromisoformat(scheduled["eta"])).total_seconds()) < 1
    )
    assert (state.tasks[first].state, state.tasks[cancelled].state) == ("SUCCESS", "REVOKED")


def test_dispatches_are_told_only_while_a_worker_sends_events(server: RedisServer) -> None:
    """``celery control enable_events`` and ``disable_events`` hold from the next dispatch on."""
    with Project(server.url()) as project, listening(project.app, server) as ear, project.worker() as worker:
        worker.await_ready()
        ids = {}
        for word in ("off", "on", "off again"):
            if word != "off":
                assert project.app.control.broadcast(
                    "enable_events" if word == "on" else "disable_events", reply=True, timeout=30, limit=1
                )
            ids[word] = project.send(word, countdown=0.05)
            project.ledger.wait_for([ids[word]])
            if word == "on":
                wait_for(lambda: any(event[0] == "dispatched" for event in ours(ear)), "it is told")

        assert [event[:2] for event in ours(ear)] == [("dispatched", ids["on"])]


def dispatched(number: int, count: int) -> Dispatched:
    jobs = tuple((f"{number}-{job}".encode(), b"add") for job in range(count))
    return Dispatched(count, 0, 0, False, 9_000_000, None, tuple(range(count)), jobs)


def test_what_waits_to_be_told_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """A broker that takes connections and says nothing: memory does not grow, and the dispatcher is not held up."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        app = Celery(broker=f"redis://127.0.0.1:{silent.getsockname()[1]}/0", set_as_current=False)
        dispatches = Dispatches(app, "worker@host", lambda: True)
        assert dispatches.tell is Tell.JOBS
        for number in range(3 * PENDING // 1000):
            dispatches.dispatched("q", dispatched(number, 1000))

        assert sum(len(done.jobs) for _, done, _ in dispatches._pending) <= PENDING
        dispatches.stop(0.01)


def test_too_many_are_counted_and_the_rest_is_told(app: Celery, ear: Ear, caplog: pytest.LogCaptureFixture) -> None:
    """Newest first to be told; the log says how many were not. At the end of a worker, too."""
    dispatches = Dispatches(app, "worker@host", lambda: True)
    with dispatches._condition:  # its thread waits
        for number in range(PENDING // 1000 + 2):
            dispatches.dispatched("q", dispatched(number, 1000))
    wait_for(lambda: not dispatches._pending, "it takes them")
    dispatches.stop(60)

    told = [event for event in ear.events() if event["type"] == "task-dispatched"]

    assert [event["uuid"] for event in told] == [f"{n}-{job}" for n in range(2, 12) for job in range(1000)]
    assert told[1]["lateness"] == pytest.approx(9 - 1e-6)
    assert "2000 events task-dispatched were not sent" in caplog.text


def test_a_task_that_sends_no_events(app: Celery, ear: Ear) -> None:
    """``send_events=False`` of a task holds for its dispatch, as for what a worker tells of it."""

    @app.task(name="silent", shared=False, send_events=False)
    def silent() -> None: ...

    dispatches = Dispatches(app, "worker@host", lambda: True)
    done = Dispatched(3, 0, 0, False, 9, None, (1, 2, 3), ((b"a", b"silent"), (b"b", b"other"), (b"c", b"")))
    dispatches.dispatched("q", done)
    wait_for(lambda: not dispatches._pending, "it takes them")
    dispatches.stop(60)

    assert [(event["uuid"], event["name"]) for event in ear.events()] == [("b", "other"), ("c", None)]


@pytest.mark.parametrize("name", ["add", "shop.zahle_später", 'with "quotes"', "back\\slash", "日本"])
def test_names_are_found_in_messages(make_app: Callable[..., Celery], inside: Inside, name: str) -> None:
    """As they are, or not at all; by Lua as by Python; also where another language has written the JSON."""
    app = make_app()
    app.delayq.apply_at(name, SOON, ('{"task": "not me", "headers": {"task": "nor me"}}',))
    body = inside.one().raw
    assert json.loads(body)["headers"]["task"] == name
    found = None if '"' in name else name

    dense = json.dumps(json.loads(body), separators=(",", ":"), ensure_ascii=False).encode()
    assert task_in(body) == task_in(dense) == found
    topic, delivery = next(iter(inside.store.topics().items()))
    inside.store.put([Put(topic, "dense", dense, at_us=2**53 - 2000)], {topic: delivery})
    done = inside.store.dispatch(topic, delivery, 2, "back", None, Tell.JOBS, TASK_PATTERN, now_us=2**53 - 1)
    assert [read_name(part) for _, part in done.jobs] == [found, found]
