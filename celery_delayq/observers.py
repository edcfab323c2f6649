"""Who wants to know what dispatchers do: metrics, events. The engine calls them and knows none of them."""

from __future__ import annotations

import logging
from typing import Protocol

from .job import Tell
from .store import Dispatched

logger = logging.getLogger(__name__)


class Observer(Protocol):
    """Is told of each dispatch after its jobs have left."""

    @property
    def tell(self) -> Tell:
        """What it wants to know of the moved jobs. Asked before each dispatch, so it may change."""

    def dispatched(self, topic: str, done: Dispatched, /) -> None:
        """Jobs of *topic* have left. Called by the dispatcher's thread, which waits: to return at once."""


class Observers:
    """The observers of one app. While there are none, they cost a look at an empty tuple.

    Args:
        pattern: what to look for in the bodies of jobs; see :meth:`~celery_delayq.store.Store.dispatch`.
    """

    def __init__(self, pattern: bytes = b"") -> None:
        self._pattern = pattern
        self._all: tuple[Observer, ...] = ()

    def add(self, observer: Observer) -> None:
        """From now on tell it, too."""
        self._all = (*self._all, observer)

    def remove(self, observer: Observer) -> None:
        """Tell it no more."""
        self._all = tuple(one for one in self._all if one is not observer)

    def question(self) -> tuple[Tell, bytes]:
        """What to ask the next dispatch to tell: as much as any of them wants."""
        tell = Tell.NOTHING
        for one in self._all:
            try:
                wanted = one.tell
            except Exception:  # noqa: BLE001  # it is logged
                self._failed(one)
            else:
                tell = wanted if tell is Tell.NOTHING or wanted is Tell.JOBS else tell
        return tell, self._pattern if tell is Tell.JOBS else b""

    def dispatched(self, topic: str, done: Dispatched) -> None:
        """Tell all of them."""
        for one in self._all:
            try:
                one.dispatched(topic, done)
            except Exception:  # noqa: BLE001  # it is logged
                self._failed(one)

    def _failed(self, observer: Observer) -> None:
        """It is told no more: it must not stop what is due."""
        logger.exception("delayq: %r failed and is told of no dispatch any more", observer)
        self.remove(observer)
