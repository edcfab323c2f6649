"""Where delayed tasks leave Celery's way: at the very end of publishing, when the message is complete.

Everything that sends a task (``apply_async``, ``send_task``, canvas, ``retry``, beat) passes through
``app.amqp.send_task_message`` with a Kombu producer. We let it do all that it does (router, signals, serializer,
declarations) and change one thing: the producer's last step puts a delayed message into the store, where the stock one
pushes it to a queue. What has no ``eta`` header, and what we leave to stock Celery, takes the stock step.

Where the broker is not the Redis in which tasks wait, that last step needs no connection to the broker at all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from celery import Celery
from celery.app.amqp import AMQP
from celery.utils.imports import instantiate
from kombu import Exchange, Producer, Queue

from . import broker
from .batch import Batch, waits
from .clock import SECOND_US, checked_due_us, seconds_of
from .errors import ImproperlyConfigured, Unattended, shortened
from .events import Events, fields_of
from .home import Home
from .job import OnConflict, Put
from .message import DUE_PROPERTY, encode_body, envelope, read_eta, without_due, without_eta
from .plain_repr import plain_repr
from .routing import Route, topic_of
from .settings import Settings

logger = logging.getLogger(__name__)

#: A countdown (us) that is longer may end when no due time can be kept any more: a hundred years.
FAR_US = 100 * 365 * 24 * 3600 * SECOND_US

#: Options of ours for ``apply_async``, signatures and task attributes. None of them enters a message.
OPTIONS = ("on_conflict", "max_wait", "late", "grace")


class Wish(NamedTuple):
    """What the caller of one publish asked of us.

    Attributes:
        max_wait_us: due at the latest so long after the first put of the id, or None.
        grace_us: dropped when found later than this after the due time; None: run, however late.
        explicit: the caller named us (``apply_at``, or an option of ours): put, whatever the settings say.
        countdown: seconds from now, if the due time was given so; to be counted on Redis's clock.
        counted_eta: the ``eta`` header that Celery made of the countdown by its own clock.
    """

    on_conflict: OnConflict
    max_wait_us: int | None
    grace_us: int | None
    explicit: bool
    countdown: float | None = None
    counted_eta: str | None = None


def read_options(
    options: dict[str, Any], task: object = None, countdown: float | None = None, counted_eta: str | None = None
) -> Wish:
    """Take our options out of *options*; what they do not say, the attributes of *task* do.

    Raises:
        ValueError, TypeError: an option has no such value.
    """
    given = {name: options.pop(name) for name in OPTIONS if name in options}
    word = given.get("on_conflict")
    if word is None:
        word = getattr(task, "on_conflict", None) or None
    try:
        on_conflict = OnConflict.REPLACE if word is None else OnConflict(word)
    except ValueError:
        raise ValueError(f'on_conflict must be "error", "keep" or "replace", not {shortened(word)}') from None
    return Wish(
        on_conflict, _max_wait_us(given, task, on_conflict), _grace_us(given, task), bool(given), countdown, counted_eta
    )


def _max_wait_us(given: Mapping[str, Any], task: object, on_conflict: OnConflict) -> int | None:
    max_wait = given.get("max_wait")
    if max_wait is None:
        max_wait = getattr(task, "max_wait", None)
    if max_wait is None:
        return None
    if on_conflict is not OnConflict.REPLACE:
        raise ValueError(f'max_wait limits on_conflict="replace"; it means nothing with "{on_conflict.value}"')
    return _microseconds(max_wait, "max_wait")


def _grace_us(given: Mapping[str, Any], task: object) -> int | None:
    late, grace = given.get("late"), given.get("grace")
    if late is None:
        late = getattr(task, "late", None)
        if not isinstance(late, str):  # a common word: what else a task keeps under it is none of ours
            late = "run"
    if late == "run":
        if grace is not None:
            raise ValueError('grace says how late is too late: it needs late="drop" beside it')
        return None
    if late != "drop":
        raise ValueError(f'late must be "run" or "drop", not {shortened(late)}')
    if grace is None:
        grace = getattr(task, "grace", None)
    if grace is None:
        raise ValueError('late="drop" needs grace: how late is too late, in seconds or as a timedelta')
    return _microseconds(grace, "grace")


def _microseconds(value: object, name: str) -> int:
    seconds = seconds_of(value, name)
    if seconds < 0:
        raise ValueError(f"{name} must be 0 or more, not {value!r}")
    return round(seconds * SECOND_US)


class _Message(NamedTuple):
    """Celery's message, with the countdown that it has turned into an eta."""

    headers: Any
    properties: Any
    body: Any
    sent_event: Any


