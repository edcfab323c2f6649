"""Where delayed tasks leave Celery's way: at the very end of publishing, when the message is complete.

Everything that sends a task (``apply_async``, ``send_task``, canvas, ``retry``, beat) passes through
``app.amqp.send_task_message`` with a Kombu producer. We let it do all that it does (router, signals, serializer,
declarations) and change one thing: the producer's last step puts a delayed message into the store, where the stock one
pushes it to a queue. What has no ``eta`` header, and what we leave to stock Celery, takes the stock step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from celery.utils.imports import instantiate
from kombu import Producer

from . import broker
from .batch import Batch, waits
from .clock import SECOND_US, checked_due_us, seconds_of
from .errors import ImproperlyConfigured, Unattended, shortened
from .events import Events, fields_of
from .job import OnConflict, Put
from .liveness import Liveness
from .message import read_eta, without_eta
from .settings import Settings

if TYPE_CHECKING:
    from celery import Celery
    from celery.app.amqp import AMQP

logger = logging.getLogger(__name__)

#: Options of ours for ``apply_async``, signatures and task attributes. None of them enters a message.
OPTIONS = ("on_conflict", "max_wait", "late", "grace")


@dataclass(frozen=True)
class Wish:
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
        word = getattr(task, "on_conflict", None) or OnConflict.REPLACE
    try:
        on_conflict = OnConflict(word)
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


class Publishing:
    """The joint with one app's publishing. Reads no configuration before the first publish."""

    def __init__(self, app: Celery, settings: Callable[[], Settings], events: Events) -> None:
        self._app = app
        self._settings = settings
        self._events = events
        self._warned = False

    def join(self) -> None:
        """Make the app publish through us, whether or not ``app.amqp`` exists yet. A second call changes nothing."""
        existing = vars(self._app).get("amqp")
        if existing is not None:
            _join(existing)
        elif not isinstance(self._app.amqp_cls, JoinedAMQP):
            self._app.amqp_cls = JoinedAMQP(self._app.amqp_cls)

    @property
    def prefix(self) -> str:
        """The setting ``delayq_prefix``."""
        return self._settings().prefix

    @property
    def replicas(self) -> int:
        """The setting ``delayq_wait_replicas``."""
        return self._settings().wait_replicas

    @cached_property
    def liveness(self) -> Liveness:
        """What this process has found of whether a dispatcher lives."""
        settings = self._settings()
        return Liveness(settings.max_poll_interval, refuses=settings.fallback == "native")

    def create(self, stock: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Stand in for ``amqp.create_task_message``: keep the countdown, which the message itself forgets."""
        message = stock(*args, **options)
        countdown = options["countdown"] if "countdown" in options else args[4] if len(args) > 4 else None
        if not countdown:
            return message
        counted = _CountedMessage(*message)
        counted.countdown = countdown
        return counted

    def send(self, stock: Callable[..., Any], producer: Any, name: str, message: Any, **options: Any) -> Any:
        """Stand in for ``amqp.send_task_message``: the same call, with a producer that puts what is delayed."""
        if isinstance(producer, _Delaying):  # somebody has wrapped our function and put it in place of Celery's
            return stock(producer, name, message, **options)
        headers = message[0]
        countdown = getattr(message, "countdown", None)
        counted_eta = headers.get("eta") if countdown and headers else None
        wish = read_options(options, self._app._tasks.get(name), countdown, counted_eta)
        if not isinstance(producer, Producer) or not headers or not headers.get("task"):
            return stock(producer, name, message, **options)  # message protocol 1: the eta is inside the signed body
        sent_event = message[3]
        if not isinstance(producer, Gathering) or not waits(stock):
            delaying = _variant(producer, _Delaying, _joint=self, _wish=wish)
            answer = stock(delaying, name, message, **options)
            if sent_event and getattr(delaying, "stored", False):
                self._events.scheduled(delaying.scheduled(sent_event), producer)
            return answer
        batch = producer.gathers
        batch.make_room(batch.terms_of(wish.on_conflict, options.get("retry"), options.get("retry_policy")))
        batch.last = _variant(producer, Gathered, _joint=self, _wish=wish, gathers=batch)
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
        moment = read_eta(eta)
        at_us = checked_due_us(moment)
        # A handler of before_task_publish may have set another eta; then that one holds.
        countdown = wish.countdown if eta == wish.counted_eta else None
        if not wish.explicit and settings.min_delay > 0:
            delay = countdown if countdown is not None else (moment - datetime.now(timezone.utc)).total_seconds()
            if delay < settings.min_delay:
                return None
        return {"at_us": at_us} if countdown is None else {"in_us": round(countdown * SECOND_US)}

    def refuse(self, channel: object, wish: Wish) -> None:
        """The broker is no Redis: say so, once; to who asked for us by name, as an error."""
        transport = type(channel).__module__
        text = f"the broker's transport {transport} is not Redis, where celery_delayq keeps delayed tasks"
        if wish.explicit:
            raise ImproperlyConfigured(f"{text}; set broker_url to a redis://, rediss:// or sentinel:// URL")
        if not self._warned:
            self._warned = True
            logger.warning("%s: delayed tasks of this app go the stock way", text)

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

    SLOTS: ClassVar[tuple[str, ...]] = (
        "_joint",
        "_wish",
        "made",
        "stored",
    )  # of the class that is made for each producer class
    if TYPE_CHECKING:
        _joint: Publishing
        _wish: Wish
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
        channel = self.channel  # type: ignore[attr-defined]  # of the producer
        if not broker.is_redis(channel):
            self._joint.refuse(channel, self._wish)
            return stock()
        broker.declare(self, channel, declare or ())
        if not hasattr(self, "made"):
            queues = broker.queues_of(channel, exchange, routing_key)
            if not queues:
                if queues is not None:  # bound to nothing; None would be a broadcast
                    self._joint.unroutable(exchange, routing_key, self._wish, headers["id"])
                return stock()
            message, step = broker.envelope(
                channel,
                body,
                priority,
                content_type,
                content_encoding,
                *without_eta(headers, properties, time.time_ns() // 1000),
                exchange,
                routing_key,
            )
            # Made once, not again for each retry: a put that finds these very bytes knows itself.
            self.made = [
                Put(
                    queue,
                    headers["id"],
                    message,
                    step=step,
                    max_wait_us=self._wish.max_wait_us,
                    grace_us=self._wish.grace_us,
                    **due,
                )
                for queue in queues
            ]
        if self.gathers is not None:
            self.gathers.add(self.made, declare or ())
        else:
            joint = self._joint
            try:
                count = broker.put(
                    channel,
                    joint.prefix,
                    self.made,
                    self._wish.on_conflict,
                    joint.liveness,
                    replicas=joint.replicas,
                )
            except Unattended:
                return stock()
            # A retry of a put that has succeeded stores nothing, either.
            self.stored = count > 0 or self._wish.on_conflict is not OnConflict.KEEP
        return None

    def scheduled(self, sent_event: dict[str, Any]) -> list[dict[str, Any]]:
        """The fields of its events ``task-scheduled``."""
        return fields_of(sent_event, self.made)


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
