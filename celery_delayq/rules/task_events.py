"""What Celery tasks have done, as events: written by the worker that ran them, read by a watcher with ``source: task``.

An event is a line of JSON in the watcher's ``input_queue``. It is written by the process in which the task ran, after
its result is stored, in Celery's signals ``task_success``, ``task_failure`` and ``task_retry``. So:

- Where tasks acknowledge late (``acks_late``), the event is in Redis before the task's message is acknowledged. If the
  worker dies before the event is written, the message is delivered again, the task runs again, and that run writes it:
  no event is lost. If it dies between the event and the acknowledgement, both runs have written one.
- Where tasks acknowledge early, which is Celery's default, a worker that dies in the run, or in the moment between the
  run and the event, leaves no event, as it leaves no result.
- A pool child that dies (killed, out of memory), and a task that exceeds its hard time limit, is a failure that the
  worker's main process writes, unless the message goes back to its queue.
- If Redis is away the event is tried for some seconds (:data:`PATIENCE`); then it is given up, with an error in the log
  that holds all of it. The task itself does not fail for it. If Redis has taken it and its answer is lost, the event is
  there twice.
- A Redis that forgets what it has acknowledged (a failover, a crash without ``appendfsync always``) forgets events.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from datetime import date, datetime, time, timezone
from decimal import Decimal
from time import monotonic, sleep
from typing import Any
from uuid import UUID

import redis
from celery import signals
from celery.utils.saferepr import saferepr
from redis.backoff import NoBackoff
from redis.retry import Retry

from .model import Rules, TaskEvent
from .source import Event

logger = logging.getLogger(__name__)

#: Seconds after which no other try begins. One takes twice :data:`TIMEOUT` at most: to connect, and for the answer.
PATIENCE = 3.0

#: Seconds that Redis has for anything; and between two tries.
TIMEOUT, PAUSE = 1.0, 0.2

#: Characters of JSON that each of args, kwargs and result may have; what is longer is replaced by a shorter text.
LONGEST = 100_000

#: Characters of that text, and of an error.
SHORT = 1000


class TaskEvents:
    """Writes an event for each run of a task that some rule speaks of.

    To be made and connected before a worker's pool forks: it works in whatever process a task runs.

    Args:
        rules: those of their watchers count that have ``source: task``.
    """

    def __init__(self, rules: Sequence[Rules]) -> None:
        self._wanted: dict[tuple[str, str], list[TaskEvent]] = {}
        for one in rules:
            for watcher in one.watchers:
                if watcher.source == "task":
                    place = self._wanted.setdefault((one.url_of(watcher), watcher.input_queue), [])
                    place += [rule.on for rule in watcher.rules if isinstance(rule.on, TaskEvent)]
        self._clients: dict[str, redis.Redis] = {}  # connected at first use, anew in each process

    def connect(self) -> None:
        """From now on tasks of this process, and of those that it forks, write events."""
        if self._wanted:
            signals.task_success.connect(self._succeeded, weak=False)
            signals.task_failure.connect(self._failed, weak=False)
            signals.task_retry.connect(self._retried, weak=False)
            # Not when the rules stop: then the pool's last tasks are still running.
            signals.worker_shutdown.connect(self.disconnect, weak=False)

    def disconnect(self, **_: Any) -> None:
        """No more."""
        signals.worker_shutdown.disconnect(self.disconnect)
        signals.task_success.disconnect(self._succeeded)
        signals.task_failure.disconnect(self._failed)
        signals.task_retry.disconnect(self._retried)
        for client in self._clients.values():
            client.close()

    def _succeeded(self, sender: Any = None, result: Any = None, **_: Any) -> None:
        request = sender.request
        self._write(sender.name, "success", request.id, request.args, request.kwargs, result=result)

    def _failed(
        self,
        sender: Any = None,
        task_id: str = "",
        exception: Any = None,
        args: Any = None,
        kwargs: Any = None,
        **_: Any,
    ) -> None:
        self._write(sender.name, "failure", task_id, args, kwargs, error=_described(exception))

    def _retried(self, sender: Any = None, request: Any = None, reason: Any = None, **_: Any) -> None:
        error = _described(getattr(reason, "exc", None) or reason)
        self._write(sender.name, "retry", request.id, request.args, request.kwargs, error=error)

    def _write(self, task: str, state: str, id: str, args: Any, kwargs: Any, **more: Any) -> None:
        places = [place for place, wanted in self._wanted.items() if any(one.matches(task, state) for one in wanted)]
        if not places:
            return
        line = written({"task": task, "id": id, "state": state, "args": args or [], "kwargs": kwargs or {}, **more})
        for url, queue in places:
            try:
                self._push(self._client(url), queue, line)
            except redis.RedisError as error:
                logger.error("rules: this event of a task is lost, for %r takes nothing: %s: %s", queue, error, line)

    def _push(self, client: redis.Redis, queue: str, line: bytes) -> None:
        end = monotonic() + PATIENCE
        while True:
            try:
                client.lpush(queue, line)
            except (redis.ConnectionError, redis.TimeoutError):
                if monotonic() + PAUSE > end:
                    raise
            else:
                return
            sleep(PAUSE)

    def _client(self, url: str) -> redis.Redis:
        client = self._clients.get(url)
        if client is None:
            client = self._clients[url] = redis.Redis.from_url(
                url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT, retry=Retry(NoBackoff(), 0)
            )
        return client


def written(event: dict[str, Any]) -> bytes:
    """An event as a line of JSON.

    Dates, UUIDs and decimals are written as texts; of what JSON does not know, and of what is longer than
    :data:`LONGEST`, there is a text that shows its beginning.
    """
    fields = {name: _json(value) for name, value in event.items()}
    fields["at"] = json.dumps(datetime.now(timezone.utc).isoformat())
    return ("{" + ", ".join(f'"{name}": {text}' for name, text in fields.items()) + "}").encode()


def read(line: bytes) -> Event:
    """A line as an event, whose variables are its fields.

    If it is no such line, that is the event's fault.
    """
    text = line.decode(errors="surrogateescape")
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Event(line, text, {}, f"is no JSON: {error}")
    if not isinstance(fields, dict) or not all(isinstance(fields.get(name), str) for name in ("task", "state")):
        return Event(line, text, {}, "is no JSON object of a task and its state")
    return Event(line, text, fields, at=_epoch(fields.get("at")))


def _json(value: Any) -> str:
    try:
        text = json.dumps(value, default=_plain)
    except Exception:  # noqa: BLE001  # a circle, keys that are no texts, whatever a repr of the user's does
        text = ""
    return text if 0 < len(text) <= LONGEST else json.dumps(_shown(value))


def _plain(value: Any) -> Any:
    """What JSON has not, as what it has."""
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, (UUID, Decimal)):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return list(value)
    return _shown(value)


def _epoch(at: object) -> float | None:
    try:
        return datetime.fromisoformat(str(at)).timestamp()
    except ValueError:
        return None


def _shown(value: Any) -> str:
    try:
        return str(saferepr(value, maxlen=SHORT))[:SHORT]
    except Exception:  # noqa: BLE001  # its __repr__ is the user's
        return f"<{type(value).__name__}>"


def _described(error: Any) -> str:
    if error is None:
        return ""
    try:
        return f"{type(error).__name__}: {error}"[:SHORT]
    except Exception:  # noqa: BLE001  # its __str__ is the user's
        return type(error).__name__
