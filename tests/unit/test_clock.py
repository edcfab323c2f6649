"""Times, exact to the microsecond, from what people write to what the store keeps."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_delayq.clock import LATEST_US, checked_due_us, from_us, moment_of, seconds_of, to_us


@given(st.integers(min_value=0, max_value=LATEST_US))
def test_microseconds_come_back(moment_us: int) -> None:
    """Every moment that can be kept survives the way to a datetime and back."""
    assert to_us(from_us(moment_us)) == moment_us
    assert int(float(moment_us)) == moment_us  # a sorted set's score is a double


@given(
    st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2250, 1, 1)),
    st.sampled_from([0, 1]),
    st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
)
def test_zones_and_folds_change_nothing(naive: datetime, fold: int, zone: str) -> None:
    """A wall time of any zone, repeated or skipped by a change of the clocks, is the moment that UTC says it is."""
    local = naive.replace(fold=fold, tzinfo=ZoneInfo(zone))

    assert to_us(local) == to_us(local.astimezone(timezone.utc))


def test_a_naive_datetime_is_utc() -> None:
    """As Celery's worker takes it, whatever the host's zone."""
    assert moment_of(datetime(2030, 3, 31, 2, 30)) == datetime(2030, 3, 31, 2, 30, tzinfo=timezone.utc)


def test_the_last_moment() -> None:
    """The limit itself is accepted, a microsecond more is refused with the limit in the message."""
    assert checked_due_us(from_us(LATEST_US)) == LATEST_US
    with pytest.raises(ValueError, match="the latest that can be kept is 2255-06-05"):
        checked_due_us(from_us(LATEST_US) + timedelta(microseconds=1))


def test_seconds_of_takes_numbers_and_timedeltas() -> None:
    """Both are seconds; the name of the argument stands in the error."""
    assert seconds_of(timedelta(minutes=1, microseconds=5)) == 60.000005
    assert seconds_of(5) == 5.0
    with pytest.raises(TypeError, match="max_wait must be a number"):
        seconds_of("5", "max_wait")
