"""What waits, looked at: by id, by filters, in time, and in millions; nothing of it changes anything."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError

from celery_delayq import DelayQ, ImproperlyConfigured, apply_at
from celery_delayq.clock import from_us
from celery_delayq.embedded import free_port
from celery_delayq.job import Put
from celery_delayq.scheduled import Filter

from .backlog import FAR_US, fill
from .conftest import Inside

WHEN = datetime(2033, 5, 18, 3, 33, 20, 123456, tzinfo=timezone.utc)


@pytest.fixture
def app(make_app: Callable[..., Celery]) -> Celery:
    app = make_app()

    @app.task(shared=False, name="record")
    def record(*values: Any, **more: Any) -> None:
        pass

    return app


@pytest.fixture
def delayq(app: Celery) -> DelayQ:
    delayq: DelayQ = app.delayq
    return delayq


def test_a_waiting_task_tells_all_about_itself(app: Celery, delayq: DelayQ) -> None:
    """By its id alone: name, arguments, queue, priority, times to the microsecond, headers and stamps."""
    before = datetime.now(timezone.utc)
    apply_at(
        app.tasks["record"],
        WHEN,
        ("a", 1),
        {"k": [2]},
        task_id="need_some_help_email_42",
        queue="mail",
        priority=3,
        headers={"order": 42},
    )
    found = delayq.get("need_some_help_email_42")

    assert found is not None
    assert (found.id, found.task, found.queue) == ("need_some_help_email_42", "record", "mail")
    assert (found.argsrepr, found.kwargsrepr) == ("('a', 1)", "{'k': [2]}")
    assert (found.due, found.due.utcoffset()) == (WHEN, timedelta(0))
    assert (found.priority, found.state, found.headers["order"]) == (3, "waiting", 42)
    assert found.put_at is not None
    assert before <= found.put_at <= datetime.now(timezone.utc)


def test_an_unknown_id_is_none(delayq: DelayQ) -> None:
    """Nothing waits, or something else does."""
    assert delayq.get("nobody") is None
    assert delayq.get_all("nobody") == []
    delayq.apply_delayed("record", 60, task_id="somebody")
    assert delayq.get("nobody") is None


@pytest.mark.parametrize("task_id", [None, 42, b"bytes", "", ["a"]])
def test_what_can_be_no_id_is_refused(delayq: DelayQ, task_id: Any) -> None:
    """A clear error at once, not "does not wait"."""
    for call in (delayq.get, delayq.get_all, delayq.cancel, delayq.run_now):
        with pytest.raises((TypeError, ValueError), match="task id must"):
            call(task_id)
    with pytest.raises((TypeError, ValueError), match="task id must"):
        delayq.reschedule(task_id, WHEN)


@pytest.mark.parametrize("task_id", ["a b\n\x1b[31m", "ä" * 300, "x" * 10_000, "%s{0}:*[", "é\x00"])
def test_any_text_is_an_id(delayq: DelayQ, task_id: str) -> None:
    """Hostile, long and foreign ids are found, moved and cancelled like others."""
    delayq.apply_delayed("record", 60, task_id=task_id)

    found = delayq.get(task_id)
    assert found is not None
    assert found.id == task_id
    assert delayq.reschedule(task_id, WHEN, if_due=found.due)
    assert [task.id for task in delayq.scheduled()] == [task_id]
    assert delayq.cancel(task_id) == 1


def test_an_id_that_is_no_text_can_be_shown_and_cancelled(delayq: DelayQ, inside: Inside) -> None:
    """Another program's binary id comes out as Python writes file names, and goes in again; so do broken bodies."""
    bodies = [
        b"\xff\x00",
        b"[]",
        b'{"headers": 1, "properties": {}}',
        b'{"headers": {"task": 7}, "properties": {}}',
        b"",
    ]
    delayq.apply_delayed("record", 60, task_id="template")
    delivery = inside.store.topics()["celery"]
    jobs = [Put("celery", b"\xfe\xff" + bytes([n]), body, at_us=FAR_US + n) for n, body in enumerate(bodies)]
    inside.store.put(jobs, {"celery": delivery})
    delayq.cancel("template")

    found = list(delayq.scheduled())

    assert [(task.task, task.put_at, task.due) for task in found] == [
        (None, None, from_us(FAR_US + n)) for n in range(len(bodies))
    ]
    assert delayq.count(task="record") == 0
    assert delayq.cancel(*(task.id for task in found), mark=False) == len(bodies)


