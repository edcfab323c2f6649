"""The demo's Celery app: what its worker runs. An app like any other, with one line more.

It names no URL: both processes find the broker, and the database for reports, in Celery's own environment variables.
"""

from __future__ import annotations

import json
import time
from typing import Any

from celery import Celery, Task
from celery.signals import worker_ready

from celery_delayq.app import DelayQ
from celery_delayq.clock import to_us
from celery_delayq.message import scheduled_for

#: The queue that everything goes to.
QUEUE = "demo"

#: In the database for results: a list with one report for each run, and a key that is there once the worker works.
REPORTS, READY = "reports", "ready"

app = Celery("celery_delayq.demo")
app.conf.update(task_default_queue=QUEUE, task_ignore_result=True, broker_connection_retry_on_startup=True)
DelayQ(app)


def _report(request: Any) -> None:
    started_us = time.time_ns() // 1000
    due = scheduled_for(request)
    report = {
        "id": request.id,
        "attempt": request.retries,
        "due_us": None if due is None else to_us(due),
        "started_us": started_us,
    }
    app.backend.client.rpush(REPORTS, json.dumps(report))


@app.task(bind=True)  # type: ignore[untyped-decorator]  # Celery has no types
def once(self: Task) -> None:
    """Run, and say when."""
    _report(self.request)


@app.task(bind=True)  # type: ignore[untyped-decorator]  # Celery has no types
def twice(self: Task, countdown: float) -> None:
    """Run, and once more *countdown* seconds later."""
    _report(self.request)
    if not self.request.retries:
        raise self.retry(countdown=countdown)


@worker_ready.connect  # type: ignore[untyped-decorator]  # Celery's
def _say_ready(**_: Any) -> None:
    app.backend.client.set(READY, 1)