class _CountedMessage(_Message):
    countdown: float


class _When(NamedTuple):
    """When a task is due, as its caller said it."""

    countdown: float | None
    eta: Any


#: The option in which a task's due time passes Celery's native delayed delivery unseen.
_WHEN = "delayq_when"


class Publishing:
    """The joint with one app's publishing. Reads no configuration before the first publish."""

    def __init__(self, app: Celery, settings: Callable[[], Settings], events: Events, home: Home) -> None:
        self._app = app
        self._settings = settings
        self._events = events
        self.home = home
        self._warned = False

    def join(self) -> None:
        """Make the app publish through us, whether or not ``app.amqp`` exists yet. A second call changes nothing."""
        existing = vars(self._app).get("amqp")
        if existing is not None:
            _join(existing)
        elif not isinstance(self._app.amqp_cls, JoinedAMQP):
            self._app.amqp_cls = JoinedAMQP(self._app.amqp_cls)
        if "send_task" not in vars(self._app):
            self._app.send_task = self.send_task

    def send_task(
        self,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: float | None = None,
        eta: Any = None,
        *rest: Any,
        **options: Any,
    ) -> Any:
        """Stand in for ``app.send_task``: keep Celery's native delayed delivery from what will wait with us.

        For RabbitMQ with quorum queues Celery sends a delayed task round by way of other exchanges, from inside of that
        function; it would wait there once more after it has waited here. So the function does not see when it is due.
        """
        if (countdown or eta) and self._waits_with_us(_When(countdown, eta), options):
            options[_WHEN] = _When(countdown, eta)
            countdown = eta = None
        return self._stock_send_task(name, args, kwargs, countdown, eta, *rest, **options)

    @property
    def _stock_send_task(self) -> Callable[..., Any]:
        stock: Callable[..., Any] = type(self._app).send_task.__get__(self._app)
        return stock

    @property
    def sends_as_stock(self) -> Callable[..., Any]:
        """The ``app.send_task`` that sends: the stock one where ours passes on to it, else whatever stands there."""
        current: Callable[..., Any] = self._app.send_task
        return self._stock_send_task if current == self.send_task else current

    def _waits_with_us(self, when: _When, options: Mapping[str, Any]) -> bool:
        if not self.home.is_relayed or self._app.conf.task_protocol != 2:
            return False
        settings, explicit = self._settings(), any(name in options for name in OPTIONS)
        if explicit or not (settings.intercept and settings.min_delay > 0):
            return explicit or settings.intercept
        return when.countdown is None or when.countdown >= settings.min_delay

    def create(self, stock: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Stand in for ``amqp.create_task_message``: keep the countdown, which the message itself forgets."""
        when = options.pop(_WHEN, None)
        if when is not None:  # by send_task, which gives these two by their places
            args = (*args[:4], *when, *args[6:])
        countdown = options["countdown"] if "countdown" in options else args[4] if len(args) > 4 else None
        if countdown and getattr(stock, "__func__", None) is AMQP.as_task_v2:
            self._shorten(args, options)
        message = stock(*args, **options)
        if not countdown:
            return message
        counted = _CountedMessage(*message)
        counted.countdown = countdown
        return counted

    def _shorten(self, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Give Celery's own function what it would come to itself, on longer ways: what time it is, and the text of
        plain arguments.
        """
        if self._is_utc:
            options.setdefault("now", datetime.now(timezone.utc))
        if len(args) < 4:
            return
        most_args, most_kwargs = self._reprs
        if options.get("argsrepr") is None:
            options["argsrepr"] = plain_repr(args[2] or (), most_args)
        if options.get("kwargsrepr") is None:
            options["kwargsrepr"] = plain_repr(args[3] or {}, most_kwargs)

    @cached_property
    def _is_utc(self) -> bool:
        return str(self._app.timezone) == "UTC" and type(self._app).now is Celery.now and "now" not in vars(self._app)

    @cached_property
    def _reprs(self) -> tuple[int, int]:
        """How long the texts of the arguments may become; 0 if not even a flat one is to be shown."""
        amqp = self._app.amqp
        if self._app.conf.get("task_repr_maxlevels", 1) < 1:  # new in Celery 5.7
            return 0, 0
        return amqp.argsrepr_maxsize, amqp.kwargsrepr_maxsize

    def send(self, stock: Callable[..., Any], producer: Any, name: str, message: Any, **options: Any) -> Any:
        """Stand in for ``amqp.send_task_message``: the same call, with a producer that puts what is delayed."""
        if isinstance(producer, _Delaying):  # somebody has wrapped our function and put it in place of Celery's
            return stock(producer, name, message, **options)
        options.pop(_WHEN, None)
        if options.get("headers") and DUE_PROPERTY in options["headers"]:
            options["headers"] = without_due(options["headers"])
        headers = message[0]
        countdown = getattr(message, "countdown", None)
        counted_eta = headers.get("eta") if countdown and headers else None
        wish = read_options(options, self._app._tasks.get(name), countdown, counted_eta)
        if not isinstance(producer, Producer) or not headers or not headers.get("task"):
            return stock(producer, name, message, **options)  # message protocol 1: the eta is inside the signed body
        sent_event = message[3]
        if not isinstance(producer, Gathering) or not waits(stock):
            delaying = _variant(producer, _Delaying, _joint=self, _wish=wish, _options=options)
            answer = stock(delaying, name, message, **options)
            if sent_event and getattr(delaying, "stored", False):
                self._events.scheduled(delaying.scheduled(sent_event), producer)
            return answer
        batch = producer.gathers
        batch.make_room(batch.terms_of(wish.on_conflict, options.get("retry"), options.get("retry_policy")))
        batch.last = _variant(producer, Gathered, _joint=self, _wish=wish, _options=options, gathers=batch)
        answer = batch.send(stock, batch.last, name, message, **options)
        if sent_event and hasattr(batch.last, "made"):
            batch.scheduled += batch.last.scheduled(sent_event)
        return answer

    def due_of(self, wish: Wish, eta: object) -> dict[str, int] | None:
        """When a message with that ``eta`` header is due, as a :class:`~celery_delayq.job.Put` says it.

        None: the message is none of ours.
        """
        settings = self._settings()
        if not eta or not (settings.intercept or wish.explicit):
            return None
        least = 0 if wish.explicit else settings.min_delay
        # A handler of before_task_publish may have set another eta; then that one holds.
        if wish.countdown is not None and eta == wish.counted_eta:
            in_us = round(wish.countdown * SECOND_US)
            if in_us > FAR_US:
                checked_due_us(read_eta(eta))
            return None if least > 0 and wish.countdown < least else {"in_us": in_us}
        moment = read_eta(eta)
        at_us = checked_due_us(moment)
        if least > 0 and (moment - datetime.now(timezone.utc)).total_seconds() < least:
            return None
        return {"at_us": at_us}

    def refuse(self, connection: Any, wish: Wish) -> None:
        """Nothing can wait for that broker: say so, once; to who asked for us by name, as an error."""
        if self.home.is_relayed:
            text = (
                f"the tasks of {connection.as_uri()} cannot wait at delayq_store_url, which is for {self.home.broker}"
            )
            advice = "give that broker an app of its own"
        else:
            transport = connection.get_transport_cls().__module__
            text = f"the broker's transport {transport} is not Redis, where celery_delayq keeps delayed tasks"
            advice = "name a Redis for them with delayq_store_url, or set broker_url to a redis:// URL"
        if wish.explicit:
            raise ImproperlyConfigured(f"{text}; {advice}")
        if not self._warned:
            self._warned = True
            logger.warning("%s: such tasks of this app go the stock way", text)

    def topic_of(self, options: Mapping[str, Any], exchange: str, routing_key: str) -> str | None:
        """The topic of a message that is to be relayed; None: it is a broadcast.

        Args:
            options: what Celery's ``send_task_message`` was given.
        """
        amqp, queue, given = self._app.amqp, options.get("queue"), options.get("exchange")
        if queue is None and given is None:
            queue = amqp.default_queue
        elif isinstance(queue, str):
            queue = amqp.queues[queue]
        known = [queue] if isinstance(queue, Queue) else []
        kind = options.get("exchange_type") or (given.type if isinstance(given, Exchange) else None)
        if kind == "fanout" and exchange:
            return None
        return topic_of(Route(exchange, routing_key), known, amqp.queues.values())

    def terms(self, options: Mapping[str, Any]) -> tuple[bool, Mapping[str, Any]]:
        """Whether and how to retry a publish with those options, as Kombu does it."""
        conf, retry = self._app.conf, options.get("retry")
        policy = {**conf.task_publish_retry_policy, **(options.get("retry_policy") or {})}
        return conf.task_publish_retry if retry is None else retry, policy

    def unroutable(self, exchange: str, routing_key: str, wish: Wish, task_id: str) -> None:
        """No queue is bound: Kombu will drop the message. Say so; to who asked for us by name, as an error."""
        text = f"no queue is bound to exchange {exchange!r} for routing key {routing_key!r}"
        if wish.explicit:
            raise ImproperlyConfigured(f"{text}: start a worker that consumes one, or name it with queue=")
        logger.warning("%s: task %s is dropped, as Kombu drops it", text, shortened(task_id))


class _Delaying:
    """Mixed into the class of a producer for one task message. Shares the producer's ``__dict__``, so that whatever
    revives the one after a lost connection revives the other.
    """

    #: Of the class that is made for each producer class.
    SLOTS: ClassVar[tuple[str, ...]] = ("_joint", "_wish", "_options", "made", "stored")
    if TYPE_CHECKING:
        _joint: Publishing
        _wish: Wish
        #: What Celery's ``send_task_message`` was given.
        _options: Mapping[str, Any]
        #: The puts of the message, once they are made.
        made: list[Put]
        #: Whether they wait now; not if one that waited was kept.
        stored: bool

    #: Where they go, if not to Redis at once. (Kombu's producers have a ``batch`` of their own.)
    gathers: Batch | None = None

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
        declare: list[Any],
        *rest: Any,
        **options: Any,
    ) -> Any:
        def stock() -> Any:
            broker.give_back(self.channel)  # type: ignore[attr-defined]  # of the producer
            return super(_Delaying, self)._publish(  # type: ignore[misc]  # the producer's own class comes next
                body,
                priority,
                content_type,
                content_encoding,
                headers,
                properties,
                routing_key,
                mandatory,
                immediate,
                exchange,
                declare,
                *rest,
                **options,
            )

        # The event task-sent passes through the same producer; only the task's own message has this header.
        due = self._joint.due_of(self._wish, headers.get("eta")) if "task" in headers else None
        if due is None:
            return stock()
        arguments = (body, priority, content_type, content_encoding, headers, properties, exchange, routing_key)
        if self._joint.home.is_relayed:
            return self._put_for_relay(stock, due, declare or (), *arguments)
        channel = self.channel  # type: ignore[attr-defined]  # of the producer
        if not broker.is_redis(channel):
            self._joint.refuse(self.connection, self._wish)  # type: ignore[attr-defined]  # of the producer
            return stock()
        broker.declare(self, channel, declare or ())
        if not hasattr(self, "made"):
            queues = broker.queues_of(channel, exchange, routing_key)
            if not queues:
                if queues is not None:  # bound to nothing; None would be a broadcast
                    self._joint.unroutable(exchange, routing_key, self._wish, headers["id"])
                return stock()
            message, step = broker.envelope(channel, *_waiting(*arguments))
            self._make(queues, headers["id"], message, step, due)
        if self.gathers is not None:
            self.gathers.add(self.made, declare or ())
        else:
            try:
                count = self._joint.home.put_on(channel, self.made, self._wish.on_conflict)
            except Unattended:
                return stock()
            self._has_put(count)
        return None

    def _put_for_relay(
        self, stock: Callable[[], Any], due: dict[str, int], declare: Iterable[Any], *arguments: Any
    ) -> Any:
        """The last step where the broker is not the Redis in which the message waits: does not touch the broker, which
        gets what has to be declared with the message.
        """
        *_, headers, _, exchange, routing_key = arguments
        joint = self._joint
        connection = self.connection  # type: ignore[attr-defined]  # of the producer
        if not joint.home.serves(connection):
            joint.refuse(connection, self._wish)
            return stock()
        topic = joint.topic_of(self._options, exchange, routing_key)
        if topic is None:
            return stock()
        if not hasattr(self, "made"):
            self._make([topic], headers["id"], envelope(*_waiting(*arguments)), 0, due)
        if self.gathers is not None:
            self.gathers.add(self.made, declare)
        else:
            try:
                count = joint.home.put(self.made, self._wish.on_conflict, *joint.terms(self._options))
            except Unattended:
                return stock()
            self._has_put(count)
        return None

    def _has_put(self, count: int) -> None:
        # A retry of a put that has succeeded stores nothing, either.
        self.stored = count > 0 or self._wish.on_conflict is not OnConflict.KEEP

    def scheduled(self, sent_event: dict[str, Any]) -> list[dict[str, Any]]:
        """The fields of its events ``task-scheduled``."""
        return fields_of(sent_event, self.made)

    def _make(self, topics: list[str], id: str, message: bytes, step: int, due: dict[str, int]) -> None:
        # Made once, not again for each retry: a put that finds these very bytes knows itself.
        wish = self._wish
        self.made = [
            Put(topic, id, message, step=step, max_wait_us=wish.max_wait_us, grace_us=wish.grace_us, **due)
            for topic in topics
        ]

    def encode_body(self, body: str | bytes) -> str:
        """A body as it stands in the message that waits."""
        if self._joint.home.is_relayed:
            return encode_body(body)
        channel = self.channel  # type: ignore[attr-defined]  # of the producer
        encoded: str = channel.encode_body(body, channel.body_encoding)[0]
        return encoded


