"""Revoke means revoke: what waits is gone at once, with no worker online, and all the world is told of it, once."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, chord, group
from celery.app.control import Control
from celery.exceptions import TaskRevokedError
from celery.worker.request import Request
from kombu.exceptions import OperationalError
from kombu.transport.virtual import Message

from celery_delayq import DelayQ
from celery_delayq.delivery import Delivery
from celery_delayq.embedded import RedisServer
from celery_delayq.job import Aside, Put
from celery_delayq.message import DUE_PROPERTY

from .conftest import Inside
from .hearing import Ear, listening, signalled
from .worker import Project, wait_for

FAR = 86_400.0


@pytest.fixture
def app(make_app: Callable[..., Celery], server: RedisServer) -> Celery:
    app = make_app(result_backend=server.url(1))

    @app.task(shared=False, name="add")
    def add(x: int = 0, y: int = 0) -> int:
        return x + y

    @app.task(shared=False, name="collect")
    def collect(values: list[int]) -> int:
        return sum(values)

    return app


@pytest.fixture
def ear(app: Celery, server: RedisServer) -> Iterator[Ear]:
    with listening(app, server) as ear:
        yield ear


@pytest.fixture
def signals() -> Iterator[list[dict[str, Any]]]:
    with signalled() as calls:
        yield calls


def aside(inside: Inside) -> int:
    """How many jobs lie aside, their end untold."""
    return int(inside.client.zcard(inside.keys.aside)) + int(inside.client.hlen(inside.keys.remains))


@pytest.mark.parametrize(
    "revoke",
    [
        pytest.param(lambda app, result: result.revoke(), id="AsyncResult"),
        pytest.param(lambda app, result: result.revoke(wait=True, timeout=0.1), id="wait"),
        pytest.param(lambda app, result: result.revoke(terminate=True), id="AsyncResult-terminate"),
        pytest.param(lambda app, result: app.control.revoke(result.id), id="control"),
        pytest.param(lambda app, result: app.control.revoke([result.id, "unknown"]), id="list"),
        pytest.param(lambda app, result: app.control.revoke([result.id, result.id]), id="twice"),
        pytest.param(lambda app, result: app.control.revoke(result.id, destination=["a@b"]), id="destination"),
        pytest.param(lambda app, result: app.control.terminate(result.id), id="terminate"),
        pytest.param(lambda app, result: app.control.broadcast("revoke", task_id=result.id), id="broadcast"),
        pytest.param(lambda app, result: app.control.broadcast("revoke", {"task_id": result.id}), id="arguments"),
        pytest.param(lambda app, result: app.delayq.cancel(result.id), id="cancel"),
    ],
)
def test_what_waits_is_revoked(
    app: Celery, inside: Inside, ear: Ear, signals: list[dict[str, Any]], revoke: Callable[[Celery, Any], object]
) -> None:
    """However a task is revoked, with no worker there: it waits no more, its result says so, all are told once."""
    result = app.tasks["add"].apply_async((1, 2), countdown=FAR)
    other = app.tasks["add"].apply_async((3, 4), countdown=FAR)
    revoke(app, result)

    assert inside.one().id == other.id
    assert aside(inside) == 0
    assert result.state == "REVOKED"
    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get(timeout=1)
    assert other.state == "PENDING"
    assert ear.revoked() == [(result.id, False)]
    (call,) = signals
    assert call["sender"] is app.tasks["add"]
    assert (call["request"].id, call["request"].args) == (result.id, [1, 2])
    assert (call["terminated"], call["signum"], call["expired"]) == (False, None, False)

    revoke(app, result)
    assert ear.revoked() == [(result.id, False)]
    assert len(signals) == 1


def test_revoke_returns_what_celery_returns(app: Celery) -> None:
    """Without a wait nothing; with one the replies of the workers, of which there are none."""
    result = app.tasks["add"].apply_async(countdown=FAR)

    assert app.control.revoke(result.id) is None
    assert app.control.revoke(result.id, reply=True, timeout=0.1) == []
    assert app.control.ping(timeout=0.1) == []


def test_the_signal_shows_the_request_that_a_worker_would_show(
    app: Celery, inside: Inside, signals: list[dict[str, Any]]
) -> None:
    """Field by field: id, arguments, eta, links, chord, headers of one's own, delivery information."""
    signature = app.tasks["add"].s(1, y=2).set(link=app.tasks["collect"].s(), headers={"own": "header"}, priority=3)
    signature.apply_async(countdown=FAR, expires=2 * FAR, time_limit=5, queue="mail")
    payload = json.loads(inside.one().raw)
    payload["headers"]["eta"] = payload["properties"][DUE_PROPERTY]
    with app.connection_for_read() as connection, connection.channel() as channel:
        message = Message(payload, channel)
        message.accept = None
        stock = Request(message, app=app)._context
    app.delayq.cancel(stock.id)

    ours = vars(signals[0]["request"])
    assert {**ours, "hostname": ""} == {**vars(stock), "hostname": "", "_children": ours["_children"]}


