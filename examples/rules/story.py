"""The whole story: starts a worker, pushes one event, and tells what comes of it."""

import subprocess
import sys
from time import monotonic

from redis import Redis
from tasks import REDIS, app

EVENT = "acq/plantA/123"

treated, report = app.AsyncResult("treat-123"), app.AsyncResult("report-123")
for result in (treated, report):
    result.forget()  # that of an earlier run

with open("worker.log", "wb") as log:
    command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--loglevel", "INFO"]
    worker = subprocess.Popen(command, stdout=log, stderr=log)
try:
    with Redis.from_url(REDIS) as client:
        client.lpush("global/done", EVENT)
    print(f"event: {EVENT}", flush=True)
    print(f"treat: {treated.get(timeout=60)}", flush=True)
    begin = monotonic()
    print(f"report: {report.get(timeout=60)}, {monotonic() - begin:.1f} s later", flush=True)
finally:
    worker.terminate()
    worker.wait()
