"""Producers that find no dispatcher: they say so, and with ``delayq_fallback="native"`` publish the stock way."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery, group, signals

from celery_delayq import AlreadyScheduled
from celery_delayq.clock import to_us
from celery_delayq.events import Events

from .conftest import Inside
from .test_parity import OPTIONS, QUEUES, bind_everything, everything_ready
from .worker import wait_for

#: Redis is seen through the store, whose own tests run on every version.
ONE_REDIS = True

#: When an explicit time is due.
THEN = datetime(2100, 1, 1, 12, 30, 15, 123456, tzinfo=timezone.utc)


@pytest.fixture
def native(make_app: Callable[..., Celery]) -> Celery:
    """An app that publishes the stock way while no dispatcher lives; and none does."""
    return make_app(delayq_fallback="native")


def beat(inside: Inside, ago: float = 0.0) -> None:
    """A dispatcher has given its last sign of life so many seconds ago."""
    inside.client.set(inside.keys.beat, round((time.time() - ago) * 1_000_000))


def test_a_producer_that_finds_no_dispatcher_says_so(app: Celery, inside: Inside, caplog: Any) -> None:
    """Without the fallback the task is put all the same: it is said once, and counted each time."""
    for _ in range(3):
        app.send_task("add", countdown=60)
    app.delayq.apply_at("add", THEN)
    app.delayq.apply_many([(app.signature("add"), THEN)] * 2)

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no dispatcher has been seen in this Redis yet: 1 delayed task put" in caplog.text
    assert app.delayq.unattended == 6
    assert len(inside.waiting()) == 6


def test_a_dispatcher_that_is_absent_for_seconds_is_not_missed(app: Celery, inside: Inside, caplog: Any) -> None:
    """A deploy that stops every worker for 25 seconds makes no noise."""
    beat(inside, ago=25)
    app.send_task("add", countdown=60)

    assert caplog.records == []
    assert app.delayq.unattended == 0


def test_a_dispatcher_of_this_app_is_a_live_one(native: Celery, inside: Inside) -> None:
    """Its first look is a sign of life; from then on everything waits in the store."""
    dispatcher = native.delayq.dispatcher()
    dispatcher.start()
    try:
        wait_for(lambda: inside.client.exists(inside.keys.beat), "a dispatcher gives a sign of life")
        native.send_task("add", countdown=60)
    finally:
        dispatcher.stop()

    assert len(inside.waiting()) == 1
    assert inside.ready() == []


@pytest.mark.parametrize("name", OPTIONS)
def test_the_stock_way_is_that_of_stock_celery(make_app: Callable[..., Celery], inside: Inside, name: str) -> None:
    """Queue, key, body, headers with their eta and properties: sent alone, or in a batch that was made already."""
    options = {"task_id": "the-id", "reply_to": "us", **OPTIONS[name]}
    stock, ours = make_app(joined=False, task_queues=QUEUES), make_app(task_queues=QUEUES, delayq_fallback="native")
    bind_everything(ours)
    pushed = []
    for send in (
        lambda: stock.send_task("tasks.add", (1, 2), {}, **options, eta=THEN),
        lambda: ours.send_task("tasks.add", (1, 2), {}, **options, eta=THEN),
        lambda: ours.delayq.apply_many([(ours.signature("tasks.add", (1, 2), {}, **options), THEN)]),
    ):
        send()
        pushed.append(everything_ready(inside))
        inside.client.delete(*pushed[-1])

    assert pushed[0] == pushed[1] == pushed[2]
    assert inside.waiting() == []


def test_signals_are_sent_once(native: Celery, inside: Inside) -> None:
    """Whatever way a task goes, it is published once."""
    before, after = [], []
    signals.before_task_publish.connect(before_seen := lambda **_: before.append(1))
    signals.after_task_publish.connect(after_seen := lambda **_: after.append(1))
    try:
        native.send_task("add", countdown=60)
        native.delayq.apply_many([(native.signature("add"), THEN)] * 3)
    finally:
        signals.before_task_publish.disconnect(before_seen)
        signals.after_task_publish.disconnect(after_seen)

    assert (len(before), len(after)) == (4, 4)
    assert len(inside.ready()) == 4


def test_every_way_that_names_us_goes_native_too(native: Celery, inside: Inside) -> None:
    """apply_at, apply_delayed and a group carry an eta, past or not, so stock Celery can take them."""
    delayq = native.delayq
    delayq.apply_at("add", THEN, task_id="at")
    delayq.apply_delayed("add", 90, task_id="delayed")
    delayq.apply_at("add", datetime.now(timezone.utc) - timedelta(days=1), task_id="past")
    delayq.apply_at(group(native.signature("add", task_id="one"), native.signature("add", task_id="two")), THEN)

    etas = {message["headers"]["id"]: message["headers"]["eta"] for message in inside.ready()}
    assert set(etas) == {"at", "delayed", "past", "one", "two"}
    assert {etas["at"], etas["one"], etas["two"]} == {THEN.isoformat()}
    assert inside.waiting() == []
    assert delayq.unattended == 5


def test_who_waits_already_is_not_doubled(native: Celery, inside: Inside) -> None:
    """While the dispatchers were here a task was put; now it is replaced, kept or refused, and never sent beside it."""
    beat(inside)
    native.delayq.apply_at("add", THEN, task_id="a")
    beat(inside, ago=3600)

    later = THEN + timedelta(days=1)
    native.send_task("add", eta=later, task_id="a")
    native.delayq.apply_at("add", THEN, task_id="a", on_conflict="keep")
    with pytest.raises(AlreadyScheduled):
        native.delayq.apply_at("add", THEN, task_id="a")

    assert to_us(later) == inside.one().due_us
    assert inside.ready() == []


def test_priorities_and_prefixes_of_a_batch(make_app: Callable[..., Celery], inside: Inside) -> None:
    """What is pushed after the store's refusal lands where the broker's own options say."""
    options = {"priority_steps": list(range(10)), "sep": ":", "global_keyprefix": "shop."}
    app = make_app(broker_transport_options=options, delayq_fallback="native")
    app.delayq.apply_many([(app.signature("add", priority=priority), THEN) for priority in (7, 0, 7)])

    assert (inside.client.llen("shop.celery:7"), inside.client.llen("shop.celery")) == (2, 1)


def test_what_went_the_stock_way_is_not_told_as_scheduled(
    make_app: Callable[..., Celery], inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event task-scheduled speaks of what waits in the store, and of nothing else."""
    told: list[int] = []
    monkeypatch.setattr(Events, "scheduled", lambda _self, events, _producer: told.append(len(events)))
    app = make_app(delayq_fallback="native", task_send_sent_event=True)

    def send() -> None:
        app.send_task("add", countdown=60)
        app.delayq.apply_many([(app.signature("add"), THEN)] * 3)

    send()
    assert told == []
    beat(inside)
    send()
    assert told == [1, 3]
