"""RQ: ``put`` or ``work``."""

from __future__ import annotations

import os
import sys
from datetime import datetime, timezone
from typing import Any

import harness
import redis
import rq


class Worker(rq.SimpleWorker):
    """One that looks after jobs and schedulers of dead workers as often as we like; the pool's takes ten minutes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # It looks after them between two waits for a job, and those end 15 s before its TTL.
        super().__init__(*args, **kwargs, maintenance_interval=harness.RECOVER, worker_ttl=harness.RECOVER + 15)


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
        os.execv(command[0], [*command, "-w", "with_rq.Worker"])