def test_a_group_is_revoked(app: Celery, inside: Inside, ear: Ear, signals: list[dict[str, Any]]) -> None:
    """GroupResult.revoke takes back each of its tasks, however many."""
    result = group(app.tasks["add"].s(n, n) for n in range(250)).apply_async(countdown=FAR)
    assert len(inside.waiting()) == 250
    result.revoke()

    assert inside.waiting() == []
    assert {part.state for part in result} == {"REVOKED"}
    assert ear.revoked() == sorted((part.id, False) for part in result)
    assert sorted(call["request"].id for call in signals) == sorted(part.id for part in result)


def start_chord(app: Celery) -> tuple[str, list[str]]:
    """A chord of two parts that wait; its id and theirs. No results: Celery logs a chord's failure with its traceback,
    and the log would keep them until their backend is gone.
    """
    result = chord(app.tasks["add"].s(n, n).set(countdown=FAR) for n in (1, 2))(app.tasks["collect"].s())
    return result.id, [part.id for part in result.parent]


def test_a_part_of_a_chord_is_revoked(app: Celery, inside: Inside, run_ready: Callable[..., list[Any]]) -> None:
    """The chord learns of it, as it learns of a failed part: its body fails, and nobody waits for ever."""
    body, (first, second) = start_chord(app)
    app.control.revoke(first)
    assert app.AsyncResult(body).state == "PENDING"
    inside.hand_over()
    run_ready(app)

    assert [app.AsyncResult(part).state for part in (first, second)] == ["REVOKED", "SUCCESS"]
    assert app.AsyncResult(body).state == "FAILURE"


def test_all_parts_of_a_chord_are_revoked(app: Celery, inside: Inside) -> None:
    """The last of them fails the body."""
    body, parts = start_chord(app)
    app.control.revoke(parts)

    assert inside.waiting() == []
    assert app.AsyncResult(body).state == "FAILURE"


@pytest.mark.parametrize(
    ("headers", "meant"),
    [
        pytest.param({"customer": "A"}, [0, 2], id="one-value"),
        pytest.param({"customer": ["A", "B"]}, [0, 1, 2], id="any-value"),
        pytest.param({"customer": "B", "run": [7]}, [1, 2], id="any-header"),
        pytest.param(["customer=B"], [1], id="words-of-a-command-line"),
        pytest.param({"customer": "C"}, [], id="unknown-value"),
        pytest.param({"nobody": "A"}, [], id="unknown-header"),
        pytest.param({}, [], id="nothing"),
    ],
)
def test_stamped_tasks_are_revoked(
    app: Celery, inside: Inside, ear: Ear, signals: list[dict[str, Any]], headers: Any, meant: list[int]
) -> None:
    """Every waiting task that has any of the stamps, as Celery's worker matches them; no other."""
    add = app.tasks["add"]
    stamps: list[dict[str, Any]] = [{"customer": "A"}, {"customer": ["B", "D"]}, {"customer": ["A"], "run": 7}, {}]
    ids = []
    for number, given in enumerate(stamps):
        signature = add.s(number)
        if given:
            signature.stamp(**given)
        ids.append(signature.apply_async(countdown=FAR).id)
    ids.append(add.apply_async(countdown=FAR, headers={"customer": "A"}).id)  # a header, not a stamp
    app.control.revoke_by_stamped_headers(headers)

    expected = sorted(ids[number] for number in meant)
    assert sorted({*ids} - {job.id for job in inside.waiting()}) == expected
    assert [id for id, _ in ear.revoked()] == expected
    assert sorted(call["request"].id for call in signals) == expected
    assert {app.AsyncResult(id).state for id in expected} <= {"REVOKED"}


