"""Many delayed tasks in one call: stored a batch at a time.

Each goes all of Celery's way, only that a :class:`~celery_delayq.batch.Batch` gathers the messages; or is written after
the pattern of the first of its kind, where that makes no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

from celery import Task
from celery.canvas import Signature

from .batch import Batch
from .clock import moment_of
from .errors import shortened
from .pattern import Pattern
from .publishing import OPTIONS, Publishing, gathering

if TYPE_CHECKING:
    from celery import Celery

#: Options of which nothing but their value enters a message; with any other, a signature is a kind of its own.
PLAIN = {"task_id", "queue", "exchange", "routing_key", "priority", "serializer", "compression", "delivery_mode"}
PLAIN.update(("time_limit", "soft_time_limit", "ignore_result", "shadow"), OPTIONS)
_PLAIN_TYPES = frozenset((str, int, float, bool, type(None), timedelta))


#: How many tasks are stored in one call.
BATCH_SIZE = 1000


@contextmanager
def gathered(app: Celery, joint: Publishing, size: int = BATCH_SIZE) -> Iterator[Any]:
    """A producer whose delayed messages are stored together when the context ends; not if an error ends it.

    Args:
        joint: the app's.
        size: how many are stored in one call; if there are more, the first are stored earlier.
    """
    conf = app.conf
    with app.producer_or_acquire() as producer:
        policy, replicas = conf.task_publish_retry_policy, joint.replicas
        events = app.delayq.events
        batch = Batch(producer, joint.prefix, joint.liveness, size, conf.task_publish_retry, policy, events, replicas)
        yield gathering(producer, batch)
        batch.store()


def is_ours(app: Celery, signature: Signature, options: Mapping[str, Any]) -> bool:
    """Whether *signature* will be sent by *app*, over a connection of its choice."""
    given = (options.get(name) for name in ("producer", "publisher", "connection"))
    return bool(signature.app == app) and not any(given)


def apply_many(
    app: Celery,
    items: Iterable[tuple[Signature | Task, datetime | float]],
    apply_at: Callable[..., Any],
    joint: Publishing,
    batch_size: int,
) -> list[Any]:
    """Send *items* by *apply_at*, or as it would; see :meth:`celery_delayq.app.DelayQ.apply_many`."""
    if not isinstance(batch_size, int) or isinstance(batch_size, bool):
        raise TypeError(f"batch_size must be an int, not {type(batch_size).__name__} {shortened(batch_size)}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    results: list[Any] = []
    read = (_read(number, item) for number, item in enumerate(items))
    try:
        # The items are taken before a producer is: whoever makes them may need one, too.
        while taken := list(islice(read, batch_size)):
            with gathered(app, joint, batch_size) as producer:
                kinds = _Kinds(app, producer, apply_at)
                made = [kinds.apply(signature, moment) for signature, moment in taken]
            results += made
    except Exception as error:
        if results and hasattr(error, "add_note"):  # Python 3.11
            error.add_note(f"apply_many had stored items[:{len(results)}] by then")
        raise
    return results


def _read(number: int, item: Any) -> tuple[Signature, datetime]:
    """An item as a signature and a moment; errors name its place."""
    try:
        signature, when = item
    except (TypeError, ValueError):
        raise TypeError(f"items[{number}] must be a pair, (signature, when), not {shortened(item)}") from None
    if isinstance(signature, Task):
        signature = signature.s()
    if not isinstance(signature, Signature):
        raise TypeError(
            f"items[{number}] must begin with a signature or a task, not {type(signature).__name__} "
            f"{shortened(signature)}"
        )
    try:
        return signature, moment_of(when)
    except (TypeError, ValueError) as error:
        raise type(error)(f"items[{number}]: {error}") from None


class _Kinds:
    """The kinds of tasks in one batch. A kind is one task with the same options.

    For one batch only: what a pattern takes for given (routes, bindings, who listens) may change before the next.
    """

    def __init__(self, app: Celery, producer: Any, apply_at: Callable[..., Any]) -> None:
        self._app = app
        self._producer = producer
        self._apply_at = apply_at
        #: None: of this kind each is different.
        self._patterns: dict[object, Pattern | None] = {None: None}

    def apply(self, signature: Signature, moment: datetime) -> Any:
        """Do and return what ``apply_at(signature, moment)`` does, only that the batch does the put."""
        kind = self._kind(signature)
        pattern = self._patterns.get(kind)
        if pattern is not None:
            return pattern.apply(signature, moment)
        if not is_ours(self._app, signature, signature.options):
            return self._apply_at(signature, moment)
        batch: Batch = self._producer.gathers
        batch.last = None
        result = self._apply_at(signature, moment, producer=self._producer)
        if kind not in self._patterns:
            self._patterns[kind] = Pattern.learn(self._app, batch, signature, moment)
        return result

    def _kind(self, signature: Signature) -> object:
        """What tells the kind of *signature*; None if it may be unlike any other."""
        if (
            type(signature) is not Signature  # canvas has classes of its own
            or signature._app is not self._app
            or type(signature.get("args")) not in (tuple, list)
            or type(signature.get("kwargs")) is not dict
        ):
            return None
        task, options = signature._type or signature["task"], signature["options"]
        if not options:
            return task
        if not PLAIN.issuperset(options):
            return None
        kind = [task]
        for name, value in options.items():
            cls = type(value)
            if cls is not str if name == "task_id" else cls not in _PLAIN_TYPES:
                return None
            if name != "task_id":
                kind += name, cls, value  # the class too: 1 == True
        return tuple(kind)
