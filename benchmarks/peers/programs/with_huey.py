"""Huey: ``put`` or ``work``."""

from __future__ import annotations

import os
import sys
from datetime import datetime, timezone

import harness
from huey import RedisHuey

huey = RedisHuey("peer", url=harness.BROKER, results=False)
job = huey.task()(harness.run)


def put(id: str, due: float) -> None:
    job.schedule(args=(id, harness.PAYLOAD), eta=datetime.fromtimestamp(due, timezone.utc), id=id)


if __name__ == "__main__":
    if sys.argv[1] == "put":
        harness.serve(put)
    else:
        command = [sys.executable, "-m", "huey.bin.huey_consumer", "with_huey.huey", "-k", "thread", "-q", "-n"]
        os.execv(command[0], [*command, "-s", "1", "-w", str(harness.CONCURRENCY)])
