"""Which dispatcher of a fleet is active, in a simulated one: no clock, no Redis, any kill."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from celery_delayq.fleet import BEAT, Standing, farewell

INTERVAL = 1.0
#: A message takes so long to all others (s), and nobody looks at the clock more often.
STEP = 0.002


class Fleet:
    """Dispatchers that only beat. All hear all."""

    def __init__(self, size: int, seed: int = 0) -> None:
        chance = random.Random(seed)
        names = [f"{chance.getrandbits(64):x}" for _ in range(size)]
        self.members = [Standing(name, INTERVAL, chance.random) for name in names]
        self.asleep: set[str] = set()
        self.now = 0.0
        self.beats: list[tuple[float, str]] = []
        self._said: list[bytes] = []

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += STEP
            said, self._said = self._said, []
            for one in self.members:
                if one.name not in self.asleep:
                    self._live(one, said)

    def _live(self, one: Standing, said: list[bytes]) -> None:
        for message in said:
            one.hear(message, self.now)
        if not one.active and self.now >= one.takeover:
            one.take_over()
        if one.active and one.should_beat(self.now) and self.now >= one.next_beat(self.now):
            one.has_beaten(self.now)
            self.beats.append((self.now, one.name))
            self._said.append(BEAT + b" " + one.name.encode())

    def leave(self, name: str) -> None:
        self.members = [one for one in self.members if one.name != name]
        self._said.append(farewell(name))

    @property
    def active(self) -> list[str]:
        return [one.name for one in self.members if one.active and one.name not in self.asleep]

    def beats_since(self, moment: float) -> list[tuple[float, str]]:
        return [beat for beat in self.beats if beat[0] >= moment]


@pytest.mark.parametrize("size", [1, 2, 10, 50])
def test_one_is_active_and_beats_twice_a_second(size: int) -> None:
    """Whatever their number, and after the first moments: one beats, and nobody else says anything."""
    fleet = Fleet(size)
    fleet.run(3)
    begin = fleet.now
    fleet.run(60)

    assert len(fleet.active) == 1
    beats = fleet.beats_since(begin)
    assert {name for _, name in beats} == set(fleet.active)
    assert 119 <= len(beats) <= 121


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [2, 10, 50])
def test_a_kill_is_noticed_in_time(size: int, seed: int) -> None:
    """The next one begins within 1.25 s, and soon only one is left that does."""
    fleet = Fleet(size, seed)
    fleet.run(3 + seed * 0.13)
    (killed,) = fleet.active
    fleet.asleep.add(killed)
    begin = fleet.now
    fleet.run(1.25)

    assert fleet.beats_since(begin)
    fleet.run(2)
    assert len(fleet.active) == 1
    assert len(fleet.beats_since(begin)) <= 12


@pytest.mark.parametrize("seed", range(10))
def test_after_a_farewell_the_next_begins_at_once(seed: int) -> None:
    """Nobody waits for a beat that will not come."""
    fleet = Fleet(50, seed)
    fleet.run(5)
    (leaving,) = fleet.active
    begin = fleet.now
    fleet.leave(leaving)
    fleet.run(0.03)

    assert fleet.beats_since(begin)
    fleet.run(2)
    assert len(fleet.active) == 1


def test_who_wakes_from_a_long_pause_finds_another_active() -> None:
    """Two are active then, until the beat of the lesser name is heard; never none."""
    fleet = Fleet(10)
    fleet.run(3)
    (paused,) = fleet.active
    fleet.asleep.add(paused)
    fleet.run(30)
    assert len(fleet.active) == 1
    fleet.asleep.clear()
    fleet.run(1.5)

    assert len(fleet.active) == 1


def test_looks_for_other_reasons_do_not_make_more_beats() -> None:
    """Each due job makes the active one look; most looks are no beats."""
    one = Standing("a", INTERVAL, lambda: 0.5)
    beats = Counter[bool]()
    for millisecond in range(10_000):
        now = millisecond / 1000
        beats[one.should_beat(now)] += 1
        if one.should_beat(now):
            one.has_beaten(now)

    assert beats[True] <= 41


def test_a_standby_ignores_what_it_does_not_understand() -> None:
    """As a later version may say."""
    one = Standing("b", INTERVAL, lambda: 0.5)
    one.hear(b"beat a", 10.0)
    takeover = one.takeover
    for message in (b"", b"beat", b"greetings from \xff", farewell("b")):
        one.hear(message, 10.5)

    assert one.active is False
    assert takeover <= one.takeover <= 10.5 + 1.2
