"""The finisher: takes up jobs that lie aside and have nobody who finishes them, and throws them away when it is done.

They are those that a dispatch found later than their grace, and those whose deleter died before he had told it.
Knows neither Celery nor Kombu: what there is to be done for a job comes from outside.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from time import monotonic

import redis

from .clock import SECOND_US
from .job import Aside
from .sharding import Sharded
from .store import Store

logger = logging.getLogger(__name__)


class Finisher:
    """A thread that lives for as long as something lies aside.

    Any number of them may work on one store. A job is forgotten only after it was finished; where one dies in between,
    another finishes it again when the lease is over.

    Args:
        connect: opens a store on connections of its own. May raise anything.
        finish: does for some jobs all that their end asks for. May raise anything; then they stay.
        lease: for how long (s) claimed jobs are ours.
        limit: jobs to claim at once.
    """

    def __init__(
        self,
        connect: Callable[[], Store | Sharded],
        finish: Callable[[Sequence[Aside]], object],
        *,
        lease: float = 300.0,
        limit: int = 100,
    ) -> None:
        self._connect = connect
        self._finish = finish
        self._lease = lease
        self._limit = limit
        self._lock = threading.Lock()
        self._wanted = False
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._trouble: type[Exception] | None = None

    def begin(self) -> None:
        """Something lies aside: finish it, in a daemon thread. Returns at once; may be called while it is at work."""
        with self._lock:
            self._wanted = True
            if self._thread is None or not self._thread.is_alive():  # dead: it was in the parent of a fork
                self._stopping.clear()
                thread = threading.Thread(target=self._run, name="delayq-finisher", daemon=True)
                thread.start()
                self._thread = thread

    def stop(self, timeout: float = 1.0) -> None:
        """End after what is under way; wait *timeout* seconds at most for that. What is left is for others."""
        with self._lock:
            thread = self._thread
            self._wanted = False
            self._stopping.set()
        if thread is not None:
            thread.join(timeout)

    @property
    def running(self) -> bool:
        """Whether its thread lives."""
        return self._thread is not None and self._thread.is_alive()

    def _run(self) -> None:
        while self._goes_on():
            try:
                with closing(self._connect()) as store:
                    while not self._stopping.is_set() and self.finish_once(store):
                        pass
            except Exception as error:  # noqa: BLE001  # as the dispatcher's; the next tick begins again
                self._failed(error)

    def _goes_on(self) -> bool:
        """Whether somebody has begun it since it last looked; decided so that no call of ``begin`` is lost."""
        with self._lock:
            wanted, self._wanted = self._wanted, False
            if not wanted:
                self._thread = None
            return wanted

    def finish_once(self, store: Store | Sharded) -> int:
        """Finish one batch; return how many jobs are done. What fails stays aside until its lease is over."""
        began = monotonic()
        jobs = store.claim(round(self._lease * SECOND_US), self._limit)
        if not jobs:
            return 0
        if self._finished(store, jobs):
            return len(jobs)
        # One of them may be at fault: the others must not wait for it. If it is the backend, it is all the same.
        done = 0
        for job in jobs if len(jobs) > 1 else ():
            if self._stopping.is_set() or monotonic() - began > self._lease / 2:
                break
            done += self._finished(store, [job])
        return done

    def _finished(self, store: Store | Sharded, jobs: Sequence[Aside]) -> bool:
        try:
            self._finish(jobs)
        except Exception as error:  # noqa: BLE001  # of the result backend, the broker, a chord: anything
            self._failed(error)
            return False
        store.forget(jobs)
        if self._trouble is not None:
            self._trouble = None
            logger.info("delayq finisher: working again")
        return True

    def _failed(self, error: Exception) -> None:
        """One log line for each change of state."""
        if type(error) is not self._trouble:
            self._trouble = type(error)
            logger.warning(
                "delayq finisher: %s: %s; trying again in %g s, what was cancelled or too late stays stored meanwhile",
                type(error).__name__,
                error,
                self._lease,
                exc_info=not isinstance(error, (redis.RedisError, OSError)),
            )
