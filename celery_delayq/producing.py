"""What is due, published to the app's broker by the app's own producers: relay mode's hand to Celery and Kombu."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from amqp.exceptions import FrameError, FrameSyntaxError
from kombu import Exchange, Queue
from kombu.exceptions import KombuError
from kombu.transport.virtual import Channel as VirtualChannel

from . import broker
from .errors import shortened
from .job import Reserved
from .message import Outgoing, outgoing
from .relay import END_PATIENCE, BrokerAway, Fate, Published, Tended

if TYPE_CHECKING:
    from celery import Celery

logger = logging.getLogger(__name__)

#: Seconds without an answer after which a broker counts as away, where the app sets no such time.
PATIENCE = 10.0

#: How long (s) confirmations are waited for after the last one that came, and when we are to stop.
CONFIRM_PATIENCE, STOP_PATIENCE = 30.0, END_PATIENCE - 1

#: A message of more bytes is sent alone, as is one of an earlier attempt: a broker that finds it too large, or wrong,
#: closes the channel, and what was sent with it would stay unconfirmed.
LARGE = 1024 * 1024

#: With these RabbitMQ closes the whole connection over one message, as one whose headers exceed a frame (128 kB).
UNREADABLE = (FrameError, FrameSyntaxError)

CONFIRMED = Published(Fate.CONFIRMED)


class ProducerPublisher:
    """Publishes over a connection of its own, made as the app makes those for its producers."""

    def __init__(self, app: Celery) -> None:
        # In the main thread, for what the app evaluates to make it may hold locks; see DelayQ.dispatcher.
        given = app.conf.broker_transport_options or {}
        kind = app.connection_for_write().get_transport_cls().driver_type
        self._template = app.connection_for_write(transport_options={**PATIENT.get(kind, {}), **given, **_OWN})
        self._producer = app.amqp.Producer
        self._queues = app.amqp.queues
        self._wire: _Wire | None = None

    def reach(self) -> None:
        """Make sure that there is a connection."""
        if self._wire is not None and not self._is_open(self._wire):
            self.close()
        if self._wire is None:
            try:
                self._wire = self._open()
            except Exception as error:  # whatever a transport makes of a broker that is away
                raise BrokerAway(_told(error)) from error

    def _is_open(self, wire: _Wire) -> bool:
        try:
            return wire.is_open()
        except Exception as error:  # noqa: BLE001  # the same
            logger.debug("delayq relay: the connection is lost: %r", error)
            return False

    def _open(self) -> _Wire:
        connection = self._template.clone()
        try:
            # Each of the broker's alternative URLs once, without a pause.
            attempts = max(len(connection.alt) - 1, 0)
            connection.ensure_connection(max_retries=attempts, interval_start=0, interval_step=0)
            channel = connection.channel()
            producer = self._producer(channel, auto_declare=False)
            if hasattr(channel, "confirm_select"):
                return _ConfirmedWire(connection, channel, producer)
            return _PlainWire(connection, channel, producer, self._exchanges())
        except BaseException:
            connection.release()
            raise

    def publish(self, jobs: Sequence[Reserved], leases: Tended) -> list[Published]:
        """Send each of *jobs*, all of one topic, and wait for the broker's confirmations."""
        wire = self._wire
        if wire is None:
            return [Published(Fate.UNSENT, "not connected")] * len(jobs)
        batch = _Batch(jobs, keeps_properties=wire.keeps_properties)
        try:
            wire.declare(jobs[0].topic, self._queue(jobs[0].topic), batch)
            wire.send(batch, leases)
        except _Closed:
            self.close()
        except wire.lost as error:
            batch.lost(_told(error))
            self.close()
        return batch.published

    def _queue(self, topic: str) -> Queue | None:
        """What Celery would declare for a message to that queue."""
        queues = self._queues
        if topic in queues or not queues.create_missing:
            return queues.get(topic)
        return None if "/" in topic else queues.new_missing(topic)  # not added: a worker would begin to consume it

    def _exchanges(self) -> dict[str, Exchange]:
        """Those that the app knows, by name."""
        bound = [queue.exchange for queue in self._queues.values()]
        bound += [binding.exchange for queue in self._queues.values() for binding in queue.bindings or ()]
        return {exchange.name: exchange for exchange in bound if exchange is not None and exchange.name}

    def close(self) -> None:
        """Close the connection; without waiting for a broker that does not answer."""
        wire, self._wire = self._wire, None
        if wire is not None:
            try:
                wire.connection.collect(1.0)
            except Exception as error:  # noqa: BLE001  # it is gone already
                logger.debug("delayq relay: closing the connection: %r", error)


