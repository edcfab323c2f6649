"""One watcher: takes events, applies the rules to each, and has its source conclude them."""

from __future__ import annotations

import heapq
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from itertools import count
from threading import Event as Flag
from threading import Lock
from time import monotonic, sleep, time
from typing import NamedTuple, Protocol

import redis

from .applying import CeleryTask, Fetching, Match, RuleFailed, made_of, matches
from .model import Watcher
from .source import Concluded, Conclusion, Event, Evicted, Outcome, Push, Source
from .threads import Threads

logger = logging.getLogger(__name__)

#: Events that are taken and concluded in one call.
BATCH = 200

#: It says that it lives, and looks around, this often (s).
BEAT = 1.0

#: It waits for an event no longer than this (s) at a time, so that it stops promptly and tries again in time.
LONGEST_WAIT = 0.5

#: Threads that fetch at a time, whatever the rules' limits sum up to.
MOST_THREADS = 64

#: It waits no shorter than this (s), if it waits at all.
SHORTEST_WAIT = 0.01

#: The longest pause (s) before an event is tried again.
LONGEST_BACKOFF = 60.0

#: Pauses (s) while Redis is away: the first, and the longest.
AWAY_FIRST, AWAY_LAST = 0.1, 2.0


class Outlet(Protocol):
    """Where Celery tasks go."""

    def add(self, tasks: Sequence[CeleryTask], conclusion: Conclusion) -> None:
        """Have *tasks* sent with *conclusion*, or send them now.

        Raises:
            RuleFailed: one cannot be sent.
        """


@dataclass
class Counts:
    """What a watcher has done so far.

    Attributes:
        events: events that were taken.
        matches: rules that spoke of one.
        made: tasks that were made.
        doubles: tasks that were not, since their sets knew them.
        failures: tries that failed.
        dead: events that were given up.
        lost: events that another watcher has taken over.
        returned: events of gone watchers that were given back.
        in_work: events that are in work now.
        waiting: events that waited to be taken when it last looked.
        lag: seconds from when the event that was concluded last came about, where its source knows.
    """

    events: int = 0
    matches: int = 0
    made: int = 0
    doubles: int = 0
    failures: int = 0
    dead: int = 0
    lost: int = 0
    returned: int = 0
    in_work: int = 0
    waiting: int = 0
    lag: float | None = None


class _Again(NamedTuple):
    """An event that is to be tried again."""

    due: float
    number: int
    event: Event
    attempts: int


class _Made(NamedTuple):
    """What was made of one event.

    Attributes:
        words: of each task for the log; first of the pushes, in their order.
        matches: rules that spoke of it.
    """

    conclusion: Conclusion
    words: list[str]
    matches: int


