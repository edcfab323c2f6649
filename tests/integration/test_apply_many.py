"""apply_many: what apply_at does with each, stored a batch at a time."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import celery
import pytest
from celery import Celery, chain, chord, group, signals
from celery.app.task import Task
from celery.canvas import Signature
from celery.result import AsyncResult, EagerResult, GroupResult
from kombu import Exchange, Producer, Queue
from kombu.common import Broadcast
from kombu.exceptions import EncodeError, OperationalError

from celery_delayq import AlreadyScheduled, DelayQ, ImproperlyConfigured, batch
from celery_delayq.clock import to_us
from celery_delayq.embedded import RedisServer
from celery_delayq.pattern import Pattern

from .conftest import Inside
from .test_parity import OPTIONS, QUEUES

#: Redis is seen through the store, whose own tests run on every version.
ONE_REDIS = True

SOON = datetime(2100, 1, 1, 12, 30, 15, 123456, tzinfo=timezone.utc)
SECOND = timedelta(seconds=1)


@pytest.fixture
def add(app: Celery) -> Any:
    return add_of(app)


def add_of(app: Celery) -> Any:
    @app.task(shared=False, name="add")
    def add(x: int = 0, y: int = 0) -> int:
        return x + y

    return add


@pytest.fixture(autouse=True)
def written(monkeypatch: pytest.MonkeyPatch) -> list[Signature]:
    """The signatures whose messages were written after a pattern."""
    signatures: list[Signature] = []
    apply = Pattern.apply

    def spy(self: Pattern, signature: Signature, moment: datetime) -> Any:
        signatures.append(signature)
        return apply(self, signature, moment)

    monkeypatch.setattr(Pattern, "apply", spy)
    return signatures


@contextmanager
def connected(signal: Any, receiver: Callable[..., None]) -> Iterator[None]:
    signal.connect(receiver)
    try:
        yield
    finally:
        signal.disconnect(receiver)


def body_of(message: dict[str, Any]) -> Any:
    """A JSON message's (args, kwargs, embed)."""
    return json.loads(base64.b64decode(message["body"]))


def test_each_waits_for_its_own_time(app: Celery, add: Any, inside: Inside, written: list[Any]) -> None:
    """Results in the order of the items; each job with its arguments at its time; whatever tells a time will do."""
    whens = [SOON, SOON.replace(tzinfo=None) + SECOND, SOON.timestamp() + 2, SOON + 3 * SECOND, SOON + 4 * SECOND]
    results = app.delayq.apply_many((add.s(number, 1), when) for number, when in enumerate(whens))

    jobs = inside.waiting()
    assert [job.id for job in jobs] == [result.id for result in results]
    assert [job.due_us for job in jobs] == [to_us(SOON + number * SECOND) for number in range(5)]
    assert [body_of(job.message)[0] for job in jobs] == [[number, 1] for number in range(5)]
    assert all(type(result) is type(add.AsyncResult("x")) for result in results)
    assert len(written) == 4


def test_nothing_to_do(app: Celery, inside: Inside) -> None:
    """No items, no results, and nothing is sent."""
    assert app.delayq.apply_many([]) == []
    assert inside.client.keys("delayq*") == []


def test_a_task_stands_for_its_signature(app: Celery, add: Any, inside: Inside) -> None:
    """A task without arguments need not be made a signature."""
    (result,) = app.delayq.apply_many([(add, SOON)])
    assert inside.one().id == result.id


def test_what_waits_runs(app: Celery, add: Any, inside: Inside, run_ready: Callable[..., list[Any]]) -> None:
    """A worker makes of these messages what it makes of any."""
    app.delayq.apply_many((add.s(number, y=1), SOON) for number in range(5))
    inside.hand_over()
    assert run_ready(app) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("registered", [True, False])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_message_is_the_one_of_apply_at(
    make_app: Callable[..., Celery], inside: Inside, name: str, registered: bool
) -> None:
    """Of the first task of a kind and of the next: bodies, headers and properties, queues and priorities."""
    app = make_app(task_queues=QUEUES)
    if registered:
        add_of(app)
    declare(app)

    def signature(**options: Any) -> Signature:
        given = {"args": (1,), "kwargs": {"y": 2}} if registered else {"args": ("it's", None), "kwargs": {"%s": "ü\n"}}
        return app.signature("add", **given).set(**options)

    options = OPTIONS[name]
    by_one = app.delayq.apply_at(signature(**options), SOON)
    expected = {job.topic: bare(job, inside) for job in inside.waiting()}
    assert expected
    inside.client.delete(*inside.client.keys("delayq*"))
    by_many = app.delayq.apply_many((signature(**options), SOON) for _ in range(3))

    jobs = inside.waiting()
    assert len(jobs) == 3 * len(expected)
    assert all(bare(job, inside) == expected[job.topic] for job in jobs)
    tags = {(job.id, job.message["properties"]["delivery_tag"]) for job in jobs}
    assert len(tags) == len({id for id, _ in tags}) == len({tag for _, tag in tags}) == 3
    assert [vars_of(result) for result in by_many] == [vars_of(by_one)] * 3


