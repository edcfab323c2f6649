"""Redis's clock by ours, with simulated ones: never further off than the newest exchange allows."""

from __future__ import annotations

import random

import pytest

from celery_delayq.redis_clock import EXCHANGES, RedisClock

#: A due time (us) on Redis's clock, somewhere.
DUE = 1_800_000_000_000_000


class Link:
    """Redis behind a network. Times in seconds; ours begins at 0.

    Attributes:
        ahead: how far Redis's clock is before ours.
        drift: how much further it gets in a second.
    """

    def __init__(self, ahead: float, drift: float = 0.0) -> None:
        self.ahead, self.drift = ahead, drift
        self.now = 0.0
        self.clock = RedisClock()

    def ask(self, there: float, back: float) -> float:
        """One exchange; how long it took."""
        asked = self.now
        read = asked + there
        self.now = read + back
        self.clock.hear(asked, self.now, round(self.redis_at(read) * 1e6))
        return self.now - asked

    def redis_at(self, moment: float) -> float:
        """What Redis's clock says at a moment of ours."""
        return moment + self.ahead + self.drift * moment

    def late(self, there: float) -> float:
        """By how much Redis hears too late what is sent in time, over a way of that length."""
        return self.redis_at(self.clock.when(DUE) + there) - DUE / 1e6


def test_one_exchange() -> None:
    """What goes there as fast arrives in time, whatever the way back took."""
    link = Link(DUE / 1e6 - 5)
    link.ask(0.001, 0.5)
    assert link.late(0.001) == pytest.approx(0, abs=2e-6)
    assert link.late(0.004) == pytest.approx(0.003, abs=2e-6)


def test_the_fastest_of_some_counts() -> None:
    """A slow exchange spoils nothing."""
    link = Link(DUE / 1e6 - 5)
    for there in (0.02, 0.0002, 0.3, 0.01):
        link.ask(there, 0.1)
    assert link.late(0.0002) == pytest.approx(0, abs=1e-4)  # the drift that it allows for


@pytest.mark.parametrize("step", [-3600.0, -0.5, 0.5, 3600.0])
def test_a_clock_that_was_set(step: float) -> None:
    """The next exchange shows it."""
    link = Link(DUE / 1e6 - 7200)
    for _ in range(EXCHANGES):
        link.ask(0.001, 0.001)
        link.now += 0.5
    link.ahead += step
    taken = link.ask(0.002, 0.002)
    assert -taken < link.late(0.001) <= taken


@pytest.mark.parametrize("drift", [-1e-2, -1e-4, 0.0, 1e-5, 1e-4, 1e-3, 1e-2])
def test_clocks_that_drift_apart(drift: float) -> None:
    """Never further off than the newest exchange was long, and what passed since."""
    dice = random.Random(1)
    link = Link(DUE / 1e6 - 1000, drift)
    for _ in range(500):
        taken = link.ask(dice.expovariate(1000) + 1e-4, dice.expovariate(1000) + 1e-4)
        soon = RedisClock.when(link.clock, round(link.redis_at(link.now + 0.5) * 1e6)) - link.now
        assert soon == pytest.approx(0.5, abs=taken + abs(drift) + 1e-4)
        link.now += 0.5


def test_nothing_was_heard() -> None:
    """Nobody asks it then; who does all the same is told."""
    with pytest.raises(ValueError, match="empty"):
        RedisClock().when(DUE)