#: Kombu's own confirmations take a round trip for each message; here they are waited for together.
_OWN = {"confirm_publish": False}

#: What lets a lost broker be noticed, by kind of transport.
PATIENT: dict[str, dict[str, Any]] = {
    "amqp": {"read_timeout": PATIENCE, "write_timeout": PATIENCE},
    "redis": {"socket_timeout": PATIENCE, "socket_connect_timeout": PATIENCE},
}


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


class _Batch:
    """Messages of one topic, and what became of each.

    Attributes:
        sent: the numbers of those that were sent and are not confirmed yet.
        suspects: the numbers of those that may be why an earlier attempt has failed.
    """

    def __init__(self, jobs: Sequence[Reserved], *, keeps_properties: bool) -> None:
        now = datetime.now(timezone.utc)
        self.published = [Published(Fate.UNSENT)] * len(jobs)
        self.messages: dict[int, Outgoing] = {}
        self.sent: set[int] = set()
        self.suspects = {number for number, job in enumerate(jobs) if job.attempts > 1}
        for number, job in enumerate(jobs):
            try:
                self.messages[number] = outgoing(job.body, now, keeps_properties=keeps_properties)
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
                self.refuse(number, f"it is no message of Kombu's: {_told(error)}")

    def unsettled(self) -> list[tuple[int, Outgoing]]:
        """What is still to be sent."""
        return [(number, self.messages[number]) for number in sorted(self.messages) if not self._is_settled(number)]

    def _is_settled(self, number: int) -> bool:
        return self.published[number].fate is not Fate.UNSENT

    def confirm(self, number: int) -> None:
        """The broker has it, unless it has been refused by now."""
        self.sent.discard(number)
        if not self._is_settled(number):
            self.published[number] = CONFIRMED

    def refuse(self, number: int, reason: str) -> None:
        """It cannot be published."""
        self.sent.discard(number)
        self.published[number] = Published(Fate.REFUSED, reason)

    def refuse_all(self, numbers: Iterable[int], reason: str) -> None:
        """The same for many."""
        for number in list(numbers):
            self.refuse(number, reason)

    def lost(self, reason: str) -> None:
        """The broker went away: what was sent is open, and what was not stays so."""
        for number, (fate, _) in enumerate(self.published):
            if fate is Fate.UNSENT:
                self.published[number] = Published(Fate.UNKNOWN if number in self.sent else Fate.UNSENT, reason)
        self.sent.clear()


class _Wire(Protocol):
    """A connection to the broker."""

    connection: Any
    keeps_properties: bool
    #: What tells that the broker as a whole is away.
    lost: tuple[type[BaseException], ...]

    def is_open(self) -> bool: ...

    def declare(self, topic: str, queue: Queue | None, batch: _Batch) -> None: ...

    def send(self, batch: _Batch, leases: Tended) -> None: ...


