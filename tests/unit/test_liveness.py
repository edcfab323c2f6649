"""When a process says that no dispatcher lives."""

from __future__ import annotations

import pytest

from celery_delayq import liveness
from celery_delayq.liveness import Liveness


class Clock:
    """A monotonic clock that stands until it is moved."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(liveness, "monotonic", clock)
    return clock


def test_it_is_said_once_a_minute_and_counted_each_time(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """However many are put: one line a minute, with how many were put since the last."""
    found = Liveness(1.0)
    for at in (0.0, 1.0, 59.9, 60.0, 119.0):
        clock.now = 1000.0 + at
        found.miss(-1 if at < 60 else 45_000_000, 2, refused=False)

    assert found.unattended == 10
    assert caplog.messages == [
        "no dispatcher has been seen in this Redis yet: 2 delayed tasks put, to wait until one runs; "
        "start a worker that has celery_delayq",
        "no dispatcher has been seen in this Redis for 45 s: 6 delayed tasks put, to wait until one runs; "
        "start a worker that has celery_delayq",
    ]


def test_it_says_what_became_of_the_tasks(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """With the fallback they are no longer ours."""
    Liveness(1.0, refuses=True).miss(-1, 1, refused=True)

    assert "yet: 1 delayed task published the stock way;" in caplog.text


@pytest.mark.parametrize(("poll", "silence"), [(0.05, 30), (1.0, 30), (10.0, 30), (60.0, 180)])
def test_silence_is_longer_than_a_deploy_and_than_some_polls(poll: float, silence: float) -> None:
    """Half a minute; where dispatchers look less often than every ten seconds, three of their polls."""
    assert Liveness(poll).silence_us == silence * 1_000_000
