"""Metrics: what Prometheus reads is what is there, and reading it harms nobody."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from celery import Celery
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from celery_delayq import DelayQ
from celery_delayq.clock import SECOND_US
from celery_delayq.contrib import prometheus, rules_metrics
from celery_delayq.delivery import Delivery
from celery_delayq.embedded import RedisServer
from celery_delayq.job import Load, Put
from celery_delayq.scripts import Script
from celery_delayq.store import Store

from .conftest import Inside
from .worker import ROOT, Project, wait_for

ONE_REDIS = True

#: What a process tells that has not met anything.
NOTHING_MET = {"delayq_unattended_total": 0.0, "delayq_adopted_total": 0.0}

#: A moment for a dispatcher that is told the time (us).
NOW = 1_800_000_000_000_000


@pytest.fixture(autouse=True)
def _no_timers() -> Iterator[None]:
    """The timers of scripts are the process's, and so is what they have measured."""
    yield
    Script.timers = ()
    prometheus.SCRIPT_DURATION.clear()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry(auto_describe=True)


def scrape(registry: CollectorRegistry) -> dict[str, float]:
    """All samples of a registry, as Prometheus reads its page: ``name{label="value"}`` -> value."""
    return read(prometheus.page(registry).body.decode())


def read(page: str) -> dict[str, float]:
    samples = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def test_what_queues_hold_and_have_done(app: Celery, inside: Inside, registry: CollectorRegistry) -> None:
    """By queue: waiting, due, overdue, paused, ready; moved, cancelled, dropped and orphans in total."""
    prometheus.register(app, registry)
    assert {"delayq_up": 1.0}.items() <= scrape(registry).items()
    ids = [app.send_task("add", countdown=60 * number, queue="mail").id for number in range(1, 6)]
    inside.store.put([Put("mail", "late", b"{}", 5, grace_us=5)], {"mail": Delivery.plain("mail")}, now_us=5)
    app.delayq.cancel(ids[0])
    app.delayq.pause("other")
    inside.client.hdel(inside.keys.jobs("mail"), ids[1])
    inside.store.dispatch("mail", Delivery.plain("mail"), 2)  # the late one
    inside.store.dispatch("mail", Delivery.plain("mail"), 3, now_us=2**53 - 1)
    app.delayq.run_now(ids[4])

    found = scrape(registry)

    assert {name: value for name, value in found.items() if 'queue="mail"' in name and "overdue" not in name} == {
        'delayq_tasks_waiting{queue="mail"}': 1,
        'delayq_tasks_due{queue="mail"}': 1,
        'delayq_queue_paused{queue="mail"}': 0,
        'delayq_messages_ready{queue="mail"}': 2,
        'delayq_tasks_reserved{queue="mail"}': 0,
        'delayq_tasks_dead{queue="mail"}': 0,
        'delayq_tasks_moved_total{queue="mail"}': 2,
        'delayq_tasks_cancelled_total{queue="mail"}': 1,
        'delayq_tasks_dropped_total{queue="mail"}': 1,
        'delayq_tasks_orphans_total{queue="mail"}': 1,
        'delayq_tasks_requeued_total{queue="mail"}': 0,
        'delayq_tasks_buried_total{queue="mail"}': 0,
    }
    assert 0 <= found['delayq_overdue_seconds{queue="mail"}'] < 60
    assert found['delayq_queue_paused{queue="other"}'] == 1


def test_leases_and_dead_letters(app: Celery, inside: Inside, registry: CollectorRegistry) -> None:
    """Of a store with leases: reserved and dead now; requeued and buried in total."""
    prometheus.register(app, registry)
    store = Store(inside.client, inside.keys, leases=True)
    puts = [Put("mail", id, b"{}", NOW) for id in "abc"]
    store.put(puts, {"mail": Delivery.plain("mail")}, now_us=NOW)
    store.reserve("mail", 2, 3, now_us=NOW + 3)
    store.requeue("mail", 10, max_attempts=1, now_us=NOW + 6)
    store.reserve("mail", 1, 5, now_us=NOW + 7)
    store.requeue("mail", 10, now_us=NOW + 13)
    store.put([Put("mail", "d", b"{}", NOW + 13)], {"mail": Delivery.plain("mail")}, now_us=NOW)
    store.reserve("mail", 1, 5, now_us=NOW + 14)

    found = scrape(registry)

    names = ("tasks_waiting", "tasks_reserved", "tasks_dead", "tasks_requeued_total", "tasks_buried_total")
    assert [found[f'delayq_{name}{{queue="mail"}}'] for name in names] == [1, 1, 2, 1, 2]


