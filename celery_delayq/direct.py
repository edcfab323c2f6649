"""The hand-over where the broker is the very Redis in which jobs wait: one atomic script."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from time import monotonic

from .delivery import Delivery
from .errors import DelayQError
from .job import Tell, Upcoming
from .leasing import ENDED
from .store import Dispatched, Store, Tick

logger = logging.getLogger(__name__)

#: A script call that takes longer (s) halves the batch: Redis serves nobody else meanwhile.
CALL_BUDGET = 0.025


class Direct:
    """Moves due jobs to the ready lists.

    Args:
        batch_size: jobs that one script call moves at most.
        position: "back" or "front" of the ready lists.
        ceilings: topic -> how many ready messages it may have; nothing is moved beyond.
    """

    #: A script call takes milliseconds, and if it is not waited for it is done all the same.
    end_patience = 1.0

    def __init__(
        self, *, batch_size: int = 1000, position: str = "back", ceilings: Mapping[str, int] | None = None
    ) -> None:
        self._batch_size = self._batch_limit = batch_size
        self._position = position
        self._ceilings = ceilings or {}
        self._leased: set[str] = set()  # topics of which a lease has run out; what came back has its attempts counted
        self._refused: set[str] = set()  # those of them that Redis refuses, as one of their keys is somebody else's

    def begin(self, store: Store) -> None:
        """Nothing is left over from the connection before: a script ran, or it did not."""

    def expired(self, store: Store, tick: Tick) -> list[Upcoming]:
        """Nobody reserves here; but somebody may have, before the broker was this Redis or by a store of his own. What
        has outlived its lease waits again, and is handed over when its back-off is over.
        """
        for topic in tick.expired:
            self._leased.add(topic)
            try:
                count = store.requeue(topic, ENDED, now_us=tick.now_us)
            except DelayQError as error:
                if topic not in self._refused:
                    logger.error("delayq dispatcher: reserved tasks of queue %r do not come back: %s", topic, error)
                self._refused.add(topic)
            else:
                self._refused.discard(topic)
                if count:  # none: another dispatcher was quicker
                    logger.warning(
                        "delayq dispatcher: the leases of %d tasks of %r ran out; they wait again", count, topic
                    )
        return []

    def hand_over(
        self,
        store: Store,
        upcoming: Upcoming,
        _: Callable[[], bool],
        question: tuple[Tell, bytes] = (Tell.NOTHING, b""),
        *,
        now_us: int | None = None,
    ) -> Dispatched:
        """One batch of that topic; a script cannot be ended on its way."""
        topic = upcoming.topic
        delivery = upcoming.delivery or Delivery.plain(store.keys.ready(topic))
        if delivery.is_relayed:  # put before the broker was this Redis
            if "/" in topic:
                raise DelayQError(
                    "they were put for a broker elsewhere, to be sent to that exchange: celery delayq drain, "
                    "in an app that has delayq_store_url"
                )
            delivery = Delivery.plain(store.keys.ready(topic))
        started = monotonic()
        limits = self._batch_limit, self._position, self._ceilings.get(topic)
        done = store.dispatch(topic, delivery, *limits, *question, counted=topic in self._leased, now_us=now_us)
        self._adapt(monotonic() - started, done.moved)
        return done

    def close(self) -> None:
        """It holds nothing."""

    def _adapt(self, took: float, moved: int) -> None:
        """Halve the batch after a slow call; double it, up to what was set, after a full and quick one."""
        if took > CALL_BUDGET:
            self._batch_limit = max(self._batch_limit // 2, min(10, self._batch_size))
        elif moved == self._batch_limit and took < CALL_BUDGET / 4:
            self._batch_limit = min(self._batch_limit * 2, self._batch_size)
