"""apply_at and apply_delayed: the helpers that always go through the store."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from celery import Celery, chord, group
from celery.result import AsyncResult, GroupResult
from kombu.exceptions import OperationalError

from celery_delayq import AlreadyScheduled, DelayQ, DelayQError, ImproperlyConfigured, apply_at, apply_delayed
from celery_delayq.clock import to_us
from celery_delayq.embedded import RedisServer

from .conftest import Inside

SOON = datetime(2100, 1, 1, 12, 30, 15, 123456, tzinfo=timezone.utc)


@pytest.fixture
def add(app: Celery) -> Any:
    @app.task(shared=False, name="add")
    def add(x: int = 0, y: int = 0) -> int:
        return x + y

    return add


def delay_of(inside: Inside) -> float:
    """Seconds until the one job that waits is due, on Redis's clock."""
    seconds, micros = inside.client.time()
    return inside.one().due_us / 1e6 - (seconds + micros / 1e6)


def test_apply_at_takes_tasks_names_and_signatures(app: Celery, add: Any, inside: Inside) -> None:
    """Whatever names a task will do, with arguments; the result can be waited for by its id."""
    results = [
        apply_at(add, SOON, (1, 2)),
        apply_at(add.s(1), SOON, (2,)),
        app.delayq.apply_at("add", SOON, (1,), {"y": 2}),
        app.delayq.apply_at(app.signature("unknown.here"), SOON),
    ]

    assert all(isinstance(result, AsyncResult) for result in results)
    assert {result.id for result in results} == {job.id for job in inside.waiting()}
    assert [to_us(SOON) + n for n in range(4)] == [job.due_us for job in inside.waiting()]


def test_the_time_that_is_given_beats_the_signatures_own(app: Celery, add: Any, inside: Inside) -> None:
    """A signature that says countdown or eta for itself: ``when`` and ``delay`` hold, and the signature stays."""
    counted, timed = add.s(1).set(countdown=5), add.s(2).set(eta=SOON)

    apply_at(counted, SOON, task_id="a")
    apply_at(timed, SOON, task_id="b")
    app.delayq.apply_many([(counted, SOON)])
    apply_delayed(counted, 60, task_id="c")
    apply_delayed(timed, 60, task_id="d")

    soon, late = 0, 0
    for job in inside.waiting():
        soon, late = soon + (job.due_us < to_us(SOON)), late + (job.due_us >= to_us(SOON))
    assert (soon, late) == (2, 3)
    assert (counted.options, timed.options) == ({"countdown": 5}, {"eta": SOON})


def test_a_name_alone_goes_to_the_current_app(app: Celery, inside: Inside) -> None:
    """The functions take a name, too, if the current app has a DelayQ."""
    app.set_current()
    try:
        apply_delayed("add", 60)
    finally:
        app.set_default()

    assert len(inside.waiting()) == 1


def test_a_group_is_a_group(add: Any, inside: Inside) -> None:
    """Canvas is taken as apply_async takes it: each task of a group waits, a chord with its body."""
    result = apply_delayed(group(add.s(1, 1), add.s(2, 2)), 60)
    assert isinstance(result, GroupResult)
    assert {child.id for child in result.children} == {job.id for job in inside.waiting()}


def test_a_group_is_stored_at_once(add: Any, inside: Inside) -> None:
    """All of its tasks, or none if one cannot be."""
    calls = inside.calls("evalsha")
    apply_delayed(group(add.s(number, 1) for number in range(20)), 60)
    assert inside.calls("evalsha") - calls <= 2  # an old Redis may not know the script yet
    assert {job.message["headers"]["group_index"] for job in inside.waiting()} == set(range(20))

    with pytest.raises(AlreadyScheduled):
        apply_at(group([add.s(1, 1), *[add.s(2, 2).set(task_id="twice")] * 2]), SOON)
    assert len(inside.waiting()) == 20


def test_our_options_do_not_enter_messages(
    make_app: Callable[..., Celery], server: RedisServer, inside: Inside
) -> None:
    """on_conflict, max_wait, late and grace are ours: no message, and no message embedded in one, carries them."""
    app = make_app(result_backend=server.url(1))

    @app.task(shared=False, name="add")
    def add(x: int = 0, y: int = 0) -> int:
        return x + y

    options = {"on_conflict": "replace", "max_wait": 600, "late": "drop", "grace": 60}
    add.apply_async((1, 2), countdown=60, link=add.s(1).set(countdown=5, **options), **options)
    add.apply_async((1, 2), **options)
    chord([add.s(1, 1), add.s(2, 2)], add.si()).apply_async(countdown=60, **options)

    messages = [job.message for job in inside.waiting()] + inside.ready()
    assert len(messages) == 4
    for message in messages:
        assert not options.keys() & (set(message["headers"]) | set(message["properties"]))