class _PlainWire:
    """A transport that has a message when its call returns, as Kombu's virtual ones."""

    def __init__(self, connection: Any, channel: Any, producer: Any, exchanges: Mapping[str, Exchange]) -> None:
        self.connection = connection
        self._channel = channel
        self._producer = producer
        self._exchanges = dict(exchanges)  # those that are not declared yet
        self.keeps_properties = isinstance(channel, VirtualChannel)
        self.lost = (*connection.connection_errors, OSError, _Uncertain)
        self._declared: set[str] = set()

    def is_open(self) -> bool:
        return not broker.is_redis(self._channel) or bool(self._channel.client.ping())

    def declare(self, topic: str, queue: Queue | None, batch: _Batch) -> None:
        if queue is not None and topic not in self._declared:
            refusal = self._refusal(queue)
            if refusal:
                batch.refuse_all(batch.messages, refusal)
            else:
                self._declared.add(topic)
        if self.keeps_properties:
            for number, message in batch.unsettled():
                exchange = self._exchanges.pop(message.exchange, None)
                if exchange is not None:  # Kombu would take it for a direct one
                    self._refusal(exchange)
                # Without a binding Kombu would drop it without a word.
                if broker.queues_of(self._channel, message.exchange, message.routing_key) == []:
                    batch.refuse(number, _unroutable(message.exchange, message.routing_key))

    def _refusal(self, entity: Queue | Exchange) -> str:
        """Declare it; what this transport has against that, or ""."""
        try:
            entity(self._channel).declare()
        except (KombuError, *self.lost):
            raise
        except Exception as error:  # noqa: BLE001  # whatever this transport makes of it
            _of_some(error)
            return _told(error)
        return ""

    def send(self, batch: _Batch, leases: Tended) -> None:
        if getattr(self._producer, "supports_batch_publish", False):  # Kombu 5.7
            try:
                with self._producer.batch():
                    self._send_each(batch, leases)
            except KombuError as error:
                raise _Uncertain(_told(error.__cause__ or error)) from error
        else:
            self._send_each(batch, leases, at_once=True)
        for number in list(batch.sent):
            batch.confirm(number)

    def _send_each(self, batch: _Batch, leases: Tended, *, at_once: bool = False) -> None:
        for number, message in batch.unsettled():
            if not leases.may_send(number):
                continue
            batch.sent.add(number)
            try:
                _publish(self._producer, message)
            except (KombuError, *self.lost):
                raise
            except Exception as error:  # noqa: BLE001  # whatever this transport makes of it
                _of_some(error)
                batch.refuse(number, _told(error))
            else:
                if at_once:
                    batch.confirm(number)


class _Uncertain(Exception):
    """Some of what was sent may be there, and the broker takes no more for now."""


def _of_some(error: Exception) -> None:
    """Return if *error* is about some messages alone.

    Raises:
        _Uncertain: the broker would say the same of any.
    """
    if broker.concerns_all(error):
        raise _Uncertain(_told(error)) from error


class _Closed(Exception):
    """The broker is there, but this connection is of no more use. What was sent is settled."""


