"""Where the Celery tasks go that rules make.

Celery makes each message as ever, with its router, signals, serializer and the task's own attributes. What happens to
it then depends on where it goes:

- If the app's delayed tasks wait in the broker's Redis, and that is the watcher's Redis, the same database of it, then
  messages are kept back and become part of the event's conclusion: one Lua call that stores the delayed ones, pushes
  the others to Kombu's lists and clears the event. So each task is there exactly once, wherever a watcher dies.
  ``delayq_fallback`` and ``delayq_wait_replicas`` do not apply: a replica that has not heard of the tasks still has the
  event.
- Else they are sent first, and confirmed where the broker can, and the event is cleared after that. A watcher that dies
  between the two leaves the event to be applied again: each task is there at least once. Those with a ``task_id`` and a
  delay are not doubled while they wait, unless ``on_conflict`` says so.

The same goes for messages that nobody can keep back: of broadcast queues, of message protocol 1, and of apps whose
``send_task_message`` somebody has wrapped.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Sequence, Set
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import groupby
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any

import redis
from kombu import Producer
from kombu.exceptions import OperationalError

from celery_delayq import broker
from celery_delayq.addresses import is_redis_of
from celery_delayq.batch import Batch, Terms
from celery_delayq.errors import DelayQError, ImproperlyConfigured, ReplicasMissing
from celery_delayq.job import OnConflict, Origin, Put
from celery_delayq.lengths import read_length
from celery_delayq.message import read_eta, task_in
from celery_delayq.producing import PATIENT
from celery_delayq.publishing import gathering
from celery_delayq.store import Store
from celery_delayq.verbs import Verbs

from .applying import CeleryTask, RuleFailed
from .source import Conclusion, Push

if TYPE_CHECKING:
    from celery import Celery

logger = logging.getLogger(__name__)

#: For so long (s) a broker that could not be reached is not asked again: each time may take seconds, and meanwhile the
#: watcher says nothing of being alive.
AWAY = 1.0

#: How a publish is retried: once, over a new connection. After that it is the watcher's matter.
RETRY: dict[str, Any] = {"retry": True, "retry_policy": {"max_retries": 1, "interval_start": 0}}

#: Sends one task, with more options for Celery.
Send = Callable[..., object]


class Outlet:
    """Sends the Celery tasks of one watcher, over a connection of its own. Its methods may be called by any thread.

    Args:
        app: has a DelayQ.
        url: of the watcher's Redis, as redis-py reads it.

    Attributes:
        is_exact: whether tasks become part of conclusions, and so are sent exactly once.

    Raises:
        ImproperlyConfigured: the app has no DelayQ, or its settings cannot be used.
    """

    def __init__(self, app: Celery, url: str) -> None:
        if getattr(app, "delayq", None) is None:
            raise ImproperlyConfigured(
                f"the app {app.main or app!r} has no celery_delayq: call DelayQ(app) where it is made"
            )
        self._app = app
        connection = app.connection_for_write()
        patient = PATIENT.get(connection.get_transport_cls().driver_type, {})
        options = {**patient, **(connection.transport_options or {}), "confirm_publish": True}
        connection = app.connection_for_write(transport_options=options)
        self.is_exact = not app.delayq.home.is_relayed and is_redis_of(url, connection)
        self._lock = Lock()
        # In the main thread, for what the app evaluates to make them may hold locks; see DelayQ.dispatcher.
        self._tasks = app.tasks
        producer_cls = app.amqp.Producer
        if self.is_exact:
            producer_cls = _kept_producer(producer_cls)
        self._producer: Any = producer_cls(connection, auto_declare=False)
        self._checked: Store | None = None
        #: The last that was heard of a broker that is away, and until when it is taken for away (s, monotonic).
        self._away: tuple[Exception, float] | None = None

    def add(self, tasks: Sequence[CeleryTask], conclusion: Conclusion) -> None:
        """Have *tasks* sent with *conclusion*; or send them now, where that cannot be.

        Raises:
            RuleFailed: one cannot be sent. Nothing is added; but without :attr:`is_exact` those before it are sent.
            redis.RedisError: the watcher's own Redis is away.
        """
        sends = [(task, self._send(task)) for task in tasks]
        with self._lock:
            if self.is_exact:
                self._keep(sends, conclusion)
            else:
                for task, send in sends:
                    self._send_now(task, send)

    def close(self) -> None:
        """Close the connection; without waiting for a broker that does not answer."""
        try:
            self._producer.connection.collect(1.0)
        except Exception as error:  # noqa: BLE001  # it is gone already
            logger.debug("rules: closing the connection to the broker: %r", error)

    def _send(self, task: CeleryTask) -> Send:
        """What sends *task*; all that its rule says is read by then."""
        make, filled, delayq = task.make, task.filled, self._app.delayq
        name = filled["celery"]
        known = self._tasks.get(name)
        options: dict[str, Any] = {"args": tuple(task.args), "kwargs": task.kwargs}
        options.update({key: filled[key] for key in ("queue", "task_id") if key in filled})
        if make.priority is not None:
            options["priority"] = make.priority
        if "delay" not in filled and "at" not in filled:
            return partial(known.apply_async if known is not None else partial(self._app.send_task, name), **options)
        options["on_conflict"] = make.on_conflict
        if make.max_wait is not None:
            options["max_wait"] = make.max_wait
        try:
            if "at" in filled:
                return partial(delayq.apply_at, known or name, _moment(filled["at"]), **options)
            return partial(delayq.apply_delayed, known or name, _seconds(filled["delay"]), **options)
        except ValueError as error:
            raise _failed(task, error, passing=False) from None

    def _send_now(self, task: CeleryTask, send: Send) -> None:
        if self._away is not None and monotonic() < self._away[1]:
            raise _failed(task, self._away[0], passing=True)
        try:
            _ask(task, send, self._producer)
        except OperationalError as error:
            self._away = error, monotonic() + AWAY
            raise _failed(task, error, passing=True) from error

    def _keep(self, sends: Sequence[tuple[CeleryTask, Send]], conclusion: Conclusion) -> None:
        """Have the tasks' messages made, and put them into *conclusion*."""
        producer, app = self._producer, self._app
        # Of these nobody will know whether they were stored now or waited already.
        doubtful = {task.filled.get("task_id") for task, _ in sends if task.make.on_conflict == "keep"}
        kept = _Kept(producer, app, doubtful - {None})
        producer.kept = kept
        try:
            for task, send in sends:
                _ask(task, send, gathering(producer, kept))
            channel = producer.channel
            store = broker.store_of(channel, app.delayq.home.prefix)
            if store is not self._checked:
                store.check_version()
                self._checked = store
            deliveries = broker.deliveries_of(channel, app.delayq.home.prefix, {put.topic for _, put in kept.made})
        except OperationalError as error:  # as Kombu says it of what is the watcher's own Redis
            raise redis.ConnectionError(str(error)) from error
        verbs = Verbs(store.keys, leases=False)
        # First those that may be refused.
        delayed = [(on_conflict, put) for on_conflict, put in kept.made if on_conflict is not None]
        delayed.sort(key=lambda made: made[0] is not OnConflict.ERROR)
        for on_conflict, group in groupby(delayed, key=lambda made: made[0]):
            call = verbs.put([put for _, put in group], deliveries, on_conflict, Origin.RETRIED)
            conclusion.puts.append(call.prepared.within(call.args))
        conclusion.told += [_told(put) for _, put in delayed]
        for on_conflict, put in kept.made:
            if on_conflict is None:
                delivery = deliveries[put.topic]
                conclusion.pushes.append(Push(put.body, delivery.list_of(put.step).encode(), told=_told(put)))
        expiring = {
            key: delivery.expires_ms
            for delivery in deliveries.values()
            if delivery.expires_ms is not None
            for key in delivery.lists
        }
        conclusion.after.append(partial(self._after, kept, expiring, store))

    def _after(self, kept: _Kept, expiring: dict[str, int], store: Store) -> None:
        """What Celery and Kombu do after a publish. The event is cleared by then: what fails here fails nobody."""
        with self._lock:
            actions = kept.after
            actions += [partial(store.client.pexpire, key, expires_ms) for key, expires_ms in expiring.items()]
            for done in actions:
                try:
                    done()
                except Exception as error:  # noqa: BLE001  # a broker that is away, or whatever a receiver raises
                    logger.warning("rules: after a task was sent: %s: %s", type(error).__name__, error)


