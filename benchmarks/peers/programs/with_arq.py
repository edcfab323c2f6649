"""arq: ``put`` or ``work``."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from datetime import datetime, timezone
from typing import Any

import harness
import redis.asyncio
from arq import create_pool
from arq.connections import ArqRedis, RedisSettings


async def open_records(ctx: dict[str, Any]) -> None:
    ctx["records"] = redis.asyncio.Redis.from_url(os.environ["PEER_RECORDS"])


async def job(ctx: dict[str, Any], id: str, _payload: str) -> None:
    started = time.time()
    await asyncio.sleep(harness.HOLD)
    await ctx["records"].rpush(harness.RECORDS, f"{id} {started!r}")


class WorkerSettings:
    """What ``arq`` reads."""

    functions = (job,)
    on_startup = open_records
    redis_settings = RedisSettings.from_dsn(harness.BROKER)
    max_jobs = harness.CONCURRENCY
    queue_read_limit = 1000
    poll_delay = 0.1
    job_timeout = harness.RECOVER
    keep_result = 0


def serve() -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    pool: ArqRedis = loop.run_until_complete(create_pool(WorkerSettings.redis_settings))

    def put(id: str, due: float) -> None:
        when = datetime.fromtimestamp(due, timezone.utc)
        loop.run_until_complete(pool.enqueue_job("job", id, harness.PAYLOAD, _job_id=id, _defer_until=when))

    harness.serve(put)


if __name__ == "__main__":
    if sys.argv[1] == "put":
        serve()
    else:
        command = [sys.executable, "-m", "arq", "with_arq.WorkerSettings"]
        os.execv(command[0], command)
