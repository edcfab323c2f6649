"""100,000 jobs due at one instant: how long until all are on the ready list.

Ours: the real dispatcher, waiting beforehand, by the real clock. Compared with the shortest thing that could do it: a
loop around a bare Lua script that moves the same bodies of the same keys on the same server, a thousand a call, with
no safety, no index, no priorities. Rounds alternate.
"""

from __future__ import annotations

import time

import redis

from celery_delayq.clock import SECOND_US
from celery_delayq.dispatcher import Dispatcher

from .backlog import QUEUE, Backlog
from .conditions import Conditions
from .report import Results, Row, Spread
from .workers import Bench

BARE = """
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, 1000)
if #ids == 0 then
  return 0
end
local bodies = redis.call('HMGET', KEYS[2], unpack(ids))
redis.call('HDEL', KEYS[2], unpack(ids))
redis.call('ZREM', KEYS[1], unpack(ids))
redis.call('LPUSH', KEYS[3], unpack(bodies))
return #ids
"""


def _dispatcher_seconds(backlog: Backlog, bench: Bench, count: int, fill_seconds: float) -> float:
    """Fill; have a dispatcher sleep until the instant; measure from the instant to the last job's arrival."""
    instant_us = int((time.time() + 1.5 * fill_seconds + 1.0) * SECOND_US)
    backlog.put([instant_us] * count)
    assert time.time() * SECOND_US < instant_us, "the filling took longer than expected"
    dispatcher: Dispatcher = bench.app.delayq.dispatcher()
    dispatcher.start()
    try:
        # Count where it counts itself; asking Redis would slow down what is measured.
        while dispatcher.counts.moved < count:
            time.sleep(0.002)
        return time.time() - instant_us / SECOND_US
    finally:
        dispatcher.stop()


def _bare_seconds(backlog: Backlog, client: redis.Redis, count: int) -> float:
    """Fill; measure the bare loop."""
    instant_us = int(time.time() * SECOND_US) + 3600 * SECOND_US
    backlog.put([instant_us] * count)
    keys = backlog.store.keys
    script = client.register_script(BARE)
    limit = instant_us + SECOND_US
    script(["", "", ""], [limit])  # loads it
    started = time.perf_counter()
    while script([keys.schedule(QUEUE), keys.jobs(QUEUE), QUEUE], [limit]):
        pass
    return time.perf_counter() - started


def run(conditions: Conditions) -> Results:
    count, rounds = (20_000, 3) if conditions.quick else (100_000, 5)
    taken: list[tuple[float, float]] = []
    with conditions.server() as server:
        bench = Bench(server, 0, delayq=True)
        backlog = Backlog(bench)
        started = time.perf_counter()
        backlog.put([int(time.time() * SECOND_US)] * count)
        fill_seconds = time.perf_counter() - started
        for _ in range(rounds):
            bench.broker.flushdb()
            here = _dispatcher_seconds(backlog, bench, count, fill_seconds)
            assert bench.broker.llen(QUEUE) == count
            bench.broker.flushdb()
            bare = _bare_seconds(backlog, bench.broker, count)
            assert bench.broker.llen(QUEUE) == count
            taken.append((here, bare))
    ours, loop = (Spread.of(column) for column in zip(*taken, strict=True))
    rate = Spread.of(bare / here for here, bare in taken)
    return [
        Row(
            "burst",
            f"s from the instant until {count:,} jobs are ready",
            str(ours),
            f"bare Lua loop {loop}",
            None,
            "<= 0.7 s for 100,000",
            ours.median <= 0.7 * count / 100_000,
        ),
        Row(
            "burst",
            f"jobs a second to the ready list, {count:,} due at one instant",
            f"{count / ours.median:,.0f}",
            f"bare Lua loop {count / loop.median:,.0f}",
            rate,
            "ratio >= 0.75",
            rate.median >= 0.75,
        ),
    ]
