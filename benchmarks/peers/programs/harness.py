"""What the Python programs of all systems share: orders come in as lines, what ran goes out into a Redis list.

Runs inside the environment of each system, so it needs nothing but redis-py.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import redis

#: URL of the database that the system has for itself.
BROKER = os.environ["PEER_BROKER"]

#: How many jobs one worker may run at once.
CONCURRENCY = int(os.environ["PEER_CONCURRENCY"])

#: After how long (s) the job of a worker that was killed is to be given to another, where that can be set.
RECOVER = int(os.environ["PEER_RECOVER"])

#: How long (s) each job takes.
HOLD = float(os.environ["PEER_HOLD"])

#: What each job carries beside its id.
PAYLOAD = "x" * int(os.environ["PEER_PAYLOAD"])

#: Name of the list, in the database of records, to which jobs append their id and when they started.
RECORDS = "records"

_records = redis.Redis.from_url(os.environ["PEER_RECORDS"])


def record(id: str, started: float) -> None:
    """Tell that this job has run to its end."""
    _records.rpush(RECORDS, f"{id} {started!r}")


def run(id: str, _payload: str) -> None:
    """The job."""
    started = time.time()
    if HOLD:
        time.sleep(HOLD)
    record(id, started)


def serve(put: Callable[[str, float], None]) -> None:
    """Put a job for each line of an id and a due time (s); answer an empty line when all before it are put."""
    for line in sys.stdin:
        if line.strip():
            id, due = line.split()
            put(id, float(due))
        else:
            print("done", flush=True)