class _Kept(Batch):
    """The messages of one event: made, but neither stored nor published.

    Args:
        silent: ids of tasks of which no event ``task-scheduled`` tells.

    Attributes:
        made: the messages, each with what its conflict means; None: it is not delayed.
    """

    def __init__(self, producer: Any, app: Celery, silent: Set[str | None]) -> None:
        conf, delayq = app.conf, app.delayq
        policy = conf.task_publish_retry_policy
        super().__init__(producer, delayq.home, sys.maxsize, conf.task_publish_retry, policy, delayq.events)
        self.made: list[tuple[OnConflict | None, Put]] = []
        self._silent = silent

    def make_room(self, terms: Terms) -> None:
        """There is room; nothing is stored here."""
        self.terms = terms

    def add(self, puts: Iterable[Put], entities: Iterable[Any] = ()) -> None:  # noqa: ARG002  # are declared by then
        """Take the puts of one message."""
        self._take(puts, self.terms.on_conflict)

    def add_ready(self, puts: Iterable[Put]) -> None:
        """Take a message that is not delayed, as a put for each of its queues."""
        self._take(puts, None)

    def _take(self, puts: Iterable[Put], on_conflict: OnConflict | None) -> None:
        puts = list(puts)
        super().add(puts)
        self.made += [(on_conflict, put) for put in puts]

    @property
    def after(self) -> list[Callable[[], object]]:
        """What Celery does after the publish."""
        told = [event for event in self.scheduled if event["uuid"] not in self._silent]
        return [*self._after, *([partial(self._events.scheduled, told, self._producer)] if told else [])]


