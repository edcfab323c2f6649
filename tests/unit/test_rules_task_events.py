"""Events of Celery tasks: as they are written, and as they are read."""

from __future__ import annotations

import json
import logging
import time
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from celery import Celery

from celery_delayq.rules import validated
from celery_delayq.rules.task_events import LONGEST, PATIENCE, SHORT, TaskEvents, read, written


class Rude:
    """What cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError

    __str__ = __repr__


def circle() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"a": [1, 2.5, None, True, "ü"]}, {"a": [1, 2.5, None, True, "ü"]}),
        ((1, (2,)), [1, [2]]),
        (datetime(2030, 1, 2, tzinfo=timezone.utc), "2030-01-02T00:00:00+00:00"),
        ([date(2030, 1, 2)], ["2030-01-02"]),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal("1.50"), "1.50"),
        ({1}, [1]),
        (b"bytes", "b'bytes'"),
        ({(1, 2): 3}, "{(1, 2): 3}"),
    ],
)
def test_what_a_result_becomes(value: object, found: object) -> None:
    event = read(written({"task": "t", "state": "success", "result": value}))
    assert event.variables["result"] == found


@pytest.mark.parametrize("value", [Rude(), {Rude(): 1}, [Rude()], circle(), object(), range(10**9)])
def test_whatever_it_is_there_is_a_line(value: object) -> None:
    event = read(written({"task": "t", "state": "success", "result": value}))
    assert not event.fault


def test_long_values_are_cut() -> None:
    """One alone, the others stay."""
    line = written({"task": "t", "state": "success", "args": ["x" * LONGEST], "kwargs": {"a": 1}})
    fields = read(line).variables
    assert len(fields["args"]) <= SHORT
    assert fields["args"].startswith("['xxx")
    assert fields["kwargs"] == {"a": 1}


def test_a_line_knows_when_it_was_written() -> None:
    before = time.time()
    event = read(written({"task": "t", "state": "success"}))
    assert event.at is not None
    assert before - 1e-3 <= event.at <= time.time()


@pytest.mark.parametrize(
    "line",
    [b"", b"\xff", b"acq/1", b"[]", b"1", b"{}", b'{"task": "t"}', b'{"task": 1, "state": "x"}', b"[" * 100_000],
)
def test_what_is_no_such_line_has_a_fault(line: bytes) -> None:
    """The watcher buries it, as it is."""
    event = read(line)
    assert event.fault.startswith("is no JSON")
    assert event.key == line
    assert event.text.encode(errors="surrogateescape") == line


def test_a_redis_that_is_away_neither_fails_nor_blocks_a_task(caplog: pytest.LogCaptureFixture) -> None:
    """What could not be written stands in the log."""
    rules = validated(
        {
            "redis": {"url": "redis://localhost:1/"},
            "watchers": [{"source": "task", "rules": [{"on": {"task": "t"}, "make": {"queue": "q"}}]}],
        }
    )
    app = Celery("events", set_as_current=False)

    @app.task(name="t", shared=False)
    def task() -> int:
        return 7

    @app.task(name="other", shared=False)
    def other() -> int:
        return 8

    events = TaskEvents([rules])
    events.connect()
    try:
        begin = time.monotonic()
        with caplog.at_level(logging.ERROR):
            assert task.apply().get() == 7
            assert other.apply().get() == 8
        took = time.monotonic() - begin
    finally:
        events.disconnect()
    (record,) = [record for record in caplog.records if "this event of a task is lost" in record.message]
    assert took < 10 * PATIENCE
    line = record.message[record.message.index('{"task"') :].removesuffix("'")
    assert json.loads(line)["result"] == 7