def test_one_id_in_several_queues(make_app: Callable[..., Celery]) -> None:
    """A topic exchange puts a task into two queues: get gives the earliest, get_all both, cancel takes both, as one."""
    exchange = Exchange("news", "topic")
    queues = [
        Queue(name, exchange, routing_key=key) for name, key in (("all", "all.#"), ("no", "no.#"), ("every", "#"))
    ]
    app = make_app(task_queues=queues)
    delayq = app.delayq
    app.send_task("record", task_id="one", exchange=exchange, routing_key="all.x", countdown=60, declare=queues)

    both = delayq.get_all("one")

    assert sorted(task.queue for task in both) == ["all", "every"]
    assert delayq.get("one") == both[0]
    assert delayq.run_now("one") == 1
    assert delayq.cancel("one", "one") == 1
    assert delayq.count() == 0


def test_filters_can_be_combined(delayq: DelayQ, inside: Inside, app: Celery) -> None:
    """By queue, task, half-open time, header and stamp, alone and together; count agrees with scheduled."""
    fill(inside, app, range(0, 1000, 10), "one", order=lambda number: number % 5)
    fill(inside, app, range(5, 1005, 10), "two", order=lambda number: f"x{number % 5}")
    delayq.apply_at("other.task", from_us(FAR_US + 2000), queue="one", headers={"order": [1, 42]})
    delayq.apply_at("record", from_us(FAR_US + 3000), stamped_headers=["tenant"], tenant="acme", queue="one")
    at = {number: from_us(FAR_US + number) for number in (0, 100, 200, 2000)}

    def both(**wanted: Any) -> int:
        found = list(delayq.scheduled(**wanted))
        assert len(found) == delayq.count(**wanted)
        assert [task.due for task in found] == sorted(task.due for task in found)
        return len(found)

    assert both() == 202
    assert both(queue="one") == 102
    assert both(queue="nowhere") == 0
    assert both(task="record") == 201
    assert both(task="other.*") == 1
    assert both(task="*") == 202
    assert both(task=app.tasks["record"], queue="two") == 100
    assert both(start=at[100], end=at[200]) == 20
    assert both(end=at[100]) == 20
    assert both(start=at[2000]) == 2
    assert both(start=at[100], end=at[100]) == 0
    assert both(headers={"order": 1}) == 21  # the list holds one, too
    assert both(headers={"order": "1"}) == 21
    assert both(headers={"order": "x3"}) == 20
    assert both(headers={"order": [1, 2]}) == 41
    assert both(headers={"order": 1}, queue="one", start=at[100], end=at[200]) == 2
    assert both(headers={"absent": None}) == 0
    assert both(stamps={"tenant": "acme"}) == 1
    assert both(stamps={"tenant": ["acme", "x"]}, task="record") == 1
    assert both(stamps={"order": 1}) == 0


@pytest.mark.parametrize(
    "stored",
    [1, 0, 42, -5, 4.5, 1e22, "42", "a b", "true", True, None, 'ä/"\\', [7, "x"], {"a": 1}, "%d.+", 10**20, "nan", ""],
)
def test_whatever_a_header_holds_is_found_again(delayq: DelayQ, stored: Any) -> None:
    """By the value itself, and by its text; looking in Redis first loses none."""
    delayq.apply_delayed("record", 60, headers={"some.name-1": stored, "näme": stored})

    for name in ("some.name-1", "näme"):
        for wanted in [stored, *(stored if isinstance(stored, list) else [str(stored)])]:
            if wanted != "{'a': 1}":
                assert delayq.count(headers={name: wanted}) == 1, (name, wanted)
        assert delayq.count(headers={name: "something else"}) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"queue": 1},
        {"queue": ""},
        {"task": 3},
        {"start": "tomorrow"},
        {"end": float("nan")},
        {"headers": "order=42"},
        {"headers": {1: 2}},
        {"stamps": ["a"]},
        {"start": 10, "end": 5},
    ],
)
def test_a_filter_that_cannot_be_is_refused_at_once(delayq: DelayQ, wrong: dict[str, Any]) -> None:
    """Before anything is read, also by the lazy one."""
    for call in (delayq.scheduled, delayq.count, delayq.cancel_where):
        with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
            call(**wrong)


def test_a_walk_meets_each_task_that_stays_once(delayq: DelayQ, inside: Inside, app: Celery) -> None:
    """While others are put, cancelled and moved around it, and hundreds are due at the very same time."""
    stay = set(fill(inside, app, itertools.chain(range(500), [700] * 1500), "one"))
    stay |= set(fill(inside, app, range(0, 2000, 4), "two"))
    leave = sorted(stay)[::7]
    stay -= set(leave)
    seen: list[str] = []
    for number, task in enumerate(delayq.scheduled()):
        seen.append(task.id)
        if number % 40 == 0 and leave:
            delayq.cancel(leave.pop(), mark=False)
            inside.store.put(
                [Put("one", f"new-{number}", b"{}", at_us=FAR_US + number)], {"one": inside.store.topics()["one"]}
            )

    counts = {task_id: seen.count(task_id) for task_id in stay}
    assert counts == dict.fromkeys(stay, 1)


