"""What the messages of one kind of task have in common, so that each need not be built from nothing.

The first task of a kind (one task, the same options) goes all of Celery's and Kombu's way. Its successors take the same
way to the same message, but for their ids, times and arguments, unless somebody else has a part in it: a receiver of a
signal, a router that looks at arguments, a function in place of one of Celery's. Nobody has, as a rule; then a
successor's message is the first one's text with other values in it. The first one itself must come out of that again,
byte for byte, or there is no pattern.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from json.encoder import encode_basestring_ascii as quoted
from os import urandom
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from celery import Task, signals, uuid
from celery.app import base
from celery.app.routes import MapRoute
from celery.canvas import Signature
from celery.utils.saferepr import saferepr
from kombu.utils.json import dumps

from .batch import Batch
from .clock import to_us
from .job import Put
from .message import DUE_PROPERTY, PUT_PROPERTY
from .publishing import Gathered

if TYPE_CHECKING:
    from celery import Celery


class Pattern:
    """The messages of one kind of task, but for what differs from one to the next."""

    def __init__(self, app: Celery, batch: Batch, task: Task | None) -> None:
        self._batch = batch
        self._producer = producer = batch.last
        self._terms = batch.terms
        self._puts: list[Put] = producer.made
        (_, _, self._embed), options = producer.published
        self._serializer, self._compression = options["serializer"], options["compression"]
        self._ignored = options["headers"]["ignore_result"]
        self._on_task_call = None if self._ignored else app.backend.on_task_call
        self._check = getattr(task, "__header__", None) if task is not None and task.typing else None
        # What app.send_task and task.AsyncResult would make.
        own = {} if task is None else {"backend": task.backend, "task_name": task.name}
        self._result = partial(app.AsyncResult, **own)
        self._parent = app.current_worker_task
        self._limits = app.amqp.argsrepr_maxsize, app.amqp.kwargsrepr_maxsize
        self._levels = getattr(app.conf, "task_repr_maxlevels", 3)  # new in Celery 5.7; before, saferepr's default
        self._template = _template(self._puts[0].body)

    @classmethod
    def learn(cls, app: Celery, batch: Batch, signature: Signature, moment: datetime) -> Pattern | None:
        """From *signature*, just sent; None if one more of its kind may fare otherwise."""
        if not hasattr(batch.last, "made"):
            return None  # Kombu has sent it
        task = signature._type or app._tasks.get(signature["task"])
        if not _is_stock(app, task, batch.last):
            return None
        pattern = cls(app, batch, task)
        put = pattern._puts[0]
        message = json.loads(put.body)
        if message["headers"]["expires"] is not None:
            return None  # it counts from now
        args, kwargs = signature["args"] or (), signature["kwargs"] or {}
        tag, put_us = message["properties"]["delivery_tag"], message["properties"][PUT_PROPERTY]
        again = pattern._message(args, kwargs, moment, str(put.id), tag, put_us)
        return pattern if again == put.body else None

    def apply(self, signature: Signature, moment: datetime) -> Any:
        """Add one more of this kind to the batch, as Celery would, and return its result."""
        args, kwargs = signature["args"] or (), signature["kwargs"] or {}
        if self._check is not None:
            self._check(*args, **kwargs)
        id = signature["options"].get("task_id") or _uuid()
        producer, first = self._producer, self._puts[0]
        if self._on_task_call is not None:
            self._on_task_call(producer, id)
        self._batch.make_room(self._terms)
        message = self._message(args, kwargs, moment, id, _uuid(), time.time_ns() // 1000)
        due_us = to_us(moment)
        self._batch.add(
            [
                Put(put.topic, id, message, due_us, None, first.step, first.max_wait_us, first.grace_us)
                for put in self._puts
            ]
        )
        result = self._result(id)
        result.ignored = self._ignored
        if self._parent:
            self._parent.add_trail(result)
        return result

    def _message(self, args: Any, kwargs: dict[str, Any], moment: datetime, id: str, tag: str, put_us: int) -> bytes:
        producer = self._producer
        body = producer._prepare((args, kwargs, self._embed), self._serializer, None, None, self._compression, {})[0]
        text = self._template % {
            "body": quoted(producer.encode_body(body)),
            "id": quoted(id),
            "args": quoted(_shown(args, self._limits[0], self._levels)),
            "kwargs": quoted(_shown(kwargs, self._limits[1], self._levels)),
            "tag": quoted(tag),
            "due": quoted(moment.isoformat()),
            "put": put_us,
        }
        return text.encode()


def _template(body: bytes) -> str:
    """A stored message as a format that takes other values."""
    message = json.loads(body)
    headers, properties = message["headers"], message["properties"]
    mark = uuid()
    if headers["root_id"] == headers["id"]:  # else the task that is running now is the root
        headers["root_id"] = f"{mark} id"
    headers["id"] = properties["correlation_id"] = f"{mark} id"
    headers["argsrepr"], headers["kwargsrepr"] = f"{mark} args", f"{mark} kwargs"
    properties["delivery_tag"], properties[DUE_PROPERTY] = f"{mark} tag", f"{mark} due"
    properties[PUT_PROPERTY], message["body"] = f"{mark} put", f"{mark} body"
    text: str = dumps(message).replace("%", "%%")
    for name in ("body", "id", "args", "kwargs", "tag", "due", "put"):
        text = text.replace(f'"{mark} {name}"', f"%({name})s")
    return text


_SHOWN: dict[type, Callable[[Any], str]] = dict.fromkeys((int, float, bool, type(None)), str)
_SHOWN[str] = lambda text: "'" + text.replace("'", "\\'") + "'"


def _shown(values: Any, limit: int, levels: int) -> str:
    """What Celery's ``saferepr`` makes of arguments. A few plain ones are written here: it takes 10 us for each of args
    and kwargs, where the rest of a message takes 50.
    """
    cls = type(values)
    parts = (*values, *values.values()) if cls is dict else values
    if cls in (tuple, dict) and len(parts) <= 16 and all(type(part) in _SHOWN for part in parts):
        if cls is dict:
            pairs = [f"{_SHOWN[type(key)](key)}: {_SHOWN[type(value)](value)}" for key, value in values.items()]
            text = f"{{{', '.join(pairs)}}}"
        else:
            text = f"({', '.join([_SHOWN[type(value)](value) for value in values])}{',' if len(values) == 1 else ''})"
        if limit and len(text) < limit and (not levels or levels > 0):
            return text
    return str(saferepr(values, limit, levels))


def _uuid() -> str:
    """As Celery's and Kombu's ``uuid``, random, without making an object of it first: in a fifth of the time."""
    text = urandom(16).hex()
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{'89ab'[int(text[16], 16) & 3]}{text[17:20]}-{text[20:]}"


def _is_stock(app: Celery, task: Task | None, producer: Any) -> bool:
    """Whether the messages of *task* are made by Celery's and Kombu's own functions, heard by nobody on their way, and
    sent where their options say, whatever their arguments are.
    """
    amqp, publishing = app.amqp, app.delayq.publishing
    listeners = (signals.before_task_publish, signals.after_task_publish, signals.task_sent)
    functions = [
        ("celery.canvas", Signature.apply_async),
        ("celery.canvas", Signature._merge),
        ("celery.app.base", publishing.sends_as_stock),
        ("celery.app.amqp", vars(amqp).get("create_task_message")),
        ("celery.app.amqp", vars(amqp).get("send_task_message")),
        ("celery.app.routes", amqp.router.route),
        ("kombu.utils.uuid", base.uuid),
    ]
    functions += [("kombu.messaging", getattr(super(Gathered, producer), name)) for name in ("publish", "_prepare")]
    if task is not None:
        names = ("apply_async", "shadow_name", "_get_exec_options", "AsyncResult")
        functions += [("celery.app.task", getattr(task, name)) for name in names]
    return (
        not any(signal.receivers for signal in listeners)
        and not app.conf.task_send_sent_event
        and all(type(route) is MapRoute for route in amqp.router.routes)
        and all(_is_of(module, function) for module, function in functions)
        and (publishing.home.is_relayed or type(producer.channel).__module__.startswith("kombu."))
        # Celery 5.7 makes models of arguments JSON's dicts.
        and getattr(task, "_dump_pydantic_arguments", None) is None
    )


def _is_of(module: str, function: Any) -> bool:
    """Whether *function* is defined in *module*; what only wraps one of its functions is not."""
    if type(function) is MethodType:
        function = function.__func__
    return type(function) is FunctionType and function.__globals__.get("__name__") == module
