"""What the verbs of a queue cost, beside the bare commands that any implementation must at least send.

Queues with ten thousand, a hundred thousand and a million jobs waiting, in one server; blocks alternate from ours to
the bare one, which works on the very same keys, and from queue to queue. Each block is measured twice: by the caller's
clock; and by Redis's own (``INFO commandstats``), in which nothing counts but the commands, not even their parsing. A
client is redis-py in both cases. The bare ones give no promises: they look for no conflict, keep no order, know no
hold, count no attempts, check no token, and tell nobody.
"""

from __future__ import annotations

import random
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import redis

from celery_delayq.clock import SECOND_US
from celery_delayq.delivery import Delivery
from celery_delayq.job import OnConflict, Put
from celery_delayq.queue import DelayQueue
from celery_delayq.queue_protocol import DELIVERY
from celery_delayq.store import Store

from .backlog import DAY_US
from .burst import BARE as BARE_DISPATCH
from .conditions import Conditions
from .report import Results, Row, Spread

#: Jobs of one block; where each is a call of its own, or two, so many.
BLOCK, SINGLES = 1000, 200

TAKE = """
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
if #ids == 0 then
  return {ids, ids}
end
local bodies = redis.call('HMGET', KEYS[2], unpack(ids))
redis.call('HDEL', KEYS[2], unpack(ids))
redis.call('ZREM', KEYS[1], unpack(ids))
"""

BARE_PULL = TAKE + "return {ids, bodies}"

LEASE = """
local leases, fields = {}, {}
for number, id in ipairs(ids) do
  leases[2 * number - 1], leases[2 * number] = ARGV[3], id
  fields[2 * number - 1], fields[2 * number] = id, bodies[number]
end
redis.call('HSET', KEYS[4], unpack(fields))
redis.call('ZADD', KEYS[3], unpack(leases))
return {ids, bodies}
"""

BARE_RESERVE = TAKE + LEASE

BARE_ACK = """
redis.call('HDEL', KEYS[2], unpack(ARGV))
return redis.call('ZREM', KEYS[1], unpack(ARGV))
"""

New = tuple[bytes, bytes, float]


class Site:
    """A queue with so many jobs waiting, and both ways to it."""

    def __init__(self, url: str, waiting: int, body_bytes: int) -> None:
        self.waiting = waiting
        self.queue = DelayQueue(url, f"of-{waiting}")
        self.client: redis.Redis = redis.Redis.from_url(url)
        keys, topic = self.queue.protocol.keys(0), self.queue.topic
        self.leasing, self.plain = (Store(self.client, keys, leases=leases) for leases in (True, False))
        self.schedule, self.jobs = keys.schedule(topic), keys.jobs(topic)
        self.leases, self.reserved = keys.leases(topic), keys.reserved(topic)
        self.ready = f"ready-of-{waiting}"
        self._body = b"x" * body_bytes
        self._dice = random.Random(waiting)
        assert len(self.queue) == 0

    def fill(self) -> None:
        """Jobs that are due between one and thirty days from now, in no order."""
        now_us = self.leasing.now_us()
        for first in range(0, self.waiting, BLOCK):
            count = min(BLOCK, self.waiting - first)
            self._restore([now_us + self._dice.randrange(DAY_US, 30 * DAY_US) for _ in range(count)])
        assert len(self.queue) == self.waiting

    def ripen(self, count: int) -> None:
        """So many more jobs, which are due, each at a time of its own."""
        now_us = self.leasing.now_us()
        self._restore([now_us - count + number for number in range(count)])

    def _restore(self, dues_us: Sequence[int]) -> None:
        puts = [Put(self.queue.topic, self._id(), self._body, at_us=due_us) for due_us in dues_us]
        self.leasing.restore(puts, {self.queue.topic: DELIVERY}, OnConflict.ERROR)

    def _id(self) -> bytes:
        return uuid.UUID(int=self._dice.getrandbits(128)).hex.encode()

    def new(self, count: int) -> list[New]:
        """So many jobs to put, none of them the earliest: id, body, seconds since the epoch."""
        now = time.time()
        days = DAY_US / SECOND_US
        return [(self._id(), self._body, now + self._dice.uniform(3 * days, 30 * days)) for _ in range(count)]

    def tidy(self, jobs: Sequence[New]) -> None:
        """As it was before."""
        ids = [id for id, _, _ in jobs]
        if ids:
            self.client.zrem(self.schedule, *ids)
            self.client.hdel(self.jobs, *ids)
        self.client.delete(self.ready)
        assert len(self.queue) == self.waiting
        assert self.queue.stats().reserved == 0


Work = Callable[[Site, list[New]], None]