def test_a_walk_is_flat_in_memory(delayq: DelayQ, inside: Inside, app: Celery) -> None:
    """Twenty thousand tasks take no more than two thousand do."""

    def peak(count: int) -> int:
        tracemalloc.start()
        walked = sum(1 for _ in itertools.islice(delayq.scheduled(), count))
        most: int = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert walked == count
        return most

    fill(inside, app, range(20_000))
    peak(100)  # what is loaded once is loaded now

    assert peak(20_000) < peak(2_000) * 1.5


def test_an_agenda_counts_each_task_in_one_step(delayq: DelayQ, inside: Inside, app: Celery) -> None:
    """Steps are half-open and follow each other; the last one may be shorter; the sums agree with count."""
    fill(inside, app, range(100), "one")
    fill(inside, app, range(0, 100, 10), "two")
    start = from_us(FAR_US)

    agenda = delayq.agenda(start, start + timedelta(microseconds=95), timedelta(microseconds=30))

    assert agenda == [
        (start, {"one": 30, "two": 3}),
        (start + timedelta(microseconds=30), {"one": 30, "two": 3}),
        (start + timedelta(microseconds=60), {"one": 30, "two": 3}),
        (start + timedelta(microseconds=90), {"one": 5, "two": 1}),
    ]
    assert delayq.agenda(0, 10, 5) == [(from_us(0), {}), (from_us(5_000_000), {})]


@pytest.mark.parametrize(
    ("step", "said"), [(0, "more than 0"), (timedelta(0), "more than 0"), (-1, "more than 0"), (1e-6, "steps")]
)
def test_an_agenda_of_no_or_too_many_steps_is_refused(delayq: DelayQ, step: Any, said: str) -> None:
    """The error says what to change."""
    with pytest.raises(ValueError, match=said):
        delayq.agenda(0, 86_400, step)


def test_stats_and_queues_know_every_queue(app: Celery, delayq: DelayQ, inside: Inside) -> None:
    """Waiting, due, overdue, ready with all priorities, totals; also of a queue where nothing waits any more."""
    delayq.apply_at("record", 0, queue="one", priority=9)
    delayq.apply_at("record", 0, queue="one")
    delayq.apply_delayed("record", 60, queue="one")
    delayq.apply_delayed("record", 60, queue="two", task_id="two")
    delayq.pause("three")
    assert delayq.queues() == ["one", "three", "two"]
    inside.store.dispatch("one", inside.store.topics()["one"], 1)
    delayq.cancel("two")

    stats = delayq.stats()

    assert list(stats) == ["one", "three", "two"]
    one = stats["one"]
    assert (one.waiting, one.due, one.ready, one.moved, one.paused) == (2, 1, 1, 1, False)
    assert one.overdue > timedelta(0)
    assert (stats["two"].waiting, stats["two"].cancelled, stats["two"].overdue) == (0, 1, timedelta(0))
    assert (stats["three"].paused, stats["three"].waiting) == (True, 0)
    assert delayq.paused() == {"three"}
    assert delayq.queues() == ["one", "three"]


def test_a_redis_that_is_away_is_an_operational_error() -> None:
    """As a publish would raise it; nothing hangs."""
    app = Celery(broker=f"redis://127.0.0.1:{free_port()}/0", set_as_current=False)
    app.conf.task_publish_retry_policy = {"max_retries": 1, "interval_start": 0}
    delayq = DelayQ(app)

    for call in (delayq.stats, delayq.queues, lambda: delayq.get("a"), lambda: list(delayq.scheduled())):
        with pytest.raises(OperationalError):
            call()


def test_a_broker_that_is_not_redis_is_improperly_configured() -> None:
    """The error names the setting, and no password."""
    app = Celery(broker="amqp://me:secret@127.0.0.1:1//", set_as_current=False)

    with pytest.raises(ImproperlyConfigured, match="broker_url") as raised:
        DelayQ(app).get("a")

    assert "secret" not in str(raised.value)


def test_a_filter_that_means_all_says_so() -> None:
    """Nothing given, or nothing in what is given."""
    assert Filter.of().is_all
    assert Filter.of(headers={}, stamps={}).is_all
    assert not Filter.of(end=5).is_all
