"""The Python side: a stock Celery app with celery_delayq. Its worker runs what the shell has scheduled."""

import os

from celery import Celery

from celery_delayq import DelayQ

app = Celery("tasks", broker=os.environ.get("REDIS_URL", "redis://localhost:6379/0"))
DelayQ(app)


@app.task
def greet(name, greeting="Hello"):
    print(f"{greeting} {name}", flush=True)
