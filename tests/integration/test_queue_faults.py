"""A worker's turns, with the connection lost at each question that they ask, before or after Redis has answered it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from celery_delayq import DelayQueue, Job
from celery_delayq.embedded import RedisServer
from celery_delayq.queue_protocol import Steps
from celery_delayq.scripts import script
from celery_delayq.work import Turn, Work

#: What is asked does not differ between versions of Redis.
ONE_REDIS = True

#: Long (s): no lease runs out by itself here.
LEASE = 3600.0

#: A worker that is not disturbed asks so often, at least.
CUTS = 20


class Cut:
    """Runs operations of a queue, and loses the connection at one question, counted from 0."""

    def __init__(self, queue: DelayQueue, at: int, *, answered: bool) -> None:
        self._queue = queue
        self._at = at
        self._answered = answered
        self.asked: list[str] = []

    def run(self, steps: Steps[Turn]) -> Turn:
        def watched() -> Iterator[Any]:
            answer = yield from self._asks(steps)
            return answer

        return self._queue.run(watched())  # type: ignore[arg-type]

    def _asks(self, steps: Steps[Turn]) -> Any:
        try:
            ask = next(steps)
            while True:
                cuts = len(self.asked) == self._at
                words = getattr(ask.call, "words", None) or ask.call.prepared.words(())
                self.asked.append(" ".join(map(str, words[:2])))
                try:
                    if cuts and not self._answered:
                        raise redis.ConnectionError("cut")
                    answer = yield ask
                    if cuts:
                        raise redis.ConnectionError("cut")
                except redis.RedisError as error:
                    ask = steps.throw(error)
                else:
                    ask = steps.send(answer)
        except StopIteration as end:
            return end.value


def work_off(queue: DelayQueue, cut: Cut) -> tuple[Counter[str], list[Turn]]:
    """Have jobs worked on, three at once; one fails once, one takes long. How often each was run, and the turns."""
    queue.put_many([(f"{number}", b"", None) for number in range(6)])
    work = Work(queue.protocol, LEASE, hands=2, prefetch=1)
    runs: Counter[str] = Counter()
    turns: list[Turn] = []
    slow: dict[int, Job] = {}
    for number in range(100):
        for ready in [turn for turn in slow if turn <= number]:
            work.done(slow.pop(ready))
        try:
            # Each third turn has leases to renew.
            turns.append(cut.run(work.turn(number * LEASE / 9, takes=True)))
        except redis.ConnectionError:
            continue
        for job in turns[-1].taken:
            runs[job.id] += 1
            if job.id == "0":
                slow[number + 5] = job
            elif job.id == "4" and runs["4"] == 1:
                work.failed(job, RuntimeError("once"))
                queue.put("late", b"", on_conflict="keep")
            else:
                work.done(job)
        if not turns[-1].taken and not work.held and not slow:
            release_all(queue)
            if not queue.stats().waiting:
                break
    return runs, turns


def release_all(queue: DelayQueue) -> None:
    """What nobody knows of comes back when its lease is over: now. And what waits for its next attempt is due."""
    protocol = queue.protocol
    keys = protocol.keys(0)
    with redis.Redis.from_url(queue_url(queue)) as client:
        for id in client.zrange(keys.leases(queue.topic), 0, -1):
            client.zadd(keys.leases(queue.topic), {id: 1}, xx=True)
    queue.requeue()
    for job in list(queue.scheduled()):
        queue.move(job.id, delay=0)


def queue_url(queue: DelayQueue) -> str:
    options = queue._link._clients[0].connection_pool.connection_kwargs
    return f"redis://{options['host']}:{options['port']}/{options.get('db', 0)}"


@pytest.fixture
def queue(server: RedisServer) -> Iterator[DelayQueue]:
    with DelayQueue(server.url(), "work") as queue:
        yield queue


def test_without_a_cut_each_job_is_run_once(queue: DelayQueue) -> None:
    """But the one that fails."""
    cut = Cut(queue, 10**6, answered=True)
    runs, turns = work_off(queue, cut)

    for verb in ("reserve", "ack", "extend", "release"):
        assert f"EVALSHA {script(verb).sha}" in cut.asked[:CUTS]
    assert runs == {"0": 1, "1": 1, "2": 1, "3": 1, "4": 2, "5": 1, "late": 1}
    assert (sum(turn.acked for turn in turns), sum(turn.failed for turn in turns)) == (7, 1)


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("at", range(CUTS))
def test_a_cut_anywhere_loses_no_job(queue: DelayQueue, at: int, answered: bool) -> None:
    """Each is run; and none twice, for what the worker still knows of it asks again."""
    cut = Cut(queue, at, answered=answered)
    runs, turns = work_off(queue, cut)

    assert len(cut.asked) > at
    assert runs == {"0": 1, "1": 1, "2": 1, "3": 1, "4": 2, "5": 1, "late": 1}
    assert queue.stats() == queue.stats().__class__(0, 0, 0, 0)
    assert sum(turn.acked for turn in turns) <= 7


def test_a_job_is_known_by_its_token(queue: DelayQueue) -> None:
    """One that is not held is not ours, and nothing is to be given back of it."""
    work = Work(queue.protocol, LEASE, hands=1, prefetch=0)
    stranger = Job("x", b"", queue.put("x", b"") or next(iter(queue.scheduled())).due, 1, "not ours")

    assert not work.is_ours(stranger, 0.0)
    work.untouched(stranger)
    [job] = queue.run(work.turn(0.0, takes=True)).taken
    assert work.is_ours(job, LEASE - 1)
    assert not work.is_ours(job, LEASE)
