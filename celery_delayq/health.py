"""Is a dispatcher at work? Asked by probes, told as JSON or by the age of a file."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import redis

from .crew import Crew
from .dispatcher import Dispatcher
from .sharding import Sharded
from .store import Store

logger = logging.getLogger(__name__)

#: A verdict is kept for so long (s): however many ask, Redis is asked no more often.
FRESH = 0.5

#: Seconds between two looks at the health that a file tells.
TOUCHED_EVERY = 1.0


@dataclass(frozen=True)
class Verdict:
    """How a dispatcher is.

    Attributes:
        healthy: it looks, or stands by while another does, and Redis answers.
        reason: what is wrong; empty if nothing is.
        age: seconds since it last looked, or heard that another of the fleet does; None: neither yet.
    """

    healthy: bool
    reason: str
    age: float | None


class Health:
    """Judges one dispatcher, over a connection of its own.

    Args:
        dispatcher: the one.
        connect: opens a store whose calls end soon, also when Redis does not answer.
        max_age: a last look longer ago than this (s) is too long ago.
    """

    def __init__(self, dispatcher: Dispatcher | Crew, connect: Callable[[], Store | Sharded], max_age: float) -> None:
        self._dispatcher = dispatcher
        self._connect = connect
        self._max_age = max_age
        self._lock = threading.Lock()
        self._store: Store | Sharded | None = None
        self._verdict: Verdict | None = None
        self._judged = 0.0

    def check(self) -> Verdict:
        """Judge now, or a moment ago. Any thread may ask; never raises."""
        with self._lock:
            if self._verdict is None or monotonic() - self._judged > FRESH:
                self._verdict = self._judge()
                self._judged = monotonic()
            return self._verdict

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop()

    def _judge(self) -> Verdict:
        last = self._dispatcher.last_sign
        age = None if last is None else monotonic() - last
        away = self._asked()  # also where the answer is known: whoever reads it wants to know the cause
        if not self._dispatcher.running:
            reason = "the dispatcher does not run"
        elif away:
            reason = f"Redis does not answer: {away}"
        elif age is None:
            reason = "the dispatcher has not looked yet"
        elif age > self._max_age:
            reason = f"the dispatcher has neither looked nor heard of one that does for {age:.1f} s"
        else:
            reason = ""
        return Verdict(not reason, reason, age)

    def _asked(self) -> str:
        """Ask Redis for its clock; return what goes wrong."""
        try:
            if self._store is None:
                self._store = self._connect()
            self._store.now_us()
        except Exception as error:
            self._drop()
            if not isinstance(error, (redis.RedisError, OSError)):
                logger.debug("delayq health: Redis cannot be asked", exc_info=True)
            return f"{type(error).__name__}: {error}"
        return ""

    def _drop(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            with suppress(Exception):
                store.close()


class HealthFile:
    """A file that is touched while all is well, and removed at the end. Its age tells a probe what it must know.

    Args:
        path: where; its folder must be there.
        health: what to ask.
    """

    def __init__(self, path: Path, health: Health) -> None:
        self._path = path
        self._health = health
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, in a daemon thread.

        Raises:
            OSError: there cannot be such a file. Now, and not when somebody misses it.
        """
        self._path.touch()
        self._path.unlink()  # it may be an old one, and says nothing of us
        self._thread = threading.Thread(target=self._run, name="delayq-health", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, and remove the file."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(2.0)
            self._thread = None
        self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        trouble = False
        while not self._stopping.is_set():
            if self._health.check().healthy and not self._stopping.is_set():
                try:
                    self._path.touch()
                    trouble = False
                except OSError as error:
                    if not trouble:
                        logger.warning("delayq health: %s cannot be touched: %s", self._path, error)
                    trouble = True
            self._stopping.wait(TOUCHED_EVERY)
