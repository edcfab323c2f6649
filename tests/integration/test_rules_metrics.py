"""What the watchers of a process have done, as Prometheus reads it."""

from __future__ import annotations

import urllib.request

import redis
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from celery_delayq.contrib import rules_metrics
from celery_delayq.embedded import RedisServer
from celery_delayq.rules import validated
from celery_delayq.rules.running import Runner

from .rules import TREATMENT
from .worker import wait_for

ONE_REDIS = True


def read(port: int) -> dict[tuple[str, str], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        (sample.name.removeprefix("delayq_rules_"), sample.labels["queue"]): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_what_watchers_have_done(server: RedisServer, client: redis.Redis) -> None:
    """By queue; nothing, before there is a watcher."""
    optional = {"on": r"^x(?P<y>\d)?$", "make": {"task": "${y}", "queue": "out"}}
    watchers = [{"input_queue": "events", "rules": [TREATMENT]}, {"input_queue": "other", "rules": [optional]}]
    port = rules_metrics.serve(0, "127.0.0.1", CollectorRegistry())
    assert not [queue for _, queue in read(port) if queue in ("events", "other")]
    runner = Runner([validated({"redis": {"url": server.url()}, "watchers": watchers})])
    runner.start()
    try:
        client.lpush("events", "acq/A/1", "acq/A/1", "acq/A/2", "nobody's")
        client.lpush("other", "x")
        wait_for(lambda: read(port)["dead_total", "other"] == 1, "it is given up")
        wait_for(lambda: not client.exists("events", "events/taken"), "all are done")
        found = read(port)
    finally:
        runner.stop()
    queue = {name: value for (name, queue), value in found.items() if queue == "events"}
    assert queue == {
        "events_total": 4,
        "matches_total": 3,
        "made_total": 2,
        "doubles_total": 1,
        "failures_total": 0,
        "dead_total": 0,
        "lost_total": 0,
        "returned_total": 0,
        "in_work": 0,
        "waiting": 0,
    }
    assert found["failures_total", "other"] == 1
