"""What waits, changed: cancelled, moved, purged, one by one and in masses; broken off, and taken up again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from celery_delayq import DelayQ
from celery_delayq.clock import from_us
from celery_delayq.embedded import RedisServer
from celery_delayq.job import Put

from .backlog import FAR_US, fill
from .conftest import Inside

WHEN = datetime(2033, 5, 18, tzinfo=timezone.utc)


class BrokenOffError(Exception):
    """Somebody pressed Ctrl-C."""


@pytest.fixture
def app(make_app: Callable[..., Celery]) -> Celery:
    return make_app()


@pytest.fixture
def delayq(app: Celery) -> DelayQ:
    delayq: DelayQ = app.delayq
    return delayq


def dues(delayq: DelayQ, **wanted: Any) -> dict[str, int]:
    """Id -> due (us after FAR_US)."""
    return {
        task.id: round((task.due - from_us(FAR_US)) / timedelta(microseconds=1)) for task in delayq.scheduled(**wanted)
    }


def break_off_after(batches: int) -> Callable[[int, int], None]:
    """A progress callback that raises when so many batches are done."""
    calls: list[int] = []

    def progress(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == batches:
            raise BrokenOffError

    return progress


def test_cancel_counts_the_ids_that_it_took_back(delayq: DelayQ, inside: Inside) -> None:
    """Those that wait, in whatever queue, once; not the unknown, the cancelled, the handed over."""
    for name in ("a", "b", "c"):
        delayq.apply_delayed("record", 60, task_id=name, queue=f"queue-{name}")
    delayq.apply_at("record", 0, task_id="gone")
    inside.store.dispatch("celery", inside.store.topics()["celery"], 10)

    assert delayq.cancel() == 0
    assert delayq.cancel("a", "b", "a", "gone", "nobody") == 2
    assert delayq.cancel("a") == 0
    assert [task.id for task in delayq.scheduled()] == ["c"]
    assert len(inside.ready()) == 1


def test_cancel_takes_thousands_of_ids(delayq: DelayQ, inside: Inside, app: Celery) -> None:
    """More than one script call can."""
    ids = fill(inside, app, range(2_500))

    assert delayq.cancel(*ids, "nobody", mark=False) == 2_500
    assert delayq.cancel(*fill(inside, app, range(250))) == 250
    assert delayq.count() == 0


def test_cancel_where_takes_what_matches_and_nothing_else(delayq: DelayQ, inside: Inside, app: Celery) -> None:
    """A dry run counts and changes nothing; progress ends at the total; the rest stays as it was."""
    fill(inside, app, range(1_000), "one", order=lambda number: number % 4)
    fill(inside, app, range(1_000), "two", order=lambda number: number % 4)
    before = dues(delayq)
    told: list[tuple[int, int]] = []

    assert (
        delayq.cancel_where(headers={"order": 3}, queue="one", dry_run=True, progress=lambda *at: told.append(at))
        == 250
    )
    assert dues(delayq) == before
    assert delayq.cancel_where(headers={"order": 3}, queue="one", batch_size=100, mark=False) == 250
    assert delayq.cancel_where(end=from_us(FAR_US + 10), queue="two", progress=lambda *at: told.append(at)) == 10

    assert told[-1] == (10, 10)
    assert all(done <= total for done, total in told)
    assert dues(delayq) == {
        name: due
        for name, due in before.items()
        if not (name.startswith("one") and due % 4 == 3) and not (name.startswith("two") and due < 10)
    }


def test_cancel_where_that_was_broken_off_goes_on(delayq: DelayQ, inside: Inside, app: Celery) -> None:
    """What it has cancelled is cancelled; the same call takes the rest."""
    fill(inside, app, range(1_000))

    with pytest.raises(BrokenOffError):
        delayq.cancel_where(task="record", batch_size=100, progress=break_off_after(3), mark=False)

    assert delayq.count() == 700
    assert delayq.cancel_where(task="record", batch_size=100, mark=False) == 700


def test_cancel_where_spares_who_has_come_since(delayq: DelayQ, inside: Inside, app: Celery) -> None:
    """A task that took the id and the time of a matching one, after that was read, is another one, and stays."""
    (task_id,) = fill(inside, app, [5], order=1)
    replaced = Put("celery", task_id, b'{"another": "one"}', at_us=FAR_US + 5)
    wait = inside.store.page("celery").jobs
    inside.store.delete("celery", [task_id])
    inside.store.put([replaced], {"celery": inside.store.topics().get("celery") or _plain()})

    assert delayq._delete(list(wait), mark=True) == 0
    assert list(dues(delayq)) == [task_id]


def _plain() -> Any:
    from celery_delayq.delivery import Delivery

    return Delivery.plain("celery")


@pytest.mark.parametrize("wrong", [{}, {"headers": {}}, {"queue": None}])
def test_masses_need_a_filter(delayq: DelayQ, wrong: dict[str, Any]) -> None:
    """Nobody deletes or moves everything by forgetting an argument."""
    with pytest.raises(ValueError, match=r"at least one.*purge"):
        delayq.cancel_where(**wrong)
    with pytest.raises(ValueError, match="at least one"):
        delayq.shift_where(**wrong, by=timedelta(1))


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "many"])
def test_a_batch_size_that_cannot_be_is_refused(delayq: DelayQ, size: Any) -> None:
    """Before anything is changed."""
    with pytest.raises(ValueError, match="batch_size"):
        delayq.cancel_where(queue="celery", batch_size=size)


def test_reschedule_keeps_all_but_the_time(delayq: DelayQ) -> None:
    """Id, message, priority and the time of the put stay; the past is now."""
    delayq.apply_delayed("record", 60, ("a",), task_id="a", priority=3, headers={"order": 1})
    before = delayq.get("a")
    assert before is not None

    assert delayq.reschedule("a", WHEN)
    after = delayq.get("a")
    assert after is not None
    assert after == type(before)(**{**vars(before), "due": WHEN})

    assert delayq.reschedule("a", 0)
    now = delayq.get("a")
    assert now is not None
    assert abs(now.due - datetime.now(timezone.utc)) < timedelta(seconds=30)
    assert not delayq.reschedule("nobody", WHEN)


def test_reschedule_only_what_the_caller_saw(delayq: DelayQ) -> None:
    """Of two who have seen the same time, one wins."""
    delayq.apply_delayed("record", 60, task_id="a")
    seen = delayq.get("a")
    assert seen is not None

    assert delayq.reschedule("a", WHEN, if_due=seen.due)
    assert not delayq.reschedule("a", 0, if_due=seen.due)
    assert dues(delayq) == {"a": round((WHEN - from_us(FAR_US)) / timedelta(microseconds=1))}


@pytest.mark.parametrize("when", ["tomorrow", None, float("inf"), 1e12, True])
def test_a_time_that_cannot_be_is_refused(delayq: DelayQ, when: Any) -> None:
    """And the task stays due when it was."""
    delayq.apply_at("record", WHEN, task_id="a")

    with pytest.raises((TypeError, ValueError), match="when|far ahead"):
        delayq.reschedule("a", when)

    assert delayq.get("a").due == WHEN  # type: ignore[union-attr]


def test_run_now_makes_due_at_once(delayq: DelayQ, inside: Inside) -> None:
    """Each id that waits, once; what is due already keeps its place; a paused queue holds them all the same."""
    for name in ("a", "b"):
        delayq.apply_at("record", WHEN, task_id=name)
    delayq.apply_at("record", 0, task_id="overdue")
    overdue = delayq.get("overdue")
    delayq.pause("celery")

    assert delayq.run_now("b", "overdue", "nobody") == 2

    assert delayq.get("overdue") == overdue
    assert [task.id for task in delayq.scheduled(end=datetime.now(timezone.utc) + timedelta(minutes=1))] == [
        "overdue",
        "b",
    ]
    assert inside.store.tick().due == ()


@pytest.mark.parametrize("by", [timedelta(seconds=1), timedelta(microseconds=-7), timedelta(microseconds=3)])
def test_shift_moves_each_by_the_same(delayq: DelayQ, inside: Inside, app: Celery, by: timedelta) -> None:
    """Later or earlier, also where they land among those that are still to be moved; the others stay."""
    fill(inside, app, range(0, 2_000, 2), "one", order=lambda number: number % 2)
    fill(inside, app, range(100, 150), "two")
    before = dues(delayq)

    assert delayq.shift_where(queue="one", headers={"order": 1}, by=by, dry_run=True) == 500
    assert dues(delayq) == before
    assert delayq.shift_where(queue="one", headers={"order": 1}, by=by, batch_size=60) == 500

    micros = by // timedelta(microseconds=1)
    expected = {name: due + micros * (name.startswith("one") and due // 2 % 2) for name, due in before.items()}
    assert dues(delayq) == expected


@pytest.mark.parametrize("seconds", [90, -90])
def test_a_shift_that_was_broken_off_moves_nothing_twice(
    delayq: DelayQ, inside: Inside, app: Celery, seconds: int
) -> None:
    """The same call goes on where it stopped, in both directions; done, the next one begins anew."""
    fill(inside, app, range(0, 1_000_000, 1_000), "one")
    fill(inside, app, range(0, 300_000, 1_000), "two")
    before = dues(delayq)
    shift: dict[str, Any] = {"task": "record", "by": timedelta(seconds=seconds), "batch_size": 100}

    with pytest.raises(BrokenOffError):
        delayq.shift_where(**shift, progress=break_off_after(4))
    with pytest.raises(BrokenOffError):
        delayq.shift_where(**shift, progress=break_off_after(8))
    assert delayq.shift_where(**shift) < 1_000

    once = {name: due + seconds * 1_000_000 for name, due in before.items()}
    assert dues(delayq) == once
    assert delayq.shift_where(**shift) == 1_300
    assert dues(delayq) == {name: due + seconds * 1_000_000 for name, due in once.items()}


def test_a_shift_into_the_past_is_due_now(delayq: DelayQ) -> None:
    """Not before: the order of what is overdue already stays."""
    delayq.apply_at("record", 0, task_id="overdue")
    delayq.apply_delayed("record", 60, task_id="soon")

    assert delayq.shift_where(task="record", by=timedelta(days=-365 * 90)) == 2
    assert list(dues(delayq)) == ["overdue", "soon"]


@pytest.mark.parametrize("by", [timedelta(0), 60, None, "1h"])
def test_a_shift_needs_a_distance(delayq: DelayQ, by: Any) -> None:
    """A timedelta, and not nothing."""
    with pytest.raises(ValueError, match="by must be a timedelta"):
        delayq.shift_where(queue="celery", by=by)


def test_pause_and_resume_say_what_they_changed(delayq: DelayQ) -> None:
    """True once; a queue that nobody knows yet can be paused."""
    assert [delayq.pause("q"), delayq.pause("q")] == [True, False]
    assert delayq.paused() == {"q"}
    assert [delayq.resume("q"), delayq.resume("q"), delayq.resume("q", rate=5)] == [True, False, False]
    assert delayq.paused() == set()


@pytest.mark.parametrize("rate", [0, -1, float("inf"), float("nan"), "fast", True])
def test_a_rate_that_cannot_be_is_refused(delayq: DelayQ, rate: Any) -> None:
    """And the queue stays paused."""
    delayq.pause("q")
    with pytest.raises(ValueError, match="rate must be"):
        delayq.resume("q", rate=rate)
    assert delayq.paused() == {"q"}


@pytest.mark.parametrize("queue", ["", 7, b"q"])
def test_a_queue_that_cannot_be_is_refused(delayq: DelayQ, queue: Any) -> None:
    """By its type, before Redis is asked."""
    for call in (delayq.pause, delayq.resume, delayq.purge):
        with pytest.raises(TypeError, match="queue must be a name"):
            call(queue)
    with pytest.raises(TypeError, match="queue must be a name"):
        delayq.pause(None)  # type: ignore[arg-type]  # only purge means all by it


def test_purge_takes_one_queue_or_all(delayq: DelayQ, inside: Inside, app: Celery) -> None:
    """All that waits and nothing that is ready; a pause stays."""
    fill(inside, app, range(1_500), "one")
    fill(inside, app, range(10), "two")
    delayq.pause("one")
    inside.client.lpush("one", "ready")

    assert delayq.purge("one") == 1_500
    assert delayq.purge("one") == 0
    assert delayq.count() == 10
    assert delayq.purge() == 10
    assert delayq.paused() == {"one"}
    assert inside.client.lrange("one", 0, -1) == [b"ready"]


def test_a_wrong_key_is_named_and_nothing_is_lost(delayq: DelayQ, inside: Inside) -> None:
    """Another program's key under our name: an error that says so."""
    delayq.apply_delayed("record", 60, task_id="a")
    inside.client.set(inside.keys.holds, "somebody else's")

    with pytest.raises(Exception, match="delayq_prefix"):
        delayq.cancel("a")

    inside.client.delete(inside.keys.holds)
    assert delayq.get("a") is not None


def test_a_redis_that_goes_away_in_between_is_an_operational_error(own_server: RedisServer) -> None:
    """Also on a connection that has worked before; and when it is back, so are we."""
    app = Celery(broker=own_server.url(), set_as_current=False)
    app.conf.task_publish_retry_policy = {"max_retries": 1, "interval_start": 0}
    delayq = DelayQ(app)
    assert delayq.cancel("a") == 0

    own_server.stop()
    with pytest.raises(OperationalError):
        delayq.cancel("a")
    with pytest.raises(OperationalError):
        delayq.cancel_where(queue="celery")

    own_server.start()
    assert delayq.cancel("a") == 0
    app.close()
