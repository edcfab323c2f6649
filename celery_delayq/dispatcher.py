"""The dispatcher: sleeps until the next job is due, then moves what is due to the ready lists.

Knows neither Celery nor Kombu. Any number of dispatchers may work on one store: ``dispatch`` is one atomic script, so
two at once, or one that wakes from a long pause, move every job once. Nobody leads, nothing is held in memory; where
one stops, another or the next one finishes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from time import monotonic, sleep, time

import redis
from redis.exceptions import NoPermissionError

from .clock import SECOND_US
from .delivery import Delivery
from .errors import DelayQError
from .store import Dispatched, Store, Upcoming

logger = logging.getLogger(__name__)

#: A script call that takes longer (s) halves the batch: Redis serves nobody else meanwhile.
CALL_BUDGET = 0.025

#: How long (s) a wait on the socket may last before it looks whether it should stop. Costs Redis nothing.
STOP_CHECK = 0.2

#: A wait on a socket ends up to 1 ms late: its timeout is rounded up to milliseconds. The last of it (s) is slept.
FINE = 0.002

#: Pauses (s) after a lost connection: the first, and the longest.
BACKOFF_FIRST, BACKOFF_LAST = 0.05, 2.0

#: What a Redis that cannot be reached makes of a call.
UNREACHABLE = (redis.ConnectionError, redis.TimeoutError, OSError)

#: Seconds for which a topic is left alone after Redis refused to dispatch it, as when its ready list is no list.
REFUSED_PAUSE = 5.0


@dataclass
class Counts:
    """What a dispatcher has done since it started.

    Attributes:
        last_pass: when it last looked (s since the epoch, by this machine's clock); None: not yet.
        lag: how long (s) the first job of the last pass that found one had been due.
    """

    passes: int = 0
    moved: int = 0
    dropped: int = 0
    orphans: int = 0
    errors: int = 0
    last_pass: float | None = None
    lag: float = 0.0


@dataclass(frozen=True)
class Deadline:
    """When to look again.

    Attributes:
        at: that moment (s, monotonic).
        next: what is due then; None if we only poll.
    """

    at: float
    next: Upcoming | None


@dataclass(frozen=True)
class Pass:
    """What one pass did.

    Attributes:
        moved, dropped, orphans: jobs handed over; laid aside, being later than their grace; ids without a body.
        again: more may leave now.
        deadline: when to look again at the latest.
    """

    moved: int
    dropped: int
    orphans: int
    again: bool
    deadline: Deadline


class Dispatcher:
    """A loop around :meth:`dispatch_once`, in a thread of its own.

    Args:
        connect: opens a store on connections of its own. Called again after each lost connection; may raise anything.
        batch_size: jobs that one script call moves at most.
        max_poll_interval: look at least this often (s), even if nobody wakes us.
        position: "back" or "front" of the ready lists.
        ceilings: topic -> how many ready messages it may have; nothing is moved beyond.
        finish: called when a job lies aside for anybody to finish; returns at once.
    """

    def __init__(
        self,
        connect: Callable[[], Store],
        *,
        batch_size: int = 1000,
        max_poll_interval: float = 1.0,
        position: str = "back",
        ceilings: Mapping[str, int] | None = None,
        finish: Callable[[], None] | None = None,
    ) -> None:
        self._connect = connect
        self._batch_size = self._batch_limit = batch_size
        self._max_poll_interval = max_poll_interval
        self._position = position
        self._ceilings = ceilings or {}
        self._finish = finish
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._refused: dict[str, float] = {}  # topic -> until when it is left alone (s, monotonic)
        self.counts = Counts()

    def start(self) -> None:
        """Begin, in a daemon thread. Returns at once, also when Redis is away."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self.run, name="delayq-dispatcher", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 1.0) -> None:
        """End after the script call that is under way; wait *timeout* seconds at most for that."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout)
            self._thread = None

    @property
    def running(self) -> bool:
        """Whether its thread lives."""
        return self._thread is not None and self._thread.is_alive()

    def run(self) -> None:
        """Dispatch until :meth:`stop`, whatever happens to the connection. One log line for each change of state."""
        trouble: str | None = None
        pause = BACKOFF_FIRST
        while not self._stopping.is_set():
            try:
                with closing(self._connect()) as store, _Waker(store, self._stopping) as waker:
                    self._look(store)
                    if trouble is not None:
                        logger.info("delayq dispatcher: working again")
                        trouble = None
                    else:
                        logger.info("delayq dispatcher: ready, keys under %s", store.keys.index.removesuffix("index"))
                    pause = BACKOFF_FIRST
                    self._serve(store, waker)
            except Exception as error:  # the thread must outlive whatever Redis, DNS or Sentinel comes up with
                self.counts.errors += 1
                text = f"{type(error).__name__}: {error}"
                # One outage says many things, "reset by peer", then "refused"; a wrong password is something else.
                away = isinstance(error, UNREACHABLE) and not isinstance(error, redis.AuthenticationError)
                kind = "unreachable" if away else text
                if kind != trouble:
                    known = isinstance(error, (redis.RedisError, OSError))
                    logger.warning(
                        "delayq dispatcher: %s; trying again, tasks wait safely meanwhile", text, exc_info=not known
                    )
                trouble = kind
                self._stopping.wait(pause)
                pause = min(pause * 2, BACKOFF_LAST)

    def _serve(self, store: Store, waker: _Waker) -> None:
        while not self._stopping.is_set():
            deadline: Deadline | None = self._look(store)
            while deadline is not None and not waker.wait_until(deadline.at):
                # Nobody spoke, so it is time, and for what we know: no need to ask again what is due.
                deadline = self._hand_over(store, deadline.next) if deadline.next else None

    def _look(self, store: Store) -> Deadline:
        """Dispatch until nothing is due, and say when to look again."""
        while True:
            done = self.dispatch_once(store)
            if self._stopping.is_set() or not done.again:
                return done.deadline

    def dispatch_once(self, store: Store, *, now_us: int | None = None) -> Pass:
        """One pass: one batch of each topic that is due, so that a burst on one delays no other."""
        asked = monotonic()
        tick = store.tick(now_us=now_us)
        seen = _midway(asked)
        self._begin_pass()
        if tick.aside and self._finish is not None:
            self._finish()
        moved = dropped = orphans = tried = 0
        deadline = self._deadline(seen, tick.now_us, tick.next)
        for upcoming in tick.due:
            if self._stopping.is_set():
                break
            if self._refused.get(upcoming.topic, 0.0) <= seen:
                asked = monotonic()
                done = self._dispatch(store, upcoming, now_us=now_us)
                if done is not None:
                    tried += 1
                    moved += done.moved
                    dropped += done.dropped
                    orphans += done.orphans
                    deadline = self._deadline(_midway(asked), done.now_us, done.next)
        if moved:
            logger.debug("delayq dispatcher: moved %d tasks of %d queues", moved, tried)
        # Where nothing could leave, as from a queue that was paused since the tick, looking at once again is idle.
        return Pass(moved, dropped, orphans, moved + dropped + orphans > 0, deadline)

    def _begin_pass(self) -> None:
        self.counts.passes += 1
        self.counts.last_pass = time()

    def _hand_over(self, store: Store, upcoming: Upcoming) -> Deadline | None:
        """Dispatch what we have waited for. None: more is due, look at all."""
        self._begin_pass()
        asked = monotonic()
        done = self._dispatch(store, upcoming)
        if done is None or done.left or (done.next and done.next.due_us <= done.now_us):
            return None
        return self._deadline(_midway(asked), done.now_us, done.next)

    def _dispatch(self, store: Store, upcoming: Upcoming, *, now_us: int | None = None) -> Dispatched | None:
        """One batch of one topic. None: Redis refuses this topic, and only this; the others must go on."""
        topic = upcoming.topic
        delivery = upcoming.delivery or Delivery.plain(store.keys.ready(topic))
        started = monotonic()
        try:
            ceiling = self._ceilings.get(topic)
            done = store.dispatch(topic, delivery, self._batch_limit, self._position, ceiling, now_us=now_us)
        except DelayQError as error:
            self.counts.errors += 1
            self._refused[topic] = started + REFUSED_PAUSE
            logger.error("delayq dispatcher: the tasks of queue %r wait: %s", topic, error)
            return None
        self._refused.pop(topic, None)
        self._adapt(monotonic() - started, done.moved)
        self.counts.moved += done.moved
        self.counts.dropped += done.dropped
        self.counts.orphans += done.orphans
        if done.moved:
            self.counts.lag = max(done.now_us - upcoming.due_us, 0) / SECOND_US
        if done.dropped:
            logger.warning(
                "delayq dispatcher: %d tasks of %r came later than their grace: dropped", done.dropped, topic
            )
            if self._finish is not None:
                self._finish()
        if done.orphans:
            logger.warning("delayq dispatcher: %d ids of %r had no body and were dropped", done.orphans, topic)
        return done

    def _deadline(self, seen: float, now_us: int, upcoming: Upcoming | None) -> Deadline:
        """When to look again, if Redis's clock was *now_us* at *seen* (s, monotonic).

        Only the distance between two readings of Redis's clock counts, so ours need not agree with it.
        """
        poll = seen + self._max_poll_interval
        if upcoming is None or upcoming.due_us <= now_us:  # due already, and yet left: refused for now
            return Deadline(poll, None)
        due = seen + (upcoming.due_us - now_us) / SECOND_US
        return Deadline(due, upcoming) if due <= poll else Deadline(poll, None)

    def _adapt(self, took: float, moved: int) -> None:
        """Halve the batch after a slow call; double it, up to what was set, after a full and quick one."""
        if took > CALL_BUDGET:
            self._batch_limit = max(self._batch_limit // 2, min(10, self._batch_size))
        elif moved == self._batch_limit and took < CALL_BUDGET / 4:
            self._batch_limit = min(self._batch_limit * 2, self._batch_size)


def _midway(asked: float) -> float:
    """When Redis read its clock (s, monotonic), if it was asked at *asked* and has just answered.

    A script reads the clock first, so it was rather before than after half of the time. A deadline that comes too early
    all the same hands nothing over and is set anew.
    """
    return (asked + monotonic()) / 2


class _Waker:
    """The subscription on which puts announce a job that became the earliest.

    We sleep on its socket with a timeout of our own: Redis's blocking commands time out on its tick, up to 0.1 s late.
    Where an ACL forbids the channel we only sleep; the poll interval then bounds how late an earlier job is seen.
    """

    def __init__(self, store: Store, stopping: threading.Event) -> None:
        self._store = store
        self._stopping = stopping
        self._pubsub = store.client.pubsub(ignore_subscribe_messages=True)
        self._forbidden = False

    def __enter__(self) -> _Waker:
        try:
            self._pubsub.subscribe(self._store.keys.wake)
            # Only when the confirmation is here does nothing escape us.
            self._pubsub.get_message(timeout=5.0)
        except NoPermissionError:
            self._forbidden = True
            logger.warning(
                "delayq dispatcher: Redis's ACL forbids the channel %s (allow it with &%s*); "
                "earlier tasks are noticed by polling only",
                self._store.keys.wake,
                self._store.keys.wake,
            )
        except BaseException:
            self._pubsub.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pubsub.close()

    def wait_until(self, at: float) -> bool:
        """Sleep until *at* (s, monotonic), or until the dispatcher is to stop. True: woken by a put."""
        while (remaining := at - monotonic()) > 0 and not self._stopping.is_set():
            if remaining < FINE:
                sleep(remaining)
            elif self._hears(min(remaining - FINE / 2, STOP_CHECK)):
                return True
        return False

    def _hears(self, timeout: float) -> bool:
        if self._forbidden:
            self._stopping.wait(timeout)
            return False
        heard = self._pubsub.get_message(timeout=timeout) is not None
        while heard and self._pubsub.get_message() is not None:
            pass  # several puts, one look
        return heard