class _KeptProducer(Producer):
    """A producer that keeps back what is a task and not delayed."""

    kept: _Kept

    def _publish(
        self,
        body: Any,
        priority: int,
        content_type: str,
        content_encoding: str,
        headers: dict[str, Any],
        properties: dict[str, Any],
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        exchange: str,
        declare: Any,
        *rest: Any,
        **options: Any,
    ) -> Any:
        message = (body, priority, content_type, content_encoding, headers, properties)
        queues = None
        if "task" in headers:  # else it is an event of Celery's
            channel = self.channel
            broker.declare(self, channel, declare or ())
            queues = broker.queues_of(channel, exchange, routing_key)
        if queues is None:  # or a broadcast
            return super()._publish(*message, routing_key, mandatory, immediate, exchange, declare, *rest, **options)
        if not queues:
            raise ImproperlyConfigured(f"no queue is bound to exchange {exchange!r} for routing key {routing_key!r}")
        envelope, step = broker.envelope(channel, *message, exchange, routing_key)
        self.kept.add_ready([Put(queue, headers["id"], envelope, in_us=0, step=step) for queue in queues])
        return None


def _kept_producer(cls: type[Producer]) -> type[_KeptProducer]:
    return _KeptProducer if cls is Producer else type(cls.__name__, (_KeptProducer, cls), {})


def _ask(task: CeleryTask, send: Send, producer: Any) -> None:
    """Have Celery send *task* by *producer*.

    Raises:
        RuleFailed: it cannot be sent.
        redis.RedisError, kombu.exceptions.OperationalError: the broker is away.
    """
    try:
        send(producer=producer, **RETRY)
    except (redis.RedisError, OperationalError):
        raise
    except Exception as error:
        lasting = isinstance(error, (DelayQError, TypeError, ValueError, LookupError))
        raise _failed(task, error, passing=isinstance(error, ReplicasMissing) or not lasting) from error


def _failed(task: CeleryTask, error: Exception, *, passing: bool) -> RuleFailed:
    said = str(error) if isinstance(error, (DelayQError, ValueError)) else f"{type(error).__name__}: {error}"
    return RuleFailed("", f"Celery task {task.filled['celery']!r}: {said}", passing=passing)


def _told(put: Put) -> bytes:
    """Task and id, as Celery's own log has them."""
    return f"{task_in(put.body)}[{put.id!s}]".encode(errors="surrogateescape")


def _seconds(text: str) -> float:
    with suppress(ValueError):
        return float(text)
    return read_length(text).total_seconds()


def _moment(text: str) -> datetime | float:
    with suppress(ValueError):
        return float(text)
    return read_eta(text)
