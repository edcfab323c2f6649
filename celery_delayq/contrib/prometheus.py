"""What waits and what is done with it, as metrics for Prometheus. Needs the extra ``prometheus``.

Three kinds, of which each process gives what it has:

- what all of an app's queues hold and have done, read from Redis when Prometheus asks;
- how late this process's dispatcher handed tasks over, and how it fares;
- how long this process waited for our Redis scripts.

Until :func:`register` is called nothing is measured, and nothing costs anything.
"""

from __future__ import annotations

import logging
import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry, Histogram, start_http_server
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.utils import floatToGoString

from celery_delayq.clock import SECOND_US
from celery_delayq.job import Load, Tell
from celery_delayq.scripts import Script
from celery_delayq.store import Dispatched

from .rules_metrics import RulesCollector

if TYPE_CHECKING:
    from celery import Celery

    from celery_delayq.app import DelayQ
    from celery_delayq.crew import Crew
    from celery_delayq.dispatcher import Dispatcher

logger = logging.getLogger(__name__)

#: Redis's clock (us), and what each queue holds.
Loads = tuple[int, dict[str, Load]]

#: Upper bounds (s) of the lateness histogram: a healthy dispatcher fills the first, an outage the last.
LATENESS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0)

#: Upper bounds (s) of the script durations.
SCRIPT_BUCKETS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

#: Field or property of :class:`~celery_delayq.job.Load` -> metric and its meaning.
GAUGES = {
    "waiting": ("delayq_tasks_waiting", "Delayed tasks that wait."),
    "due": ("delayq_tasks_due", "Waiting tasks that are due, and not handed over yet."),
    "overdue_us": ("delayq_overdue_seconds", "Since when the first waiting task is due; 0 if none is."),
    "paused": ("delayq_queue_paused", "1 while the queue is paused."),
    "ready": ("delayq_messages_ready", "Messages on the queue, ready for workers."),
    "reserved": ("delayq_tasks_reserved", "Tasks under a lease, being handed over."),
    "dead": ("delayq_tasks_dead", "Tasks among the dead letters, which could not be handed over."),
}
COUNTERS = {
    "moved": ("delayq_tasks_moved_total", "Tasks handed over."),
    "cancelled": ("delayq_tasks_cancelled_total", "Tasks taken back before they were handed over."),
    "dropped": ("delayq_tasks_dropped_total", "Tasks dropped, found later than their grace."),
    "orphans": ("delayq_tasks_orphans_total", "Ids found without a message."),
    "requeued": ("delayq_tasks_requeued_total", "Tasks whose lease ran out, waiting again."),
    "buried": ("delayq_tasks_buried_total", "Tasks laid among the dead letters."),
}

#: How long this process waited for an answer of each script (s). Prometheus_client's own, so that it also adds up over
#: the processes of its multiprocess mode; registered nowhere until somebody asks for it.
SCRIPT_DURATION = Histogram(
    "delayq_script_duration_seconds",
    "How long a caller waited for one of our Redis scripts, network included.",
    ["script"],
    buckets=SCRIPT_BUCKETS,
    registry=None,
)


def register(
    app: Celery,
    registry: CollectorRegistry = REGISTRY,
    *,
    store: bool = True,
    queues: Iterable[str] = (),
    limit: int = 1000,
    timeout: float = 5.0,
) -> None:
    """Give the metrics of *app* to a registry. Reads nothing now. A second time, for the same two, changes nothing.

    Args:
        registry: one for one app: the metrics carry no name of the app.
        store: also what the queues hold and have done. It is the same from every process, so one of them is enough.
        queues: only of these; without any, of all that are known to the store,
        limit: but of so many at most, the first by name. The lateness of so many is told apart, too.
        timeout: how long (s) a scrape waits for Redis before it says ``delayq_up 0``.

    Raises:
        ValueError: the registry has the metrics of another app.
    """
    with _lock:
        known = _registered.get(registry)
        if known is app:
            return
        if known is not None:
            raise ValueError(f"this registry has the metrics of {known!r}; make another for {app!r}")
        delayq: DelayQ = app.delayq
        if store:
            names = tuple(queues)
            registry.register(_StoreCollector(lambda: delayq._loads(names, limit), timeout))
        lateness = _Lateness(limit)
        registry.register(_DispatcherCollector(delayq, lateness))
        registry.register(_ProcessCollector(delayq))
        registry.register(RulesCollector())
        # In its multiprocess mode prometheus_client gives its own metrics from files.
        if not {"PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"} & set(os.environ):
            registry.register(SCRIPT_DURATION)
        if _time_script not in Script.timers:
            Script.timers = (*Script.timers, _time_script)
        delayq.observers.add(lateness)
        _registered[registry] = app


