"""The dispatcher of bare sorted sets: 100,000 members due at one instant, and how late single ones come.

Compared with the shortest thing that could do it: a loop around a bare Lua script that moves the same members of the
same key on the same server, as many a call, and says how many; it checks nothing, knows nothing of what is due next,
and is told the time. Rounds alternate.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

import redis

from celery_delayq.embedded import RedisServer
from celery_delayq.zset import ZsetDispatcher, ZsetPass
from celery_delayq.zset_program import client_for

from .backlog import BODY_BYTES
from .conditions import Conditions
from .report import Results, Row, Spread, percentile

DELAYED, READY = "delayed", "ready"

BARE = """
local members = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
if #members > 0 then
  redis.call('RPUSH', KEYS[2], unpack(members))
  redis.call('ZREM', KEYS[1], unpack(members))
end
return #members
"""

#: What the program moves a call if nobody says otherwise, and what is sensible for many.
BATCHES = {10: 0.75, 1000: 0.75}


@contextmanager
def _dispatching(server: RedisServer, batch: int) -> Iterator[ZsetDispatcher]:
    """A dispatcher that has looked once, and sleeps."""
    dispatcher = ZsetDispatcher(client_for(server.url()), DELAYED.encode(), READY.encode(), batch_size=batch)
    stop, looked = Event(), Event()

    def seen(_: ZsetPass, __: float) -> None:
        looked.set()

    thread = Thread(target=dispatcher.run, args=(stop, seen))
    thread.start()
    try:
        looked.wait()
        yield dispatcher
    finally:
        stop.set()
        thread.join()


def _fill(client: redis.Redis, count: int, due: float) -> None:
    for begin in range(0, count, 1000):
        client.zadd(DELAYED, {f"{number:0{BODY_BYTES}}": due for number in range(begin, begin + 1000)})


def _dispatcher_seconds(server: RedisServer, client: redis.Redis, count: int, batch: int, fill_seconds: float) -> float:
    """Fill; have a dispatcher sleep until the instant; measure from the instant to the last member's arrival."""
    instant = time.time() + 1.5 * fill_seconds + 1.0
    _fill(client, count, instant)
    with _dispatching(server, batch) as dispatcher:
        assert time.time() < instant, "the filling took longer than expected"
        # Count where it counts itself; asking Redis would slow down what is measured.
        while dispatcher.moved < count:
            time.sleep(0.002)
        return time.time() - instant


def _bare_seconds(client: redis.Redis, count: int, batch: int) -> float:
    """Fill; measure the bare loop."""
    _fill(client, count, 1)
    script = client.register_script(BARE)
    script([DELAYED, READY], [0, batch])  # loads it
    started = time.perf_counter()
    while script([DELAYED, READY], [2, batch]):
        pass
    return time.perf_counter() - started


def _rates(server: RedisServer, client: redis.Redis, conditions: Conditions, batch: int) -> list[Row]:
    count, rounds = (20_000, 3) if conditions.quick else (100_000, 5)
    started = time.perf_counter()
    _fill(client, count, 1)
    fill_seconds = time.perf_counter() - started
    taken = []
    for _ in range(rounds):
        client.flushdb()
        here = _dispatcher_seconds(server, client, count, batch, fill_seconds)
        assert client.llen(READY) == count
        client.flushdb()
        taken.append((here, _bare_seconds(client, count, batch)))
        assert client.llen(READY) == count
    client.flushdb()
    ours, loop = (Spread.of(column) for column in zip(*taken, strict=True))
    rate = Spread.of(bare / here for here, bare in taken)
    least = BATCHES[batch]
    return [
        Row(
            "zset",
            f"s until {count:,} members due at one instant are in the list, {batch:,} a call",
            str(ours),
            f"bare Lua loop {loop}",
            rate,
            f"ratio of rates >= {least}",
            rate.median >= least,
        )
    ]


def _now(client: redis.Redis) -> float:
    seconds, microseconds = client.time()
    return float(seconds + microseconds / 1e6)


def _lateness(server: RedisServer, client: redis.Redis, conditions: Conditions) -> list[Row]:
    """From the due time until a consumer has it, by Redis's clock; beside an hour of nothing."""
    count = 100 if conditions.quick else 500
    rows = []
    client.zadd(DELAYED, {"far": time.time() + 3600})
    for what, ahead in (("put 30 to 60 ms before it is due", 0.03), ("put when it is due, before all others", 0.0)):
        late = []
        with _dispatching(server, 10):
            for number in range(count):
                due = _now(client) + (ahead and ahead + number % 30 / 1000)
                client.zadd(DELAYED, {f"{number}": due})
                client.blpop([READY])
                late.append((_now(client) - due) * 1000)
                assert late[-1] >= 0
                time.sleep(0.01)
        figures = f"{percentile(late, 50):.2f}, {percentile(late, 99):.2f}"
        rows.append(Row("zset", f"ms late at a consumer, p50 and p99: {what}", figures, ""))
    return rows


def run(conditions: Conditions) -> Results:
    with conditions.server() as server, server.client() as client:
        rows = [row for batch in BATCHES for row in _rates(server, client, conditions, batch)]
        return rows + _lateness(server, client, conditions)
