"""Celery events about what waits: ``task-scheduled``, ``task-rescheduled``, ``task-unscheduled``, ``task-dispatched``.

The first three are sent by whoever does it, where the setting ``task_send_sent_event`` is on: it is what makes
producers send ``task-sent``. The last is sent by the dispatchers of workers that send events of tasks (``-E``,
``worker_send_task_events``, ``celery control enable_events``). Where they are off nothing is read, made or kept for
them.

An event is told after what it tells of has happened, and never undoes it: if it cannot be sent, that is logged.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import getpid
from time import time, time_ns
from typing import TYPE_CHECKING, Any

from celery import states
from celery.events.event import Event
from celery.utils.nodenames import anon_nodename, gethostname, nodename

from .clock import SECOND_US, text_of
from .job import Move, Put, Tell, Waiting
from .message import read_name, task_in
from .store import Dispatched

if TYPE_CHECKING:
    from celery import Celery

logger = logging.getLogger(__name__)

#: Events that one message carries at most.
EVENTS = 100

#: Jobs whose ``task-dispatched`` may wait to be sent; as many tasks as a monitor of Celery's keeps. If there are more,
#: the oldest are never told.
PENDING = 10_000

#: For how long (s) dispatches are gathered: one message of many costs the dispatcher's process much less than many.
GATHERING = 0.05

#: The fields of a ``task-sent`` that a ``task-scheduled`` repeats.
SENT = ("uuid", "name", "root_id", "parent_id", "retries")


def rank_states() -> None:
    """Tell Celery's ``State``, in this process, that what waits comes before what a worker does with it.

    It takes a state that it does not know for a later one than STARTED, RECEIVED and REVOKED, and would show a task
    that was revoked as UNSCHEDULED for good.
    """
    rank = states.PRECEDENCE_LOOKUP[states.PENDING] - 0.5
    for state in ("SCHEDULED", "RESCHEDULED", "UNSCHEDULED", "DISPATCHED"):
        states.PRECEDENCE_LOOKUP.setdefault(state, rank)


class Events:
    """Sends Celery events of an app, many in one message.

    Args:
        hostname: who sends them. Monitors make a worker of every such name, so without one it is one for all
            processes of a host, and the field ``client`` has the one that Celery gives this process.
    """

    def __init__(self, app: Celery, hostname: str | None = None) -> None:
        self._app = app
        self._hostname = hostname
        self._made: tuple[int, Any] = (0, None)

    @property
    def wanted(self) -> bool:
        """Whether those who change what waits shall tell it."""
        return bool(self._app.conf.task_send_sent_event)

    def scheduled(self, events: Sequence[dict[str, Any]], producer: Any) -> None:
        """Tasks wait now; *events* from :meth:`fields_of`. Sent by *producer*."""
        self._send("task-scheduled", events, producer)

    def rescheduled(self, moves: Sequence[tuple[Waiting, Move]]) -> None:
        """Tasks wait for another time."""
        if moves and self.wanted:
            now_us = time_ns() // 1000
            dues = [now_us + (move.in_us or 0) if move.at_us is None else move.at_us for _, move in moves]
            jobs = [job for job, _ in moves]
            self._send("task-rescheduled", [self._fields(*pair) for pair in zip(jobs, dues, strict=True)])

    def unscheduled(self, jobs: Sequence[Waiting]) -> None:
        """Tasks were taken back."""
        if jobs and self.wanted:
            self._send("task-unscheduled", [self._fields(job, job.due_us) for job in jobs])

    def _fields(self, job: Waiting, due_us: int) -> dict[str, Any]:
        return {
            "uuid": job.id.decode(errors="surrogateescape"),
            "name": task_in(job.body or b""),
            "queue": job.topic,
            "eta": text_of(due_us),
        }

    def _send(self, type: str, events: Sequence[dict[str, Any]], producer: Any = None) -> None:
        conf = self._app.conf
        retry = {"retry": conf.task_publish_retry, "retry_policy": conf.task_publish_retry_policy}
        try:
            if producer is not None:
                self.publish(type, events, producer, **retry)
            else:
                with self._app.amqp.producer_pool.acquire(block=True) as own:
                    self.publish(type, events, own, **retry)
        except Exception as error:  # noqa: BLE001  # what they tell of is done: its caller must not think otherwise
            logger.warning(
                "delayq: %d events %s were not sent: %s: %s", len(events), type, error.__class__.__name__, error
            )

    def publish(self, type: str, events: Sequence[dict[str, Any]], producer: Any, **retry: Any) -> None:
        """Send *events* by *producer*; raises what Kombu does."""
        dispatcher = self._dispatcher(producer.connection)
        client = {} if self._hostname else {"client": anon_nodename()}
        if len(events) == 1:
            dispatcher.publish(type, {**client, **events[0]}, producer, **retry)
            return
        for start in range(0, len(events), EVENTS):
            some = _Batch(type, [{**client, **event} for event in events[start : start + EVENTS]])
            dispatcher.publish("task-multi", {}, producer, Event=some, **retry)

    def _dispatcher(self, connection: Any) -> Any:
        """Celery's own. Disabled, it does not send on its own account, only by our producer, as for task-sent."""
        pid, dispatcher = self._made
        if pid != getpid():
            hostname = self._hostname or nodename("delayq", gethostname())
            dispatcher = self._app.events.Dispatcher(
                connection, hostname=hostname, enabled=False, buffer_while_offline=False
            )
            dispatcher.connection = None  # it has read the type of the exchange from it
            self._made = getpid(), dispatcher
        return dispatcher


