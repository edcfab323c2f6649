"""The smallest app with delayed tasks that wait in Redis."""

import os
from datetime import datetime, timezone

from celery import Celery

from celery_delayq import DelayQ, scheduled_for

REDIS = os.environ.get("BROKER_URL", "redis://localhost:6379/0")

app = Celery("tasks", broker=REDIS, backend=REDIS)
DelayQ(app)


@app.task(bind=True)
def greet(self, name):
    late = datetime.now(timezone.utc) - scheduled_for(self.request)
    return f"Hello {name}, {late.total_seconds() * 1000:.1f} ms late"