def declare(app: Celery) -> None:
    """Bind all queues, as a worker would."""
    with app.pool.acquire() as connection:  # the one that will send: it learns the exchanges' types
        for queue in QUEUES:
            queue(connection.default_channel).declare()


def bare(job: Any, inside: Inside) -> tuple[dict[str, Any], Any, int]:
    """A job without what differs from one to the next, once it is certain that this is right."""
    message = job.message
    headers, properties = message["headers"], message["properties"]
    assert {job.id} == {headers.pop("id"), headers.pop("root_id"), properties.pop("correlation_id")}
    assert isinstance(properties.pop("delayq_put"), int)
    assert len(properties.pop("delivery_tag")) == 36
    # The order too: this is what a signature would cover, and what a reader of Redis would see.
    order = [list(message), list(headers), list(properties)]
    return (
        {**message, "order": order},
        inside.client.hget(inside.keys.steps(job.topic), job.id),
        job.due_us // 1_000_000,
    )


def vars_of(result: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(result).items() if name not in ("id", "on_ready")}


@pytest.mark.parametrize(
    ("name", "is_written"),
    [
        *((name, True) for name in ("plain", "queue", "priority 9", "pickle", "gzip and msgpack", "time limits")),
        *((name, False) for name in ("queue object", "headers", "stamps", "property")),
    ],
)
def test_what_is_written_after_a_pattern(
    make_app: Callable[..., Celery], written: list[Any], name: str, is_written: bool
) -> None:
    """Plain options; whatever is more goes all of Celery's way."""
    app = make_app(task_queues=QUEUES)
    declare(app)
    app.delayq.apply_many((app.signature("add", **OPTIONS[name]), SOON) for _ in range(3))
    assert len(written) == (2 if is_written else 0)


def test_kinds_are_told_apart(app: Celery, add: Any, inside: Inside, written: list[Any]) -> None:
    """Tasks and options may change from item to item: each message is of its own kind."""
    options: list[dict[str, Any]] = [{}, {"queue": "post"}, {"priority": 1}, {"priority": True}, {"time_limit": 1.0}]
    kinds = [task.clone().set(**more) for task in (add.s(1), app.signature("other")) for more in options]
    results = app.delayq.apply_many((kind, SOON) for _ in range(2) for kind in kinds)

    jobs = {job.id: job for job in inside.waiting()}
    firsts = [bare(jobs[result.id], inside) for result in results[:10]]
    assert firsts == [bare(jobs[result.id], inside) for result in results[10:]]
    assert [jobs[result.id].topic for result in results[:10]] == (["celery", "post", *["celery"] * 3] * 2)
    assert jobs[results[3].id].message["properties"]["priority"] is True
    assert len(written) == 10


def test_the_attributes_of_a_task(make_app: Callable[..., Celery], inside: Inside) -> None:
    """serializer, on_conflict and so on hold as for apply_at; results are ignored where the task says so."""
    app = make_app()

    @app.task(shared=False, name="set", serializer="yaml", ignore_result=True, time_limit=9)
    def set_() -> None: ...

    @app.task(shared=False, name="kept", on_conflict="keep")
    def kept() -> None: ...

    results = app.delayq.apply_many([(set_.s(), SOON)] * 2 + [(kept.s().set(task_id="once"), SOON)] * 2)

    jobs = inside.waiting()
    assert [job.message["headers"]["timelimit"][0] for job in jobs] == [9, 9, None]
    assert [job.message["content-type"].rpartition("/")[2] for job in jobs] == ["x-yaml", "x-yaml", "json"]
    assert bare(jobs[0], inside) == bare(jobs[1], inside)
    assert [bool(result.ignored) for result in results] == [True, True, False, False]


def test_our_options(app: Celery, add: Any, inside: Inside, written: list[Any]) -> None:
    """late and grace, on_conflict and max_wait of a signature."""
    brief = [(add.s().set(task_id=f"brief {n}", late="drop", grace=60), SOON) for n in range(3)]
    bounded = [(add.s().set(task_id=f"b {n}", on_conflict="replace", max_wait=SECOND), SOON) for n in range(3)]
    app.delayq.apply_many(brief + bounded)

    assert inside.client.hgetall(inside.keys.graces("celery")) == {f"brief {n}".encode(): b"60000000" for n in range(3)}
    assert set(inside.client.hgetall(inside.keys.firsts("celery"))) == {b"b 0", b"b 1", b"b 2"}
    assert all(job.due_us < to_us(SOON) for job in inside.waiting() if job.id.startswith("b "))
    assert len(written) == 4


def test_what_is_past_is_due_now_and_settings_are_not_asked(make_app: Callable[..., Celery], inside: Inside) -> None:
    """As with apply_at: always through the store."""
    app = make_app(delayq_intercept=False, delayq_min_delay=3600, delayq_prefix="mine")
    app.delayq.apply_many([(app.signature("add"), 0), (app.signature("add"), -1), (app.signature("add"), 5)])

    mine = Inside.__new__(Inside)
    mine.__dict__.update(vars(inside), keys=type(inside.keys)("mine", "", 0))
    assert len(mine.waiting()) == 3
    assert inside.waiting() == []