_lock = threading.Lock()
_registered: WeakKeyDictionary[CollectorRegistry, Celery] = WeakKeyDictionary()


def serve(
    app: Celery,
    port: int,
    addr: str = "0.0.0.0",  # noqa: S104  # as prometheus_client's own server: who asks is another machine
    registry: CollectorRegistry = REGISTRY,
    **options: Any,
) -> None:
    """:func:`register`, with its *options*, and serve the registry under ``/metrics``, from a thread of this process.

    A port that is taken is logged as an error and no more: no worker should end for its metrics.
    """
    register(app, registry, **options)
    try:
        server, _ = start_http_server(port, addr, registry)
    except OSError as error:
        logger.error("delayq: no metrics on %s:%d: %s", addr, port, error)
    else:
        # A child of a prefork pool would hold the port beyond the death of its parent.
        os.register_at_fork(after_in_child=server.socket.close)
        logger.info("delayq: metrics on %s:%d", addr, server.server_port)


class Page(NamedTuple):
    """A page for Prometheus."""

    content_type: str
    body: bytes


def page(registry: CollectorRegistry = REGISTRY, accept: str = "") -> Page:
    """What a registry gives now, for servers of other people; *accept* is the request's header of that name."""
    encode, content_type = choose_encoder(accept)
    return Page(content_type, encode(registry))


def _time_script(name: str, seconds: float) -> None:
    SCRIPT_DURATION.labels(name).observe(seconds)


class _Reading(threading.Thread):
    """One look at the store, in a thread of its own: whoever waits for it can give up, whatever Redis does."""

    def __init__(self, read: Callable[[], Loads]) -> None:
        super().__init__(name="delayq-metrics", daemon=True)
        self._read = read
        #: What it found; None until then.
        self.loads: Loads | None = None
        self.trouble = "no answer in time"

    def run(self) -> None:
        try:
            self.loads = self._read()
        except Exception as error:  # noqa: BLE001  # Redis, Sentinel, DNS, settings: the scrape says that it has failed
            self.trouble = f"{type(error).__name__}: {error}"


class _StoreCollector:
    """What the queues hold and have done: read anew for each scrape, by one thread, in round trips whose number depends
    on the number of queues alone.
    """

    def __init__(self, read: Callable[[], Loads], timeout: float) -> None:
        self._read = read
        self._timeout = timeout
        self._lock = threading.Lock()
        self._reading: _Reading | None = None
        self._trouble: str | None = None

    def describe(self) -> Iterator[Metric]:
        """The names, without asking Redis."""
        return self._families(None)

    def collect(self) -> Iterator[Metric]:
        """What there is now; if Redis does not answer, ``delayq_up 0`` and nothing of any queue."""
        with self._lock:  # scrapes that overlap share a reading: a Redis that hangs holds one thread, not one for each
            reading = self._reading
            if reading is None or not reading.is_alive():
                reading = self._reading = _Reading(self._read)
                reading.start()
        reading.join(self._timeout)
        loads = reading.loads
        self._note(None if loads is not None else reading.trouble)
        return self._families(loads)

    def _note(self, trouble: str | None) -> None:
        """One log line for each change of state."""
        if trouble is not None and self._trouble is None:
            logger.warning("delayq: no metrics of the queues: %s", trouble)
        elif trouble is None and self._trouble is not None:
            logger.info("delayq: metrics of the queues again")
        self._trouble = trouble

    def _families(self, found: Loads | None) -> Iterator[Metric]:
        yield GaugeMetricFamily("delayq_up", "1 if Redis could be read.", float(found is not None))
        now_us, loads = found or (0, {})
        for family, table in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for field, (name, meaning) in table.items():
                if not hasattr(Load, field) and field not in Load.__annotations__:
                    continue  # this store keeps no such thing
                metric = family(name, meaning, labels=["queue"])
                for queue, load in loads.items():
                    value = load.overdue_us(now_us) / SECOND_US if field == "overdue_us" else getattr(load, field)
                    metric.add_metric([queue], float(value))
                yield metric


