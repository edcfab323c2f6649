"""Delayed messages that reach a worker all the same: put into the schedule, where stock Celery holds them in memory.

They come from producers without celery_delayq, in whatever language; they were in the queue when it was installed; or a
producer found no dispatcher and published the stock way. The worker is the first that can tell.

Whatever stock Celery would not hold goes stock Celery's way, untouched: what is due, revoked, expired, cannot be read,
or is of an unknown task; and so does what the store does not take. Such a message is never lost by us: until it is
acknowledged, in the very script that stores it or after that, it is the broker's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime, timezone
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import redis
from celery.worker import state
from kombu.exceptions import OperationalError

from . import broker
from .clock import LATEST_US, SECOND_US, to_us
from .delivery import Delivery
from .errors import AlreadyScheduled, DelayQError, ReplicasMissing, Unattended, shortened
from .job import Adopted, OnConflict, Origin, Put
from .liveness import Liveness
from .message import read_eta, without_eta
from .publishing import Wish, read_options
from .readdressing import readdressed
from .sharding import Sharded
from .store import Store

if TYPE_CHECKING:
    from celery import Celery
    from kombu import Message

logger = logging.getLogger(__name__)

#: How often (s) a worker says that it holds messages because the store takes none.
REMINDER = 60.0

#: A store elsewhere is opened anew after so long (s): it may have got more shards.
REOPENED = 5.0

#: For so long (s) a store elsewhere that was away is left alone: meanwhile the worker has other messages to look at.
AWAY = 10.0

#: What a worker does with a message: a strategy, as Celery calls it.
Strategy = Callable[..., Any]


class Found(NamedTuple):
    """A message that could be adopted.

    Attributes:
        due_us: what its ``eta`` says.
        wish: what its task's attributes ask of us.
    """

    message: Message
    id: str
    due_us: int
    wish: Wish


#: Puts what was found, and says what became of it. Only after OK the message is acknowledged; so whoever cannot do both
#: at once puts it here.
Take = Callable[[Found], Adopted]


class Adoption:
    """Adopts the messages of one worker.

    Args:
        take: stores a message.
        min_delay: shorter delays (s) are left to stock Celery.
    """

    def __init__(self, app: Celery, take: Take, min_delay: float) -> None:
        self._app = app
        self._take = take
        self._min_delay = min_delay
        self._told = -REMINDER
        #: How many messages it has adopted.
        self.count = 0

    def before(self, strategy: Strategy, connection_errors: tuple[type[Exception], ...]) -> Strategy:
        """A strategy that adopts what it can, and leaves the rest to *strategy*.

        What fails with one of *connection_errors* ends the worker's connection, as where Kombu itself meets one; the
        message is then given out anew, unless it was adopted before that.
        """

        def adopt(message: Any, payload: Any, ack: Any, *rest: Any) -> Any:
            if payload is not None or not message.headers.get("eta"):
                return strategy(message, payload, ack, *rest)
            found = self._find(message)
            became = None if found is None else self._adopt(found, connection_errors)
            if became is Adopted.OK:
                self.count += 1
                return ack(logger, connection_errors)
            if became is Adopted.GONE:
                return broker.forget(message)
            return strategy(message, payload, ack, *rest)

        return adopt

    def _find(self, message: Message) -> Found | None:
        """A message as something to adopt; None: stock Celery is to judge it."""
        headers = message.headers
        id, expires, stamps = headers.get("id"), headers.get("expires"), headers.get("stamped_headers") or ()
        if not isinstance(id, str) or not id or id in state.revoked:
            return None
        if any(stamp in state.revoked_stamps for stamp in stamps):
            return None
        try:
            due, now = read_eta(headers["eta"]), datetime.now(timezone.utc)
            delay = (due - now).total_seconds()
            if delay <= 0 or delay < self._min_delay or to_us(due) > LATEST_US:
                return None
            if expires is not None and read_eta(expires) <= now:
                return None
            wish = read_options({}, self._app._tasks.get(headers["task"]))
        except (ValueError, TypeError, OverflowError):
            return None
        # Decoding refuses what the worker accepts not, and what is not signed; then Celery's own way raises it again.
        return None if "args" in message.payload else Found(message, id, to_us(due), wish)  # protocol 1 in part

    def _adopt(self, found: Found, connection_errors: tuple[type[Exception], ...]) -> Adopted | None:
        try:
            became = self._take(found)
        except connection_errors:
            raise
        except (DelayQError, OperationalError, redis.RedisError) as error:
            self._tell(error)
            return None
        logger.debug("delayq adoption: task %s: %s", shortened(found.id), became.value)
        return became

    def _tell(self, error: Exception) -> None:
        if monotonic() - self._told >= REMINDER:
            self._told = monotonic()
            logger.warning(
                "delayq adoption: this worker holds delayed tasks in memory, as stock Celery does: %s: %s",
                type(error).__name__,
                error,
            )


class Adopting(dict[str, Strategy]):
    """A consumer's strategies by task, each one that is set with adoption before it.

    A mapping of its own: Celery fills the consumer's anew after each lost connection and each restart of the pool.
    """

    def __init__(self, adoption: Adoption, connection_errors: tuple[type[Exception], ...]) -> None:
        super().__init__()
        self.adoption = adoption
        self._connection_errors = connection_errors

    def __setitem__(self, name: str, strategy: Strategy) -> None:
        super().__setitem__(name, self.adoption.before(strategy, self._connection_errors))


def direct(prefix: str, min_delay: float, silence_us: Callable[[], int | None]) -> Take:
    """A :data:`Take` for messages that wait in the broker's own Redis: put and acknowledged in one script.

    Args:
        prefix: the setting ``delayq_prefix``.
        silence_us: gives after how long without a sign of life no dispatcher lives; None if one is known to.
    """

    def take(found: Found) -> Adopted:
        message, wish = found.message, found.wish
        queue = broker.source_of(message)
        if queue is None:
            return Adopted.UNKNOWN
        headers, properties = without_eta(message.headers, message.properties, time.time_ns() // 1000)
        body, step = broker.envelope_again(message, headers, properties)
        job = Put(
            queue,
            found.id,
            body,
            at_us=found.due_us,
            step=step,
            max_wait_us=wish.max_wait_us,
            grace_us=wish.grace_us,
        )
        return broker.adopt(message, prefix, job, wish.on_conflict, round(min_delay * SECOND_US), silence_us())

    return take


class Relayed:
    """A :data:`Take` for messages that wait in a Redis that is not the broker: put; then the caller acknowledges.

    If a process dies in between, the broker delivers the message again, and it is told by its very bytes: while it
    waits or is being handed over, nothing is put again.

    Args:
        connect: opens the store on connections of its own, which do not wait long.
        source: gives the queue that a message came from; None if that cannot be told.
        silence: says whether a dispatcher lives; called for each message, None if one is known to.
        replicas: how many must have acknowledged a put.
    """

    def __init__(
        self,
        connect: Callable[[], Store | Sharded],
        source: Callable[[Message], str | None],
        silence: Callable[[], Liveness | None],
        replicas: int,
    ) -> None:
        self._connect = connect
        self._source = source
        self._silence = silence
        self._replicas = replicas
        self._store: Store | Sharded | None = None
        self._opened = 0.0  # s, monotonic
        self._away_until = 0.0  # the same
        self._trouble = ""

    def __call__(self, found: Found) -> Adopted:
        queue, wish = self._source(found.message), found.wish
        if queue is None:
            return Adopted.UNKNOWN
        if monotonic() < self._away_until:
            raise OperationalError(self._trouble)
        try:
            body = readdressed(found.message, found.id, queue)
        except (ValueError, TypeError, LookupError):  # something that JSON, or this Kombu's compressions, cannot say
            return Adopted.UNKNOWN
        job = Put(queue, found.id, body, found.due_us, max_wait_us=wish.max_wait_us, grace_us=wish.grace_us)
        try:
            return self._put(job, wish.on_conflict)
        except ReplicasMissing as error:
            self._leave_alone(error)
            raise
        except (redis.RedisError, OSError) as error:  # not as such: the broker's connection may know the same errors
            self._leave_alone(error)
            raise OperationalError(self._trouble) from error

    def close(self) -> None:
        """Close the connections."""
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def _leave_alone(self, error: Exception) -> None:
        self.close()
        self._away_until = monotonic() + AWAY
        self._trouble = f"the store of delayed tasks: {type(error).__name__}: {error}"

    def _put(self, job: Put, on_conflict: OnConflict) -> Adopted:
        try:
            return self._put_once(job, on_conflict)
        except (redis.ConnectionError, redis.TimeoutError, OSError):
            # Perhaps stored, perhaps not: only to put it again tells.
            self.close()
            return self._put_once(job, on_conflict)

    def _put_once(self, job: Put, on_conflict: OnConflict) -> Adopted:
        if monotonic() - self._opened > REOPENED:
            self.close()
        if self._store is None:
            self._store, self._opened = self._connect(), monotonic()
        way, origin, liveness = {job.topic: Delivery.relayed()}, Origin.RETRIED, self._silence()
        try:
            self._store.put([job], way, on_conflict, origin=origin, liveness=liveness, replicas=self._replicas)
        except AlreadyScheduled:
            return Adopted.EXISTS
        except Unattended:
            return Adopted.UNATTENDED
        except ReplicasMissing:
            # The broker has it more safely; but not if it has left by now.
            if any(self._store.delete(job.topic, [job.id], bodies=[job.body])):
                raise
        return Adopted.OK


class Silence(Liveness):
    """Asks whether a dispatcher lives, and nothing more: what is not put is not lost, so nobody needs to hear of it."""

    def __init__(self, max_poll_interval: float) -> None:
        super().__init__(max_poll_interval, refuses=True)

    def miss(self, silent_us: int, jobs: int, *, refused: bool) -> None: ...
