"""What Celery's worker tells of a task that it discards as revoked, told of jobs that will never be handed over."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery.app.task import Context
from celery.backends.base import DisabledBackend
from celery.signals import task_revoked
from kombu.message import Message
from kombu.serialization import prepare_accept_content
from kombu.transport.virtual import Channel
from kombu.utils.json import loads

from .errors import shortened
from .events import Events
from .job import Aside
from .message import DUE_PROPERTY

if TYPE_CHECKING:
    from celery import Celery, Task

logger = logging.getLogger(__name__)

#: What one task's own message, id or chord is to blame for. A backend or broker that is away raises something else.
OWN_FAULT = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


class Telling:
    """Tells the world that tasks will never run, as a worker of that app does: by result, event and signal."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._events = Events(app)

    def finish(self, jobs: Sequence[Aside]) -> None:
        """Mark the results of *jobs* REVOKED, their chords included; then send the events, then the signals.

        In this order nothing is told twice when the backend or the broker is away and the whole is tried again: marking
        a result again changes nothing. A job that is at fault itself is logged, and holds nobody up.

        Raises:
            Exception: whatever the result backend or the broker raises when it cannot be reached.
        """
        accept = prepare_accept_content(self._app.conf.accept_content)
        ends = [_End(self._app, job, accept) for job in {job.id: job for job in jobs}.values()]
        for end in ends:
            end.mark()
        self._send_events([end.event for end in ends if getattr(end.task, "send_events", True)])
        for end in ends:
            end.signal()

    def _send_events(self, events: Sequence[dict[str, Any]]) -> None:
        if not events:
            return
        conf = self._app.conf
        retry = {"retry": conf.task_publish_retry, "retry_policy": conf.task_publish_retry_policy}
        with self._app.amqp.producer_pool.acquire(block=True) as producer:
            self._events.publish("task-revoked", events, producer, **retry)


class _End:
    """The end of one task that has waited, and what has to be told of it.

    Attributes:
        task: the task, if it is registered here.
        name: its name; None if its message cannot be read.
    """

    def __init__(self, app: Celery, job: Aside, accept: object) -> None:
        self._app = app
        self._job = job
        self._accept = accept
        self._expired = job.reason == "late"
        self._message: dict[str, Any] = {}
        self._headers: dict[str, Any] = {}
        self._properties: dict[str, Any] = {}
        try:
            message = loads(job.body)
            self._headers, self._properties = dict(message["headers"]), dict(message["properties"])
            self._message = message
        except OWN_FAULT as error:
            logger.warning("delayq: task %s ends by its id alone, its message is none: %r", shortened(job.id), error)
        name = self._headers.get("task")
        self.name: str | None = name if isinstance(name, str) else None
        self.task: Task | None = app.tasks.get(self.name) if self.name else None
        if self._expired:
            printable = job.id.encode(errors="backslashreplace").decode()
            logger.info("delayq: discarded late task: %s[%s]", self.name, printable)

    @property
    def event(self) -> dict[str, Any]:
        """The fields of ``task-revoked``."""
        return {"uuid": self._job.id, "terminated": False, "signum": None, "expired": self._expired}

    def mark(self) -> None:
        """Store the result, and count the task as a part of its chord."""
        backend = self._app.backend if self.task is None else self.task.backend
        if isinstance(backend, DisabledBackend):
            return
        reason = "expired" if self._expired else "revoked"
        try:
            backend.mark_as_revoked(self._job.id, reason, request=self.request, store_result=self._stores_result)
        except OWN_FAULT:
            logger.exception("delayq: the result of task %s cannot be marked", shortened(self._job.id))

    @property
    def _stores_result(self) -> bool:
        """As Celery's ``Request.store_errors`` has it; of a task that is not registered here, as the settings do."""
        conf = self._app.conf
        ignored = self._headers.get("ignore_result")
        if ignored is None:
            ignored = conf.task_ignore_result if self.task is None else self.task.ignore_result
        if self.task is None:
            return bool(not ignored or conf.task_store_errors_even_if_ignored)
        return bool(not ignored or self.task.store_errors_even_if_ignored)

    def signal(self) -> None:
        """Call who listens in this process."""
        if task_revoked.receivers:
            sender = self.task or self.name
            task_revoked.send(sender=sender, request=self.request, terminated=False, signum=None, expired=self._expired)

    @cached_property
    def request(self) -> Context:
        """What a worker's ``Request`` would make of the message, had it come there with its ``eta``."""
        headers, properties = self._headers, self._properties
        delivery_info = properties.get("delivery_info")
        delivery_info = delivery_info if isinstance(delivery_info, dict) else {}
        fields = {
            **headers,
            "id": self._job.id,
            "eta": headers.get("eta") or properties.get(DUE_PROPERTY),
            "properties": properties,
            "reply_to": properties.get("reply_to"),
            "correlation_id": properties.get("correlation_id"),
            "delivery_info": {
                "exchange": delivery_info.get("exchange"),
                "routing_key": delivery_info.get("routing_key"),
                "priority": properties.get("priority"),
                "redelivered": False,
            },
        }
        if self._message:
            try:
                fields["args"], fields["kwargs"], embed = self._payload()
                fields.update(embed or {})
            except Exception as error:  # a serializer may raise anything
                logger.warning(
                    "delayq: task %s ends without its arguments and its chord, they cannot be read: %r",
                    shortened(self._job.id),
                    error,
                    exc_info=not isinstance(error, OWN_FAULT),
                )
        return Context(fields)

    def _payload(self) -> Any:
        body, encoding = self._message["body"], self._properties.get("body_encoding")
        return Message(
            body=Channel.codecs[encoding].decode(body) if encoding else body,
            content_type=self._message["content-type"],
            content_encoding=self._message["content-encoding"],
            headers=self._headers,
            postencode="utf-8",
            accept=self._accept,
        ).decode()
