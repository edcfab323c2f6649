"""Times and lengths of time as people type them."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_delayq.command.when import LENGTH, WHEN, read_length, read_when, tell_length, told

NOW = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("1h 30m", 5400),
        ("1h30m", 5400),
        ("1h, 30m", 5400),
        ("2 days", 172_800),
        ("1 week 1 day", 691_200),
        ("1.5h", 5400),
        ("10 Minutes", 600),
        ("-30m", -1800),
        ("- 30 min", -1800),
        ("+5s", 5),
        ("0s", 0),
        ("0.000001s", 0.000001),
    ],
)
def test_lengths(text: str, seconds: float) -> None:
    """Numbers with units, short or whole, together or apart; with a sign for earlier."""
    assert read_length(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "write one as '90s'"),
        ("2", "write one as '90s'"),
        ("h", "write one as '90s'"),
        ("2h foo", "write one as '90s'"),
        ("--2h", "write one as '90s'"),
        ("1h -30m", "write one as '90s'"),
        ("3 fortnights", "'fortnights' is no unit of time; there are s, m, h, d and w"),
        ("9" * 30 + "d", "too long"),
        ("9" * 400 + "d", "too long"),
        ("٣h٣", "write one as '90s'"),
    ],
)
def test_what_is_no_length_is_told(text: str, reason: str) -> None:
    """With an example of one."""
    with pytest.raises(ValueError, match=re.escape(reason)):
        read_length(text)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("now", NOW),
        ("NOW ", NOW),
        ("in 2h", NOW + timedelta(hours=2)),
        ("in  1h   30m", NOW + timedelta(minutes=90)),
        ("in 3 days", NOW + timedelta(days=3)),
        ("10 minutes ago", NOW - timedelta(minutes=10)),
        ("1h30m ago", NOW - timedelta(minutes=90)),
        ("2030-01-02", datetime(2030, 1, 2, tzinfo=timezone.utc)),
        ("2030-01-02T03:04", datetime(2030, 1, 2, 3, 4, tzinfo=timezone.utc)),
        ("2030-01-02 03:04:05", datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone.utc)),
        ("2030-01-02T03:04:05.5Z", datetime(2030, 1, 2, 3, 4, 5, 500_000, tzinfo=timezone.utc)),
        ("2030-01-02t03:04:05,123456789z", datetime(2030, 1, 2, 3, 4, 5, 123_456, tzinfo=timezone.utc)),
        ("2030-01-02T03:04:05+02:00", datetime(2030, 1, 2, 1, 4, 5, tzinfo=timezone.utc)),
        ("2030-01-02T03:04:05 -0530", datetime(2030, 1, 2, 8, 34, 5, tzinfo=timezone.utc)),
        ("2030-01-02T03:04:05+02", datetime(2030, 1, 2, 1, 4, 5, tzinfo=timezone.utc)),
        ("1893553445", datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone.utc)),
        ("1893553445.5", datetime(2030, 1, 2, 3, 4, 5, 500_000, tzinfo=timezone.utc)),
    ],
)
def test_moments(text: str, moment: datetime) -> None:
    """ISO 8601, without an offset UTC as Celery reads it; from now on and ago; seconds since the epoch."""
    assert read_when(text, NOW) == moment
    assert read_when(text, NOW).tzinfo is not None


@given(
    st.datetimes(datetime(1970, 1, 1), datetime(2255, 6, 1)), st.sampled_from(["", "Z", "+00:00", "+13:45", "-11:00"])
)
def test_python_is_understood(moment: datetime, offset: str) -> None:
    """Whatever isoformat writes, and str, is read as fromisoformat reads it."""
    expected = datetime.fromisoformat(moment.isoformat() + offset.replace("Z", "+00:00"))
    expected = expected if offset else expected.replace(tzinfo=timezone.utc)
    for text in (moment.isoformat() + offset, str(moment) + offset):
        if expected < datetime(2255, 6, 1, tzinfo=timezone.utc):
            assert read_when(text, NOW) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is no time; write one as '2030-01-02T03:04:05Z'"),
        ("tomorrow", "'tomorrow' is no time; write one as"),
        ("in", "is no time"),
        ("in tomorrow", "is no length of time"),
        ("ago", "is no time"),
        ("2h", "'2h' is a length of time; write 'in 2h' or '2h ago'"),
        ("30", "30 would be 30 seconds since 1970; for a time from now write 'in 30s'"),
        ("-5", "since 1970"),
        ("20300102", "since 1970"),
        ("2030-13-02", "'2030-13-02': month must be in 1..12"),
        ("2030-02-30T10:00", "day is out of range"),
        ("2030-01-02T25:00", "hour must be in 0..23"),
        ("2030-01-02T03:04:05+99:00", "offset must be"),
        ("2030-01-02T03:04:05Zulu", "is no time"),
        ("2030-01-02T03", "is no time"),
        ("2300-01-01", "too far ahead: the latest that can be kept is 2255-06-05"),
        ("in 500 years", "'years' is no unit"),
        ("in 20000 weeks", "too far ahead"),
        ("in 99999999 weeks", "too far away"),
        ("99999999 weeks ago", "too far away"),
        ("1e400", "is no time"),
        ("9" * 400, "must be a finite time"),
        ("nan", "is no time"),
        ("x" * 10_000, "…"),
        ("2030-01-02\x1b[31m", "\\x1b"),
    ],
)
def test_what_is_no_time_is_told(text: str, reason: str) -> None:
    """In one short line, with what to write instead, and nothing that a terminal would obey."""
    with pytest.raises(ValueError, match=re.escape(reason)) as raised:
        read_when(text, NOW)
    assert len(str(raised.value)) < 600
    assert str(raised.value).isprintable()


@given(st.text(max_size=30))
def test_whatever_is_typed_is_read_or_told(text: str) -> None:
    """Nothing else is raised."""
    for read in (lambda: read_when(text, NOW), lambda: read_length(text)):
        with suppress(ValueError):
            read()


def test_click_takes_what_is_read_already() -> None:
    """As a default of an option is."""
    assert WHEN.convert(NOW, None, None) is NOW
    assert LENGTH.convert(timedelta(1), None, None) == timedelta(1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.4, "0s"),
        (59.6, "1m"),
        (61, "1m 1s"),
        (3600, "1h"),
        (3601, "1h"),
        (90_000, "1d 1h"),
        (864_000, "10d"),
    ],
)
def test_lengths_are_told_in_two_units(seconds: float, text: str) -> None:
    """The largest and the next one."""
    assert tell_length(seconds) == text


def test_distances_are_told() -> None:
    """Ahead, behind, and now."""
    assert told(NOW + timedelta(days=2, hours=23, minutes=59), NOW) == "in 2d 23h"
    assert told(NOW - timedelta(minutes=5), NOW) == "5m ago"
    assert told(NOW, NOW) == "now"