@pytest.mark.parametrize(
    ("when", "due_us"),
    [
        (SOON, to_us(SOON)),
        (SOON.astimezone(timezone(timedelta(hours=-7))), to_us(SOON)),
        (SOON.replace(tzinfo=None), to_us(SOON)),
        (4102489815, 4102489815_000_000),
        (4102489815.25, 4102489815_250_000),
        (Fraction(8204979631, 2), 4102489815_500_000),
    ],
)
def test_when(app: Celery, inside: Inside, when: Any, due_us: int) -> None:
    """A datetime, aware or naive (then UTC), or seconds since the epoch."""
    app.delayq.apply_at("add", when)

    assert due_us == inside.one().due_us


@pytest.mark.parametrize("delay", [90, 90.0, timedelta(seconds=90), Fraction(90)])
def test_delay(app: Celery, inside: Inside, delay: Any) -> None:
    """Seconds or a timedelta, counted on Redis's clock."""
    app.delayq.apply_delayed("add", delay)

    assert 85 < delay_of(inside) <= 90


@pytest.mark.parametrize("delay", [0, -5, timedelta(days=-3)])
def test_no_delay_or_a_negative_one_is_due_now(app: Celery, inside: Inside, delay: Any) -> None:
    """What is past is due now; and still goes through the store."""
    app.delayq.apply_delayed("add", delay)

    assert -5 < delay_of(inside) <= 0.1


def test_the_past_is_due_now(app: Celery, inside: Inside) -> None:
    """A time before the epoch is no error."""
    app.delayq.apply_at("add", -1)

    assert -5 < delay_of(inside) <= 0.1


@pytest.mark.parametrize("when", ["2100-01-01", None, True, [], SOON.date(), Decimal(5), b"5", 5j])
def test_a_when_of_a_wrong_type(app: Celery, inside: Inside, when: Any) -> None:
    """The error says what it was and what it should be; nothing is stored."""
    with pytest.raises(TypeError, match="when must be a datetime or seconds since the epoch, not"):
        app.delayq.apply_at("add", when)

    assert inside.client.keys() == []


@pytest.mark.parametrize(
    "when", [float("nan"), float("inf"), -float("inf"), 1e18, 1e300, datetime.max, datetime(2256, 1, 1), 9.1e9]
)
def test_a_when_that_cannot_be_kept(app: Celery, inside: Inside, when: Any) -> None:
    """Beyond what the clock can hold: refused by name; also where plain apply_async is used."""
    with pytest.raises(ValueError, match="2255"):
        app.delayq.apply_at("add", when)
    if isinstance(when, datetime):
        with pytest.raises(ValueError, match="2255"):
            app.send_task("add", eta=when)

    assert inside.client.keys("delayq*") == []


@pytest.mark.parametrize("delay", [float("nan"), float("inf"), 1e18, timedelta.max])
def test_a_delay_that_cannot_be_kept(app: Celery, inside: Inside, delay: Any) -> None:
    """Infinite, no number at all, or ending beyond what the clock can hold."""
    with pytest.raises(ValueError, match="finite|2255"):
        app.delayq.apply_delayed("add", delay)

    assert inside.client.keys("delayq*") == []


@pytest.mark.parametrize("delay", ["60", None, True, SOON])
def test_a_delay_of_a_wrong_type(app: Celery, delay: Any) -> None:
    """The error says what it was and what it should be."""
    with pytest.raises(TypeError, match="delay must be a number of seconds or a timedelta, not"):
        app.delayq.apply_delayed("add", delay)


@pytest.mark.parametrize("id", ["x" * 10_000, "{}*:\n\0", "ünïcödé ☃", "celery", "1"])
def test_an_id_of_ones_own(app: Celery, inside: Inside, id: str) -> None:
    """Any text is an id; it is the task's id."""
    result = app.delayq.apply_delayed("add", 60, task_id=id)

    job = inside.one()
    assert (id, id, id) == (result.id, job.id, job.message["headers"]["id"])


@pytest.mark.parametrize(("id", "error"), [("", ValueError), (b"bytes", TypeError), (5, TypeError)])
def test_an_id_that_is_none(app: Celery, inside: Inside, id: Any, error: type[Exception]) -> None:
    """Celery would make up another for an empty id; the caller meant this one."""
    with pytest.raises(error, match="task_id must be a non-empty string"):
        app.delayq.apply_delayed("add", 60, task_id=id)

    assert inside.client.keys("delayq*") == []


def test_a_queue_of_any_name(app: Celery, inside: Inside) -> None:
    """Spaces, unicode and Redis's own signs."""
    for name in ("with space", "ünïcödé ☃", "a:b*{}"):
        app.delayq.apply_delayed("add", 60, queue=name)

    assert {"with space", "ünïcödé ☃", "a:b*{}"} == {job.topic for job in inside.waiting()}
    inside.hand_over()
    assert inside.client.llen("ünïcödé ☃") == 1