def test_all_that_the_store_says_of_a_queue_is_a_metric() -> None:
    """A store that keeps more shows more: whoever adds a field names its metric."""
    assert {field.name for field in fields(Load)} - {"head_us", "held_us"} <= {*prometheus.GAUGES, *prometheus.COUNTERS}


def test_names_are_as_prometheus_wants_them(app: Celery, registry: CollectorRegistry) -> None:
    """One prefix, base units, ``_total`` for what only grows; no label but the queue and the script."""
    prometheus.register(app, registry)
    dispatcher = app.delayq.dispatcher()
    app.send_task("add", countdown=60)

    for family in registry.collect():
        assert re.fullmatch(r"delayq_[a-z_]+", family.name)
        assert not re.search(r"_(ms|us|milliseconds|minutes)$", family.name)
        assert family.documentation.endswith(".")
        for sample in family.samples:
            assert set(sample.labels) <= {"queue", "script", "le"}
            assert (family.type == "counter") is sample.name.endswith("_total")
    assert not dispatcher.running


def test_the_documents_name_every_metric(app: Celery, registry: CollectorRegistry) -> None:
    """And no other."""
    prometheus.register(app, registry)
    dispatcher = app.delayq.dispatcher()
    there = {family.name + ("_total" if family.type == "counter" else "") for family in registry.collect()}
    of_rules = {**rules_metrics.GAUGES, **rules_metrics.COUNTERS}
    later = {name for name, _ in {**prometheus.GAUGES, **prometheus.COUNTERS, **of_rules}.values()}

    told = set(re.findall(r"^\| `(delayq_\w+)`", Path(ROOT, "docs/observability.md").read_text(), re.MULTILINE))

    assert there <= told <= there | later
    assert not dispatcher.running


def test_the_alerts_ask_for_metrics_that_are_there(app: Celery, registry: CollectorRegistry) -> None:
    """docs/alerts.yml is what Prometheus reads as rules, and each metric in it exists."""
    prometheus.register(app, registry)
    dispatcher = app.delayq.dispatcher()
    app.send_task("add", countdown=60)
    there = {sample.name for family in registry.collect() for sample in family.samples}
    there |= {"delayq_lateness_seconds_bucket"}  # none yet
    there |= {name for name, _ in {**prometheus.GAUGES, **prometheus.COUNTERS}.values()}

    (group,) = yaml.safe_load(Path(ROOT, "docs/alerts.yml").read_text())["groups"]

    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"]) >= 5
    for rule in group["rules"]:
        named = set(re.findall(r"\bdelayq_\w+", rule["expr"]))
        assert named
        assert named <= there
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert set(rule["annotations"]) == {"summary", "description"}
    assert not dispatcher.running


