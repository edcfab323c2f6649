"""What the rules' watchers of this process have done, as metrics for Prometheus.

:func:`celery_delayq.contrib.prometheus.register` has them for a worker; :func:`serve` is for a process without an app.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from celery_delayq.rules.watching import Counts

#: Field of :class:`~celery_delayq.rules.watching.Counts` -> metric and its meaning.
COUNTERS = {
    "events": ("delayq_rules_events_total", "Events that were taken."),
    "matches": ("delayq_rules_matches_total", "Rules that spoke of one."),
    "made": ("delayq_rules_made_total", "Tasks that were made."),
    "doubles": ("delayq_rules_doubles_total", "Tasks that were not made, since their sets knew them."),
    "failures": ("delayq_rules_failures_total", "Tries of an event that failed."),
    "dead": ("delayq_rules_dead_total", "Events that were given up, and lie in the dead list."),
    "lost": ("delayq_rules_lost_total", "Events that were another watcher's when they were concluded."),
    "returned": ("delayq_rules_returned_total", "Events of gone watchers that were given back."),
}
GAUGES = {
    "in_work": ("delayq_rules_in_work", "Events that are in work."),
    "waiting": ("delayq_rules_waiting", "Events that waited to be taken, a second ago at most."),
    "lag": ("delayq_rules_lag_seconds", "Age of the event that was concluded last, where its source knows it."),
}


class RulesCollector:
    """Nothing, where no watcher runs."""

    def describe(self) -> Iterator[Metric]:
        """The names."""
        return self._families({})

    def collect(self) -> Iterator[Metric]:
        """What there is now."""
        # Not imported here: it needs packages that a process without rules need not have.
        running = sys.modules.get("celery_delayq.rules.running")
        counts: dict[str, Counts] = {}
        for runner in tuple(running.RUNNERS) if running else ():
            counts.update(runner.counts)
        return self._families(counts) if counts else iter(())

    @staticmethod
    def _families(counts: dict[str, Counts]) -> Iterator[Metric]:
        for kind, named in ((CounterMetricFamily, COUNTERS), (GaugeMetricFamily, GAUGES)):
            for field, (name, meaning) in named.items():
                family = kind(name, meaning, labels=("queue",))
                for queue, counted in counts.items():
                    value = getattr(counted, field)
                    if value is not None:
                        family.add_metric((queue,), value)
                yield family


def serve(port: int, addr: str = "0.0.0.0", registry: CollectorRegistry = REGISTRY) -> int:  # noqa: S104  # as its own
    """Serve the metrics under ``/metrics``, from a thread of this process; returns the port, which 0 leaves open.

    Raises:
        OSError: the port is taken.
    """
    registry.register(RulesCollector())
    server, _ = start_http_server(port, addr, registry)
    return int(server.server_port)
