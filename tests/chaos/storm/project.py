"""The app of a storm's workers, producers and dispatchers. What it should know arrives in environment variables."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from celery import Celery, Task
from celery.app.amqp import AMQP
from kombu import Producer

from celery_delayq import DelayQ

from .records import STAMP


class Stamping(Producer):
    """Writes onto each message of a relay who publishes it, and when: so copies of one task are told apart."""

    def publish(self, body: Any, *args: Any, headers: dict[str, Any] | None = None, **options: Any) -> Any:
        stamp = f"{os.environ['STORM_NAME']}.{os.environ['STORM_INCARNATION']} {time.monotonic():.6f}"
        return super().publish(body, *args, headers={**(headers or {}), STAMP: stamp}, **options)


class StampingAMQP(AMQP):
    """Of those who hand over."""

    Producer = Stamping


app = Celery("storm", amqp=StampingAMQP if "STORM_STAMPS" in os.environ else None)
app.conf.update(json.loads(os.environ["STORM_CONF"]))
DelayQ(app)


@app.task(bind=True, name="note")
def note(self: Task, filling: str = "") -> None:
    """Write down that it ran, and which copy of it: one line, appended in one system call."""
    stamp = getattr(self.request, STAMP, "")
    runs = os.open(os.environ["STORM_RUNS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(runs, f"{self.request.id} {stamp}\n".encode())
    finally:
        os.close(runs)
