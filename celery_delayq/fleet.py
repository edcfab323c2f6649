"""Who works, of many dispatchers on one store: one is active and looks for due jobs, the others stand by in silence.

So a fleet costs Redis what one dispatcher costs. Each beat of the active one goes out to all; who has heard none for a
while becomes active himself. Of two active ones the one with the lesser name stays. Nobody asks who is active before a
job is handed over, and no harm is done if two are, or none is for a second: what is handed over once is Redis's care.

A state machine without clock, chance or connection of its own.
"""

from __future__ import annotations

from collections.abc import Callable

#: The active dispatcher beats so often in the fleet's poll interval.
BEATS = 2

#: Silence after which a standby takes over, and the time over which many standbys spread, so that the beat of the first
#: keeps the others quiet; both in poll intervals.
SILENCE, SPREAD = 0.9, 0.3

#: At most so long (s) do standbys spread, however long the poll interval; and after a farewell, for they need not wait
#: then.
SPREAD_MOST, SPREAD_AFTER_FAREWELL = 0.3, 0.02

BEAT, FAREWELL = b"beat", b"farewell"


def farewell(name: str) -> bytes:
    """What the active dispatcher says when it stops. (Its beats are sent by tick.lua.)"""
    return FAREWELL + b" " + name.encode()


class Standing:
    """Whether one dispatcher is active, by what it has heard. Times are seconds of any clock that never goes back.

    Args:
        name: unlike all others of the fleet.
        interval: the fleet's poll interval (s).
        chance: gives a number from 0 to 1, as ``random.random`` does.
    """

    def __init__(self, name: str, interval: float, chance: Callable[[], float]) -> None:
        self.name = name
        self.active = True  # until somebody with a lesser name is heard: who starts alone has nobody to wait for
        self._interval = interval
        self._chance = chance
        self._beaten: float | None = None
        self._takeover = 0.0

    @property
    def beat_interval(self) -> float:
        """Seconds between two beats."""
        return self._interval / BEATS

    def should_beat(self, now: float) -> bool:
        """Whether the look that is taken now is to be a beat. With half an interval's grace, so that looks for another
        reason do not shift the next beat.
        """
        return self.active and (self._beaten is None or now - self._beaten >= self.beat_interval / 2)

    def next_beat(self, now: float) -> float:
        """When to look again, for the beat's sake."""
        return now if self._beaten is None else self._beaten + self.beat_interval

    def has_beaten(self, now: float) -> None:
        """A beat was sent."""
        self._beaten = now

    @property
    def takeover(self) -> float:
        """When a standby becomes active, if it hears nothing more."""
        return self._takeover

    def hear(self, message: bytes, now: float) -> None:
        """Take note of what one of the fleet said, this dispatcher among them."""
        word, _, text = message.partition(b" ")
        name = text.decode(errors="replace")
        if name == self.name:
            return
        if word == BEAT:
            self._takeover = now + self._interval * SILENCE + self._spread(self._interval * SPREAD, SPREAD_MOST)
            if name < self.name:
                self.active = False
        elif word == FAREWELL and not self.active:
            self._takeover = now + self._spread(SPREAD_AFTER_FAREWELL)

    def take_over(self) -> None:
        """Become active."""
        self.active = True
        self._beaten = None

    def _spread(self, *limits: float) -> float:
        return self._chance() * min(limits)