class _Lateness:
    """A histogram of how late jobs were handed over, by queue: from the due time in the schedule to the clock of the
    script that moved them, both Redis's. Of each job, not only of the first of a batch.

    Not prometheus_client's: a batch comes in due order, so it is counted by a bisection for each bound and not job by
    job.
    """

    tell = Tell.DUES

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bounds_us = [round(bound * SECOND_US) for bound in LATENESS_BUCKETS]
        self._lock = threading.Lock()
        #: Queue -> how many were at most so late, for each bound; how many there were; the sum of their lateness (us).
        self._rows: dict[str, list[int]] = {}

    def dispatched(self, topic: str, done: Dispatched) -> None:
        dues = done.dues_us
        count = len(dues)
        if not count:
            return
        with self._lock:
            if topic not in self._rows and len(self._rows) >= self._limit:
                topic = ""  # no label, as Prometheus sees it: the rest
            row = self._rows.setdefault(topic, [0] * (len(self._bounds_us) + 2))
            for number, bound_us in enumerate(self._bounds_us):
                row[number] += count - bisect_left(dues, done.now_us - bound_us)
            row[-2] += count
            row[-1] += count * done.now_us - sum(dues)

    def family(self) -> HistogramMetricFamily:
        """As Prometheus takes it."""
        metric = HistogramMetricFamily(
            "delayq_lateness_seconds",
            "From the due time of a task to its hand-over, by Redis's clock.",
            labels=["queue"],
        )
        with self._lock:
            rows = {topic: list(row) for topic, row in self._rows.items()}
        names = [*map(floatToGoString, LATENESS_BUCKETS), "+Inf"]
        for topic, (*counts, sum_us) in rows.items():
            metric.add_metric([topic], list(zip(names, counts, strict=True)), sum_us / SECOND_US)
        return metric


class _DispatcherCollector:
    """How the dispatchers of this process fare: nothing where there is none, as in a producer."""

    def __init__(self, delayq: DelayQ, lateness: _Lateness) -> None:
        self._delayq = delayq
        self._lateness = lateness

    def describe(self) -> Iterator[Metric]:
        """The names."""
        return self._families(())

    def collect(self) -> Iterator[Metric]:
        """What there is now."""
        dispatchers = tuple(self._delayq.dispatchers)
        return self._families(dispatchers) if dispatchers else iter((self._lateness.family(),))

    def _families(self, dispatchers: Collection[Dispatcher | Crew]) -> Iterator[Metric]:
        counts = [dispatcher.counts for dispatcher in dispatchers]
        yield GaugeMetricFamily(
            "delayq_dispatcher_running",
            "1 while a dispatcher runs in this process.",
            sum(dispatcher.running for dispatcher in dispatchers),
        )
        yield GaugeMetricFamily(
            "delayq_dispatcher_active",
            "1 while it is the one of the fleet that looks for due tasks; the others stand by.",
            sum(dispatcher.active for dispatcher in dispatchers),
        )
        yield CounterMetricFamily(
            "delayq_dispatcher_passes_total", "Looks at what is due.", sum(count.passes for count in counts)
        )
        yield CounterMetricFamily(
            "delayq_dispatcher_errors_total",
            "Lost connections and refusals of Redis.",
            sum(count.errors for count in counts),
        )
        yield GaugeMetricFamily(
            "delayq_dispatcher_last_pass_timestamp_seconds",
            "When it last looked, by this machine's clock; 0: not yet.",
            max((count.last_pass or 0.0 for count in counts), default=0.0),
        )
        yield self._lateness.family()


class _ProcessCollector:
    """What this process has met outside of the store: as a producer, and as a worker."""

    def __init__(self, delayq: DelayQ) -> None:
        self._delayq = delayq

    def describe(self) -> Iterator[Metric]:
        """The names, without reading settings."""
        return self._families(0, 0)

    def collect(self) -> Iterator[Metric]:
        """What there is now."""
        return self._families(self._delayq.unattended, self._delayq.adopted)

    @staticmethod
    def _families(unattended: int, adopted: int) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "delayq_unattended_total", "Delayed tasks that this process has sent while no dispatcher lived.", unattended
        )
        yield CounterMetricFamily(
            "delayq_adopted_total", "Delayed messages that this worker has put into the store.", adopted
        )