def fields_of(sent: Mapping[str, Any], puts: Iterable[Put]) -> list[dict[str, Any]]:
    """Of a task's ``task-sent``, its ``task-scheduled``: one for each queue that it waits for."""
    return [
        {
            **{name: sent.get(name) for name in SENT},
            "queue": put.topic,
            # Of a countdown Redis alone knows it; what Celery has reckoned comes near.
            "eta": sent.get("eta") if put.at_us is None else text_of(put.at_us),
        }
        for put in puts
    ]


class _Batch:
    """Makes one message of many events, as a worker's buffering dispatcher does."""

    def __init__(self, type: str, events: Sequence[dict[str, Any]]) -> None:
        self._type = type
        self._events = events

    def __call__(self, _: str, **common: Any) -> list[Any]:
        return [Event(self._type, **{**common, **event}) for event in self._events]


class Dispatches:
    """Sends ``task-dispatched`` of what this process's dispatchers hand over. An observer of theirs.

    From a thread of its own, which begins with the first event: what is due must not wait for events. Before it is sent
    an event waits in memory, bounded by :data:`PENDING`.

    Args:
        hostname: the worker's.
        wanted: whether there shall be events; asked before each dispatch.
    """

    def __init__(self, app: Celery, hostname: str, wanted: Callable[[], bool]) -> None:
        self._app = app
        self._events = Events(app, hostname)
        # Here, in the main thread, like the dispatcher's.
        self._connection = app.connection_for_write()
        self._wanted = wanted
        self._condition = threading.Condition()
        self._pending: deque[tuple[str, Dispatched, float]] = deque()
        self._count = 0
        self._untold = 0
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    @property
    def tell(self) -> Tell:
        """Which jobs, if anybody wants to hear of them."""
        return Tell.JOBS if self._wanted() else Tell.NOTHING

    def dispatched(self, topic: str, done: Dispatched) -> None:
        """Keep for the thread what has left."""
        if not done.jobs:
            return
        with self._condition:
            self._pending.append((topic, done, time()))
            self._count += len(done.jobs)
            while self._count > PENDING and len(self._pending) > 1:
                _, oldest, _ = self._pending.popleft()
                self._count -= len(oldest.jobs)
                self._untold += len(oldest.jobs)
            if len(self._pending) == 1:
                self._condition.notify()
            if self._thread is None and not self._stopping.is_set():
                self._thread = threading.Thread(target=self._run, name="delayq-events", daemon=True)
                self._thread.start()

    def stop(self, timeout: float = 1.0) -> None:
        """Send what is pending, for *timeout* seconds at most, and end."""
        self._stopping.set()
        with self._condition:
            self._condition.notify()
            thread = self._thread
        if thread is not None:
            thread.join(timeout)

    def _run(self) -> None:
        trouble = False
        while not self._stopping.is_set():
            try:
                with self._connection.clone() as connection:
                    producer = connection.Producer(auto_declare=False)
                    while pending := self._take():
                        events = [event for dispatch in pending for event in self._of(*dispatch)]
                        if events:
                            self._events.publish("task-dispatched", events, producer)
                        trouble = False
            except Exception as error:  # noqa: BLE001  # of the broker: anything
                if not trouble:
                    logger.warning("delayq: events task-dispatched are lost: %s: %s", type(error).__name__, error)
                trouble = True
                self._stopping.wait(1.0)

    def _take(self) -> list[tuple[str, Dispatched, float]]:
        """What is pending, a moment after there is some; nothing: it is time to end."""
        with self._condition:
            self._condition.wait_for(lambda: self._pending or self._stopping.is_set())
        self._stopping.wait(GATHERING)
        with self._condition:
            pending, untold = list(self._pending), self._untold
            self._pending.clear()
            self._count = self._untold = 0
        if untold:
            logger.warning("delayq: %d events task-dispatched were not sent, since there were too many", untold)
        return pending

    def _of(self, topic: str, done: Dispatched, at: float) -> Iterable[dict[str, Any]]:
        for (id, part), due_us in zip(done.jobs, done.dues_us, strict=True):
            name = read_name(part)
            if name is None or getattr(self._app.tasks.get(name), "send_events", True):
                yield {
                    "uuid": id.decode(errors="surrogateescape"),
                    "name": name,
                    "queue": topic,
                    "eta": text_of(due_us),
                    "lateness": (done.now_us - due_us) / SECOND_US,
                    "timestamp": at,
                }