def test_batches(app: Celery, add: Any, inside: Inside) -> None:
    """One call to Redis for each batch; the items are read batch by batch, when those before are stored."""
    app.delayq.apply_at(add, SOON)  # now Redis knows the script
    calls = inside.calls("evalsha")
    stored_at: list[int] = []

    def items() -> Iterator[tuple[Signature, datetime]]:
        for number in range(25):
            if number % 10 == 0:
                stored_at.append(len(inside.waiting()) - 1)
            yield add.s(number), SOON

    results = app.delayq.apply_many(items(), batch_size=10)

    assert stored_at == [0, 10, 20]
    assert inside.calls("evalsha") - calls == 3
    assert [job.id for job in inside.waiting()][1:] == [result.id for result in results]


def test_a_batch_has_bounded_bytes(app: Celery, add: Any, inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large bodies make smaller batches."""
    monkeypatch.setattr(batch, "BATCH_BYTES", 20_000)
    app.delayq.apply_at(add, SOON)
    calls = inside.calls("evalsha")
    app.delayq.apply_many((add.s("x" * 8_000), SOON) for _ in range(6))

    assert inside.calls("evalsha") - calls == 3


@pytest.mark.parametrize(
    ("size", "error"), [(0, ValueError), (-5, ValueError), (2.5, TypeError), ("10", TypeError), (True, TypeError)]
)
def test_a_batch_size_that_cannot_be(app: Celery, size: Any, error: type[Exception]) -> None:
    """The error says what it may be."""
    with pytest.raises(error, match="batch_size must be"):
        app.delayq.apply_many([], batch_size=size)


def test_the_caller_may_publish_while_it_makes_items(make_app: Callable[..., Celery], inside: Inside) -> None:
    """No producer is held while the items are read: even a pool of one is enough."""
    app = make_app(broker_pool_limit=1, broker_pool_acquire_timeout=1)

    def items() -> Iterator[tuple[Signature, datetime]]:
        for number in range(4):
            app.send_task("between", countdown=60)
            yield app.signature("add", (number,)), SOON

    app.delayq.apply_many(items(), batch_size=2)
    assert len(inside.waiting()) == 8


@pytest.mark.parametrize("listening", [False, True])
def test_signals(app: Celery, add: Any, inside: Inside, written: list[Any], listening: bool) -> None:
    """Who listens hears each: before the task is put, and after it, when the batch is stored."""
    heard: list[tuple[str, str, int]] = []

    def before(headers: Any = None, **_: Any) -> None:
        heard.append(("before", headers["id"], len(inside.waiting())))

    def after(headers: Any = None, body: Any = None, routing_key: Any = None, **_: Any) -> None:
        assert (headers["eta"], body[0], routing_key) == (SOON.isoformat(), (1, 2), "celery")
        heard.append(("after", headers["id"], len(inside.waiting())))

    def sent(task_id: Any = None, eta: Any = None, **_: Any) -> None:
        heard.append(("sent", task_id, len(inside.waiting())))

    def send() -> list[str]:
        return [result.id for result in app.delayq.apply_many([(add.s(1, 2), SOON)] * 4, batch_size=2)]

    if not listening:
        send()
        assert (len(written), heard) == (2, [])
        return
    with (
        connected(signals.before_task_publish, before),
        connected(signals.after_task_publish, after),
        connected(signals.task_sent, sent),
    ):
        ids = send()

    assert heard == [
        (word, ids[number], stored)
        for numbers, stored in (((0, 1), 0), ((2, 3), 2))
        for word, number, stored in [
            *(("before", number, stored) for number in numbers),
            *((word, number, stored + 2) for number in numbers for word in ("after", "sent")),
        ]
    ]
    assert written == []


def test_a_handler_may_change_what_is_sent(app: Celery, add: Any, inside: Inside) -> None:
    """What a receiver of before_task_publish sets holds, for each task: headers, another time, or none at all."""
    etas = [SOON.isoformat(), None, (SOON + SECOND).isoformat()]
    after: list[tuple[str | None, int]] = []

    def change(headers: Any = None, **_: Any) -> None:
        headers.update(eta=etas[len(etas) - 3], nth=len(etas) - 3)
        etas.append(etas[len(etas) - 3])

    def told(headers: Any = None, **_: Any) -> None:
        after.append((headers["eta"], len(inside.waiting())))

    with connected(signals.before_task_publish, change), connected(signals.after_task_publish, told):
        app.delayq.apply_many([(add.s(), SOON + 5 * SECOND)] * 3)

    assert [(job.due, job.message["headers"]["nth"]) for job in inside.waiting()] == [(SOON, 0), (SOON + SECOND, 2)]
    assert [message["headers"]["nth"] for message in inside.ready()] == [1]
    # What was sent at once was told at once.
    assert after == [(None, 0), (SOON.isoformat(), 2), ((SOON + SECOND).isoformat(), 2)]


def test_the_sent_event(make_app: Callable[..., Celery], inside: Inside) -> None:
    """task-sent goes out for each, with its eta, once the batch is stored."""
    app = make_app(task_send_sent_event=True)
    with inside.client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.psubscribe("/0.celeryev/*")
        listener.get_message(timeout=5)
        results = app.delayq.apply_many([(app.signature("add"), SOON)] * 3)
        app.delayq.apply_many([(app.signature("add", task_id="twice"), SOON)])
        with pytest.raises(AlreadyScheduled):
            app.delayq.apply_many([(app.signature("add", task_id="twice"), SOON)])
        inside.client.publish("/0.celeryev/end", "{}")
        heard = []
        while (message := listener.get_message(timeout=5)) and message["data"] != b"{}":
            heard.append(json.loads(base64.b64decode(json.loads(message["data"])["body"])))
        heard = [event for event in heard if not isinstance(event, list) and event["type"] == "task-sent"]

    assert [event["uuid"] for event in heard] == [*(result.id for result in results), "twice"]
    assert {(event["eta"], event["queue"], event["name"]) for event in heard} == {(SOON.isoformat(), "celery", "add")}


def test_an_id_that_waits(app: Celery, add: Any, inside: Inside) -> None:
    """AlreadyScheduled: of that batch nothing is stored and nobody is told; the batches before are stored."""
    told: list[str] = []

    def after(headers: Any = None, **_: Any) -> None:
        told.append(headers["id"])

    # Before the first publish: Celery before 5.7 may not notice who comes later.
    with connected(signals.after_task_publish, after):
        app.delayq.apply_at(add, SOON, task_id="5")
        with pytest.raises(AlreadyScheduled) as raised:
            app.delayq.apply_many(((add.s().set(task_id=str(n)), SOON) for n in range(9)), batch_size=4)

    assert raised.value.task_id == "5"
    assert [job.id for job in inside.waiting()] == ["5", "0", "1", "2", "3"]
    assert told == ["5", "0", "1", "2", "3"]
    notes = getattr(raised.value, "__notes__", ["apply_many had stored items[:4] by then"])  # Python 3.11
    assert notes == ["apply_many had stored items[:4] by then"]


def test_repeated_after_an_error(app: Celery, add: Any, inside: Inside) -> None:
    """Ids of one's own and "keep": the second call adds what is missing, and changes nothing else."""
    items = [(add.s(n).set(task_id=str(n), on_conflict="keep"), SOON + n * SECOND) for n in range(9)]
    app.delayq.apply_many(items[:5])
    before = inside.waiting()

    assert [result.id for result in app.delayq.apply_many(items, batch_size=4)] == [str(n) for n in range(9)]
    assert inside.waiting()[:5] == before
    assert len(inside.waiting()) == 9


@pytest.mark.parametrize("on_conflict", ["error", "keep", "replace"])
def test_an_id_that_comes_twice(app: Celery, add: Any, inside: Inside, on_conflict: str) -> None:
    """In one batch as in two: the second is refused, left out, or takes the place of the first."""
    items = [(add.s(n).set(task_id="twice", on_conflict=on_conflict), SOON + n * SECOND) for n in range(3)]
    if on_conflict == "error":
        with pytest.raises(AlreadyScheduled):
            app.delayq.apply_many([(add.s(), SOON), *items])
        assert inside.waiting() == []
        return
    app.delayq.apply_many([(add.s(), SOON), *items])
    assert [body_of(job.message)[0] for job in inside.waiting()] == [[], [0] if on_conflict == "keep" else [2]]


def test_conflicts_of_several_kinds(app: Celery, add: Any, inside: Inside) -> None:
    """Each item by its own word, in their order."""
    words = ["error", "keep", "replace", "keep", "replace"]
    app.delayq.apply_many((add.s(n).set(task_id="one", on_conflict=word), SOON) for n, word in enumerate(words))

    assert body_of(inside.one().message)[0] == [4]


def test_jobs_of_one_time_leave_in_their_order(app: Celery, add: Any, inside: Inside) -> None:
    """Within a batch and from one to the next."""
    app.delayq.apply_many(((add.s(n), SOON) for n in range(300)), batch_size=128)
    inside.hand_over()
    assert [body_of(message)[0] for message in inside.ready()] == [[n] for n in range(300)]


def test_canvas(make_app: Callable[..., Celery], server: RedisServer, inside: Inside) -> None:
    """Chains, groups and chords among the items, and their results: what apply_async returns for them."""
    app = make_app(result_backend=server.url(1))
    add = add_of(app)

    def canvas() -> list[Signature]:  # new ones each time: some keep their ids
        return [
            add.s(),
            chain(add.s(1), add.s(2)),
            group(add.s(n) for n in range(3)),
            chord([add.s(1), add.s(2)], add.si()),
            add.chunks([(1, 1)] * 4, 2),
            add.s(),
        ]

    results = app.delayq.apply_many((signature, SOON) for signature in canvas())

    expected = [app.delayq.apply_at(signature, SOON) for signature in canvas()]
    assert [type(result) for result in results] == [type(result) for result in expected]
    assert isinstance(results[2], GroupResult)
    assert results[1].parent is not None
    waiting = {job.id for job in inside.waiting()}
    assert {results[0].id, results[1].parent.id, results[-1].id, *(child.id for child in results[2])} <= waiting
    assert len(waiting) == 2 * 10


def test_links(app: Celery, add: Any, inside: Inside) -> None:
    """A callback is its signature's alone."""
    app.delayq.apply_many((add.s().set(link=add.s(n)), SOON) for n in range(3))
    callbacks = [body_of(job.message)[2]["callbacks"][0]["args"] for job in inside.waiting()]
    assert callbacks == [[0], [1], [2]]


def test_expires(app: Celery, add: Any, inside: Inside, written: list[Any]) -> None:
    """Seconds until a task expires count from its own publishing."""
    app.delayq.apply_many((add.s().set(expires=60 + n), SOON) for n in range(3))

    @app.task(shared=False, name="brief", expires=60)
    def brief() -> None: ...

    app.delayq.apply_many([(brief.s(), SOON)] * 3)
    messages = [job.message for job in inside.waiting()]
    assert len({message["headers"]["expires"] for message in messages}) == 6
    assert [message["properties"]["expiration"] for message in messages] == ["60000", "61000", "62000", *["60000"] * 3]
    assert written == []


def test_arguments_are_checked(app: Celery, add: Any, inside: Inside) -> None:
    """A call that cannot be is refused as by apply_async, of the first of a kind and of the next; nothing is stored."""
    for good in (0, 1):
        with pytest.raises(TypeError):
            app.delayq.apply_many([*[(add.s(), SOON)] * good, (add.s(1, 2, 3), SOON)])
        with pytest.raises(EncodeError):
            app.delayq.apply_many([*[(add.s(), SOON)] * good, (add.s(object()), SOON)])

    @app.task(shared=False, name="unchecked", typing=False)
    def unchecked() -> None: ...

    app.delayq.apply_many([(unchecked.s(1, 2, 3), SOON)] * 2)

    assert len(inside.waiting()) == 2


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (5, r"items\[2\] must be a pair, \(signature, when\), not 5"),
        ((1, 2, 3), r"items\[2\] must be a pair"),
        (("add", SOON), r"items\[2\] must begin with a signature or a task, not str 'add'"),
        (({"task": "add"}, SOON), r"items\[2\] must begin with a signature or a task, not dict"),
        (("SIGNATURE", SECOND), r"items\[2\]: when must be a datetime or seconds since the epoch, not timedelta"),
        (("SIGNATURE", "2100-01-01"), r"items\[2\]: when must be"),
        (("SIGNATURE", float("nan")), r"items\[2\]: when must be a finite time"),
        (("SIGNATURE", datetime(2300, 1, 1)), r"items\[2\]: 2300-01-01.* is too far ahead"),
    ],
)
def test_an_item_that_cannot_be(app: Celery, add: Any, inside: Inside, item: Any, message: str) -> None:
    """The error names its place; the batches before are stored, and of its own nothing."""
    if isinstance(item, tuple) and item[0] == "SIGNATURE":
        item = (add.s(), item[1])
    error = ValueError if "finite" in message or "far" in message else TypeError
    with pytest.raises(error, match=message):
        app.delayq.apply_many([(add.s(), SOON), (add.s(), SOON), item, (add.s(), SOON)])
    assert inside.client.keys("delayq*") == []
    with pytest.raises(error, match=message):
        app.delayq.apply_many([(add.s(), SOON), (add.s(), SOON), item, (add.s(), SOON)], batch_size=2)
    assert len(inside.waiting()) == 2


