"""Who observes dispatches is asked and told, and can harm nobody."""

from __future__ import annotations

import pytest

from celery_delayq.job import Tell
from celery_delayq.observers import Observers
from celery_delayq.store import Dispatched

DONE = Dispatched(1, 0, 0, False, 0, None)


class Listener:
    """Wants to know something; fails where it is told to."""

    def __init__(self, tell: Tell = Tell.NOTHING, failing: str = "") -> None:
        self.heard: list[str] = []
        self._tell = tell
        self._failing = failing

    @property
    def tell(self) -> Tell:
        if self._failing == "asked":
            raise RuntimeError("I do not know")
        return self._tell

    def dispatched(self, topic: str, done: Dispatched) -> None:
        self.heard.append(topic)
        if self._failing == "told":
            raise RuntimeError("I cannot")


@pytest.mark.parametrize(
    ("wanted", "question"),
    [
        ([], (Tell.NOTHING, b"")),
        ([Tell.NOTHING], (Tell.NOTHING, b"")),
        ([Tell.NOTHING, Tell.DUES, Tell.NOTHING], (Tell.DUES, b"")),
        ([Tell.JOBS, Tell.DUES], (Tell.JOBS, b"pattern")),
        ([Tell.DUES, Tell.JOBS, Tell.NOTHING], (Tell.JOBS, b"pattern")),
    ],
)
def test_as_much_is_asked_as_anybody_wants(wanted: list[Tell], question: tuple[Tell, bytes]) -> None:
    """And no more: nothing, where nobody is."""
    observers = Observers(b"pattern")
    for tell in wanted:
        observers.add(Listener(tell))

    assert observers.question() == question


def test_who_is_removed_hears_no_more() -> None:
    """The others do."""
    observers, one, other = Observers(), Listener(), Listener()
    observers.add(one)
    observers.add(other)
    observers.dispatched("a", DONE)
    observers.remove(one)
    observers.remove(one)
    observers.dispatched("b", DONE)

    assert (one.heard, other.heard) == (["a"], ["a", "b"])


@pytest.mark.parametrize("failing", ["asked", "told"])
def test_one_that_fails_stops_nobody(failing: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is asked and told no more, which is logged once; the others go on."""
    observers, good = Observers(), Listener(Tell.DUES)
    observers.add(Listener(Tell.JOBS, failing))
    observers.add(good)

    questions = []
    for topic in "ab":
        questions.append(observers.question()[0])
        observers.dispatched(topic, DONE)

    assert questions[-1] is Tell.DUES
    assert good.heard == ["a", "b"]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
