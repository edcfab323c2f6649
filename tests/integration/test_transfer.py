"""Export and import: what waits, as lines of JSON and back, byte for byte."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from itertools import chain
from typing import Any

import pytest
from celery import Celery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu.exceptions import OperationalError

from celery_delayq import transfer
from celery_delayq.clock import from_us, text_of
from celery_delayq.delivery import Delivery
from celery_delayq.embedded import RedisServer
from celery_delayq.errors import ImportRefused
from celery_delayq.job import OnConflict, Origin, Put
from celery_delayq.scheduled import Filter
from celery_delayq.transfer import Imported, export_jobs, import_jobs
from tests.lua.conftest import contents_of

from .conftest import Inside

#: A due time (us) that is far ahead.
LATER = 4_000_000_000_123_456


def exported(app: Celery, wanted: Filter | None = None) -> list[bytes]:
    """All lines of an export."""
    return list(chain.from_iterable(export_jobs(app.delayq, wanted)))


def objects(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def line(id: str = "a", due: str = "2096-10-02T07:06:40.123456+00:00", **fields: Any) -> bytes:
    """One line as an export writes it."""
    return json.dumps({"id": id, "queue": "q", "due": due, "body": "{}", **fields}).encode() + b"\n"


def put(inside: Inside, *jobs: Put, origin: Origin = Origin.NEW) -> None:
    """Straight into the store, for bodies that no Celery makes."""
    inside.store.put(jobs, {job.topic: Delivery.plain(job.topic) for job in jobs}, origin=origin)


def held(inside: Inside) -> dict[bytes, object]:
    """All that Redis holds of what waits."""
    found = contents_of(inside.store, "delayq:*", totals=False)
    found.pop(inside.keys.version.encode(), None)
    return found


def test_what_was_exported_comes_back_as_it_was(app: Celery, inside: Inside) -> None:
    """Times to the microsecond, messages byte for byte, priorities, first puts, graces: nothing is lost on the way."""
    add = app.signature("add")
    add.apply_async((1,), countdown=3600)
    add.apply_async(("ü€😀", "\n\x00"), countdown=3600, queue="mail", priority=6, headers={"user": 42})
    app.delayq.apply_delayed(add, 60, task_id="debounced", max_wait=600, on_conflict="replace")
    app.delayq.apply_delayed(add, 60, task_id="dropped", late="drop", grace=2.5)
    app.delayq.apply_at(add, from_us(LATER), task_id="exact")
    before = held(inside)

    lines = exported(app)
    inside.client.flushdb()
    done = import_jobs(app.delayq, lines)

    assert done == Imported(lines=5, written=5, unchanged=0)
    assert held(inside) == before
    assert objects(lines)[-1]["queue"] == "mail"
    (exact,) = (fields for fields in objects(lines) if fields["id"] == "exact")
    assert exact["due"] == "2096-10-02T07:06:40.123456+00:00"
    assert json.loads(exact["body"])["headers"]["id"] == "exact"
    (dropped,) = (fields for fields in objects(lines) if fields["id"] == "dropped")
    assert dropped["grace"] == 2.5


ANY_JOBS = st.lists(
    st.tuples(
        st.binary(min_size=1, max_size=20)
        | st.text(min_size=1, max_size=20).map(lambda text: text.encode("utf-8", "replace")),
        st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")),
        st.integers(0, 2**53 - 1000),
        st.integers(0, 255),
        st.none() | st.integers(0, 2**53 - 1000),
        st.none() | st.integers(0, 10**15),
    ),
    max_size=8,
    unique_by=lambda job: job[0],
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jobs=ANY_JOBS, queue=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10))
def test_bytes_of_any_kind_survive(app: Celery, inside: Inside, jobs: list[Any], queue: str) -> None:
    """Ids and bodies that are no text, line breaks, quotes, escape sequences; any time that can be kept."""
    inside.client.flushdb()
    puts = [
        Put(queue, id, body, at_us=due, step=step, max_wait_us=first, grace_us=grace)
        for id, body, due, step, first, grace in jobs
    ]
    if puts:
        put(inside, *puts, origin=Origin.RESTORED)
    before = held(inside)

    lines = exported(app)
    inside.client.flushdb()

    assert all(line.isascii() and line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    assert import_jobs(app.delayq, lines).written == len(jobs)
    after = held(inside)
    delivered = inside.keys.topics.encode()
    assert {key: value for key, value in after.items() if key != delivered} == {
        key: value for key, value in before.items() if key != delivered
    }


def test_importing_again_changes_nothing(app: Celery, inside: Inside) -> None:
    """The same id, due and message is the same job; so an import that was broken off can be begun anew."""
    for number in range(5):
        app.signature("add").apply_async((number,), countdown=3600)
    lines = exported(app)
    before = held(inside)

    assert import_jobs(app.delayq, lines) == Imported(lines=5, written=0, unchanged=5)
    assert import_jobs(app.delayq, lines + lines[:2]) == Imported(lines=7, written=0, unchanged=7)
    assert held(inside) == before


def test_a_file_may_name_a_job_twice(app: Celery, inside: Inside) -> None:
    """The second time counts as if the first had been imported before: the same is no conflict, another one is."""
    assert import_jobs(app.delayq, [line("a"), line("b"), line("a")]) == Imported(3, written=2, unchanged=1)
    with pytest.raises(ImportRefused, match="line 3: task id 'c' waits already"):
        import_jobs(app.delayq, [line("c"), line("d"), line("c", body="other")])
    import_jobs(app.delayq, [line("c"), line("c", body="last")], OnConflict.REPLACE)
    assert inside.client.hget(inside.keys.jobs("q"), "c") == b"last"


def test_what_is_past_is_due_at_once(app: Celery, inside: Inside) -> None:
    """Its time stays what it was: it goes in the order of the times that were asked for."""
    import_jobs(app.delayq, [line("late", "2020-01-01T00:00:00Z"), line("later", "2019-01-01T00:00:00.000001")])

    assert [(job.id, job.due) for job in inside.waiting()] == [
        ("later", datetime(2019, 1, 1, 0, 0, 0, 1, tzinfo=timezone.utc)),
        ("late", datetime(2020, 1, 1, tzinfo=timezone.utc)),
    ]
    (due,) = inside.store.tick().due
    assert inside.store.dispatch("q", due.delivery or Delivery.plain("?"), 10).moved == 2
    assert inside.client.lrange("q", 0, -1) == [b"{}", b"{}"]


def test_an_imported_job_goes_where_consumers_look(make_app: Callable[..., Celery]) -> None:
    """Into an empty Redis, for a queue that this app has never heard of, with its priorities and its key prefix."""
    app = make_app(broker_transport_options={"global_keyprefix": "our:", "priority_steps": [0, 5]})
    import_jobs(app.delayq, [line("low", "2020-01-01T00:00:00Z"), line("high", "2020-01-01T00:00:00Z", step=5)])
    store = app.delayq.connect()
    try:
        (due,) = store.tick().due
        assert due.delivery is not None
        assert store.dispatch("q", due.delivery, 10).moved == 2
        assert store.client.llen("our:q") == store.client.llen("our:q\x06\x165") == 1
    finally:
        store.close()


def test_a_known_way_is_kept(app: Celery, inside: Inside) -> None:
    """Where the topic's jobs go, and how long its lists live, a producer has written who knows the queue."""
    known = Delivery((0,), ("q",), expires_ms=60_000)
    inside.store.put([Put("q", "there", b"{}", at_us=LATER)], {"q": known})

    import_jobs(app.delayq, [line("a")])

    assert inside.store.topics() == {"q": known}