def _put(site: Site, jobs: list[New]) -> None:
    for id, body, at in jobs:
        site.queue.put(id, body, at)


def _bare_put(site: Site, jobs: list[New]) -> None:
    for job in jobs:
        _bare_put_many(site, [job])


def _put_many(site: Site, jobs: list[New]) -> None:
    assert site.queue.put_many(jobs) == len(jobs)


def _bare_put_many(site: Site, jobs: list[New]) -> None:
    with site.client.pipeline(transaction=False) as pipe:
        for id, body, at in jobs:
            pipe.hset(site.jobs, id, body)
            pipe.zadd(site.schedule, {id: int(at * SECOND_US)})
        pipe.execute()


def _bare_put_at_once(site: Site, jobs: list[New]) -> None:
    with site.client.pipeline(transaction=False) as pipe:
        pipe.hset(site.jobs, mapping={id: body for id, body, _ in jobs})
        pipe.zadd(site.schedule, {id: int(at * SECOND_US) for id, _, at in jobs})
        pipe.execute()


def _reserve_and_ack(limit: int, calls: int, site: Site, _: list[New]) -> None:
    for _call in range(calls):
        jobs = site.queue.reserve(limit=limit)
        assert len(jobs) == limit
        site.queue.ack(*jobs)


def _bare_reserve_and_ack(limit: int, calls: int, site: Site, _: list[New]) -> None:
    reserve, ack = site.client.register_script(BARE_RESERVE), site.client.register_script(BARE_ACK)
    for _call in range(calls):
        now_us = int(time.time() * SECOND_US)
        args = [now_us, limit, now_us + 60 * SECOND_US]
        ids, bodies = reserve([site.schedule, site.jobs, site.leases, site.reserved], args)
        assert len(ids) == len(bodies) == limit
        assert ack([site.leases, site.reserved], ids) == limit


def _pull(limit: int, calls: int, site: Site, _: list[New]) -> None:
    for _call in range(calls):
        assert len(site.queue.pull(limit)) == limit


def _bare_pull(limit: int, calls: int, site: Site, _: list[New]) -> None:
    pull = site.client.register_script(BARE_PULL)
    for _call in range(calls):
        ids, bodies = pull([site.schedule, site.jobs], [int(time.time() * SECOND_US), limit])
        assert len(ids) == len(bodies) == limit


def _dispatch(site: Site, _: list[New]) -> None:
    assert site.plain.dispatch(site.queue.topic, Delivery.plain(site.ready), BLOCK).moved == BLOCK


def _bare_dispatch(site: Site, _: list[New]) -> None:
    script = site.client.register_script(BARE_DISPATCH)
    assert script([site.schedule, site.jobs, site.ready], [int(time.time() * SECOND_US)]) == BLOCK


@dataclass(frozen=True)
class Contest:
    """One thing that is done in two ways.

    Attributes:
        name: what is done.
        compared: what the bare way is.
        jobs: of one block.
        is_put: whether the block gets new jobs, or finds them due.
        least: ours should be so many times as fast as the bare way, by the caller's clock; and
        least_in_redis: by Redis's own.
    """

    name: str
    ours: Work
    compared: str
    bare: Work
    jobs: int = BLOCK
    is_put: bool = False
    least: float | None = None
    least_in_redis: float | None = None


