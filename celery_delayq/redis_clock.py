"""Redis's clock, as told by ours: when to speak so that Redis hears it at a time of its own.

Each answer that carries Redis's time bounds how far its clock is ahead: it was read after we asked and before we were
answered. A single exchange says that to the length of its round trip, and after that to whatever kept this process from
reading the answer. Of some, the least of the upper bounds is the one whose question had the shortest way: what is sent
by that bound at the right moment arrives there in time if the way is as short again, and later if it is not. (So do the
clock filters of NTP, which have to guess the middle, since they want to know the time.)
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from .clock import SECOND_US

#: So many exchanges are remembered.
EXCHANGES = 16

#: Two clocks drift apart by so much (s a second) at most, as a rule; where they do so faster the newest exchange shows.
DRIFT = 1e-4


class _Exchange(NamedTuple):
    """What one exchange told.

    Attributes:
        asked: when it began (s, monotonic).
        most: Redis's clock was ahead of ours by so much (s) at most.
    """

    asked: float
    most: float


class RedisClock:
    """How far Redis's clock is ahead of this machine's monotonic one, from what is heard."""

    def __init__(self) -> None:
        self._heard: deque[_Exchange] = deque(maxlen=EXCHANGES)

    def hear(self, asked: float, answered: float, now_us: int) -> None:
        """Redis's clock was *now_us* at some time between *asked* and *answered* (s, monotonic)."""
        now = now_us / SECOND_US
        least, most = now - answered, now - asked
        # What cannot have been true any more is of a clock that was set since, or of another server.
        kept = [one for one in self._heard if self._at(one, asked) >= least]
        self._heard.clear()
        self._heard.extend((*kept, _Exchange(asked, most)))

    @staticmethod
    def _at(one: _Exchange, moment: float) -> float:
        """The bound, as weak as it has become by then."""
        return one.most + (moment - one.asked) * DRIFT

    def when(self, due_us: int) -> float:
        """When to ask (s, monotonic), so that Redis reads *due_us* on its clock, or little more.

        Raises:
            ValueError: it was not heard yet.
        """
        newest = self._heard[-1].asked if self._heard else 0.0
        return due_us / SECOND_US - min(self._at(one, newest) for one in self._heard)
