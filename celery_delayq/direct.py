"""The hand-over where the broker is the very Redis in which jobs wait: one atomic script."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic

from .delivery import Delivery
from .job import Tell, Upcoming
from .store import Dispatched, Store

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

    def begin(self, store: Store) -> None:
        """Nothing is left over from the connection before: a script ran, or it did not."""

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
        delivery = upcoming.delivery or Delivery.plain(store.keys.ready(upcoming.topic))
        started = monotonic()
        ceiling = self._ceilings.get(upcoming.topic)
        limits = self._batch_limit, self._position, ceiling
        done = store.dispatch(upcoming.topic, delivery, *limits, *question, now_us=now_us)
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
