"""Every way in which Celery delays a task ends in the store; and Celery does all else that it does."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import celery
import pytest
from celery import Celery, chain, chord, group, signals
from celery.beat import Scheduler
from celery.schedules import schedule
from kombu import Connection

from celery_delayq import scheduled_for
from celery_delayq.clock import to_us

from .conftest import Inside

SOON = datetime(2100, 1, 1, 12, 30, 15, 123456, tzinfo=timezone.utc)


@pytest.fixture
def tasks(app: Celery) -> Any:
    """An app's tasks as a namespace."""

    class Tasks:
        @staticmethod
        @app.task(shared=False, name="add")
        def add(x: int = 0, y: int = 0) -> int:
            return x + y

        @staticmethod
        @app.task(shared=False, name="again", bind=True, max_retries=3)
        def again(self: Any, delay: float) -> str:
            if self.request.retries < 2:
                raise self.retry(countdown=delay)
            return f"ran {self.request.retries + 1} times"

        @staticmethod
        @app.task(
            shared=False,
            name="auto",
            autoretry_for=(KeyError,),
            retry_backoff=5,
            retry_jitter=False,
            retry_kwargs={"max_retries": 2},
        )
        def auto() -> None:
            raise KeyError("x")

        @staticmethod
        @app.task(shared=False, name="asked", bind=True)
        def asked(self: Any) -> tuple[str | None, Any, list[str]]:
            due = scheduled_for(self.request)
            leaks = [key for key in (self.request.headers or {}) if "delayq" in key]
            return due and due.isoformat(), self.request.eta, leaks

    return Tasks


def delay_of(inside: Inside, due_us: int) -> float:
    """Seconds from Redis's clock to a due time."""
    seconds, micros = inside.client.time()
    return due_us / 1e6 - (seconds + micros / 1e6)


def test_delay_is_untouched(tasks: Any, inside: Inside) -> None:
    """A task without a delay goes to its queue at once."""
    tasks.add.delay(1, 2)
    tasks.add.apply_async((1, 2), countdown=0)

    assert inside.waiting() == []
    assert len(inside.ready()) == 2


def test_countdown(tasks: Any, inside: Inside) -> None:
    """countdown: waits so long on Redis's clock."""
    result = tasks.add.apply_async((1, 2), countdown=90.5)

    job = inside.one()
    assert ("celery", result.id) == (job.topic, job.id)
    assert 85 < delay_of(inside, job.due_us) <= 90.5
    assert inside.ready() == []


def test_eta_is_exact_to_the_microsecond(tasks: Any, inside: Inside) -> None:
    """eta: an absolute time, whatever the clocks say."""
    tasks.add.apply_async((1, 2), eta=SOON)

    assert to_us(SOON) == inside.one().due_us


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata"])
@pytest.mark.parametrize("utc", [True, False])
def test_a_naive_eta_means_what_celerys_worker_takes_it_for(
    make_app: Callable[..., Celery], inside: Inside, zone: str, utc: bool
) -> None:
    """A naive eta is UTC, as the worker reads the header, also around a change of the clocks."""
    app = make_app(timezone=zone, enable_utc=utc)
    for naive in (datetime(2100, 3, 14, 2, 30), datetime(2100, 11, 7, 1, 30, fold=1)):
        app.send_task("add", eta=naive)
        assert to_us(naive.replace(tzinfo=timezone.utc)) == inside.one().due_us
        inside.client.flushdb()


def test_an_aware_eta_of_an_ambiguous_hour(tasks: Any, inside: Inside) -> None:
    """The two half past ones of the night the clocks go back are an hour apart."""
    from zoneinfo import ZoneInfo

    for fold, hour in ((0, 5), (1, 6)):
        tasks.add.apply_async(eta=datetime(2030, 11, 3, 1, 30, fold=fold, tzinfo=ZoneInfo("America/New_York")))
        assert to_us(datetime(2030, 11, 3, hour, 30, tzinfo=timezone.utc)) == inside.one().due_us
        inside.client.flushdb()


def test_an_eta_string(tasks: Any, inside: Inside) -> None:
    """ISO 8601 with an offset or with Z, as other programs write it."""
    for text in ("2100-01-01T14:30:15.123456+02:00", "2100-01-01T12:30:15.123456Z"):
        tasks.add.apply_async(eta=text)
        assert to_us(SOON) == inside.one().due_us
        inside.client.flushdb()


def test_a_past_eta_is_due_now_and_still_put(tasks: Any, inside: Inside) -> None:
    """Only Redis's clock says what is past: it waits there, due at once."""
    tasks.add.apply_async(eta=datetime(2001, 1, 1, tzinfo=timezone.utc))
    tasks.add.apply_async(countdown=-30)

    assert all(-5 < delay_of(inside, job.due_us) <= 0.1 for job in inside.waiting())
    assert len(inside.waiting()) == 2