def _waiting(
    body: Any,
    priority: int,
    content_type: str,
    content_encoding: str,
    headers: dict[str, Any],
    properties: dict[str, Any],
    *target: str,
) -> tuple[Any, ...]:
    """What a message is made of, as it waits."""
    changed = without_eta(headers, properties, time.time_ns() // 1000)
    return body, priority, content_type, content_encoding, *changed, *target


class Gathering:
    """Mixed into the class of a producer whose delayed messages are left to a batch."""

    SLOTS: ClassVar[tuple[str, ...]] = ("gathers",)
    if TYPE_CHECKING:
        gathers: Batch


class Gathered(_Delaying):
    """Mixed into the class of a gathering producer for one task message.

    Attributes:
        published: what Celery handed to Kombu: the body, and the options of ``Producer.publish``.
    """

    SLOTS: ClassVar[tuple[str, ...]] = (*_Delaying.SLOTS, "gathers", "published")
    if TYPE_CHECKING:
        published: tuple[Any, dict[str, Any]]

    def publish(self, body: Any, **options: Any) -> Any:
        self.published = body, options
        return super().publish(body, **options)  # type: ignore[misc]  # the producer's own class comes next


_variants: dict[tuple[type, type], type] = {}


def _variant(producer: Producer, mixin: type[Gathering | _Delaying], **slots: object) -> Any:
    """The same producer, of a class into which *mixin* is mixed. The two share one ``__dict__``, but for *slots*."""
    cls = type(producer)
    try:
        variant_cls = _variants[mixin, cls]
    except KeyError:
        namespace = {"__slots__": mixin.SLOTS, "__module__": cls.__module__}
        variant_cls = _variants[mixin, cls] = type(cls.__name__, (mixin, cls), namespace)
    variant: Any = object.__new__(variant_cls)
    variant.__dict__ = producer.__dict__
    for name, value in slots.items():
        setattr(variant, name, value)
    return variant


def gathering(producer: Producer, batch: Batch) -> Any:
    """The same producer, for tasks whose delayed messages shall be put by *batch*."""
    return _variant(producer, Gathering, gathers=batch)


class JoinedAMQP:
    """Stands for an app's ``amqp_cls`` until ``app.amqp`` is first used; then makes that one, joined.

    A class of its own and not a closure, so that an app can still be pickled.
    """

    def __init__(self, amqp_cls: Any) -> None:
        self.amqp_cls = amqp_cls

    def __call__(self, app: Celery) -> Any:
        amqp = instantiate(self.amqp_cls, app=app)
        if getattr(app, "delayq", None) is not None:
            _join(amqp)
        return amqp


class _Joined:
    """Mixed into the class of ``app.amqp``. Properties, not values: nothing is evaluated before it is used, and what
    others put in place of the stock functions is still called.
    """

    app: Celery

    @property
    def create_task_message(self) -> Callable[..., Any]:
        stock: Callable[..., Any] = super().create_task_message  # type: ignore[misc]  # AMQP's
        joint: Publishing = self.app.delayq.publishing
        return lambda *args, **options: joint.create(stock, *args, **options)

    @create_task_message.setter
    def create_task_message(self, value: Callable[..., Any]) -> None:
        vars(self)["create_task_message"] = value

    @property
    def send_task_message(self) -> Callable[..., Any]:
        stock: Callable[..., Any] = super().send_task_message  # type: ignore[misc]  # AMQP's
        joint: Publishing = self.app.delayq.publishing
        return lambda *args, **options: joint.send(stock, *args, **options)

    @send_task_message.setter
    def send_task_message(self, value: Callable[..., Any]) -> None:
        vars(self)["send_task_message"] = value


def _join(amqp: AMQP) -> None:
    cls = type(amqp)
    if not issubclass(cls, _Joined):
        amqp.__class__ = type(cls.__name__, (_Joined, cls), {"__module__": cls.__module__})
