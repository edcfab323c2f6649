"""OpenTelemetry's own instrumentation of Celery: a trace goes on after the wait, and its span says how late it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, _state, signals
from opentelemetry import trace as trace_api
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from celery_delayq import tracing
from celery_delayq.embedded import RedisServer

from .conftest import Inside
from .worker import Project, wait_for

ONE_REDIS = True

SOON = datetime(2100, 1, 1, tzinfo=timezone.utc)

Spans = Callable[..., list[ReadableSpan]]


@pytest.fixture
def provider() -> TracerProvider:
    return TracerProvider()


@pytest.fixture
def spans(provider: TracerProvider) -> Iterator[Spans]:
    """The ended spans of a name, in the order in which they ended, while Celery is instrumented."""
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = CeleryInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    yield lambda name: [span for span in exporter.get_finished_spans() if span.name == name]
    instrumentor.uninstrument()


@pytest.fixture
def app(app: Celery) -> Iterator[Celery]:
    """With two tasks; and the current app, in which the instrumentation looks for a task that is sent."""

    @app.task(name="add", shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="again", shared=False, bind=True, max_retries=1)
    def again(self: Any) -> None:
        if not self.request.retries:
            raise self.retry(countdown=60)

    before = _state._tls.current_app
    app.set_current()
    yield app
    _state._tls.current_app = before


def continues(run: ReadableSpan, send: ReadableSpan) -> bool:
    """Whether *run* is the child of *send*, in the same trace."""
    return run.parent is not None and (run.parent.trace_id, run.parent.span_id) == (
        send.context.trace_id,
        send.context.span_id,
    )


def test_the_run_continues_the_trace(
    app: Celery, provider: TracerProvider, spans: Spans, inside: Inside, run_ready: Callable[..., list[Any]]
) -> None:
    """By countdown, eta and apply_at: the run's span is a child of the sender's, and both are in the caller's trace."""
    add = app.tasks["add"]
    sends: list[Callable[[], object]] = [
        lambda: add.apply_async((1, 1), countdown=60),
        lambda: add.apply_async((2, 2), eta=SOON),
        lambda: app.delayq.apply_at(add, SOON, (3, 3)),
        lambda: app.send_task("add", (4, 4), countdown=60),
    ]
    for send in sends:
        with provider.get_tracer("test").start_as_current_span("request") as request:
            send()
        assert inside.hand_over() == 1
        run_ready(app)

        sent, run = spans("apply_async/add")[-1], spans("run/add")[-1]
        assert continues(run, sent)
        assert continues(sent, request)  # type: ignore[arg-type]  # the SDK's
        assert run.attributes is not None
        assert tracing.DUE in run.attributes


def test_a_retry_stays_in_the_trace(
    app: Celery, spans: Spans, inside: Inside, run_ready: Callable[..., list[Any]]
) -> None:
    """The second run continues what the first has sent."""
    app.tasks["again"].apply_async(countdown=60)
    for _ in range(2):
        assert inside.hand_over() == 1
        run_ready(app)

    (sent, sent_again), (run, run_again) = spans("apply_async/again"), spans("run/again")

    assert [continues(run, sent), continues(sent_again, run), continues(run_again, sent_again)] == [True] * 3


@pytest.mark.parametrize("way", ["apply_many", "a group"])
def test_many_at_once_are_siblings(
    app: Celery, provider: TracerProvider, spans: Spans, inside: Inside, run_ready: Callable[..., list[Any]], way: str
) -> None:
    """Each in the caller's trace, none the child of another, though all end together; and the caller's own span is
    the current one afterwards.
    """
    signatures = [app.tasks["add"].s(number, number) for number in range(5)]
    with provider.get_tracer("test").start_as_current_span("request") as request:
        if way == "apply_many":
            app.delayq.apply_many([(signature, SOON) for signature in signatures])
        else:
            from celery import group

            app.delayq.apply_at(group(signatures), SOON)
        assert trace_api.get_current_span() is request
    assert not trace_api.get_current_span().is_recording()
    inside.hand_over()
    run_ready(app)

    sent, runs = spans("apply_async/add"), spans("run/add")
    assert len(sent) == len(runs) == 5
    assert all(continues(span, request) for span in sent)  # type: ignore[arg-type]  # the SDK's
    parents = {run.parent.span_id for run in runs if run.parent}
    assert parents == {span.context.span_id for span in sent}


@contextmanager
def ours_last() -> Iterator[None]:
    """As where the instrumentation listens to the signals before us."""
    for signal in (signals.task_prerun, signals.task_postrun):
        signal.disconnect(tracing._mark)
    tracing.join()
    yield


@pytest.mark.parametrize("last", [False, True], ids=["we listen first", "we listen last"])
def test_the_lateness_stands_on_the_span(
    app: Celery, spans: Spans, inside: Inside, run_ready: Callable[..., list[Any]], last: bool
) -> None:
    """From the time that was asked for to the beginning of the span; only where a task has waited."""
    asked = datetime.now(timezone.utc) - timedelta(seconds=90)
    if last:
        with ours_last():
            pass
    app.delayq.apply_at(app.tasks["add"], asked, (1, 1))
    inside.hand_over()
    app.send_task("add", (2, 2))
    run_ready(app)

    waited, plain = spans("run/add")

    assert waited.attributes is not None
    assert plain.attributes is not None
    assert waited.attributes[tracing.DUE] == asked.isoformat()
    assert waited.attributes[tracing.LATENESS] == pytest.approx(waited.start_time / 1e9 - asked.timestamp(), abs=1e-3)  # type: ignore[operator]
    assert not {tracing.DUE, tracing.LATENESS} & set(plain.attributes)


def test_other_spans_are_left_alone(
    app: Celery, provider: TracerProvider, inside: Inside, run_ready: Callable[..., list[Any]]
) -> None:
    """Without the instrumentation a span around the run is somebody else's."""
    app.delayq.apply_at(app.tasks["add"], 0, (1, 1))
    inside.hand_over()

    with provider.get_tracer("test").start_as_current_span("around") as around:
        run_ready(app)

    assert around.attributes == {}  # type: ignore[attr-defined]  # the SDK's


def test_real_workers_trace(server: RedisServer, tmp_path: Path) -> None:
    """A prefork pool, whose children are instrumented as OpenTelemetry's documents say: a task that is tried again runs
    twice in one trace, and the second run tells its lateness.
    """
    path = tmp_path / "spans"
    path.touch()

    def written() -> list[dict[str, Any]]:
        whole, _, _ = path.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    with Project(server.url()) as project:
        project.environment["PROJ_SPANS"] = str(path)
        with project.worker(pool="prefork", concurrency=1) as worker:
            worker.await_ready()
            project.send(0.2, task="retry")
            wait_for(lambda: len([span for span in written() if span["name"] == "run/retry"]) == 2, "two runs")

    first, second = [span for span in written() if span["name"] == "run/retry"]
    (sent,) = [span for span in written() if span["name"] == "apply_async/retry"]
    assert len({span["context"]["trace_id"] for span in written()}) == 1
    assert [sent["parent_id"], second["parent_id"]] == [first["context"]["span_id"], sent["context"]["span_id"]]
    assert tracing.LATENESS not in first["attributes"]
    assert 0 <= second["attributes"][tracing.LATENESS] < 60
