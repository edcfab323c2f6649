"""Delayed messages that are stored together: gathered while Celery makes them, put in one call.

What Celery does after a publish (the signals ``after_task_publish`` and ``task_sent``, the event ``task-sent``) waits
until the put has succeeded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextvars import copy_context
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from types import CellType, FunctionType, SimpleNamespace
from typing import Any, NamedTuple

from . import broker
from .errors import Unattended
from .events import Events
from .home import Home
from .job import OnConflict, Put
from .message import outgoing, with_eta

#: A batch is full with the message that passes so many bytes: Redis does nothing else while it stores one.
BATCH_BYTES = 8 * 1024 * 1024

#: What Celery's ``send_task_message`` calls after a publish, by the names in its closure.
_SIGNALS = ("send_after_publish", "send_task_sent")
_EVENTS = "default_evd"

Action = Callable[[], object]


class Terms(NamedTuple):
    """What all puts of one call have in common: what a conflict means, and whether and how to retry, as Kombu does."""

    on_conflict: OnConflict
    retry: bool
    policy: Mapping[str, Any]


class Batch:
    """Puts that wait to be stored in one call, all or none.

    Args:
        producer: the Kombu producer whose connection they use.
        home: where they are stored.
        size: how many puts a call takes; a message that goes to several queues is not torn apart.
        retry, policy: whether and how to retry, where a message does not say.
        events: tells of the tasks that were stored.
    """

    def __init__(
        self, producer: Any, home: Home, size: int, retry: bool, policy: Mapping[str, Any], events: Events
    ) -> None:
        self._producer = producer
        self._home = home
        self._size = size
        self._retry = retry
        self._policy = policy
        self._events = events
        #: The producer of the message that was gathered last.
        self.last: Any = None
        self._senders: dict[Callable[..., Any], Callable[..., Any]] = {}
        #: What Celery would do after the publish that is being made.
        self._pending: list[Action] = []
        #: Those of the messages that are here.
        self.terms = Terms(OnConflict.ERROR, retry, policy)
        self._begin()

    def _begin(self) -> None:
        self._puts: list[Put] = []
        self._bytes = 0
        self._entities: dict[Any, None] = {}
        self._after: list[Action] = []
        #: What is to be told of the tasks that are here: the fields of their events.
        self.scheduled: list[dict[str, Any]] = []

    def terms_of(
        self, on_conflict: OnConflict, retry: bool | None = None, policy: Mapping[str, Any] | None = None
    ) -> Terms:
        """The terms of a message that says so much of them."""
        return Terms(
            on_conflict,
            self._retry if retry is None else retry,
            {**self._policy, **policy} if policy else self._policy,
        )

    def make_room(self, terms: Terms) -> None:
        """Be ready for one more message: store first what is here, if it is full or goes by other terms."""
        full = len(self._puts) >= self._size or self._bytes >= BATCH_BYTES
        if self._puts and (full or (terms is not self.terms and terms != self.terms)):
            self.store()
        self.terms = terms

    def send(self, stock: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call *stock*, which :func:`waits` approves. If it adds to this batch, its last part waits for the batch."""
        sender = self._senders.get(stock)
        if sender is None:
            sender = self._senders[stock] = _waiting(stock, self._pending)
        count = len(self._puts)
        self._pending.clear()
        # Who listens to a publish may set context variables at its begin and reset them at its end, as OpenTelemetry
        # does. Here many have begun before the first ends: each in a context of its own.
        context = copy_context()
        answer = context.run(sender, *args, **options)
        if len(self._puts) > count:
            self._after += [partial(context.run, action) for action in self._pending]
        else:  # Kombu has sent it, at once
            for action in self._pending:
                context.run(action)
        return answer

    def add(self, puts: Iterable[Put], entities: Iterable[Any] = ()) -> None:
        """Take the puts of one message, whose queues are declared by *entities*."""
        for put in puts:
            self._puts.append(put)
            self._bytes += len(put.body)
        self._entities.update(dict.fromkeys(entities))

    def store(self) -> None:
        """Store what is here, with Kombu's retries, and do what waits for that. Nothing is left here, even on an error.

        What the store refuses since no dispatcher lives is published with its eta.

        Raises:
            AlreadyScheduled: *on_conflict* is "error", and an id waits already or was added twice. Nothing is stored.
            ReplicasMissing: all are stored, but too few replicas have acknowledged them.
            kombu.exceptions.OperationalError: Redis cannot be reached, or is full.
        """
        terms, puts, entities = self.terms, self._puts, self._entities
        after, scheduled = self._after, self.scheduled
        self._begin()
        if not puts:
            return
        put = self._put_for_relay if self._home.is_relayed else self._put
        count = put(puts, entities, terms)
        for action in after:
            action()
        # Of some that were kept nobody knows which, and none is told rather than one that was not stored.
        kept = count != len(puts) and terms.on_conflict is OnConflict.KEEP
        if scheduled and count is not None and not kept:
            self._events.scheduled(scheduled, self._producer)

    def _put_for_relay(self, puts: list[Put], entities: Iterable[Any], terms: Terms) -> int | None:
        try:
            return self._home.put(puts, terms.on_conflict, terms.retry, terms.policy)
        except Unattended:
            now = datetime.now(timezone.utc)
            for put in puts:
                message = outgoing(with_eta(put.body), now, keeps_properties=False)
                self._producer.publish(
                    message.body,
                    exchange=message.exchange,
                    routing_key=message.routing_key,
                    declare=list(entities),
                    retry=terms.retry,
                    retry_policy=dict(terms.policy),
                    **message.options,
                )
            return None

    def _put(self, puts: list[Put], entities: Iterable[Any], terms: Terms) -> int | None:
        producer = self._producer

        def put() -> int | None:
            channel = producer.channel  # a new one, after a connection was lost
            broker.declare(producer, channel, entities)
            try:
                return self._home.put_on(channel, puts, terms.on_conflict)
            except Unattended:
                stock = (replace(put, body=with_eta(put.body)) for put in puts)
                broker.push(channel, self._home.prefix, stock)
                return None

        with producer.connection._reraise_as_library_errors():
            if terms.retry:
                put = producer.connection.ensure(producer, put, **terms.policy)
            return put()


def waits(function: object) -> bool:
    """Whether *function* is a ``send_task_message`` as Celery makes it, whose last part can be made to wait."""
    return isinstance(function, FunctionType) and {*_SIGNALS, _EVENTS} <= set(function.__code__.co_freevars)


def _waiting(function: Any, pending: list[Action]) -> Callable[..., Any]:
    """The same function over another closure: what it would do after the publish goes to *pending* instead.

    For Celery sends these signals from inside one long function, right after ``producer.publish``. The alternatives: a
    copy of that function, to be kept up with each Celery; or to raise something out of ``publish``, in sight of whoever
    has wrapped it.
    """

    def later(action: Callable[..., object]) -> Callable[..., None]:
        return lambda *args, **options: pending.append(partial(action, *args, **options))

    cells = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))
    for name in _SIGNALS:
        cells[name] = CellType(later(cells[name].cell_contents))
    cells[_EVENTS] = CellType(SimpleNamespace(publish=later(cells[_EVENTS].cell_contents.publish)))
    return FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(cells.values())
    )