def test_to_register_reads_nothing_and_a_dead_redis_is_told(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """No connection is made before a scrape; a scrape of a dead Redis says so, raises nothing, and is logged once."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        app = Celery(broker=f"redis://127.0.0.1:{closed.getsockname()[1]}/0", set_as_current=False)
        app.conf.task_publish_retry_policy = {"max_retries": 0}
        DelayQ(app)
        prometheus.register(app, registry)
        assert app._pool is None

        found = [scrape(registry) for _ in range(2)]

    assert found == [{"delayq_up": 0.0, **NOTHING_MET}] * 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_redis_that_hangs_holds_one_thread(registry: CollectorRegistry) -> None:
    """It takes connections and never answers: each scrape ends in time, and they do not pile up."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        app = Celery(broker=f"redis://127.0.0.1:{silent.getsockname()[1]}/0", set_as_current=False)
        DelayQ(app)
        prometheus.register(app, registry, timeout=0.2)
        begin = time.monotonic()
        found = [scrape(registry) for _ in range(3)]
        took = time.monotonic() - begin
        readers = [thread for thread in threading.enumerate() if thread.name == "delayq-metrics"]
        assert len(readers) == 1
    readers[0].join(60)  # the server is gone: so is what it waited for

    assert found == [{"delayq_up": 0.0, **NOTHING_MET}] * 3
    assert took < 30


def test_it_recovers(own_server: RedisServer, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """Redis goes and comes back: the metrics do as well, with one log line for each change."""
    app = Celery(broker=own_server.url(), set_as_current=False)
    app.conf.task_publish_retry_policy = {"max_retries": 0}
    DelayQ(app)
    prometheus.register(app, registry)
    caplog.set_level(logging.INFO, "celery_delayq")

    own_server.stop()
    ups = [scrape(registry)["delayq_up"]]
    own_server.start()
    ups += [scrape(registry)["delayq_up"] for _ in range(2)]
    app.close()

    assert ups[0] == 0.0
    assert ups[-1] == 1.0
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO]


def test_the_cost_of_a_scrape_depends_on_the_queues_alone(
    app: Celery, inside: Inside, registry: CollectorRegistry
) -> None:
    """As many commands with 2000 waiting tasks as with 2; and no more queues than the limit."""

    def commands() -> int:
        before = inside.client.info("stats")["total_commands_processed"]
        scrape(registry)
        return int(inside.client.info("stats")["total_commands_processed"]) - before

    prometheus.register(app, registry, limit=3)
    for queue in ("a", "b"):
        inside.store.put([Put(queue, "1", b"{}", NOW)], {queue: Delivery.plain(queue)})
    scrape(registry)
    few = commands()
    for queue in ("a", "b"):
        puts = [Put(queue, f"{number}", b"{}", NOW + number) for number in range(2, 1002)]
        inside.store.put(puts, {queue: Delivery.plain(queue)})
    assert few == commands()

    for queue in ("d", "c", "e"):
        inside.store.put([Put(queue, "1", b"{}", NOW)], {queue: Delivery.plain(queue)})
    found = scrape(registry)
    assert {name for name in found if name.startswith("delayq_tasks_waiting")} == {
        f'delayq_tasks_waiting{{queue="{queue}"}}' for queue in "abc"
    }


def test_only_some_queues(app: Celery, registry: CollectorRegistry) -> None:
    """Those that were named, known to the store or not."""
    prometheus.register(app, registry, queues=["mail", "new"])
    for queue in ("mail", "celery"):
        app.send_task("add", countdown=60, queue=queue)

    found = {name: value for name, value in scrape(registry).items() if name.startswith("delayq_tasks_waiting")}

    assert found == {'delayq_tasks_waiting{queue="mail"}': 1, 'delayq_tasks_waiting{queue="new"}': 0}


def test_a_registry_has_one_app(make_app: Callable[..., Celery], registry: CollectorRegistry) -> None:
    """To register twice is no fault; another app is one. An app may be in several registries."""
    one, other = make_app(), make_app()
    prometheus.register(one, registry)
    prometheus.register(one, registry)

    with pytest.raises(ValueError, match="another"):
        prometheus.register(other, registry)

    again = CollectorRegistry()
    prometheus.register(one, again)
    assert scrape(again)["delayq_up"] == scrape(registry)["delayq_up"] == 1.0
    assert len(Script.timers) == 1


def test_without_the_store(app: Celery, registry: CollectorRegistry, inside: Inside) -> None:
    """Only what this process does: a scrape does not touch Redis."""
    prometheus.register(app, registry, store=False)
    dispatcher = app.delayq.dispatcher()

    before = inside.client.info("stats")["total_commands_processed"]
    found = scrape(registry)

    assert inside.client.info("stats")["total_commands_processed"] == before + 1
    assert found["delayq_dispatcher_running"] == found["delayq_dispatcher_active"] == dispatcher.counts.moved == 0
    assert "delayq_up" not in found


def lateness(found: dict[str, float], queue: str) -> dict[str, float]:
    """The buckets of one queue, not cumulated: upper bound -> how many are in it; "sum" -> their sum."""
    buckets = {}
    below = 0.0
    for bound in (*map(str, prometheus.LATENESS_BUCKETS), "+Inf"):
        count = found[f'delayq_lateness_seconds_bucket{{le="{bound}",queue="{queue}"}}']
        if count > below:
            buckets[bound] = count - below
        below = count
    assert found[f'delayq_lateness_seconds_count{{queue="{queue}"}}'] == below
    return {**buckets, "sum": found[f'delayq_lateness_seconds_sum{{queue="{queue}"}}']}


def test_the_lateness_of_each_task(app: Celery, store: Store, registry: CollectorRegistry) -> None:
    """Each job of a batch counts with its own, to the bound; dropped ones and orphans do not."""
    prometheus.register(app, registry, store=False)
    lates = [0, 1000, 1001, 40_000, 40_000, 3 * SECOND_US, 3600 * SECOND_US]
    puts = [Put("q", f"{late}-{number}", b"{}", NOW - late) for number, late in enumerate(lates)]
    puts += [Put("q", "gone", b"", NOW - 5), Put("q", "dropped", b"{}", NOW - 9 * SECOND_US, grace_us=1)]
    store.put(puts, {"q": Delivery.plain("q")}, now_us=NOW - 3600 * SECOND_US)
    store.client.hdel(store.keys.jobs("q"), "gone")
    store.put([Put("r", "alone", b"{}", NOW - 7000)], {"r": Delivery.plain("r")}, now_us=NOW - 7000)

    done = app.delayq.dispatcher().dispatch_once(store, now_us=NOW)

    assert (done.moved, done.dropped, done.orphans) == (8, 1, 1)
    found = scrape(registry)
    assert lateness(found, "q") == {
        "0.001": 2,
        "0.0025": 1,
        "0.05": 2,
        "5.0": 1,
        "+Inf": 1,
        "sum": pytest.approx(sum(lates) / SECOND_US),
    }
    assert lateness(found, "r") == {"0.01": 1, "sum": pytest.approx(0.007)}


def test_the_lateness_of_queues_beyond_the_limit_is_one(app: Celery, store: Store, registry: CollectorRegistry) -> None:
    """Queues that come and go do not fill the memory: the rest is counted together."""
    prometheus.register(app, registry, store=False, limit=2)
    for queue in ("a", "b", "c", "d"):
        store.put([Put(queue, "1", b"{}", NOW)], {queue: Delivery.plain(queue)}, now_us=NOW)

    app.delayq.dispatcher().dispatch_once(store, now_us=NOW)

    found = scrape(registry)
    counts = {name: value for name, value in found.items() if name.startswith("delayq_lateness_seconds_count")}
    assert len(counts) == 3
    assert found['delayq_lateness_seconds_count{queue=""}'] == 2


def test_nobody_is_asked_to_tell_while_nobody_listens(app: Celery, store: Store, registry: CollectorRegistry) -> None:
    """Until metrics are registered a dispatch tells nothing, and scripts are not timed."""
    assert app.delayq.observers.question()[0].value == ""
    assert Script.timers == ()
    prometheus.register(app, registry)
    assert app.delayq.observers.question()[0].value == "dues"


def test_how_long_scripts_took(app: Celery, registry: CollectorRegistry) -> None:
    """By script, of calls that were answered."""
    prometheus.register(app, registry)
    name = 'delayq_script_duration_seconds_count{script="%s"}'
    before = scrape(registry)

    for _ in range(3):
        app.send_task("add", countdown=60, task_id="a")
    app.delayq.cancel("a")

    after = scrape(registry)
    assert [after[name % script] - before.get(name % script, 0) for script in ("put", "delete")] == [3, 1]


def metrics_of(project: Project, worker: Any) -> Callable[[], dict[str, float]]:
    """Scrapes a worker that serves its metrics."""
    worker.await_log("delayq: metrics on")
    (port,) = re.findall(r"delayq: metrics on 127.0.0.1:(\d+)", worker.log())

    def get() -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            return read(answer.read().decode())

    return get


@pytest.mark.parametrize("mode", ["one process", "multiprocess"])
def test_a_worker_serves_them(server: RedisServer, tmp_path: Path, mode: str) -> None:
    """A prefork worker: the dispatcher's lateness from the main process; in prometheus_client's multiprocess mode also
    what the children put, as for a retry.
    """
    with Project(server.url()) as project:
        project.environment["PROJ_METRICS"] = mode
        if mode == "multiprocess":
            project.environment["PROMETHEUS_MULTIPROC_DIR"] = str(tmp_path)
        with project.worker(pool="prefork") as worker:
            worker.await_ready()
            ids = [project.send(countdown=0.1) for _ in range(5)]
            ids.append(project.send(0.05, task="retry"))
            project.ledger.wait_for(ids)
            wait_for(lambda: project.ledger.runs()[ids[-1]] == 2, "the second run of the one that is tried again")
            get = metrics_of(project, worker)
            found = get()
            assert found["delayq_up"] == found["delayq_dispatcher_running"] == found["delayq_dispatcher_active"] == 1.0
            assert found['delayq_tasks_moved_total{queue="celery"}'] == 6
            assert found['delayq_lateness_seconds_count{queue="celery"}'] == 6
            assert found['delayq_script_duration_seconds_count{script="dispatch"}'] > 0
            puts = found.get('delayq_script_duration_seconds_count{script="put"}', 0)
            assert puts == (1 if mode == "multiprocess" else 0)


def test_a_port_that_is_taken_ends_no_worker(
    app: Celery, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """It is an error in the log."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        prometheus.serve(app, taken.getsockname()[1], "127.0.0.1", registry)

    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_what_a_process_has_met(make_app: Callable[..., Celery], registry: CollectorRegistry) -> None:
    """How many tasks it has sent while no dispatcher lived, and how many messages it has adopted as a worker."""
    app = make_app()
    prometheus.register(app, registry)
    before = scrape(registry)
    assert before["delayq_unattended_total"] == before["delayq_adopted_total"] == 0

    for _ in range(2):
        app.send_task("add", countdown=60)
    adoption = app.delayq.adoption(lambda: True, lambda: None)
    assert adoption is not None
    adoption.count = 3
    found = scrape(registry)
    assert (found["delayq_unattended_total"], found["delayq_adopted_total"]) == (2, 3)
