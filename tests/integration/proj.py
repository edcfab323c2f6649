"""The app that the workers of these tests run. What it should know arrives in environment variables (``worker.py``).

Each run of a task is one line of a ledger, a plain file: it is there whatever happens to Redis.
"""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

from celery import Celery, Task
from celery.signals import celeryd_after_setup, worker_process_init, worker_shutting_down

from celery_delayq import DelayQ, scheduled_for

app = Celery("proj", broker=os.environ["PROJ_BROKER"])
app.conf.update(json.loads(os.environ["PROJ_CONF"]))
if os.environ["PROJ_JOINED"] == "1":
    DelayQ(app)


@worker_process_init.connect
def trace_tasks(**_: Any) -> None:
    """Where the tests ask for it: a line of JSON for each span, in a file."""
    if path := os.environ.get("PROJ_SPANS"):
        from opentelemetry.instrumentation.celery import CeleryInstrumentor
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

        spans = open(path, "a", buffering=1)  # noqa: SIM115  # until the process ends
        provider = TracerProvider()
        exporter = ConsoleSpanExporter(out=spans, formatter=lambda span: span.to_json(indent=None) + "\n")
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        CeleryInstrumentor().instrument(tracer_provider=provider)


@celeryd_after_setup.connect
def serve_metrics(**_: Any) -> None:
    """Where the tests ask for it: /metrics, on a port that the log names."""
    if mode := os.environ.get("PROJ_METRICS"):
        from prometheus_client import CollectorRegistry
        from prometheus_client.multiprocess import MultiProcessCollector

        from celery_delayq.contrib import prometheus

        registry = CollectorRegistry()
        if mode == "multiprocess":
            MultiProcessCollector(registry)
        prometheus.serve(app, 0, "127.0.0.1", registry)


@worker_shutting_down.connect
def interrupt_again(how: str, **_: Any) -> None:
    """Where the tests ask for it: the second Ctrl+C of somebody impatient, surely before the warm stop begins."""
    if how == "Warm" and os.environ.get("PROJ_IMPATIENT"):
        os.kill(os.getpid(), signal.SIGINT)


def note(task: Task, value: Any) -> None:
    """Write down that *task* ran: one line, appended in one system call."""
    request = task.request
    due = scheduled_for(request)
    line = {
        "task": task.name,
        "id": request.id,
        "value": value,
        "at": time.time(),
        "due": due and due.timestamp(),
        "queue": request.delivery_info["routing_key"],
        "retries": request.retries,
        "pid": os.getpid(),
        "message": repr({**vars(request), "callbacks": None, "errbacks": None}),
    }
    ledger = os.open(os.environ["PROJ_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(ledger, (json.dumps(line) + "\n").encode())
    finally:
        os.close(ledger)


@app.task(bind=True, name="record")
def record(self: Task, value: Any = None) -> None:
    note(self, value)


@app.task(bind=True, name="retry", max_retries=1)
def retry(self: Task, countdown: float) -> None:
    """Run twice: the second time after *countdown*."""
    note(self, countdown)
    if self.request.retries == 0:
        raise self.retry(countdown=countdown)


@app.task(bind=True, name="block")
def block(self: Task, seconds: float) -> None:
    """Keep the pool busy; two lines, one at each end."""
    note(self, "begin")
    time.sleep(seconds)
    note(self, "end")


@app.task(bind=True, name="record.late", acks_late=True)
def record_late(self: Task, value: Any) -> None:
    note(self, value)


@app.task(name="die")
def die(_: str) -> None:
    """Take the process along."""
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="fail")
def fail(reason: str) -> None:
    """Raise it."""
    raise RuntimeError(reason)
