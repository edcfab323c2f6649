"""A dispatcher for bare sorted sets: whatever any client has put there with ZADD goes to a list when it is due.

Knows nothing of jobs, topics or Celery. Any number may run on one sorted set, since one script takes a member out and
pushes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Event
from time import monotonic, sleep

import redis
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    MovedError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from .clock import SECOND_US
from .errors import DelayQError
from .scripts import Prepared, Script
from .tracking import Tracking

logger = logging.getLogger(__name__)

#: Scores in a second, by unit.
UNITS = {"s": 1, "ms": 1000, "us": SECOND_US}

#: It looks this often (s) even if nothing is known to be due: against a jump of Redis's clock.
LONGEST_SLEEP = 1.0

#: It looks this often (s) where Redis does not tell of what others put: so late an earlier member may be.
POLL = 0.02

#: Where Redis tells, it looks this often (s) at most while others put what is not due: as late an earlier one may be.
SHORTEST_SLEEP = 0.005

#: How long (s) it sleeps before it looks whether it should stop. Costs Redis nothing.
STOP_CHECK = 0.1

#: A wait on a socket ends up to 1 ms late: its timeout is rounded up to milliseconds. The last of it (s) is slept.
FINE = 0.002

#: Pauses (s) after a lost connection: the first, and the longest.
BACKOFF_FIRST, BACKOFF_LAST = 0.05, 1.0

#: What may be well in a moment, without anybody's doing here; and its words, since redis-py has no class for some, and
#: for none that a script has met.
PASSING = (ReadOnlyError, ClusterDownError, TryAgainError, OutOfMemoryError)
PASSING_WORDS = ("READONLY", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "OOM", "BUSY", "MISCONF", "NOREPLICAS", "LOADING")


@dataclass(frozen=True)
class ZsetPass:
    """What one look did.

    Attributes:
        moved: members pushed to the list.
        delayed: members that are left in the sorted set.
        ready: length of the list before.
        wait: seconds until the next one is due; 0: one is due now; None: there is none.
    """

    moved: int
    delayed: int
    ready: int
    wait: float | None


class ZsetDispatcher:
    """A loop around :meth:`dispatch_once`.

    Args:
        client: whose connections speak RESP2, and do not try again by themselves.
        delayed: key of the sorted set; scores are due times since the epoch.
        ready: key of the list; members go to its tail.
        batch_size: members that one call moves at most.
        unit: of the scores: "s", "ms" or "us".

    Attributes:
        moved: members moved since the start, as far as Redis has confirmed it.
    """

    def __init__(
        self, client: redis.Redis, delayed: bytes, ready: bytes, *, batch_size: int = 10, unit: str = "s"
    ) -> None:
        self._client = client
        self._delayed = delayed
        self._call = partial(Prepared, _ZsetScript("dispatch_zset"), [delayed, ready])
        self._arguments = (UNITS[unit], batch_size)
        self._by_redis_clock = self._call(["", *self._arguments])
        self.moved = 0

    def dispatch_once(self, client: redis.Redis | None = None, *, now: float | None = None) -> ZsetPass:
        """Move one batch of what is due, by Redis's clock or at *now*, in units.

        Args:
            client: the connection to take; by default, one of the dispatcher's client.

        Raises:
            DelayQError: one of the keys holds something else, or both are one.
            redis.RedisError: whatever Redis or the connection says.
        """
        call = self._by_redis_clock if now is None else self._call([repr(now), *self._arguments])
        moved, delayed, ready, wait_us = call(client or self._client, ())
        self.moved += moved
        return ZsetPass(moved, delayed, ready, None if wait_us < 0 else wait_us / SECOND_US)

    def run(self, stop: Event, report: Callable[[ZsetPass, float], None]) -> None:
        """Dispatch until *stop* is set, whatever happens to Redis.

        Args:
            report: is told of each look, and how long (s) it sleeps after it.

        Raises:
            DelayQError: it cannot work like this, as when a key holds something else; nothing is lost.
        """
        pause, trouble, has_worked = BACKOFF_FIRST, None, False
        while not stop.is_set():
            try:
                with self._session() as (client, tracking):
                    while not stop.is_set():
                        done = self.dispatch_once(client)
                        if trouble is not None:
                            logger.warning("working again")
                        pause, trouble, has_worked = BACKOFF_FIRST, None, True
                        asleep = self._sleep_after(done, tracking)
                        report(done, asleep)
                        self._sleep(asleep, tracking, stop)
            except redis.RedisError as error:
                if not (has_worked or _is_passing(error)):
                    raise DelayQError(_explained(error)) from error
                # One outage says many things, "reset by peer", then "refused"; a wrong password is something else.
                kind = str(error) if isinstance(error, (ResponseError, AuthenticationError)) else "unreachable"
                if kind != trouble:
                    logger.warning("%s; trying again", _explained(error))
                trouble = kind
                stop.wait(pause)
                pause = min(2 * pause, BACKOFF_LAST)

    @contextmanager
    def _session(self) -> Iterator[tuple[redis.Redis, Tracking]]:
        """A connection to call by, and one to be told by; they end together, since one is no use without the other."""
        pool = self._client.connection_pool
        try:
            with (
                closing(redis.Redis(connection_pool=pool, single_connection_client=True)) as client,
                Tracking(client, self._delayed) as tracking,
            ):
                if tracking.refusal is not None:
                    logger.info("Redis does not tell of changes (%s): looking every %g s", tracking.refusal, POLL)
                yield client, tracking
        finally:
            pool.disconnect()

    def _sleep_after(self, done: ZsetPass, tracking: Tracking) -> float:
        longest = LONGEST_SLEEP if tracking.refusal is None else POLL
        return longest if done.wait is None else min(done.wait, longest)

    def _sleep(self, seconds: float, tracking: Tracking, stop: Event) -> None:
        """Sleep so long, or until it is told that there may be something earlier."""
        began = monotonic()
        until = began + seconds
        while not stop.is_set():
            # Also if there is no time to sleep, so that what is told does not pile up.
            remaining = until - monotonic()
            if 0 < remaining < FINE:
                sleep(remaining)
            elif tracking.refusal is not None:
                stop.wait(max(0.0, remaining - FINE / 2))
            elif tracking.told(min(max(0.0, remaining - FINE / 2), STOP_CHECK)):
                until = min(until, began + SHORTEST_SLEEP)
            if monotonic() >= until:
                return


class _ZsetScript(Script):
    """Its keys have no prefix of ours."""

    def explain(self, error: ResponseError) -> None:
        refusal = str(error)
        if refusal.startswith("WRONGTYPE"):
            raise DelayQError(f"{refusal.removeprefix('WRONGTYPE ')}: name another key") from error
        super().explain(error)


def _is_passing(error: redis.RedisError) -> bool:
    """Whether it may be well in a moment, without anybody's doing here."""
    if isinstance(error, (ResponseError, AuthenticationError)):
        return isinstance(error, PASSING) or any(word in str(error) for word in PASSING_WORDS)
    return True


def _explained(error: redis.RedisError) -> str:
    text = str(error)
    # Only newer versions of redis-py make these words of a cluster a class, and take them off the text.
    if isinstance(error, MovedError) or text.startswith("MOVED"):
        owner = text.rpartition(" ")[2]
        return f"Redis refuses: this node of a cluster does not own the keys; name {owner}, which does"
    if isinstance(error, ClusterCrossSlotError) or text.startswith("CROSSSLOT"):
        return f"Redis refuses: {text}. In a cluster give both one hash tag, as {{tasks}}:delayed and {{tasks}}:ready"
    if isinstance(error, (ResponseError, AuthenticationError)):
        return f"Redis refuses: {text}"
    return text if isinstance(error, BusyLoadingError) else f"Redis cannot be reached: {text}"