class Watch:
    """A loop around :meth:`work_once`.

    Args:
        watcher: its configuration.
        source: where its events come from.
        fetching: gives what fetches answer.
        outlet: where Celery tasks go; None: a rule that makes one fails.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        watcher: Watcher,
        source: Source,
        fetching: Fetching,
        outlet: Outlet | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._watcher = watcher
        self._source = source
        self._fetching = fetching
        self._outlet = outlet
        self._clock = clock
        self._lock = Lock()
        self._numbers = count()
        self._again: list[_Again] = []
        self._next_beat = 0.0
        self._session = 0  # what was begun in another one is not in work any more
        slow = [fetch.concurrency for rule in watcher.rules for fetch in rule.fetch]
        self._threads = Threads(min(sum(slow), MOST_THREADS), "delayq-rules-fetch") if slow else None
        self.counts = Counts()

    def run(self, stop: Flag) -> None:
        """Work until *stop* is set, whatever happens to Redis; then give back what is in work.

        Raises:
            DelayQError: it cannot work like this, as when a key holds something else; nothing is lost.
        """
        pause, trouble = AWAY_FIRST, ""
        logger.info("watcher launched on queue %r", self._watcher.input_queue)
        try:
            while not stop.is_set():
                try:
                    self._begin()
                    while not stop.is_set():
                        self.work_once(LONGEST_WAIT)
                        if trouble:
                            logger.warning("queue %r: working again", self._watcher.input_queue)
                        pause, trouble = AWAY_FIRST, ""
                except Evicted as error:
                    logger.warning("%s; beginning anew", error)
                except redis.RedisError as error:
                    if str(error) != trouble:
                        logger.warning("queue %r: %s; trying again", self._watcher.input_queue, error)
                    trouble = str(error)
                    stop.wait(pause)
                    pause = min(2 * pause, AWAY_LAST)
        finally:
            self._end()

    def _begin(self) -> None:
        with self._lock:
            self._session += 1
            self._again.clear()
            self.counts.in_work = 0
        returned = self._source.begin()
        self._next_beat = self._clock() + BEAT
        self._returned(returned)

    def _end(self) -> None:
        if self._threads is not None:
            self._threads.stop()
        try:
            self._source.end()
        except redis.RedisError as error:
            logger.warning("queue %r: %s; others give back what is in work", self._watcher.input_queue, error)

    def _returned(self, returned: int) -> None:
        if returned:
            self.counts.returned += returned
            logger.warning("moved %d events from %r to %r", returned, self._watcher.taken, self._watcher.input_queue)

    def work_once(self, wait: float) -> int:
        """One look: at others, at what is to be tried again, and at new events.

        Args:
            wait: for how long (s) it may wait for a new event.

        Returns:
            How many events it has looked at.
        """
        now = self._clock()
        found: list[Event] = []
        if now >= self._next_beat:
            self._next_beat = now + BEAT
            beat = self._source.beat()
            self._returned(beat.returned)
            found = beat.found
            self.counts.waiting = self._source.backlog()
        due = self._due(now)
        room = self._watcher.max_in_work - self.counts.in_work
        taken: list[Event] = []
        if room > 0:
            taken = self._source.take(min(room, BATCH), 0 if due or found else self._longest_wait(now, wait))
        elif not due:
            sleep(self._longest_wait(now, wait))
        self._took(taken + found)
        tried = [(event, 0) for event in taken + found] + [(again.event, again.attempts) for again in due]
        self._handle_all(tried)
        return len(tried)

    def _took(self, events: Sequence[Event]) -> None:
        with self._lock:
            self.counts.events += len(events)
            self.counts.in_work += len(events)
        if events and logger.isEnabledFor(logging.INFO):
            for event in events:
                logger.info('<- got "%s" in queue "%s" @ %d', event.text, self._watcher.input_queue, time())

    def _longest_wait(self, now: float, wait: float) -> float:
        """Until the next thing is to be done; not so short that Redis 6.2 takes it for no timeout, which is forever."""
        if not wait:
            return 0.0
        with self._lock:
            retry = self._again[0].due if self._again else now + wait
        return max(SHORTEST_WAIT, min(wait, retry - now, self._next_beat - now))

    def _due(self, now: float) -> list[_Again]:
        with self._lock:
            due: list[_Again] = []
            while self._again and self._again[0].due <= now and len(due) < BATCH:
                due.append(heapq.heappop(self._again))
            return due

    def _handle_all(self, tried: Iterable[tuple[Event, int]]) -> None:
        """Handle events: at once and together those of which nothing is to be fetched, the others beside."""
        made: list[tuple[_Made, int]] = []
        for event, attempts in tried:
            found = list(matches(self._watcher, event))
            if self._threads is not None and any(match.rule.fetch for match in found):
                self._threads.do(partial(self._handle_slow, event, attempts, found, self._session))
                continue
            try:
                made.append((self._make(event, found), attempts))
            except RuleFailed as error:
                self._failed(event, attempts, error)
        self._conclude(made)

    def _handle_slow(self, event: Event, attempts: int, found: Sequence[Match], session: int) -> None:
        """Handle one event in a thread of its own. Meanwhile it may have been given back: then it is another's."""
        try:
            try:
                made = self._make(event, found)
            except RuleFailed as error:
                if session == self._session:
                    self._failed(event, attempts, error)
            else:
                if session == self._session:
                    self._conclude([(made, attempts)])
        except redis.RedisError as error:
            logger.warning("queue %r: %s; trying again", self._watcher.input_queue, error)
            self._try_again(event, attempts, AWAY_LAST)
        except Exception:
            logger.exception("an event of %r: trying again", self._watcher.input_queue)
            self._try_again(event, attempts, LONGEST_BACKOFF)

    def _make(self, event: Event, found: Sequence[Match]) -> _Made:
        """What the rules make of an event.

        Raises:
            RuleFailed: nothing, since one of them fails.
            redis.RedisError: the outlet's Redis is away.
        """
        logger.debug(" %d matching rule(s)", len(found))
        if event.fault:
            raise RuleFailed("", event.fault, passing=False)
        conclusion = Conclusion(event)
        pushes: list[str] = []
        tasks: list[tuple[CeleryTask, str]] = []
        rule = ""
        try:
            for match in found:
                rule = match.rule.name
                logger.debug(' applying rule "%s"', rule)
                for one, words in made_of(match, self._fetching):
                    if isinstance(one, Push):
                        conclusion.pushes.append(one)
                        pushes.append(words)
                    else:
                        tasks.append((one, words))
            if tasks:
                if self._outlet is None:
                    raise RuleFailed(rule, "makes a Celery task, and no app is known: name one by -A", passing=False)
                self._outlet.add([task for task, _ in tasks], conclusion)
        except (RuleFailed, redis.RedisError):
            raise
        except Exception as error:  # whatever it is: the event is not lost by it, nor are the others
            logger.exception('rule "%s" on "%s"', rule, event.text)
            raise RuleFailed(rule, f"{type(error).__name__}: {error}", passing=True) from error
        return _Made(conclusion, pushes + [words for _, words in tasks], len(found))

    def _conclude(self, made: Sequence[tuple[_Made, int]]) -> None:
        if not made:
            return
        answers = self._source.conclude([one.conclusion for one, _ in made])
        for (one, attempts), answer in zip(made, answers, strict=True):
            event = one.conclusion.event
            if answer.outcome is Outcome.REFUSED:
                self._failed(event, attempts, RuleFailed("", answer.reason, passing=answer.passing))
                continue
            with self._lock:
                self._count(one, answer)
            for done in one.conclusion.after if answer.outcome is Outcome.DONE else ():
                done()
            self._tell(one, answer)

    def _count(self, one: _Made, answer: Concluded) -> None:
        counts, event = self.counts, one.conclusion.event
        counts.in_work = max(0, counts.in_work - 1)
        if answer.outcome is Outcome.LOST:
            counts.lost += 1
            return
        counts.matches += one.matches
        counts.made += len(one.words) - len(answer.doubles)
        counts.doubles += len(answer.doubles)
        if event.at is not None:
            counts.lag = max(0.0, time() - event.at)

    def _tell(self, one: _Made, answer: Concluded) -> None:
        if not logger.isEnabledFor(logging.INFO):
            return
        event = one.conclusion.event
        if answer.outcome is Outcome.LOST:
            logger.info('  "%s" was another watcher\'s by then', event.text)
            return
        for number, said in enumerate(one.words):
            logger.info("  already queued, not %s" if number in answer.doubles else "  -> %s", said)
        logger.debug(' done with "%s"', event.text)

    def _failed(self, event: Event, attempts: int, error: RuleFailed) -> None:
        """A try has failed: another one later, or the end."""
        attempts += 1
        with self._lock:
            self.counts.failures += 1
        told = (
            f'rule "{error.rule}" on "{event.text}": {error.reason}'
            if error.rule
            else f'"{event.text}": {error.reason}'
        )
        if error.passing and attempts < self._watcher.max_attempts:
            pause = min(self._watcher.backoff * 2 ** (attempts - 1), LONGEST_BACKOFF)
            logger.warning("%s; again in %g s", told, pause)
            self._try_again(event, attempts, pause)
            return
        entry = {
            "event": event.text,
            "rule": error.rule,
            "error": error.reason,
            "attempts": attempts,
            "at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        }
        if self._watcher.source == "stream":
            entry["fields"] = event.variables["fields"]
        answer = self._source.bury(event, json.dumps(entry).encode(), self._watcher.dead, error.reason)
        if answer.outcome is Outcome.REFUSED:
            logger.error("%s; cannot be moved to %r: %s", told, self._watcher.dead, answer.reason)
            self._try_again(event, attempts, LONGEST_BACKOFF)
            return
        with self._lock:
            self.counts.in_work = max(0, self.counts.in_work - 1)
            if answer.outcome is Outcome.DONE:
                self.counts.dead += 1
        logger.error("%s; moved to %r", told, self._watcher.dead)

    def _try_again(self, event: Event, attempts: int, pause: float) -> None:
        with self._lock:
            heapq.heappush(self._again, _Again(self._clock() + pause, next(self._numbers), event, attempts))