class _ConfirmedWire:
    """AMQP: a channel in confirm mode. All is sent, then the confirmations are waited for."""

    keeps_properties = False

    def __init__(self, connection: Any, channel: Any, producer: Any) -> None:
        self.connection = connection
        self._channel = channel
        self._producer = producer
        self.lost = (*connection.connection_errors, OSError, _Uncertain)
        self._declared: set[str] = set()
        self._exchanges: set[str] = set()
        self._batch: _Batch | None = None
        self._tags: dict[int, int] = {}  # delivery tag -> number in the batch
        self._ids: dict[str, int] = {}  # task id -> number in the batch
        self._last_tag = 0
        self._blocked = False
        amqp = connection.connection
        amqp.on_blocked, amqp.on_unblocked = self._on_blocked, self._on_unblocked
        channel.confirm_select()
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.events["basic_return"].add(self._on_return)

    def _on_blocked(self, *_: object) -> None:
        self._blocked = True
        logger.warning("delayq relay: RabbitMQ takes no messages for now, as by its memory or disk alarm; waiting")

    def _on_unblocked(self) -> None:
        self._blocked = False
        logger.info("delayq relay: RabbitMQ takes messages again")

    def _settled(self, tag: int, multiple: bool) -> list[int]:
        tags = [one for one in self._tags if one <= tag] if multiple else [tag]
        return [self._tags.pop(one) for one in tags if one in self._tags]

    def _on_ack(self, tag: int, multiple: bool) -> None:
        for number in self._settled(tag, multiple):
            if self._batch is not None:
                self._batch.confirm(number)

    def _on_nack(self, tag: int, multiple: bool) -> None:
        for number in self._settled(tag, multiple):
            if self._batch is not None:
                self._batch.refuse(number, "the broker nacked it, as a full queue does")

    def _on_return(self, _: Exception, exchange: str, routing_key: str, message: Any) -> None:
        """Comes before the ack of the same message."""
        headers = message.properties.get("application_headers") or {}
        number = self._ids.get(str(headers.get("id")))
        if self._batch is not None and number is not None:
            self._batch.refuse(number, _unroutable(exchange, routing_key))
        self._declared.clear()  # somebody has deleted the queue: it is declared anew for the next attempt

    def is_open(self) -> bool:
        """Whether nothing tells that it is closed. Costs no round trip."""
        if not (self.connection.connected and self._channel.is_open):
            return False
        with suppress(TimeoutError, BlockingIOError):
            self.connection.drain_events(timeout=0)
        return bool(self.connection.connected)

    def declare(self, topic: str, queue: Queue | None, batch: _Batch) -> None:
        """On channels of their own, since RabbitMQ closes the channel of what it refuses."""
        if queue is not None and topic not in self._declared:
            self._declared.add(topic)
            try:
                with self.connection.channel() as channel:
                    queue(channel).declare()
            except self.connection.channel_errors as error:
                # There is one of that name with other arguments, mostly; if there is none, the messages come back.
                logger.warning("delayq relay: queue %r cannot be declared as this app has it: %s", topic, error)
        unknown = {message.exchange for _, message in batch.unsettled()} - self._exchanges - {""}
        for exchange in unknown:
            try:
                with self.connection.channel() as channel:
                    channel.exchange_declare(exchange, "direct", passive=True)
                self._exchanges.add(exchange)
            except self.connection.channel_errors as error:
                some = [number for number, message in batch.unsettled() if message.exchange == exchange]
                batch.refuse_all(some, f"exchange {exchange!r}: {_told(error)}")

    def send(self, batch: _Batch, leases: Tended) -> None:
        self._batch = batch
        self._ids = {message.id: number for number, message in batch.messages.items()}
        try:
            for number, message in batch.unsettled():
                alone = len(message.body) > LARGE or number in batch.suspects
                if alone or self._blocked:
                    self._await(leases)
                if not leases.may_send(number):
                    continue
                self._send_one(batch, number, message)
                if alone:
                    self._await(leases)
            self._await(leases)
        except (*self.connection.channel_errors, *UNREADABLE) as error:
            # RabbitMQ has closed the channel, or all, over one of them, and has said no more of any.
            batch.refuse_all(batch.sent, f"the broker closed the connection: {_told(error)}")
            raise _Closed from error
        finally:
            self._batch = None

    def _send_one(self, batch: _Batch, number: int, message: Outgoing) -> None:
        try:
            _publish(self._producer, message)
        except (*self.connection.channel_errors, *self.lost):
            batch.sent.add(number)
            raise
        except Exception as error:  # of this message alone: it has not left this process
            if not self.connection.connected:  # py-amqp may also say AttributeError then
                batch.sent.add(number)
                raise _Uncertain(_told(error)) from error
            batch.refuse(number, _told(error))
        else:
            self._last_tag += 1
            self._tags[self._last_tag] = number
            batch.sent.add(number)

    def _await(self, leases: Tended) -> None:
        """Wait until all that was sent is confirmed, refused or returned, and the broker takes more."""
        patience, began = CONFIRM_PATIENCE, monotonic()
        while self._tags or self._blocked:
            before = len(self._tags)
            with suppress(TimeoutError, BlockingIOError):
                self.connection.drain_events(timeout=min(1.0, patience))
            if not leases.tend():
                patience = min(patience, STOP_PATIENCE)
            elif self._blocked or len(self._tags) < before:
                began = monotonic()
            if monotonic() - began > patience:
                raise _Uncertain(f"no confirmation in {patience:g} s")


def _publish(producer: Any, message: Outgoing) -> None:
    producer.publish(
        message.body,
        exchange=message.exchange,
        routing_key=message.routing_key,
        mandatory=True,
        retry=False,
        **message.options,
    )


def _unroutable(exchange: str, routing_key: str) -> str:
    return f"no queue is bound to exchange {shortened(exchange)} for routing key {shortened(routing_key)}"
