"""Which faults come, when, and whom they hit: all of it follows from a seed.

Dealt from a deck that holds every kind of fault, shuffled anew when it is empty: so none stays away for long, and a
short storm sees them all.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

#: The Redis in which tasks wait; and in relay mode, the broker.
REDIS, BROKER = "redis", "broker"


class Fault(NamedTuple):
    """One fault.

    Attributes:
        after: seconds from the one before.
        kind: what it is; a name of :data:`DECK`.
        target: the participant or the rack that it hits; what of Redis, where it hits that.
        seconds: how long it lasts; for a kill, until the next incarnation starts.
    """

    after: float
    kind: str
    target: str
    seconds: float

    @property
    def is_kill(self) -> bool:
        return self.kind.startswith("kill")


class Card(NamedTuple):
    """A kind of fault.

    Attributes:
        copies: how often it is in the deck.
        among: the group whose members it may hit; or what it always hits.
        least, most: seconds that it lasts.
    """

    kind: str
    copies: int
    among: str
    least: float
    most: float


DECK = (
    Card("kill producer", 2, "producer", 0.0, 0.5),
    Card("kill worker", 6, "worker", 0.0, 0.5),
    Card("kill dispatcher", 4, "dispatcher", 0.0, 0.5),
    Card("kill redis", 1, REDIS, 0.05, 1.0),
    Card("end worker", 1, "worker", 0.0, 0.0),
    Card("end dispatcher", 1, "dispatcher", 0.0, 0.0),
    Card("stop producer", 1, "producer", 0.3, 3.0),
    Card("stop worker", 2, "worker", 0.3, 4.0),
    Card("stop dispatcher", 2, "dispatcher", 0.3, 4.0),
    Card("client kill normal", 1, REDIS, 0.0, 0.0),
    Card("client kill pubsub", 1, REDIS, 0.0, 0.0),
    Card("client pause", 1, REDIS, 0.2, 1.5),
    Card("script flush", 1, REDIS, 0.0, 0.0),
    Card("memory limit", 1, REDIS, 0.5, 2.0),
    Card("network reset", 1, "rack", 0.0, 0.0),
    Card("network refused", 1, "rack", 0.2, 2.0),
    Card("network black hole", 1, "rack", 0.2, 3.0),
)

#: What comes on top of it in relay mode, by the kind of broker.
KILL_BROKER = Card("kill broker", 1, BROKER, 0.05, 1.0)
RELAY: Mapping[str | None, tuple[Card, ...]] = {
    None: (),
    "rabbitmq": (KILL_BROKER,),
    "redis": (KILL_BROKER, Card("client kill normal", 1, BROKER, 0.0, 0.0), Card("memory limit", 1, BROKER, 0.5, 2.0)),
}

#: In every tenth deck, from the third on: longer than every timeout that a dispatcher has.
LONG = (
    Card("stop dispatcher", 1, "dispatcher", 30.0, 30.0),
    Card("network black hole", 1, "rack", 8.0, 8.0),
)
LONG_EVERY, LONG_FIRST = 10, 2

#: How many kills a deck holds.
KILLS_OF_A_DECK = sum(card.copies for card in DECK if card.kind.startswith("kill"))


def faults(seed: int, every: float, groups: Mapping[str, Sequence[str]], more: Sequence[Card] = ()) -> Iterator[Fault]:
    """Faults without end.

    Args:
        every: seconds from one to the next, on average.
        groups: the names that a fault may hit: "producer", "worker", "dispatcher", "rack".
        more: cards for every deck.
    """
    chance = random.Random(seed)
    number = 0
    while True:
        cards = [*DECK, *more, *(LONG if number % LONG_EVERY == LONG_FIRST else ())]
        deck = [card for card in cards for _ in range(card.copies)]
        chance.shuffle(deck)
        for card in deck:
            target = chance.choice(groups[card.among]) if card.among in groups else card.among
            yield Fault(every * chance.uniform(0.2, 1.8), card.kind, target, chance.uniform(card.least, card.most))
        number += 1
