"""What a watcher needs of the place that its events come from, and the words in which they talk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol

from celery_delayq.errors import DelayQError
from celery_delayq.scripts import Value


class Event(NamedTuple):
    """One event that is in work.

    Attributes:
        key: by which its source knows it: its bytes in a list, its id in a stream.
        text: what expressions are looked for in.
        variables: what else the source knows of it, by the names that templates use.
        fault: why it is no event at all; "" if it is one.
        at: when it came about (s since the epoch), if the source knows.
    """

    key: bytes
    text: str
    variables: Mapping[str, Any]
    fault: str = ""
    at: float | None = None


class Push(NamedTuple):
    """A text for a list.

    Attributes:
        set: the sorted set that keeps it from being there twice.
        told: what is told of it on the listener channel; None: the task itself.
    """

    task: bytes
    queue: bytes
    set: bytes | None = None
    told: bytes | None = None


@dataclass
class Conclusion:
    """All that is to be made of one event, and of which nothing is made without the rest.

    Attributes:
        pushes: texts for lists.
        puts: calls of the script put in the same Redis, each its keys and its arguments. The first may be refused, and
            nothing is done then.
        told: what is told on the listener channel of what is put.
        after: what is called when all of it is done.
    """

    event: Event
    pushes: list[Push] = field(default_factory=list)
    puts: list[tuple[Sequence[str | bytes], Sequence[Value]]] = field(default_factory=list)
    told: list[bytes] = field(default_factory=list)
    after: list[Callable[[], object]] = field(default_factory=list)


class Outcome(Enum):
    """What has become of a conclusion."""

    #: All of it is done.
    DONE = "DONE"
    #: The event was no longer this watcher's. Nothing was done.
    LOST = "LOST"
    #: A key holds something else, or the id of a job waits already. Nothing was done.
    REFUSED = "REFUSED"


class Concluded(NamedTuple):
    """The answer to a conclusion.

    Attributes:
        outcome: what has become of it.
        doubles: the numbers of the pushes that were left out, since their sets knew them.
        reason: why it was refused.
        passing: whether another try may help then.
    """

    outcome: Outcome
    doubles: frozenset[int] = frozenset()
    reason: str = ""
    passing: bool = True


class Beat(NamedTuple):
    """What a look around has brought.

    Attributes:
        returned: how many events of gone watchers wait again.
        found: events that are now in work here, though nobody here has taken them.
    """

    returned: int
    found: list[Event]


class Evicted(DelayQError):
    """This watcher was taken for gone, and what it had in work is another's. It may begin anew; nothing is lost."""


class Source(Protocol):
    """Where events come from. Each call is one round trip; redis-py's errors pass through.

    An event belongs to whoever took it until it is concluded, buried or given back; a source knows who that is, so that
    a watcher that was taken for dead changes nothing when it wakes.
    """

    def begin(self) -> int:
        """Take a place among the watchers of this source; give back what gone ones have left.

        Returns:
            How many events that were.
        """

    def take(self, limit: int, wait: float) -> list[Event]:
        """Take up to *limit* events into work; if there is none, wait up to *wait* seconds for one."""

    def conclude(self, conclusions: Sequence[Conclusion]) -> list[Concluded]:
        """Do all that is to be made of each event, and clear it: for each in one atomic step."""

    def bury(self, event: Event, entry: bytes, dead_queue: str, reason: str) -> Concluded:
        """Push *entry* to the dead list and clear the event, and tell why."""

    def beat(self) -> Beat:
        """Say that this watcher lives; see to what others have left."""

    def backlog(self) -> int:
        """How many events wait to be taken."""

    def end(self) -> int:
        """Give back what is in work, and the place; returns how many events that were."""