def test_send_task_and_signatures(app: Celery, tasks: Any, inside: Inside) -> None:
    """By name, as a registered signature, as one whose task is not known here, with options set or given."""
    sent = [
        app.send_task("elsewhere", countdown=60),
        tasks.add.s(1, 2).apply_async(countdown=60),
        tasks.add.s(1, 2).set(countdown=60).apply_async(),
        app.signature("unknown.here", (1,), countdown=60).apply_async(),
        tasks.add.signature((1, 2), countdown=60).delay(),
    ]

    assert {result.id for result in sent} == {job.id for job in inside.waiting()}


def test_chain_waits_with_its_first_task(tasks: Any, inside: Inside) -> None:
    """A chain's countdown delays its first task; the rest stands in its message, as Celery writes it."""
    chain(tasks.add.s(1, 2), tasks.add.s(3), tasks.add.s(4)).apply_async(countdown=60)

    job = inside.one()
    assert job.message["headers"]["task"] == "add"
    assert len(body_of(job.message)[2]["chain"]) == 2


def test_a_delay_inside_a_chain(app: Celery, tasks: Any, inside: Inside, run_ready: Callable[..., list[Any]]) -> None:
    """A later link of a chain waits when its turn comes."""
    chain(tasks.add.s(1, 2), tasks.add.s(3).set(countdown=60)).apply_async()
    assert run_ready(app) == [3]

    assert 55 < delay_of(inside, inside.one().due_us) <= 60
    inside.hand_over()
    assert run_ready(app) == [6]


def test_group_and_skew(tasks: Any, inside: Inside) -> None:
    """A group's countdown delays each of its tasks; skew spreads them."""
    result = group(tasks.add.s(number, 1) for number in range(5)).apply_async(countdown=60)
    assert {child.id for child in result.children} == {job.id for job in inside.waiting()}
    inside.client.flushdb()

    group(tasks.add.s(number, 1) for number in range(4)).skew(start=10, stop=50, step=10).apply_async()
    assert [pytest.approx(delay_of(inside, job.due_us), abs=5) for job in inside.waiting()] == [10, 20, 30, 40]


def test_chord_and_its_polling(make_app: Callable[..., Celery], inside: Inside, tmp_path: Path) -> None:
    """A chord's header waits; where the backend has no counters, so does the polling for its end."""
    app = make_app(result_backend=f"file://{tmp_path}")

    @app.task(shared=False, name="add")
    def add(x: int, y: int) -> int:
        return x + y

    chord([add.s(1, 1), add.s(2, 2)], add.si(0, 0)).apply_async(countdown=60)

    waiting = [job.message["headers"]["task"] for job in inside.waiting()]
    ready = [message["headers"]["task"] for message in inside.ready()]
    assert sorted(waiting + ready) == ["add", "add", "celery.chord_unlock"]
    assert "celery.chord_unlock" in waiting
    if celery.VERSION >= (5, 7):  # before, a chord's countdown did not reach its header
        assert not ready


def test_retry_keeps_the_id_and_leaks_nothing(
    app: Celery, tasks: Any, inside: Inside, run_ready: Callable[..., list[Any]]
) -> None:
    """A retried task waits under its own id; nothing of ours stands in its next message's headers."""
    result = tasks.again.apply_async((60,), countdown=60)
    for _ in range(2):
        before = inside.one()
        inside.hand_over()
        run_ready(app)
        after = inside.one()
        assert (result.id, result.id) == (before.id, after.id)
        assert set(before.message["headers"]) == set(after.message["headers"])
        assert not [name for name in after.message["headers"] if "delayq" in name]
        assert 55 < delay_of(inside, after.due_us) <= 60
    inside.hand_over()
    assert run_ready(app) == ["ran 3 times"]


def test_an_undelayed_retry_carries_nothing_of_ours(
    app: Celery, tasks: Any, inside: Inside, run_ready: Callable[..., list[Any]]
) -> None:
    """A task that waited once and retries at once is an ordinary message again."""
    tasks.again.apply_async((0,), countdown=60)
    inside.hand_over()
    run_ready(app)

    assert inside.waiting() == []
    assert "delayq" not in json.dumps(inside.ready())


def test_autoretry_with_backoff(app: Celery, tasks: Any, inside: Inside, run_ready: Callable[..., list[Any]]) -> None:
    """autoretry_for with retry_backoff: each attempt waits twice as long."""
    tasks.auto.delay()
    for delay in (5, 10):
        run_ready(app)
        assert delay - 4 < delay_of(inside, inside.one().due_us) <= delay
        inside.hand_over()


