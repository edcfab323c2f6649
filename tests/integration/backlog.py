"""Many waiting tasks for a test, made faster than Celery makes messages."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from celery import Celery

from celery_delayq.clock import SECOND_US
from celery_delayq.job import Put

from .conftest import Inside

#: A moment far ahead (us); jobs of a backlog are due from then on.
FAR_US = 2_000_000_000 * SECOND_US


def fill(inside: Inside, app: Celery, dues_us: Iterable[int], queue: str = "celery", **headers: Any) -> list[str]:
    """Put a task ``record`` due at each of those times after FAR_US; return the ids.

    Args:
        headers: of each; a callable makes the value from the number of the task.
    """
    marks = {name: 10**12 + number for number, name in enumerate(headers)}
    template_id = app.send_task("record", queue=queue, countdown=3600, headers=marks).id
    store, keys = inside.store, inside.keys
    body = inside.client.hget(keys.jobs(queue), template_id)
    deliveries = {queue: store.topics()[queue]}
    store.delete(queue, [template_id])
    inside.client.delete(keys.totals)
    jobs = []
    for number, due_us in enumerate(dues_us):
        task_id = f"{queue}-{number:06}"
        one = body.replace(template_id.encode(), task_id.encode())
        for name, value in headers.items():
            given = value(number) if callable(value) else value
            one = one.replace(str(marks[name]).encode(), json.dumps(given).encode())
        jobs.append(Put(queue, task_id, one, at_us=FAR_US + due_us))
    for start in range(0, len(jobs), 1000):
        store.put(jobs[start : start + 1000], deliveries)
    return [str(job.id) for job in jobs]