CONFLICTS = [line("new"), line("other due"), line("same"), line("other body")]


@pytest.fixture
def conflicting(inside: Inside) -> None:
    """Jobs that are there when CONFLICTS are imported."""
    put(inside, Put("q", "same", b"{}", at_us=LATER), Put("q", "other body", b"mine", at_us=LATER + 5000))
    put(inside, Put("q", "other due", b"{}", at_us=LATER + 60_000_000))


def test_a_conflict_stops_the_import(app: Celery, inside: Inside, conflicting: None) -> None:
    """Naming the line and the id; nothing of its batch is written."""
    before = held(inside)
    with pytest.raises(ImportRefused) as raised:
        import_jobs(app.delayq, CONFLICTS)
    assert str(raised.value) == "line 2: task id 'other due' waits already in queue 'q', with another time or message"
    assert (raised.value.line, raised.value.is_conflict) == (2, True)
    assert held(inside) == before


def test_conflicts_are_kept_or_replaced(app: Celery, inside: Inside, conflicting: None) -> None:
    """As one says; what is the same is neither."""
    assert import_jobs(app.delayq, CONFLICTS, OnConflict.KEEP) == Imported(4, written=1, unchanged=3)
    assert {job.id: job.raw for job in inside.waiting()}["other body"] == b"mine"
    assert import_jobs(app.delayq, CONFLICTS, OnConflict.REPLACE) == Imported(4, written=2, unchanged=2)
    assert {job.due_us for job in inside.waiting()} == {LATER}
    assert {job.raw for job in inside.waiting()} == {b"{}"}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"{", "Expecting property name"),
        (b"nonsense\n", "Expecting value"),
        (b"\xff\xfe\n", "can't decode"),
        (b'{"id": "a"} {"id": "b"}\n', "not one JSON object"),
        (b"[1, 2]\n", "not one JSON object"),
        (b"null\n", "not one JSON object"),
        (b"[" * 100_000 + b"\n", "recursion"),
        (line(color="red"), "unknown field 'color'"),
        (line(id=""), "id must not be empty"),
        (line(id=5), "id must be a string"),
        (line(id="\ud800"), "surrogates not allowed"),
        (b'{"queue": "q", "due": "2096-10-02", "body": ""}', "id must be a string"),
        (line(queue=None), "queue must be a name"),
        (line(queue=""), "queue must be a name"),
        (line(queue="\ud800"), "surrogates not allowed"),
        (line(body=None), "body must be a string"),
        (b'{"id": "a", "queue": "q", "due": "2096-10-02", "body_base64": "%%"}', "base64"),
        (line(due="tomorrow"), "due must be a time as in 2030-01-02T03:04:05.000006\\+00:00"),
        (line(due=5), "due must be a time"),
        (line(due=None), "due must be a time"),
        (line(due="1969-12-31T23:59:59Z"), "due must not be before 1970"),
        (line(due="2300-01-01T00:00:00Z"), "due after the year 2255"),
        (line(step="3"), "step must be a whole number"),
        (line(step=True), "step must be a whole number"),
        (line(step=256), "step must be a whole number"),
        (line(first_put="x"), "first_put must be a time"),
        (line(grace=-1), "grace must be a number of seconds"),
        (line(grace="1"), "grace must be a number of seconds"),
        (line(grace=float("nan")), "grace must be a number of seconds"),
        (line(grace=float("inf")), "grace must be a number of seconds"),
        (line(grace=10**400), "grace must be a number of seconds"),
    ],
)
def test_a_bad_line_is_named(app: Celery, inside: Inside, bad: bytes, reason: str) -> None:
    """With its number and what is wrong with it; nothing of its batch is written."""
    with pytest.raises(ImportRefused, match=rf"^line 3: .*{reason}") as raised:
        import_jobs(app.delayq, [line("a"), b"\n", bad, line("b")])
    assert not raised.value.is_conflict
    assert inside.waiting() == []