@pytest.mark.parametrize("command", [["revoke"], ["terminate", "KILL"]])
def test_the_command_line_revokes(
    app: Celery, server: RedisServer, inside: Inside, ear: Ear, command: list[str]
) -> None:
    """``celery control revoke`` takes back what waits, though no worker answers it."""
    results = [app.tasks["add"].apply_async(countdown=FAR) for _ in range(2)]
    with Project(server.url(), result_backend=server.url(1)) as project:
        ids = [result.id for result in results]
        said = project.celery("control", "--timeout", "0.1", *command, *ids)

    assert "No nodes replied" in said.stderr + said.stdout
    assert inside.waiting() == []
    assert [result.state for result in results] == ["REVOKED", "REVOKED"]
    assert ear.revoked() == sorted((result.id, False) for result in results)


def test_an_ignored_result_stays_ignored(app: Celery, ear: Ear) -> None:
    """Where a worker would store nothing, nothing is stored, unless errors shall be; the event comes in any case."""

    @app.task(shared=False, ignore_result=True, store_errors_even_if_ignored=True)
    def errors() -> None: ...

    @app.task(shared=False, ignore_result=True)
    def ignores() -> None: ...

    of_message = app.tasks["add"].apply_async(countdown=FAR, ignore_result=True)
    of_task, but_errors = ignores.apply_async(countdown=FAR), errors.apply_async(countdown=FAR)
    app.delayq.cancel(of_message.id, of_task.id, but_errors.id)

    states = [app.AsyncResult(result.id).state for result in (of_message, of_task, but_errors)]
    assert states == ["PENDING", "PENDING", "REVOKED"]
    assert len(ear.revoked()) == 3


def test_a_task_that_is_not_registered_here(app: Celery, ear: Ear, signals: list[dict[str, Any]]) -> None:
    """A process that only sends tasks by name marks them all the same; the signal's sender is the name."""
    result = app.send_task("elsewhere", (1,), countdown=FAR)
    result.revoke()

    assert result.state == "REVOKED"
    assert ear.revoked() == [(result.id, False)]
    assert (signals[0]["sender"], signals[0]["request"].args) == ("elsewhere", [1])


def test_a_task_that_sends_no_events_sends_none(app: Celery, ear: Ear) -> None:
    """``send_events = False`` holds here as in a worker."""

    @app.task(shared=False, send_events=False)
    def silent() -> None: ...

    result = silent.apply_async(countdown=FAR)
    result.revoke()

    assert result.state == "REVOKED"
    assert ear.revoked() == []


def test_a_backend_of_the_tasks_own(app: Celery, server: RedisServer, make_app: Callable[..., Celery]) -> None:
    """A task that has another result backend is marked there."""
    own = make_app(result_backend=server.url(2))

    @app.task(shared=False, backend=own.backend)
    def elsewhere() -> None: ...

    result = elsewhere.apply_async(countdown=FAR)
    result.revoke()

    assert own.AsyncResult(result.id).state == "REVOKED"
    assert app.AsyncResult(result.id).state == "PENDING"


def test_without_a_result_backend(make_app: Callable[..., Celery], server: RedisServer, inside: Inside) -> None:
    """There is nothing to mark; event and signal come."""
    app = make_app()
    with listening(app, server) as ear, signalled() as signals:
        result = app.send_task("add", countdown=FAR)
        result.revoke()
        assert ear.revoked() == [(result.id, False)]

    assert inside.waiting() == []
    assert len(signals) == 1