def _contests() -> list[Contest]:
    both, at_once = "HSET and ZADD for each, in one pipeline", "one HSET and one ZADD for all"
    contests = [
        Contest("put, one by one", _put, both, _bare_put, SINGLES, is_put=True),
        Contest(f"put_many of {BLOCK}", _put_many, both, _bare_put_many, is_put=True, least=0.7),
        Contest(f"put_many of {BLOCK}", _put_many, at_once, _bare_put_at_once, is_put=True),
    ]
    for limit in (1, 100, 1000):
        jobs = SINGLES if limit == 1 else BLOCK
        for name, ours, bare in (
            ("reserve and ack", _reserve_and_ack, _bare_reserve_and_ack),
            ("pull", _pull, _bare_pull),
        ):
            works = (partial(work, limit, jobs // limit) for work in (ours, bare))
            contests.append(Contest(f"{name}, {limit} at once", next(works), "bare Lua", next(works), jobs))
    contests.append(
        Contest(f"dispatch, {BLOCK} at once", _dispatch, "bare Lua", _bare_dispatch, least=0.75, least_in_redis=0.75)
    )
    return contests


def _measured(site: Site, contest: Contest, work: Work) -> tuple[float, float]:
    """What a job of a block takes (us): by the caller's clock, by Redis's."""
    jobs = site.new(contest.jobs) if contest.is_put else []
    if not contest.is_put:
        site.ripen(contest.jobs)
    site.client.config_resetstat()
    started = time.perf_counter()
    work(site, jobs)
    taken = (time.perf_counter() - started) * SECOND_US
    stats: Any = site.client.info("commandstats")
    calls = ("evalsha", "eval") if "cmdstat_evalsha" in stats else ("hset", "zadd")
    in_redis = sum(stats[f"cmdstat_{call}"]["usec"] for call in calls if f"cmdstat_{call}" in stats)
    site.tidy(jobs)
    return taken / contest.jobs, in_redis / contest.jobs


def _compare(name: str, sites: Sequence[Site], rounds: int, most: float | None) -> list[Row]:
    contests = _contests()
    turns: dict[tuple[int, int], list[tuple[tuple[float, float], tuple[float, float]]]] = defaultdict(list)
    for number in range(-1, rounds):
        for which, contest in enumerate(contests):
            for place, site in enumerate(sites):
                pair = _measured(site, contest, contest.ours), _measured(site, contest, contest.bare)
                if number >= 0:  # the first round loads the scripts
                    turns[which, place].append(pair)
    rows = []
    for which, contest in enumerate(contests):
        for clock, (whose, least) in enumerate(
            (("round trips", contest.least), ("in Redis", contest.least_in_redis)),
        ):
            for place, site in enumerate(sites):
                ours, bare = ([pair[side][clock] for pair in turns[which, place]] for side in (0, 1))
                ratio = Spread.of(b / a for a, b in zip(ours, bare, strict=True))
                rows.append(
                    Row(
                        name,
                        f"{contest.name}, {site.waiting:,} waiting, {whose}, us a job",
                        f"{Spread.of(ours).median:.1f}",
                        f"{contest.compared}: {Spread.of(bare).median:.1f}",
                        ratio,
                        f"rate >= {least} times" if least else "",
                        ratio.median >= least if least else None,
                    )
                )
    return rows + _growth(name, contests, sites, turns, most)


def _growth(name: str, contests: Sequence[Contest], sites: Sequence[Site], turns: Any, most: float | None) -> list[Row]:
    """What the verbs cost with most jobs waiting, against fewest: *most* times as much at the most, if given."""
    rows = []
    last = len(sites) - 1
    for which, contest in enumerate(contests):
        if contest.compared.startswith("one "):  # measured already
            continue
        for clock, whose in enumerate(("round trips", "in Redis")):
            few, many, bare_few, bare_many = (
                [pair[side][clock] for pair in turns[which, place]] for side in (0, 1) for place in (0, last)
            )
            ratio = Spread.of(b / a for a, b in zip(few, many, strict=True))
            bare = Spread.of(b / a for a, b in zip(bare_few, bare_many, strict=True))
            rows.append(
                Row(
                    name,
                    f"{contest.name}, {whose}, us a job",
                    f"{Spread.of(many).median:.1f} with {sites[last].waiting:,} waiting",
                    f"{Spread.of(few).median:.1f} with {sites[0].waiting:,}; the bare way {bare.median:.2f} times",
                    ratio,
                    f"ratio <= {most}" if most else "",
                    ratio.median <= most if most else None,
                )
            )
    return rows


def run(conditions: Conditions) -> Results:
    counts, rounds = ((10_000, 100_000), 5) if conditions.quick else ((10_000, 100_000, 1_000_000), 20)
    with conditions.server() as server:
        sites = [Site(server.url(), count, 1000) for count in counts]
        for site in sites:
            site.fill()
        return _compare("verbs", sites, rounds, most=1.5)


def run_ten_million(conditions: Conditions) -> Results:
    """The same with ten million small jobs: some minutes, and three gigabytes for Redis.

    How much more they cost than ten thousand informs only: those lie in the processor's caches, and the bare way, too,
    pays for what does not.
    """
    few, many, body_bytes, rounds = 10_000, 10_000_000, 16, 3 if conditions.quick else 10
    with conditions.server() as server, server.client() as client:
        sites = [Site(server.url(), count, body_bytes) for count in (few, many)]
        sites[0].fill()
        before = client.info("memory")["used_memory"]
        started = time.perf_counter()
        sites[1].fill()
        taken = time.perf_counter() - started
        memory = client.info("memory")["used_memory"] - before
        filled = Row(
            "ten-million",
            f"s until {many:,} jobs of {body_bytes} bytes wait, restored {BLOCK} at once",
            f"{taken:.0f}",
            f"{memory / many:.0f} bytes of Redis memory each, {memory / 1e9:.2f} GB",
        )
        return [filled, *_compare("ten-million", sites, rounds, most=None)]
