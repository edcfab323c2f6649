"""The dispatchers of one process, one for each shard; to whoever starts, stops and watches them, one dispatcher.

Knows neither Celery nor Kombu. Each has a thread, a connection and a fleet of its own. When the number of shards is
raised by anybody, crews that run already take up the new ones: what is put anywhere is dispatched, whoever was started
first.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import closing
from time import monotonic

from .dispatcher import Counts, Dispatcher
from .sharding import Sharded, known_counts
from .store import Store

logger = logging.getLogger(__name__)

#: How often (s) the crew whose dispatcher of the first shard is the active one looks how many shards there are; and how
#: soon again if that fails.
LOOK_EVERY, RETRY_AFTER = 2.0, 1.0


class Crew:
    """A dispatcher for each shard.

    Args:
        of_shard: makes the dispatcher of the shard of that number.
        count: how many shards there are at least.
        connect: opens the store on connections of its own, and makes *count* known. May raise anything.
    """

    def __init__(
        self, of_shard: Callable[[int], Dispatcher], count: int, connect: Callable[[], Store | Sharded]
    ) -> None:
        self._of_shard = of_shard
        self._count = count
        self._connect = connect
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._started = False
        self._watch: threading.Thread | None = None
        self._dispatchers = [of_shard(shard) for shard in range(count)]

    def start(self) -> None:
        """Begin, in daemon threads. Returns at once, also when Redis is away."""
        self._stopping.clear()
        self._started = True
        for dispatcher in self._dispatchers:
            dispatcher.start()
        self._watch = threading.Thread(target=self._keep_watch, name="delayq-shards", daemon=True)
        self._watch.start()

    def stop(self, timeout: float | None = None) -> None:
        """End after what is under way; wait *timeout* seconds at most, by default as long as one of them may take."""
        if timeout is None:
            timeout = max(dispatcher.end_patience for dispatcher in self._dispatchers)
        deadline = monotonic() + timeout
        self._stopping.set()
        with self._lock:  # from now on none is added
            self._started = False
            dispatchers = list(self._dispatchers)
        for dispatcher in dispatchers:
            dispatcher.begin_stop()
        for dispatcher in dispatchers:
            dispatcher.stop(max(deadline - monotonic(), 0))
        if self._watch is not None:
            self._watch.join(max(deadline - monotonic(), 0))
            self._watch = None

    def run(self) -> None:
        """Dispatch in this thread until :meth:`stop`."""
        self.start()
        self._stopping.wait()

    @property
    def running(self) -> bool:
        """Whether all live."""
        return all(dispatcher.running for dispatcher in self._dispatchers)

    @property
    def active(self) -> bool:
        """Whether one of them is the one of its shard's fleet that looks for due jobs."""
        return any(dispatcher.active for dispatcher in self._dispatchers)

    @property
    def last_sign(self) -> float | None:
        """When the one that is behind all others last looked, or heard that another of its fleet does (s, monotonic);
        None: one has done neither yet.
        """
        signs = [dispatcher.last_sign for dispatcher in self._dispatchers]
        known = [sign for sign in signs if sign is not None]
        return min(known) if len(known) == len(signs) else None

    @property
    def counts(self) -> Counts:
        """What they have done, together; the last pass and the greatest lag of any."""
        each = [dispatcher.counts for dispatcher in self._dispatchers]
        return Counts(
            passes=sum(one.passes for one in each),
            moved=sum(one.moved for one in each),
            dropped=sum(one.dropped for one in each),
            orphans=sum(one.orphans for one in each),
            errors=sum(one.errors for one in each),
            last_pass=max((one.last_pass for one in each if one.last_pass is not None), default=None),
            lag=max(one.lag for one in each),
        )

    def _keep_watch(self) -> None:
        """Look how many shards there are: at the start, and then where nobody else of the fleet does."""
        seen = False
        while not self._stopping.is_set():
            try:
                with closing(self._connect()) as store:
                    while not self._stopping.is_set() and (not seen or self._dispatchers[0].active):
                        self._serve(known_counts(store.parts[0], self._count)[-1])
                        seen = True
                        self._stopping.wait(LOOK_EVERY)
            except Exception as error:  # noqa: BLE001  # as the dispatchers', which tell what is wrong
                logger.debug("delayq dispatchers: the number of shards is not known: %s", error)
                self._stopping.wait(RETRY_AFTER)
            while seen and not self._stopping.is_set() and not self._dispatchers[0].active:
                self._stopping.wait(RETRY_AFTER)

    def _serve(self, count: int) -> None:
        if count > len(self._dispatchers):
            logger.info("delayq dispatchers: %d shards now, %d by then", count, len(self._dispatchers))
        while count > len(self._dispatchers):
            # In this thread: what making one takes from the app was evaluated in the main thread, for the first.
            dispatcher = self._of_shard(len(self._dispatchers))
            with self._lock:
                if not self._started:
                    return
                dispatcher.start()
                self._dispatchers.append(dispatcher)