def test_what_is_no_message_holds_up_nobody(
    app: Celery, inside: Inside, ear: Ear, signals: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """Foreign bytes, half a message, a chord that is none: each is marked by its id, the others as ever."""
    good = app.tasks["add"].apply_async((1, 2), countdown=FAR)
    message = json.loads(inside.one().raw)
    headers, properties = message["headers"], message["properties"]
    bodies: dict[str, object] = {
        "list": [],
        "no-headers": {},
        "odd-headers": {**message, "headers": 3},
        "odd-properties": {**message, "properties": {"delivery_info": 7}},
        "no-task": {**message, "headers": {}},
        "no-body": {"headers": headers, "properties": properties},
        "odd-body": {**message, "body": "not base64"},
        "odd-type": {**message, "content-type": "application/x-unknown"},
        "unwanted": {**message, "content-type": "application/x-python-serialize"},
        "odd-encoding": {**message, "properties": {**properties, "body_encoding": "rot13"}},
        "odd-value": {**message, "headers": {"task": {"__type__": "decimal", "__value__": "x"}}},
        "odd-stamps": {**message, "headers": {**headers, "stamps": 7, "timelimit": 7, "ignore_result": None}},
    }
    jobs = [Put("celery", id, json.dumps(body).encode(), in_us=10**12) for id, body in bodies.items()]
    jobs.append(Put("celery", "bytes", b"\xff\x00", in_us=10**12))
    inside.store.put(jobs, {"celery": Delivery.plain("celery")})
    ids = [*bodies, "bytes", good.id]
    with caplog.at_level(logging.WARNING, "celery_delayq"):
        assert app.delayq.cancel(*ids) == len(ids)

    assert {app.AsyncResult(id).state for id in ids} == {"REVOKED"}
    assert ear.revoked() == sorted((id, False) for id in ids)
    assert sorted(call["request"].id for call in signals) == sorted(ids)
    assert aside(inside) == 0
    assert "'bytes' ends by its id alone" in caplog.text
    assert "'unwanted' ends without its arguments" in caplog.text


def test_an_id_that_is_no_text_holds_up_nobody(app: Celery, ear: Ear, caplog: pytest.LogCaptureFixture) -> None:
    """Another program's binary id cannot be a result's key: that is logged, the others are told as ever."""
    with caplog.at_level(logging.INFO, "celery_delayq"):
        app.delayq.finisher._finish([Aside("late", "\udcff", b"{}"), Aside("late", "good", b"{}")])

    assert app.AsyncResult("good").state == "REVOKED"
    assert ear.revoked() == [("good", True), ("\udcff", True)]
    assert "cannot be marked" in caplog.text
    assert "discarded late task: None[\\udcff]" in caplog.text


def test_a_mark_that_cannot_be_made_holds_up_nobody(
    app: Celery, inside: Inside, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An id or a chord that the backend chokes on is logged; the others are marked."""
    mark = app.backend.mark_as_revoked

    def choke(task_id: str, *args: Any, **options: Any) -> None:
        if task_id == "odd":
            raise TypeError("odd")
        mark(task_id, *args, **options)

    monkeypatch.setattr(app.backend, "mark_as_revoked", choke)
    app.send_task("add", countdown=FAR, task_id="odd")
    result = app.send_task("add", countdown=FAR)
    app.delayq.cancel("odd", result.id)

    assert result.state == "REVOKED"
    assert aside(inside) == 0
    assert "the result of task 'odd' cannot be marked" in caplog.text


def test_an_id_in_two_queues_is_told_once(app: Celery, inside: Inside, ear: Ear, signals: list[Any]) -> None:
    """A topic exchange can have put it into both; it is one task for all who look at its id."""
    for queue in ("a", "b"):
        app.send_task("add", countdown=FAR, task_id="both", queue=queue)
    app.control.revoke("both")

    assert inside.waiting() == []
    assert ear.revoked() == [("both", False)]
    assert len(signals) == 1


def test_cancel_leaves_the_id_free(app: Celery, inside: Inside, run_ready: Callable[..., list[Any]]) -> None:
    """Workers are told nothing of it: a new task of the same id runs."""
    app.tasks["add"].apply_async((1, 2), countdown=FAR, task_id="mine")
    assert app.delayq.cancel("mine") == 1
    app.tasks["add"].apply_async((1, 2), countdown=FAR, task_id="mine")
    inside.hand_over()

    assert run_ready(app) == [3]
    assert app.AsyncResult("mine").state == "SUCCESS"


def test_cancel_needs_one_connection_only(make_app: Callable[..., Celery], server: RedisServer) -> None:
    """``broker_pool_limit=1``: nothing waits for a second one."""
    app = make_app(broker_pool_limit=1, result_backend=server.url(1))
    result = app.send_task("add", countdown=FAR)

    assert app.delayq.cancel(result.id) == 1
    assert result.state == "REVOKED"


def test_a_backend_that_is_away_loses_no_mark(
    make_app: Callable[..., Celery], server: RedisServer, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller sees the error, the task never runs, the workers are told, and the mark is made up for; once."""
    app = make_app(result_backend=server.url(1))
    with listening(app, server) as ear, signalled() as signals:
        result = app.send_task("add", countdown=FAR)
        with monkeypatch.context() as patch:

            def away(*args: Any, **options: Any) -> None:
                raise ConnectionError("away")

            patch.setattr(app.backend, "store_result", away)
            sent = []
            patch.setattr(app.control.mailbox, "_broadcast", lambda *args, **options: sent.append(args[:2]))
            patch.setattr(app.control, "mailbox", lambda connection, mailbox=app.control.mailbox: mailbox)
            with pytest.raises((ConnectionError, OperationalError), match="away"):
                result.revoke()
            assert [command for command, _ in sent] == ["revoke"]
        assert inside.waiting() == []
        assert aside(inside) > 0
        assert ear.revoked() == []

        inside.client.zadd(inside.keys.aside, {f"revoked:{result.id}": 0})  # the lease is over
        app.delayq.finisher.begin()
        wait_for(lambda: not app.delayq.finisher.running, "the finisher has nothing left to do")
        assert aside(inside) == 0
        assert result.state == "REVOKED"
        assert ear.revoked() == [(result.id, False)]
        assert len(signals) == 1


def test_a_broker_that_is_not_redis_is_left_to_celery(make_app: Callable[..., Celery]) -> None:
    """Nothing waits with us there; the broadcast goes out, and nothing is raised."""
    app = make_app(broker_url="memory://")

    assert app.control.revoke("some", reply=True, timeout=0.1) == []
    assert app.control.revoke_by_stamped_headers({"customer": "A"}, reply=True, timeout=0.1) == []


def test_redis_away(make_app: Callable[..., Celery], own_server: RedisServer) -> None:
    """The error is the one that Celery's own revoke raises."""
    url = own_server.url()
    own_server.stop()
    conf = {"broker_url": url, "task_publish_retry_policy": {"max_retries": 1, "interval_start": 0, "interval_max": 0}}
    errors = []
    for joined in (True, False):
        app = make_app(joined=joined, **conf)
        for revoke in (
            lambda app: app.control.revoke("x"),
            lambda app: app.control.revoke_by_stamped_headers({"a": 1}),
        ):
            with pytest.raises(OperationalError) as caught:
                revoke(app)
            errors.append(caught.type)

    assert set(errors) == {OperationalError}


class OwnControl(Control):  # type: ignore[misc]  # Celery is untyped
    """A control of the user's, which counts."""

    broadcasts = 0

    def broadcast(self, *args: Any, **options: Any) -> Any:
        OwnControl.broadcasts += 1
        return super().broadcast(*args, **options)


class OwnCelery(Celery):  # type: ignore[misc]  # Celery is untyped
    control_cls = f"{__name__}:OwnControl"


def test_before_and_after_control_exists(make_app: Callable[..., Celery], inside: Inside) -> None:
    """It does not matter whether app.control was made, or even used, before; nor whether DelayQ(app) is said twice."""
    fresh, used = make_app(joined=False), make_app(joined=False)
    used.control.ping(timeout=0.01)
    for app in (fresh, used):
        DelayQ(app)
        DelayQ(app)
        assert ("control" in vars(app)) is (app is used)
        app.send_task("add", countdown=FAR).revoke()
        DelayQ(app)
        app.send_task("add", countdown=FAR).revoke()
        assert len([cls for cls in type(app.control).__mro__ if cls.__name__ == "_Joined"]) == 1

    assert inside.waiting() == []


def test_a_control_of_ones_own(make_app: Callable[..., Celery], inside: Inside) -> None:
    """Custom classes keep their methods and isinstance."""
    app = make_app(OwnCelery)
    before = OwnControl.broadcasts
    app.send_task("add", countdown=FAR).revoke()

    assert isinstance(app.control, OwnControl)
    assert OwnControl.broadcasts == before + 1
    assert inside.waiting() == []


def test_a_copy_of_the_app_has_celery_s_own_control(make_app: Callable[..., Celery]) -> None:
    """An app can be pickled, before and after its control was used; the copy is a stock app."""
    app = make_app()
    for _ in range(2):
        copy = pickle.loads(pickle.dumps(app))
        assert type(copy.control) is Control
        app.control.ping(timeout=0.01)
