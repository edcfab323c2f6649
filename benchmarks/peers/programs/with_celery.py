"""Celery with celery_delayq, or with the transport of celery-redis-plus: ``put`` or ``work``, as PEER_NAME says."""

from __future__ import annotations

import os
import sys
from datetime import datetime, timezone

import harness
from celery import Celery

app = Celery("with_celery", broker=harness.BROKER)
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    # Kombu looks for what timed out every ten times ten seconds, if nobody says otherwise.
    broker_transport_options={
        "visibility_timeout": harness.RECOVER,
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
    },
)
if os.environ["PEER_NAME"] == "celery-redis-plus":
    import celery_redis_plus  # noqa: F401  # its signal handlers are half of the transport

    app.conf.broker_transport = "celery_redis_plus.transport:Transport"
else:
    from celery_delayq import DelayQ

    DelayQ(app)

job = app.task(name="job")(harness.run)


def put(id: str, due: float) -> None:
    eta = datetime.fromtimestamp(due, timezone.utc)
    job.apply_async((id, harness.PAYLOAD), eta=eta, task_id=id)


if __name__ == "__main__":
    if sys.argv[1] == "put":
        harness.serve(put)
    else:
        command = [sys.executable, "-m", "celery", "-A", "with_celery", "worker", "-l", "WARNING", "-P", "threads"]
        # As for our other benchmarks: what workers tell each other at their start is none of what is measured.
        command += ["-c", str(harness.CONCURRENCY), "--without-gossip", "--without-mingle"]
        os.execv(command[0], command)
