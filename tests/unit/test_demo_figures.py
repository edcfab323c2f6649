"""The demo's counting: nothing that went wrong may pass for right."""

from __future__ import annotations

import json

import pytest

from celery_delayq.demo.figures import Progress, Report, Summary, percentile

EXPECTED = [("a", 0), ("b", 0), ("b", 1)]
DUE_US = 1_700_000_000_000_000
GOOD = [Report(id, attempt, DUE_US, DUE_US + 2_000) for id, attempt in EXPECTED]


def summary(reports: list[Report], left: int = 0) -> Summary:
    return Summary.of(1.04, {"countdown": 1, "retry": 1}, EXPECTED, reports, left)


def test_what_ran_as_it_should_is_ok() -> None:
    """Each run once and none early: ok, with the lateness in milliseconds."""
    good = summary(GOOD)
    assert good.ok
    assert json.loads(good.as_json()) == {
        "ok": True,
        "seconds": 1.0,
        "tasks": {"countdown": 1, "retry": 1},
        "runs_expected": 3,
        "runs": 3,
        "missing": 0,
        "doubled": 0,
        "unexpected": 0,
        "early": 0,
        "left": 0,
        "lateness_ms": {"p50": 2.0, "p99": 2.0, "max": 2.0},
    }
    assert good.as_text().splitlines() == [
        "scheduled  2 tasks (1 countdown, 1 retry)",
        "ran        3 of 3 runs in 1 s: each exactly once",
        "lateness   p50 2.0 ms, p99 2.0 ms, max 2.0 ms (start of the task minus due)",
    ]


@pytest.mark.parametrize(
    ("reports", "left", "field", "words"),
    [
        (GOOD[:2], 0, "missing", "1 missing"),
        ([*GOOD, GOOD[0]], 0, "doubled", "1 run twice"),
        ([*GOOD, Report("c", 0, DUE_US, DUE_US)], 0, "unexpected", "1 unexpected"),
        ([*GOOD[:2], Report("b", 1, None, DUE_US)], 0, "unexpected", "1 unexpected"),
        ([*GOOD[:2], Report("b", 1, DUE_US, DUE_US - 1)], 0, "early", "1 before they were due"),
        (GOOD, 1, "left", "1 left behind"),
    ],
    ids=["missing", "doubled", "unknown", "not-delayed", "early", "left"],
)
def test_whatever_went_wrong_is_counted_and_not_ok(reports: list[Report], left: int, field: str, words: str) -> None:
    """A run that is missing, doubled, unknown, early or left behind makes the demo fail, and is named."""
    bad = summary(reports, left)
    assert getattr(bad, field) == 1
    assert not bad.ok
    assert words in bad.as_text()


def test_nothing_ran() -> None:
    """A demo in which nothing ran has no lateness, and still a summary."""
    empty = summary([])
    assert (empty.missing, empty.ok) == (3, False)
    assert empty.lateness_ms == {"p50": None, "p99": None, "max": None}
    assert "p50 -" in empty.as_text()


def test_a_retry_waits_only_after_its_first_run() -> None:
    """A retry is asked for by the run before it: until then it waits nowhere."""
    assert Progress.of(0.0, EXPECTED, [], 0).waiting == 2
    assert Progress.of(0.0, EXPECTED, GOOD[1:2], 1).waiting == 1  # a, b's retry; one of the two is ready
    assert Progress.of(0.0, EXPECTED, GOOD, 0).waiting == 0
    assert Progress.of(0.0, EXPECTED, GOOD, 1).waiting == 0  # read between two changes


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (1, 100), (0.001, 1)])
def test_a_percentile_is_the_smallest_value_that_covers_the_share(share: float, value: int) -> None:
    """Nearest rank: no value is invented between two that were measured."""
    assert percentile(list(range(100, 0, -1)), share) == value
