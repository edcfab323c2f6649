"""Dramatiq: ``put`` or ``work``."""

from __future__ import annotations

import math
import os
import sys
import time

import dramatiq
import harness
from dramatiq.brokers.redis import RedisBroker

dramatiq.set_broker(
    RedisBroker(url=harness.BROKER, heartbeat_timeout=harness.RECOVER * 1000, maintenance_chance=10_000)
)
job = dramatiq.actor(harness.run)


def put(id: str, due: float) -> None:
    # It takes delays of whole milliseconds: up, so that a job is not early by our rounding.
    delay = max(0, math.ceil((due - time.time()) * 1000))
    job.send_with_options(args=(id, harness.PAYLOAD), delay=delay)


if __name__ == "__main__":
    if sys.argv[1] == "put":
        harness.serve(put)
    else:
        os.environ["dramatiq_worker_timeout"] = "100"  # noqa: SIM112  # its name
        command = [sys.executable, "-m", "dramatiq", "with_dramatiq", "--processes", "1"]
        os.execv(command[0], [*command, "--threads", str(harness.CONCURRENCY), "--skip-logging"])
