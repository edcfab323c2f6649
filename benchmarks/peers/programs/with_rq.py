"""RQ: ``put`` or ``work``."""

from __future__ import annotations

import os
import sys
from datetime import datetime, timezone

import harness
import redis
import rq


def put(id: str, due: float) -> None:
    when = datetime.fromtimestamp(due, timezone.utc)
    retry, limit = rq.Retry(max=3), harness.RECOVER
    arguments = (id, harness.PAYLOAD)
    queue.enqueue_at(when, "harness.run", args=arguments, job_id=id, retry=retry, job_timeout=limit, result_ttl=0)


if __name__ == "__main__":
    if sys.argv[1] == "put":
        queue = rq.Queue(connection=redis.Redis.from_url(harness.BROKER))
        harness.serve(put)
    else:
        command = [sys.executable, "-m", "rq.cli", "worker-pool", "-u", harness.BROKER, "-q", "-n", "4"]
        os.execv(command[0], [*command, "-w", "rq.SimpleWorker"])