def test_a_body_of_50_megabytes(app: Celery, inside: Inside) -> None:
    """Large arguments wait and arrive whole."""
    app.delayq.apply_delayed("add", 60, ("x" * 50_000_000,))
    raw = inside.one().raw
    inside.hand_over()

    assert raw == inside.client.rpop("celery")


def test_an_id_that_waits_is_refused(app: Celery, inside: Inside) -> None:
    """The helpers' default: AlreadyScheduled, and the first one stays as it is."""
    app.delayq.apply_at("add", SOON, task_id="once")
    before = inside.one()

    with pytest.raises(AlreadyScheduled) as raised:
        app.delayq.apply_at("add", SOON + timedelta(days=1), task_id="once")

    assert raised.value.task_id == "once"
    assert before == inside.one()


def test_keep(app: Celery, inside: Inside) -> None:
    """on_conflict "keep": the first stays, and its result is returned."""
    app.delayq.apply_at("add", SOON, task_id="once")
    before = inside.one()

    assert app.delayq.apply_delayed("add", 5, task_id="once", on_conflict="keep").id == "once"
    assert before == inside.one()


def test_replace_debounces(app: Celery, inside: Inside) -> None:
    """on_conflict "replace": the last one counts; max_wait keeps it from being put off for ever."""
    app.delayq.apply_delayed("add", 60, ("first",), task_id="once", on_conflict="replace")
    app.delayq.apply_delayed("add", 90, ("last",), task_id="once", on_conflict="replace")
    assert 85 < delay_of(inside) <= 90
    assert "last" in inside.one().message["headers"]["argsrepr"]
    inside.client.flushdb()

    for delay in (30, 60, 90):
        app.delayq.apply_delayed("add", delay, task_id="once", on_conflict="replace", max_wait=timedelta(seconds=40))
    assert 25 < delay_of(inside) <= 40


def test_plain_apply_async_replaces(app: Celery, inside: Inside) -> None:
    """A second apply_async of one id overwrites what waits; with on_conflict it does as it is told."""
    app.send_task("add", countdown=30, task_id="once")
    app.send_task("add", countdown=60, task_id="once")
    assert 55 < delay_of(inside) <= 60

    with pytest.raises(AlreadyScheduled):
        app.send_task("add", countdown=90, task_id="once", on_conflict="error")


def test_options_as_attributes_of_a_task(app: Celery, inside: Inside) -> None:
    """A task can say for all its calls what a conflict means."""

    @app.task(shared=False, name="throttled", on_conflict="keep")
    def throttled() -> None: ...

    throttled.apply_async(countdown=30, task_id="once")
    throttled.apply_async(countdown=60, task_id="once")
    app.send_task("throttled", countdown=90, task_id="once")

    for task in (throttled, throttled.s(), "throttled", app.signature("throttled")):
        app.delayq.apply_delayed(task, 90, task_id="once")
    app.delayq.apply_delayed(app.signature("elsewhere", on_conflict="keep"), 90, task_id="once")

    assert 25 < delay_of(inside) <= 30


@pytest.mark.parametrize("grace", [90, 90.0, timedelta(seconds=90), Fraction(90)])
def test_late_drop(app: Celery, inside: Inside, grace: Any) -> None:
    """late="drop": how late is too late is kept beside the job; for any other nothing is."""
    app.delayq.apply_at("add", SOON, task_id="brief", late="drop", grace=grace)
    app.send_task("add", countdown=60, task_id="brief too", late="drop", grace=grace)
    app.delayq.apply_at("add", SOON, late="run")
    app.delayq.apply_at("add", SOON)

    graces = inside.client.hgetall(inside.keys.graces("celery"))
    assert graces == {b"brief": b"90000000", b"brief too": b"90000000"}


def test_late_as_an_attribute_of_a_task(app: Celery, inside: Inside) -> None:
    """A task can say it for all its calls, and a call otherwise. Else it may keep under that name what it likes."""

    @app.task(shared=False, name="brief", late="drop", grace=60)
    def brief() -> None: ...

    @app.task(shared=False, name="foreign", late=lambda: "drop", grace="no time")
    def foreign() -> None: ...

    brief.apply_async(countdown=60, task_id="its own")
    brief.apply_async(countdown=60, task_id="shorter", grace=5)
    brief.apply_async(countdown=60, late="run")
    foreign.apply_async(countdown=60)
    foreign.apply_async(countdown=60, task_id="said so", late="drop", grace=7)

    graces = inside.client.hgetall(inside.keys.graces("celery"))
    assert graces == {b"its own": b"60000000", b"shorter": b"5000000", b"said so": b"7000000"}