def test_batches_before_a_bad_line_stay(app: Celery, inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """An import goes batch by batch, and tells of each that was stored."""
    monkeypatch.setattr(transfer, "BATCH", 10)
    told: list[int] = []
    lines = [line(f"{number:02}") for number in range(35)]

    with pytest.raises(ImportRefused, match="line 36:"):
        import_jobs(app.delayq, [*lines, b"{"], progress=lambda done: told.append(done.written))

    assert told == [10, 20, 30]
    assert len(inside.waiting()) == 30


def test_empty_lines_and_line_ends_do_not_matter(app: Celery, inside: Inside) -> None:
    """As editors and other systems leave them."""
    done = import_jobs(app.delayq, [b"\n", line("a")[:-1] + b"\r\n", b"  \n", b" " + line("b"), line("c")[:-1]])
    assert done == Imported(lines=5, written=3, unchanged=0)


def test_filters_choose_what_is_exported(app: Celery, inside: Inside) -> None:
    """By queue, time, task, header: as everywhere."""
    for number in range(4):
        task = app.signature("add" if number % 2 else "sub")
        app.delayq.apply_at(
            task,
            from_us(LATER + number),
            task_id=str(number),
            queue="mail" if number > 1 else "celery",
            headers={"user": number},
        )

    def chosen(**where: Any) -> list[str]:
        return [fields["id"] for fields in objects(exported(app, Filter.of(**where)))]

    assert chosen() == ["0", "1", "2", "3"]
    assert chosen(queue="mail") == ["2", "3"]
    assert chosen(queue="nobody") == []
    assert chosen(task="a*") == ["1", "3"]
    assert chosen(start=from_us(LATER + 1), end=from_us(LATER + 3)) == ["1", "2"]
    assert chosen(headers={"user": "2"}) == ["2"]


def test_a_job_without_a_message_is_left_out(app: Celery, inside: Inside) -> None:
    """It will never be handed over, and there is nothing to put back."""
    put(inside, Put("q", "whole", b"{}", at_us=LATER), Put("q", "orphan", b"{}", at_us=LATER))
    inside.client.hdel(inside.keys.jobs("q"), "orphan")
    assert [fields["id"] for fields in objects(exported(app))] == ["whole"]


def test_who_stays_is_exported_once(app: Celery, inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever others do between the pages."""
    monkeypatch.setattr(transfer, "BATCH", 10)
    stay = [f"stay-{number:03}" for number in range(60)]
    put(inside, *(Put("q", id, b"{}", at_us=LATER + number * 10) for number, id in enumerate(stay)))
    put(inside, *(Put("q", f"go-{number}", b"{}", at_us=LATER + number * 10 + 5) for number in range(60)))

    seen: list[str] = []
    for number, lines in enumerate(export_jobs(app.delayq)):
        seen += [fields["id"] for fields in objects(lines)]
        inside.store.delete("q", [f"go-{number * 5 + index}" for index in range(5)])
        put(inside, Put("q", f"come-{number}", b"{}", at_us=LATER + number * 61 + 1))

    assert [id for id in seen if id.startswith("stay")] == stay


def test_an_export_that_is_left_keeps_nothing(make_app: Callable[..., Celery], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the app has one connection only: others can go on between two pages, and after it is left."""
    monkeypatch.setattr(transfer, "BATCH", 10)
    app = make_app(broker_pool_limit=1)
    import_jobs(app.delayq, [line(str(number)) for number in range(50)])

    pages = export_jobs(app.delayq)
    next(pages)
    assert app.delayq.count() == 50
    pages.close()
    assert len(exported(app)) == 50


def test_a_lost_connection_is_made_again(app: Celery, inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of an export and of an import."""
    monkeypatch.setattr(transfer, "BATCH", 10)
    lines = [line(f"{number:02}") for number in range(50)]

    def cut(*_: object) -> None:
        inside.client.client_kill_filter(_type="normal", skipme=True)

    assert import_jobs(app.delayq, lines, progress=cut).lines == 50
    assert len(inside.waiting()) == 50
    found: list[bytes] = []
    for page in export_jobs(app.delayq):
        found += page
        cut()
    assert found == lines


def test_a_redis_that_is_gone_is_told(make_app: Callable[..., Celery], own_server: RedisServer) -> None:
    """As Celery tells it when it publishes; in the middle, too."""
    app = make_app(broker_url=own_server.url(), task_publish_retry_policy={"max_retries": 0})
    import_jobs(app.delayq, [line(str(number)) for number in range(2500)])
    pages = export_jobs(app.delayq)
    next(pages)

    def endless() -> Iterable[bytes]:
        number = 0
        while True:
            yield line(f"more-{number}")
            number += 1
            if number == 2500:
                own_server.stop()

    with pytest.raises(OperationalError):
        import_jobs(app.delayq, endless())
    with pytest.raises(OperationalError):
        for _ in pages:
            pass
    with pytest.raises(OperationalError):
        next(export_jobs(app.delayq))
    with pytest.raises(OperationalError):
        import_jobs(app.delayq, [line()])


def test_memory_stays_flat(app: Celery, inside: Inside) -> None:
    """Ten times as many jobs take no more memory, neither to export nor to import."""

    def peak(count: int) -> float:
        """MB in use at most, by both."""
        inside.client.flushdb()
        tracemalloc.start()
        try:
            import_jobs(app.delayq, (line(f"{number:06}", body="x" * 500) for number in range(count)))
            for _ in export_jobs(app.delayq):
                pass
            return tracemalloc.get_traced_memory()[1] / 1024**2
        finally:
            tracemalloc.stop()

    peak(2_000)  # what is loaded once
    assert peak(30_000) < peak(3_000) * 1.2 + 1


def test_times_are_written_exactly() -> None:
    """As Python writes them, to the microsecond, at any time."""
    for moment_us in (0, 1, 999_999, 59_999_999, 3_599_999_999, LATER, 951_782_400_000_000, 2**53 - 1000):
        assert text_of(moment_us) == from_us(moment_us).isoformat(timespec="microseconds")
