"""The dispatcher: sleeps until the next job is due, then has what is due handed over.

Knows neither Celery nor Kombu. Any number of dispatchers may run on one store: ``dispatch`` is one atomic script, so
two at once, or one that wakes from a long pause, move every job once. Nothing is held in memory; where one stops,
another or the next one finishes. That mostly only one of them is active (:mod:`~celery_delayq.fleet`) saves work, and
nothing else depends on it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from random import random
from time import monotonic, sleep, time
from typing import Protocol
from uuid import uuid4

import redis

from .clock import SECOND_US
from .direct import Direct
from .errors import DelayQError
from .fleet import Standing, farewell
from .job import Tell, Upcoming
from .observers import Observers
from .redis_clock import RedisClock
from .store import Dispatched, Store, Tick
from .subscription import Subscription

logger = logging.getLogger(__name__)

#: How long (s) a wait on the socket may last before it looks whether it should stop. Costs Redis nothing.
STOP_CHECK = 0.05

#: A wait on a socket ends up to 1 ms late: its timeout is rounded up to milliseconds. The last of it (s) is slept.
FINE = 0.002

#: For so long (s) after a hand-over a dispatcher that has nothing to do soon does nothing at all: the worker in whose
#: process it runs has just got the message, and needs the interpreter.
COURTESY = 0.002

#: When to look again (s), if nobody has told us when.
SOON = 0.05

#: Pauses (s) after a lost connection: the first, and the longest.
BACKOFF_FIRST, BACKOFF_LAST = 0.05, 1.0

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


class HandOver(Protocol):
    """How due jobs get to those who run them: :class:`~celery_delayq.direct.Direct` or
    :class:`~celery_delayq.relay.Relay`.

    Attributes:
        end_patience: how long (s) a dispatcher that is to stop waits for what is under way.
    """

    end_patience: float

    def begin(self, store: Store) -> None:
        """The store is connected, perhaps anew: finish what the connection before has left."""

    def expired(self, store: Store, tick: Tick) -> list[Upcoming]:
        """See to the topics of which a lease has run out; return those that are to be handed over for that."""

    def hand_over(
        self,
        store: Store,
        upcoming: Upcoming,
        goes_on: Callable[[], bool],
        question: tuple[Tell, bytes],
        /,
        *,
        now_us: int | None = None,
    ) -> Dispatched:
        """One batch of that topic, and an end as soon as *goes_on* says no.

        Args:
            question: what to tell of each job that has left, and what to look for in its body.
        """

    def close(self) -> None:
        """Give back whatever it holds."""


class Dispatcher:
    """A loop around :meth:`dispatch_once`, in a thread of its own.

    Args:
        connect: opens a store on connections of its own. Called again after each lost connection; may raise anything.
        hand_over: gets what is due to those who run it; by default to the ready lists in the same Redis.
        max_poll_interval: the fleet looks at least this often (s), even if nobody wakes it; a dispatcher that is killed
            is replaced after 0.9 to 1.2 times as long.
        finish: called when a job lies aside for anybody to finish; returns at once.
        topics: serve these only, 1000 at most; all by default. Such a dispatcher stands outside of the fleet: it looks
            for itself, and takes nobody's place.
        name: unlike those of all others of the fleet.
        chance: gives a number from 0 to 1; how standbys spread when the active one falls silent.
        observers: are told of each dispatch.
    """

    def __init__(
        self,
        connect: Callable[[], Store],
        hand_over: HandOver | None = None,
        *,
        max_poll_interval: float = 1.0,
        finish: Callable[[], None] | None = None,
        topics: Iterable[str] | None = None,
        name: str | None = None,
        chance: Callable[[], float] = random,
        observers: Observers | None = None,
    ) -> None:
        self._connect = connect
        self._way = hand_over or Direct()
        self._max_poll_interval = max_poll_interval
        self._finish = finish
        self._observers = observers or Observers()
        self._topics = None if topics is None else tuple(dict.fromkeys(topics))
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._name = name or uuid4().hex
        self._chance = chance
        self._new_standing()
        self._refused: dict[str, float] = {}  # topic -> until when it is left alone (s, monotonic)
        self._last_sign: float | None = None
        self.counts = Counts()

    def start(self) -> None:
        """Begin, in a daemon thread. Returns at once, also when Redis is away."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self.run, name="delayq-dispatcher", daemon=True)
        self._thread.start()

    def begin_stop(self) -> None:
        """End after what is under way, a script call or the confirmations of a broker; returns at once."""
        self._stopping.set()

    @property
    def end_patience(self) -> float:
        """How long (s) its end may take, by its way of handing over."""
        return self._way.end_patience

    def stop(self, timeout: float | None = None) -> None:
        """:meth:`begin_stop`, and wait for the end, *timeout* seconds at most; by default for :attr:`end_patience`."""
        self.begin_stop()
        if self._thread is not None:
            self._thread.join(self.end_patience if timeout is None else timeout)
            self._thread = None

    @property
    def running(self) -> bool:
        """Whether its thread lives."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def active(self) -> bool:
        """Whether it is the one of the fleet that looks for due jobs; the others stand by."""
        return self.running and self._standing.active

    @property
    def last_sign(self) -> float | None:
        """When it last looked, or heard that another of the fleet does (s, monotonic); None: neither yet."""
        return self._last_sign

    def run(self) -> None:
        """Dispatch until :meth:`stop`, whatever happens to the connection. One log line for each change of state."""
        trouble: str | None = None
        pause = BACKOFF_FIRST
        while not self._stopping.is_set():
            try:
                with closing(self._connect()) as store, self._subscribed(store) as subscription:
                    self._new_standing(alone=subscription.forbidden or self._topics is not None)
                    self._way.begin(store)  # here: a standby hands nothing over for long
                    self._look(store)
                    if trouble is not None:
                        logger.info("delayq dispatcher: working again")
                        trouble = None
                    else:
                        logger.info("delayq dispatcher: ready, keys under %s", store.keys.beginning)
                    pause = BACKOFF_FIRST
                    self._serve(store, subscription)
                    self._leave(store)
            except Exception as error:  # the thread must outlive whatever Redis, DNS or Sentinel comes up with
                self.counts.errors += 1
                text = f"{type(error).__name__}: {error}"
                # One outage says many things, "reset by peer", then "refused"; a wrong password is something else.
                away = isinstance(error, UNREACHABLE) and not isinstance(error, redis.AuthenticationError)
                kind = "unreachable" if away else text
                if kind != trouble:
                    known = isinstance(error, (redis.RedisError, OSError, DelayQError))
                    logger.warning(
                        "delayq dispatcher: %s; trying again, tasks wait safely meanwhile", text, exc_info=not known
                    )
                trouble = kind
                self._stopping.wait(pause)
                pause = min(pause * 2, BACKOFF_LAST)
        self._way.close()

    def _subscribed(self, store: Store) -> Subscription:
        return Subscription(store, belongs=self._topics is None)

    def _new_standing(self, *, alone: bool = False) -> None:
        self._alone = alone
        self._clock = RedisClock()
        self._listened = 0.0
        self._standing = Standing(self._name, self._max_poll_interval, self._chance)

    def _serve(self, store: Store, subscription: Subscription) -> None:
        while not self._stopping.is_set():
            self._called(subscription, monotonic())  # also when there is never time to sleep
            if not self._standing.active:
                self._stand_by(store, subscription)
                continue
            deadline = self._look(store)
            while deadline is not None and not self._called(subscription, deadline.at):
                # Nobody spoke, so it is time, and for what we know: no need to ask again what is due.
                deadline = self._hand_over(store, deadline.next) if deadline.next else None
                if deadline is not None and deadline.at - monotonic() > COURTESY * 1.25:
                    sleep(COURTESY)

    def _stand_by(self, store: Store, subscription: Subscription) -> None:
        """Only listen, until the active one falls silent. Costs Redis nothing."""
        logger.debug("delayq dispatcher: standing by")
        subscription.disregard()
        store.rest()
        self._sleep(subscription, lambda: self._standing.takeover)
        if self._stopping.is_set():
            return
        subscription.attend()
        self._listen(subscription, 0)
        # Unless another was quicker.
        if self._standing.takeover <= monotonic():
            logger.debug("delayq dispatcher: taking over")
            self._standing.take_over()

    def _leave(self, store: Store) -> None:
        """Tell the standbys that they need not wait for our next beat."""
        if self._standing.active and not self._alone:
            with suppress(redis.RedisError, OSError):  # then they notice by themselves
                store.tell_fleet(farewell(self._name))

    def _called(self, subscription: Subscription, at: float) -> bool:
        """Sleep until *at* (s, monotonic). True: called before, by a put, or to stand by."""
        if subscription.forbidden:
            while (remaining := at - monotonic()) > 0 and not self._stopping.wait(min(remaining, STOP_CHECK)):
                pass
            return False
        return self._sleep(subscription, lambda: at)

    def _sleep(self, subscription: Subscription, until: Callable[[], float]) -> bool:
        """Listen until a time (s, monotonic), or until the dispatcher is to stop. True: there was a reason to wake
        an active one.
        """
        while not self._stopping.is_set():
            now = monotonic()
            remaining = until() - now
            if 0 < remaining < FINE:
                sleep(remaining)
            elif remaining > 0 or now - self._listened > self._standing.beat_interval:
                if self._listen(subscription, min(max(remaining - FINE / 2, 0), STOP_CHECK)):
                    return True
            else:
                break
        return False

    def _listen(self, subscription: Subscription, timeout: float) -> bool:
        """Hear what is said now or within *timeout*. True: there is a reason to wake an active one."""
        was_active, announced = self._standing.active, False
        heard = subscription.hear(timeout)
        self._listened = monotonic()
        while heard is not None:  # several puts, one look
            if heard.announces:
                announced = True
            else:
                self._standing.hear(heard.text, self._listened)
                self._last_sign = self._listened
            heard = subscription.hear(0)
        return was_active and (announced or not self._standing.active)

    def _look(self, store: Store) -> Deadline | None:
        """One pass, and when to look again; None: at once."""
        done = self.dispatch_once(store)
        return None if done.again else done.deadline

    def dispatch_once(self, store: Store, *, now_us: int | None = None) -> Pass:
        """One pass: one batch of each topic that is due, so that a burst on one delays no other."""
        asked = monotonic()
        beat = self._name if self._standing.should_beat(asked) else ""
        tick = store.tick(topics=self._topics or (), beat=beat, aloud=not self._alone, now_us=now_us)
        seen = monotonic()
        self._clock.hear(asked, seen, tick.now_us)
        if beat:
            self._standing.has_beaten(seen)
        self._begin_pass()
        if tick.aside and self._finish is not None:
            self._finish()
        moved = dropped = orphans = tried = 0
        deadline = self._deadline(tick.now_us, tick.next)
        expired = self._way.expired(store, tick) if tick.expired else []
        for upcoming in (*tick.due, *expired):
            if self._stopping.is_set():
                break
            if self._refused.get(upcoming.topic, 0.0) <= seen:
                done = self._dispatch(store, upcoming, now_us=now_us)
                if done is not None:
                    tried += 1
                    moved += done.moved
                    dropped += done.dropped
                    orphans += done.orphans
                    deadline = self._following(done)
        if moved:
            logger.debug("delayq dispatcher: moved %d tasks of %d queues", moved, tried)
        # Where nothing could leave, as from a queue that was paused since the tick, looking at once again is idle.
        return Pass(moved, dropped, orphans, moved + dropped + orphans > 0, deadline)

    def _goes_on(self) -> bool:
        return not self._stopping.is_set()

    def _begin_pass(self) -> None:
        self.counts.passes += 1
        self.counts.last_pass = time()
        self._last_sign = monotonic()

    def _hand_over(self, store: Store, upcoming: Upcoming) -> Deadline | None:
        """Dispatch what we have waited for. None: more is due, look at all."""
        self._begin_pass()
        done = self._dispatch(store, upcoming)
        if done is None or done.left or (done.next and done.next.due_us <= done.now_us):
            return None
        if self._is_alien(done.next):
            return None
        return self._deadline(done.now_us, done.next)

    def _dispatch(self, store: Store, upcoming: Upcoming, *, now_us: int | None = None) -> Dispatched | None:
        """One batch of one topic. None: Redis refuses this topic, and only this; the others must go on."""
        topic = upcoming.topic
        started = monotonic()
        try:
            question = self._observers.question()
            done = self._way.hand_over(store, upcoming, self._goes_on, question, now_us=now_us)
        except DelayQError as error:
            self.counts.errors += 1
            self._refused[topic] = started + REFUSED_PAUSE
            logger.error("delayq dispatcher: the tasks of queue %r wait: %s", topic, error)
            return None
        self._clock.hear(started, monotonic(), done.now_us)
        self._refused.pop(topic, None)
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
        self._observers.dispatched(topic, done)
        return done

    def _is_alien(self, upcoming: Upcoming | None) -> bool:
        """Whether what comes next of all is not ours to serve. Then we do not know what comes next of ours."""
        return self._topics is not None and upcoming is not None and upcoming.topic not in self._topics

    def _following(self, done: Dispatched) -> Deadline:
        """When to look again after a dispatch."""
        if self._is_alien(done.next):
            return Deadline(monotonic() + SOON, None)
        return self._deadline(done.now_us, done.next)

    def _deadline(self, now_us: int, upcoming: Upcoming | None) -> Deadline:
        """When to look again, if Redis's clock was *now_us* at what was just heard of it.

        One that comes too early hands nothing over and is set anew.
        """
        seen = monotonic()
        poll = seen + self._max_poll_interval if self._alone else self._standing.next_beat(seen)
        if upcoming is None or upcoming.due_us <= now_us:  # due already, and yet left: refused for now
            return Deadline(poll, None)
        due = self._clock.when(upcoming.due_us)
        return Deadline(due, upcoming) if due <= poll else Deadline(poll, None)