def test_once_dispatched_an_id_is_free_again(app: Celery, inside: Inside) -> None:
    """on_conflict speaks of what waits, not of what ran."""
    app.delayq.apply_delayed("add", 60, task_id="once")
    inside.hand_over()

    app.delayq.apply_delayed("add", 60, task_id="once")

    assert inside.one().id == "once"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_conflict": "ignore"}, 'on_conflict must be "error", "keep" or "replace"'),
        ({"on_conflict": "replace", "max_wait": -1}, "max_wait must be 0 or more"),
        ({"on_conflict": "replace", "max_wait": float("nan")}, "max_wait must be finite"),
        ({"on_conflict": "keep", "max_wait": 5}, "max_wait limits"),
        ({"late": "ignore"}, 'late must be "run" or "drop", not \'ignore\''),
        ({"late": True, "grace": 5}, 'late must be "run" or "drop", not True'),
        ({"late": "drop"}, 'late="drop" needs grace'),
        ({"grace": 5}, 'needs late="drop"'),
        ({"late": "run", "grace": 5}, 'needs late="drop"'),
        ({"late": "drop", "grace": -1}, "grace must be 0 or more"),
        ({"late": "drop", "grace": float("inf")}, "grace must be finite"),
    ],
)
def test_an_option_that_cannot_be(app: Celery, inside: Inside, options: dict[str, Any], message: str) -> None:
    """The error names the option and what it may be; nothing is sent."""
    with pytest.raises(ValueError, match=message):
        app.delayq.apply_delayed("add", 60, **options)
    with pytest.raises(ValueError, match=message):
        app.send_task("add", **options)

    assert (inside.waiting(), inside.ready()) == ([], [])


def test_a_grace_of_a_wrong_type(app: Celery) -> None:
    """The error says what it was and what it should be."""
    with pytest.raises(TypeError, match="grace must be a number of seconds or a timedelta, not str"):
        app.delayq.apply_delayed("add", 60, late="drop", grace="5")


def test_a_task_that_is_none(app: Celery) -> None:
    """The error says what may stand there."""
    with pytest.raises(TypeError, match="a task, the name of one, or a signature, not function"):
        app.delayq.apply_delayed(lambda: None, 60)


def test_an_app_without_delayq(make_app: Callable[..., Celery]) -> None:
    """The functions say what to call where."""
    app = make_app(joined=False)
    task = app.task(shared=False, name="x")(test_a_task_that_is_none)

    with pytest.raises(ImproperlyConfigured, match=r"call DelayQ\(app\)"):
        apply_at(task, SOON)


def test_a_full_redis(app: Celery, inside: Inside) -> None:
    """maxmemory without eviction: the publish fails as publishing does, and nothing half is left."""
    app.delayq.apply_delayed("add", 60, task_id="there")
    before = inside.waiting()
    inside.client.config_set("maxmemory", "1")
    try:
        for send in (app.delayq.apply_delayed, lambda name, delay: app.send_task(name, countdown=delay)):
            with pytest.raises(OperationalError, match="Redis is full"):
                send("add", 60)
        assert before == inside.waiting()
    finally:
        inside.client.config_set("maxmemory", "0")


def test_a_foreign_key(app: Celery, inside: Inside) -> None:
    """Somebody's string under a key of ours: the error names the key and delayq_prefix."""
    inside.client.set(inside.keys.schedule("celery"), "mine")

    with pytest.raises(DelayQError, match="schedule:celery is a string.*delayq_prefix"):
        app.send_task("add", countdown=60)

    left = {inside.keys.schedule("celery").encode(), inside.keys.version.encode()}
    assert left == set(inside.client.keys("delayq*"))


def test_a_redis_that_is_gone(app: Celery) -> None:
    """What publishing raises, after the publish retries, is what Celery raises."""
    app.conf.broker_url = "redis://127.0.0.1:1/0"
    app.conf.task_publish_retry_policy = {"max_retries": 1, "interval_start": 0, "interval_step": 0}

    with pytest.raises(OperationalError):
        app.delayq.apply_delayed("add", 60)


def test_a_lost_answer_is_no_second_task(app: Celery, inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection breaks after Redis has stored the job: the retried publish finds it, even with "error"."""
    from redis.connection import Connection

    lose = [True]
    read = Connection.read_response

    def read_response(self: Any, *args: Any, **options: Any) -> Any:
        answer = read(self, *args, **options)
        if isinstance(answer, list) and answer[:1] == [b"OK"] and lose:
            lose.clear()
            raise ConnectionError("the answer is lost")
        return answer

    monkeypatch.setattr(Connection, "read_response", read_response)
    app.delayq.apply_delayed("add", 60, task_id="once")

    assert not lose
    assert inside.one().id == "once"


def test_delayq_is_found_on_the_app(app: Celery) -> None:
    """app.delayq is the DelayQ."""
    assert isinstance(app.delayq, DelayQ)