def test_an_error_of_who_makes_the_items(app: Celery, add: Any, inside: Inside) -> None:
    """It comes through; the batches before are stored."""

    def items() -> Iterator[tuple[Signature, datetime]]:
        for _ in range(5):
            yield add.s(), SOON
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        app.delayq.apply_many(items(), batch_size=2)
    assert len(inside.waiting()) == 4


def test_a_task_class_of_ones_own(make_app: Callable[..., Celery], inside: Inside, written: list[Any]) -> None:
    """Its apply_async, shadow_name and AsyncResult are called for each."""

    class Own(Task):  # type: ignore[misc]  # Celery is untyped
        abstract = True

        def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
            return super().apply_async(args, kwargs, **{**options, "headers": {"own": args[0]}})

    class Shadowed(Task):  # type: ignore[misc]
        abstract = True

        def shadow_name(self, args: Any, kwargs: Any, options: Any) -> str:
            return f"shadow {args[0]}"

    class Watched(Task):  # type: ignore[misc]
        abstract = True

        def AsyncResult(self, task_id: str, **kwargs: Any) -> Any:  # noqa: N802  # Celery's name
            result = super().AsyncResult(task_id, **kwargs)
            result.watched = True
            return result

    app = make_app()

    def run(n: int) -> None: ...

    tasks = [app.task(shared=False, name=cls.__name__, base=cls)(run) for cls in (Own, Shadowed, Watched)]
    results = app.delayq.apply_many((task.s(n), SOON) for task in tasks for n in range(3))

    headers = [job.message["headers"] for job in inside.waiting()]
    assert [header.get("own") for header in headers[:3]] == [0, 1, 2]
    assert [header["shadow"] for header in headers[3:6]] == ["shadow 0", "shadow 1", "shadow 2"]
    assert all(result.watched for result in results[6:])
    assert written == []