def test_links(app: Celery, tasks: Any, inside: Inside, run_ready: Callable[..., list[Any]]) -> None:
    """link and link_error travel in the message, and a delayed callback waits in its turn."""
    tasks.add.apply_async((1, 2), countdown=60, link=tasks.add.s(10).set(countdown=30), link_error=tasks.asked.si())
    embedded = body_of(inside.one().message)[2]
    assert (len(embedded["callbacks"]), len(embedded["errbacks"])) == (1, 1)

    inside.hand_over()
    assert run_ready(app) == [3]
    assert 25 < delay_of(inside, inside.one().due_us) <= 30


def test_beat(app: Celery, tasks: Any, inside: Inside) -> None:
    """An entry of beat's schedule with a countdown waits like any other."""
    scheduler = Scheduler(app, lazy=True)
    entry = scheduler.Entry(name="x", task="add", schedule=schedule(1), args=(1, 2), options={"countdown": 60}, app=app)

    scheduler.apply_async(entry, advance=False)

    assert inside.one().message["headers"]["task"] == "add"


def test_producer_and_connection(app: Celery, tasks: Any, inside: Inside, server: Any) -> None:
    """The message goes to the Redis of the producer or connection that was passed, not to the app's."""
    with app.producer_or_acquire() as producer:
        tasks.add.apply_async(countdown=60, producer=producer)
    with Connection(server.url(7)) as connection:
        tasks.add.apply_async(countdown=60, connection=connection)
        with app.amqp.Producer(connection) as producer:
            tasks.add.apply_async(countdown=60, producer=producer)

    assert (len(inside.waiting()), len(Inside(server, database=7).waiting())) == (1, 2)


def test_a_batching_producer_puts_at_once(app: Celery, tasks: Any, inside: Inside) -> None:
    """Inside ``producer.batch()`` (Kombu 5.7) undelayed messages are held back, delayed ones are in the store."""
    with app.producer_or_acquire() as producer:
        if not hasattr(producer, "batch"):
            pytest.skip("this Kombu has no producer.batch()")
        with producer.batch():
            tasks.add.apply_async((1, 2), countdown=60, producer=producer)
            tasks.add.apply_async((1, 2), producer=producer)
            assert (len(inside.waiting()), len(inside.ready())) == (1, 0)
    assert len(inside.ready()) == 1


def test_expires_is_kept(tasks: Any, inside: Inside) -> None:
    """expires counts from publishing, and the worker judges it, as in stock Celery."""
    tasks.add.apply_async(countdown=60, expires=SOON)
    inside.hand_over()

    assert SOON.isoformat() == inside.ready()[0]["headers"]["expires"]


def test_scheduled_for_inside_the_task(
    app: Celery, tasks: Any, inside: Inside, run_ready: Callable[..., list[Any]]
) -> None:
    """The task can ask for the time it was meant for; its request.eta is what it is in stock Celery."""
    tasks.asked.apply_async(eta=SOON.astimezone(timezone(timedelta(hours=5))))
    inside.hand_over()
    tasks.asked.delay()

    eta = SOON.astimezone(timezone(timedelta(hours=5))).isoformat()
    assert [(SOON.isoformat(), eta, []), (None, None, [])] == [tuple(result) for result in run_ready(app)]


def test_signals_fire_once_and_at_publishing(tasks: Any, inside: Inside) -> None:
    """before_task_publish and after_task_publish see the task once, with its eta, when it is published."""
    heard: list[tuple[str, str, bool]] = []

    def before(headers: dict[str, Any] | None = None, **_: Any) -> None:
        heard.append(("before", (headers or {})["id"], bool((headers or {})["eta"])))

    def after(headers: dict[str, Any] | None = None, **_: Any) -> None:
        heard.append(("after", (headers or {})["id"], bool((headers or {})["eta"])))

    signals.before_task_publish.connect(before)
    signals.after_task_publish.connect(after)
    try:
        id = tasks.add.apply_async(countdown=60).id
        inside.hand_over()
    finally:
        signals.before_task_publish.disconnect(before)
        signals.after_task_publish.disconnect(after)

    assert [("before", id, True), ("after", id, True)] == heard


def test_a_handler_of_before_task_publish_may_change_the_eta(tasks: Any, inside: Inside) -> None:
    """What a signal handler sets holds: another eta, or none at all."""
    etas = [SOON.isoformat(), None]

    def change(headers: dict[str, Any] | None = None, **_: Any) -> None:
        assert headers is not None
        headers["eta"] = etas.pop(0)

    signals.before_task_publish.connect(change)
    try:
        tasks.add.apply_async(countdown=60)
        tasks.add.apply_async(countdown=60)
    finally:
        signals.before_task_publish.disconnect(change)

    assert to_us(SOON) == inside.one().due_us
    assert len(inside.ready()) == 1


def test_the_sent_event_is_published_once_and_at_once(make_app: Callable[..., Celery], inside: Inside) -> None:
    """task-sent goes out at publishing, with the eta, and does not itself wait."""
    app = make_app(task_send_sent_event=True)
    with inside.client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.psubscribe("/0.celeryev/*")
        listener.get_message(timeout=5)
        id = app.send_task("add", eta=SOON).id
        inside.hand_over()
        inside.client.publish("/0.celeryev/end", "{}")
        heard = []
        while (message := listener.get_message(timeout=5)) and message["data"] != b"{}":
            heard.append(json.loads(base64.b64decode(json.loads(message["data"])["body"])))
        heard = [event for event in heard if not isinstance(event, list) and event["type"] == "task-sent"]

    assert [(id, SOON.isoformat(), "celery")] == [(event["uuid"], event["eta"], event["queue"]) for event in heard]


def test_below_min_delay_is_left_to_celery(make_app: Callable[..., Celery], inside: Inside) -> None:
    """delayq_min_delay: shorter delays go the stock way, eta and all; the helpers do not ask."""
    app = make_app(delayq_min_delay=10)
    app.send_task("add", countdown=5)
    app.send_task("add", eta=datetime.now(timezone.utc) + timedelta(seconds=5))
    assert (inside.waiting(), len(inside.ready())) == ([], 2)
    assert all(message["headers"]["eta"] for message in inside.ready())

    app.send_task("add", countdown=15)
    app.delayq.apply_delayed("add", 5)
    assert len(inside.waiting()) == 2


def test_intercept_off(make_app: Callable[..., Celery], inside: Inside) -> None:
    """delayq_intercept False: plain apply_async stays stock; apply_at and apply_delayed still wait in Redis."""
    app = make_app(delayq_intercept=False)
    app.send_task("add", countdown=60)
    assert (inside.waiting(), len(inside.ready())) == ([], 1)

    app.delayq.apply_at("add", SOON)
    assert to_us(SOON) == inside.one().due_us


def test_another_prefix(make_app: Callable[..., Celery], server: Any) -> None:
    """delayq_prefix: two apps on one Redis keep apart."""
    make_app(delayq_prefix="mine").send_task("add", countdown=60)

    assert len(Inside(server, prefix="mine").waiting()) == 1
    assert Inside(server).waiting() == []


def test_two_apps_do_not_touch_each_other(make_app: Callable[..., Celery], inside: Inside) -> None:
    """Only the app that has a DelayQ is changed."""
    make_app(joined=True)
    make_app(joined=False).send_task("add", countdown=60)

    assert (inside.waiting(), len(inside.ready())) == ([], 1)


def body_of(message: dict[str, Any]) -> Any:
    """A JSON message's (args, kwargs, embed)."""
    return json.loads(base64.b64decode(message["body"]))


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((1, "a", None, 2.5), {"b": True}),
        (("it's", "\n", [1, (2,)]), {"c": {"d": "e"}}),
        ([1], {"x": "y" * 2000}),
    ],
)
@pytest.mark.parametrize("conf", [{}, {"task_repr_maxlevels": 0}, {"timezone": "Asia/Kolkata"}, {"enable_utc": False}])
def test_the_texts_of_arguments_and_of_the_eta_are_celerys(
    make_app: Callable[..., Celery], conf: dict[str, Any], args: Any, kwargs: Any
) -> None:
    """What we compute in Celery's place is what Celery computes."""
    headers = []
    for joined in (False, True):
        create = make_app(joined=joined, **conf).amqp.create_task_message
        headers.append(create("id", "t", args, kwargs, 3600.0)[0])
    stock, ours = headers

    eta, stock_eta = (datetime.fromisoformat(found.pop("eta")) for found in (ours, stock))
    assert abs(eta - stock_eta) < timedelta(minutes=1)
    assert eta.utcoffset() == stock_eta.utcoffset()
    assert {**ours, "origin": ""} == {**stock, "origin": ""}


def test_a_time_of_the_apps_own(make_app: Callable[..., Celery]) -> None:
    """Who overrides ``app.now`` is asked what time it is."""

    class Late(Celery):
        def now(self) -> datetime:
            return SOON

    headers = make_app(Late).amqp.create_task_message("id", "t", (), {}, 60)[0]

    assert headers["eta"] == (SOON + timedelta(seconds=60)).isoformat()