@pytest.mark.parametrize(
    ("owner", "name"),
    [(Task, "apply_async"), (Celery, "send_task"), (Producer, "publish"), (Signature, "apply_async")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_others_put_in_place_is_called(
    app: Celery, add: Any, inside: Inside, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    """Tools that wrap a function of Celery's or Kombu's to watch it see each task."""
    import functools

    stock = getattr(owner, name)
    seen = []

    @functools.wraps(stock)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        seen.append(name)
        return stock(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapper)
    app.delayq.apply_at(add, SOON)
    each = len(seen)
    app.delayq.apply_many([(add.s(), SOON)] * 3)

    assert len(seen) == each + 3
    assert len(inside.waiting()) == 4


def test_ids_of_another_kind(app: Celery, add: Any, inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has given Celery another maker of ids has them here, too."""
    numbers = iter("1234")
    monkeypatch.setattr("celery.app.base.uuid", lambda: f"id {next(numbers)}")
    app.delayq.apply_many([(add.s(), SOON)] * 4)
    assert [job.id for job in inside.waiting()] == ["id 1", "id 2", "id 3", "id 4"]


def test_a_task_that_is_a_class(app: Celery, inside: Inside, written: list[Any]) -> None:
    """Tasks that were registered as objects, without a function to check arguments against."""

    class Adding(Task):  # type: ignore[misc]  # Celery is untyped
        name = "adding"

        def run(self, x: int) -> int:
            return x

    adding = app.register_task(Adding())
    app.delayq.apply_many((adding.s(n), SOON) for n in range(3))
    assert [body_of(job.message)[0] for job in inside.waiting()] == [[0], [1], [2]]
    assert len(written) == 2


def test_a_producer_keeps_its_methods(app: Celery, add: Any, inside: Inside) -> None:
    """A task of the user's that is handed our producer can use it as Kombu's: its batches, too (Kombu 5.7)."""
    if not hasattr(Producer, "batch"):
        pytest.skip("this Kombu has no producer.batch()")

    class Twice(Task):  # type: ignore[misc]  # Celery is untyped
        abstract = True

        def apply_async(self, *args: Any, producer: Any = None, **options: Any) -> Any:
            with producer.batch():
                super().apply_async(*args, producer=producer)
                return super().apply_async(*args, producer=producer, **options)

    twice = app.task(shared=False, name="twice", base=Twice)(add.run)
    app.delayq.apply_many((twice.s(n), SOON) for n in range(3))
    assert (len(inside.waiting()), len(inside.ready())) == (3, 3)


def test_an_app_of_ones_own(make_app: Callable[..., Celery], inside: Inside) -> None:
    """A Celery class with its own send_task is asked for each."""

    class Own(Celery):  # type: ignore[misc]  # Celery is untyped
        def send_task(self, name: str, *args: Any, **options: Any) -> Any:
            return super().send_task(f"own.{name}", *args, **options)

    app = make_app(Own)
    app.delayq.apply_many([(app.signature("add"), SOON)] * 3)
    assert [job.message["headers"]["task"] for job in inside.waiting()] == ["own.add"] * 3


def test_a_replaced_send_task_message(app: Celery, add: Any, inside: Inside) -> None:
    """Who replaces this function of app.amqp is called; then each task is put on its own."""
    stock = app.amqp.send_task_message
    stored: list[int] = []

    def traced(producer: Any, name: str, message: Any, **options: Any) -> Any:
        stored.append(len(inside.waiting()))
        return stock(producer, name, message, **options)

    app.amqp.send_task_message = traced
    app.delayq.apply_many([(add.s(), SOON)] * 3)

    assert stored == [0, 1, 2]
    assert len(inside.waiting()) == 3


def test_routers(make_app: Callable[..., Celery], inside: Inside, written: list[Any]) -> None:
    """Routes by name hold; a router that is a function is asked about each task's arguments."""

    def by_arguments(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **_: Any) -> Any:
        return {"queue": f"q{args[0]}"} if name == "spread" else None

    mapped = make_app(task_routes={"mail.*": "post", "add": {"queue": "sums", "priority": 9}})
    mapped.delayq.apply_many((mapped.signature(name), SOON) for name in ("mail.new", "add") for _ in range(2))
    assert [job.topic for job in inside.waiting()] == ["post", "post", "sums", "sums"]
    assert len(written) == 2
    inside.client.flushdb()

    asked = make_app(task_routes=[by_arguments])
    asked.delayq.apply_many((asked.signature("spread", (n,)), SOON) for n in range(3))
    assert [job.topic for job in inside.waiting()] == ["q0", "q1", "q2"]


def test_one_message_to_several_queues(make_app: Callable[..., Celery], inside: Inside, written: list[Any]) -> None:
    """A route to a topic exchange: each message to all the queues bound for it."""
    route = {"queue": "mail", "exchange": "events", "routing_key": "order.paid"}
    app = make_app(task_queues=QUEUES, task_routes={"add": route})
    declare(app)
    results = app.delayq.apply_many([(app.signature("add"), SOON)] * 3, batch_size=2)

    jobs = inside.waiting()
    assert [(job.topic, job.id) for job in jobs] == [
        (queue, result.id) for queue in ("audit", "mail") for result in results
    ]
    assert len(written) == 1


def test_inside_a_task(make_app: Callable[..., Celery], inside: Inside) -> None:
    """Tasks that a task sends know their root and their parent, its priority if that is wished, and it its children."""
    app = make_app(task_inherit_parent_priority=True)
    add = add_of(app)
    results: list[Any] = []
    children: list[Any] = []

    @app.task(shared=False, name="parent", bind=True)
    def parent(self: Any) -> None:
        results.extend(app.delayq.apply_many([(add.s(n), SOON) for n in range(3)]))
        children.extend(self.request.children)

    from celery._state import _task_stack

    parent.push_request(
        id="its id", root_id="its root", delivery_info={"priority": 7}, children=[], called_directly=False
    )
    _task_stack.push(parent)
    try:
        parent.run()
    finally:
        _task_stack.pop()
        parent.pop_request()

    messages = [job.message for job in inside.waiting()]
    assert [(m["headers"]["root_id"], m["headers"]["parent_id"]) for m in messages] == [("its root", "its id")] * 3
    assert [message["properties"]["priority"] for message in messages] == [7] * 3
    assert children == results


@pytest.mark.parametrize("ignored", [False, True])
def test_the_result_backend_is_told(make_app: Callable[..., Celery], server: RedisServer, ignored: bool) -> None:
    """on_task_call for each task whose result counts, as at any publish."""
    app = make_app(result_backend=server.url(1), task_ignore_result=ignored)
    add = add_of(app)
    told: list[str] = []
    stock = app.backend.on_task_call
    app.backend.on_task_call = lambda producer, task_id: (told.append(task_id), stock(producer, task_id))
    results = app.delayq.apply_many([(add.s(), SOON)] * 3)

    assert told == ([] if ignored else [result.id for result in results])
    del app.backend.on_task_call


def test_results_arrive(
    make_app: Callable[..., Celery], server: RedisServer, inside: Inside, run_ready: Callable[..., list[Any]]
) -> None:
    """A result of apply_many can be waited for."""
    app = make_app(result_backend=server.url(1))
    add = add_of(app)
    results = app.delayq.apply_many((add.s(n, 1), SOON) for n in range(3))
    inside.hand_over()
    run_ready(app)
    assert [result.get(timeout=10) for result in results] == [1, 2, 3]


def test_always_eager(make_app: Callable[..., Celery]) -> None:
    """task_always_eager runs each at once and in place, without a broker."""
    app = make_app(task_always_eager=True, broker_url="redis://127.0.0.1:1/0")
    add = add_of(app)
    results = app.delayq.apply_many((add.s(n, 1), SOON) for n in range(3))

    assert all(isinstance(result, EagerResult) for result in results)
    assert [result.get() for result in results] == [1, 2, 3]


def test_protocol_1(make_app: Callable[..., Celery], inside: Inside) -> None:
    """Left to stock Celery, as by apply_at."""
    app = make_app(task_protocol=1)
    app.delayq.apply_many([(app.signature("add"), SOON)] * 3)
    assert (inside.waiting(), len(inside.ready())) == ([], 3)


def test_a_broadcast(make_app: Callable[..., Celery], inside: Inside) -> None:
    """A fanout exchange has no queue to wait for: sent at once, each with its eta."""
    app = make_app(task_queues=[Broadcast("all"), Queue("celery")])
    with app.producer_or_acquire() as producer:  # as a worker has: Kombu takes an exchange it does not know for direct
        producer.channel.exchange_declare("all", type="fanout")
    with inside.client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.psubscribe("/0.all*")
        listener.get_message(timeout=5)
        app.delayq.apply_many([(app.signature("add", queue="all"), SOON)] * 2 + [(app.signature("add"), SOON)])
        heard = [json.loads(listener.get_message(timeout=5)["data"]) for _ in range(2)]

    assert [message["headers"]["eta"] for message in heard] == [SOON.isoformat()] * 2
    assert len(inside.waiting()) == 1


def test_another_broker(make_app: Callable[..., Celery]) -> None:
    """A broker that is not Redis: refused."""
    app = make_app(broker_url="memory://")
    with pytest.raises(ImproperlyConfigured, match="broker_url"):
        app.delayq.apply_many([(app.signature("add"), SOON)])


def test_no_queue_is_bound(app: Celery) -> None:
    """What Kombu would drop is refused."""
    nobody = {"exchange": Exchange("nobody", type="topic"), "routing_key": "x.y"}
    with pytest.raises(ImproperlyConfigured, match="no queue is bound"):
        app.delayq.apply_many([(app.signature("add", **nobody), SOON)] * 2)


def test_tasks_of_other_apps_and_connections_of_ones_own(
    make_app: Callable[..., Celery], server: RedisServer, inside: Inside
) -> None:
    """A signature goes to its own app's broker, or over the connection that it names."""
    app, other = make_app(), make_app(broker_url=server.url(5))
    add = add_of(other)
    with other.connection_for_write() as connection:
        named = [(app.signature("named", connection=connection), SOON)] * 2
        app.delayq.apply_many([(app.signature("ours"), SOON), (add.s(), SOON), (add.s(), SOON), *named])

    assert inside.one().message["headers"]["task"] == "ours"
    theirs = [job.message["headers"]["task"] for job in Inside(server, database=5).waiting()]
    assert theirs == ["add", "add", "named", "named"]


def test_signing(make_app: Callable[..., Celery], inside: Inside, tmp_path: Path) -> None:
    """Signed messages: each body carries a signature of its own, and it verifies."""
    from kombu.serialization import enable_insecure_serializers, loads

    from .certificates import write_certificate

    certificate, key = write_certificate(tmp_path)
    app = make_app(
        security_key=str(key),
        security_certificate=str(certificate),
        security_cert_store=f"{tmp_path}/*.crt",
        task_serializer="auth",
        event_serializer="auth",
        accept_content=["auth"],
    )
    app.set_current()
    try:
        app.setup_security()
        app.delayq.apply_many((app.signature("add", (n,)), SOON) for n in range(3))
        inside.hand_over()
        bodies = [
            loads(
                base64.b64decode(message["body"]),
                message["content-type"],
                message["content-encoding"],
                accept={"application/data"},
            )
            for message in inside.ready()
        ]
    finally:
        enable_insecure_serializers(["json", "msgpack", "pickle", "yaml"])
        app.set_default()
    assert [body[0] for body in bodies] == [[0], [1], [2]]


def test_a_redis_that_is_gone(app: Celery, add: Any) -> None:
    """After the publish retries: what Celery raises."""
    app.conf.broker_url = "redis://127.0.0.1:1/0"
    app.conf.task_publish_retry_policy = {"max_retries": 1, "interval_start": 0, "interval_step": 0}

    with pytest.raises(OperationalError):
        app.delayq.apply_many([(add.s(), SOON)] * 3)


@pytest.mark.parametrize("retry", [True, False])
def test_a_connection_that_breaks(
    app: Celery, add: Any, inside: Inside, monkeypatch: pytest.MonkeyPatch, retry: bool
) -> None:
    """The put is sent again as Celery's publish is; not if the app, or a signature, says that nothing shall be."""
    app.conf.task_publish_retry_policy = {"max_retries": 1, "interval_start": 0, "interval_step": 0}
    lost = break_puts(monkeypatch, before=True, times=1)
    items = [(add.s(n).set(retry=retry), SOON) for n in range(3)]
    if retry:
        app.delayq.apply_many(items)
        assert len(inside.waiting()) == 3
    else:
        with pytest.raises(OperationalError):
            app.delayq.apply_many(items)
        assert inside.waiting() == []
    assert lost


def test_a_lost_answer_is_no_second_task(
    app: Celery, add: Any, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks after Redis has stored a batch: sent again, it is found to be there, even with "error"."""
    lost = break_puts(monkeypatch, before=False, times=1)
    results = app.delayq.apply_many((add.s().set(task_id=str(n)), SOON) for n in range(5))

    assert lost
    assert [job.id for job in inside.waiting()] == [result.id for result in results]


def break_puts(monkeypatch: pytest.MonkeyPatch, *, before: bool, times: int) -> list[str]:
    """Break the connection of the next puts, before they are sent or after Redis has answered; returns those broken."""
    from redis.connection import Connection

    broken: list[str] = []
    send, read = Connection.send_packed_command, Connection.read_response

    def send_packed_command(self: Any, command: Any, *args: Any, **options: Any) -> Any:
        if before and len(broken) < times and any(b"delayq_due" in part for part in command):
            broken.append("put")
            raise ConnectionError("it breaks")
        return send(self, command, *args, **options)

    def read_response(self: Any, *args: Any, **options: Any) -> Any:
        answer = read(self, *args, **options)
        if not before and len(broken) < times and isinstance(answer, list) and answer[:1] == [b"OK"]:
            broken.append("answer")
            raise ConnectionError("the answer is lost")
        return answer

    monkeypatch.setattr(Connection, "send_packed_command", send_packed_command)
    monkeypatch.setattr(Connection, "read_response", read_response)
    return broken


def test_a_full_redis(app: Celery, add: Any, inside: Inside) -> None:
    """maxmemory without eviction: the batch fails as publishing does, and nothing half is left."""
    app.delayq.apply_at(add, SOON)
    before = inside.waiting()
    inside.client.config_set("maxmemory", "1")
    try:
        with pytest.raises(OperationalError, match="Redis is full"):
            app.delayq.apply_many([(add.s(), SOON)] * 3)
        assert inside.waiting() == before
    finally:
        inside.client.config_set("maxmemory", "0")


def test_a_delayq_needs_no_other_app(make_app: Callable[..., Celery], inside: Inside) -> None:
    """Signatures of a name alone, without an app, are the current app's, as everywhere in Celery."""
    app = make_app(joined=False)
    delayq = DelayQ(app)
    app.set_current()
    try:
        results = delayq.apply_many((celery.signature("add", (n,)), SOON) for n in range(3))
    finally:
        app.set_default()
    assert all(isinstance(result, AsyncResult) for result in results)
    assert len(inside.waiting()) == 3
