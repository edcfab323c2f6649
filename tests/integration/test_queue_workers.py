"""Workers of a queue, in threads and in asyncio: each job is run, by one at a time, whatever becomes of whom."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from celery_delayq import DelayQError, DelayQueue, Job, Worker
from celery_delayq import asyncio as twin
from celery_delayq.embedded import RedisServer
from celery_delayq.keys import Keys
from celery_delayq.work import Outages
from tests import replication

#: What differs between versions of Redis is asked by the tests of the scripts.
ONE_REDIS = True

#: Starts a worker with a function, which sleeps by what it is given, and stops it afterwards.
Works = Callable[..., Any]


@pytest.fixture
def queue(server: RedisServer) -> Iterator[DelayQueue]:
    with DelayQueue(server.url(), "work") as queue:
        yield queue


def until(condition: Callable[[], object]) -> None:
    """Wait for it."""
    replication.until(condition, "a worker's work")


def idle(queue: DelayQueue) -> bool:
    """Whether nothing waits and nothing is reserved."""
    load = queue.stats()
    return not load.waiting and not load.reserved


class InLoop:
    """A worker of asyncio in a thread with a loop of its own, with the other's methods."""

    def __init__(self, url: str, fn: Callable[[Job], object], hands: int, **options: Any) -> None:
        self._url = url
        self._fn = fn
        self._hands = hands
        self._options = options
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with twin.DelayQueue(self._url, "work", max_attempts=3) as queue:

            async def fn(job: Job) -> None:
                pause = self._fn(job)
                await asyncio.sleep(pause if isinstance(pause, float) else 0)

            self._worker = twin.Worker(queue, fn, self._hands, **self._options)
            self._ready.set()
            await self._worker.run()

    def start(self) -> None:
        self._thread.start()
        self._ready.wait()

    def stop(self) -> bool:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._worker.stop)
        self._thread.join()
        return True


@pytest.fixture(params=["threads", "asyncio"])
def working(request: pytest.FixtureRequest, server: RedisServer) -> Works:
    """Makes a context manager of a worker of either kind: *fn* returns how long the job takes (s, a float)."""

    @contextmanager
    def work(fn: Callable[[Job], object], hands: int = 1, url: str = "", **options: Any) -> Iterator[Any]:
        url = url or server.url()
        with DelayQueue(url, "work", max_attempts=3) as own:

            def sleep(job: Job) -> None:
                pause = fn(job)
                time.sleep(pause if isinstance(pause, float) else 0)

            worker = (
                Worker(own, sleep, hands, **options)
                if request.param == "threads"
                else InLoop(url, fn, hands, **options)
            )
            worker.start()
            try:
                yield worker
            finally:
                worker.stop()

    return work


def test_every_job_is_run_once_and_forgotten(queue: DelayQueue, working: Works) -> None:
    """By two workers with several hands each, at once."""
    runs: Counter[str] = Counter()
    with working(lambda job: runs.update([job.id]), 4), working(lambda job: runs.update([job.id]), 4, prefetch=50):
        queue.put_many([(f"{number}", b"", None) for number in range(3000)])
        until(lambda: idle(queue))

    assert runs == Counter(map(str, range(3000)))
    assert queue.stats().dead == 0


def test_jobs_wait_for_their_time_and_workers_for_jobs(queue: DelayQueue, working: Works) -> None:
    """A worker that sleeps is woken by a put, and wakes when the next job is due."""
    late: list[float] = []

    def run(job: Job) -> None:
        late.append(time.time() - job.due.timestamp())

    with working(run, 2):
        time.sleep(0.3)
        queue.put("later", b"", delay=0.5)
        queue.put("now", b"")
        until(lambda: len(late) == 2)

    assert min(late) >= 0
    assert max(late) < 4  # by far less than a poll


def test_hands_work_at_once_and_no_more_are_held_than_said(queue: DelayQueue, working: Works) -> None:
    """Three hands, two jobs prefetched: five are reserved, three begun."""
    begun: list[str] = []

    def run(job: Job) -> float:
        begun.append(job.id)
        return 0.5

    queue.put_many([(f"{number}", b"", None) for number in range(9)])
    with working(run, 3, prefetch=2):
        until(lambda: len(begun) >= 3)
        assert queue.stats().reserved == 5
        assert len(begun) == 3


def test_a_job_that_takes_long_stays_reserved(queue: DelayQueue, working: Works) -> None:
    """For longer than its lease; another worker, looking all the time, does not get it."""
    runs: list[str] = []

    def run(job: Job) -> float:
        runs.append(job.id)
        return 2.5

    queue.put("long", b"")
    queue.put("prefetched", b"")
    with working(run, 1, lease=0.6), working(run, 1, lease=0.6):
        until(lambda: idle(queue))

    assert sorted(runs) == ["long", "prefetched"]


def test_a_job_that_fails_comes_back_and_is_dead_in_the_end(
    queue: DelayQueue, working: Works, caplog: pytest.LogCaptureFixture
) -> None:
    """After a pause that grows, with the reason; the others go on meanwhile."""
    begun: list[float] = []

    def run(job: Job) -> None:
        if job.id == "bad":
            begun.append(time.monotonic())
            raise ValueError("no such address")

    queue.put("bad", b"body")
    with working(run, 1):
        queue.put("good", b"")
        until(lambda: queue.stats().dead == 1)

    [dead] = queue.dead()
    assert (dead.id, dead.body, dead.attempts, dead.reason) == (b"bad", b"body", 3, "ValueError('no such address')")
    first, second, third = begun
    assert second - first >= 1
    assert third - second >= 2
    assert "job 'bad' has failed" in caplog.text


def test_a_worker_that_stops_finishes_and_gives_back(queue: DelayQueue, working: Works) -> None:
    """What it had begun is done; what it had fetched is for others, at once, and that was no attempt."""
    begun: list[str] = []

    def run(job: Job) -> float:
        begun.append(job.id)
        return 0.3

    queue.put_many([(f"{number}", b"", None) for number in range(10)])
    with working(run, 2, prefetch=6) as worker:
        until(lambda: len(begun) >= 2)
        assert worker.stop()

    load = queue.stats()
    assert (load.waiting, load.reserved) == (10 - len(begun), 0)
    assert all(job.attempts == 1 for job in queue.reserve(limit=10))


def test_a_job_that_was_lost_is_not_begun(queue: DelayQueue, working: Works, caplog: pytest.LogCaptureFixture) -> None:
    """Deleted while it was prefetched: its turn never comes, and the worker says what it has lost."""
    begun: list[str] = []

    def run(job: Job) -> float:
        begun.append(job.id)
        return 1.5

    queue.put("first", b"")
    queue.put("second", b"")
    with working(run, 1, lease=0.6):
        until(lambda: begun == ["first"] and queue.stats().reserved == 2)
        assert queue.delete("second")
        until(lambda: idle(queue))

    assert begun == ["first"]
    assert "job 'second' is no longer ours" in caplog.text


def test_redis_may_go_and_come_back(
    redis_server: RedisServer, working: Works, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed and started anew, with what it had saved: the worker goes on, and every job is run."""
    runs: Counter[str] = Counter()
    options = ["--appendonly", "yes", "--appendfsync", "always"]
    with (
        RedisServer(redis_server._program, options) as server,
        DelayQueue(server.url(), "work") as queue,
        working(lambda job: runs.update([job.id]), 2, server.url(), lease=1.0),
    ):
        queue.put_many([(f"{number}", b"", None) for number in range(100)])
        until(lambda: idle(queue))
        server.stop()
        until(lambda: "it goes on when Redis answers" in caplog.text)
        server.start()
        queue.put_many([(f"later {number}", b"", None) for number in range(100)])
        until(lambda: idle(queue))

    assert len(runs) == 200


def test_a_queue_that_cannot_be_used_ends_the_worker(
    queue: DelayQueue, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """With the error that says why."""
    with server.client() as client:
        client.set(Keys("delayq", queue="work").schedule("work"), "somebody else's")
    worker = Worker(queue, print)
    with pytest.raises(DelayQError, match="is a string"):
        worker.run()

    worker = Worker(queue, print)
    worker.start()
    until(lambda: "has ended" in caplog.text)
    with pytest.raises(DelayQError, match="is a string"):
        worker.stop()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threads": 0}, "threads must be 1"),
        ({"lease": 0.1}, "lease must be 0.5 seconds or more"),
        ({"prefetch": -1}, "prefetch must be 0"),
    ],
)
def test_a_worker_that_cannot_be_is_refused(queue: DelayQueue, options: dict[str, Any], words: str) -> None:
    """When it is made."""
    with pytest.raises(ValueError, match=words):
        Worker(queue, print, **options)


def test_a_worker_is_started_once(queue: DelayQueue) -> None:
    """It says so."""
    with Worker(queue, print) as worker, pytest.raises(RuntimeError, match="once"):
        worker.start()


def test_the_pause_between_attempts_at_redis_grows() -> None:
    """Up to five seconds, less a random part; and begins anew when Redis has answered."""
    outages = Outages("worker", jitter=lambda: 1.0)
    pauses = [outages.failed(OSError()) for _ in range(9)]
    assert pauses[:4] == [0.05, 0.1, 0.2, 0.4]
    assert pauses[-1] == 5
    assert outages.lasts()
    outages.over()
    assert Outages("worker", jitter=lambda: 0.0).failed(OSError()) == 0.025
    assert outages.failed(OSError()) == 0.05


PROGRAM = """
import os, sys, time
from celery_delayq import DelayQueue, Worker

def work(job):
    os.write(1, f"begun {job.id}\\n".encode())
    time.sleep(float(job.body))
    os.write(1, f"done {job.id}\\n".encode())

Worker(DelayQueue(sys.argv[1], "work"), work, threads=2, lease=1, prefetch=2).run()
print("ended", flush=True)
"""


@contextmanager
def program(server: RedisServer) -> Iterator[subprocess.Popen[str]]:
    """A worker of two threads, as a program of its own."""
    command = [sys.executable, "-c", PROGRAM, server.url()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_killed_worker_loses_nothing(server: RedisServer, queue: DelayQueue) -> None:
    """SIGKILL while it works on two jobs and holds two more: another gets all four when their leases are over."""
    queue.put_many([(f"{number}", b"600", None) for number in range(4)])
    with program(server) as process:
        assert process.stdout
        assert {process.stdout.readline().split()[1] for _ in range(2)} == {"0", "1"}
        until(lambda: queue.stats().reserved == 4)
        process.kill()

    taken: dict[str, int] = {}
    while len(taken) < 4:
        taken.update((job.id, job.attempts) for job in queue.reserve(limit=4, wait=60))
    assert taken == {"0": 2, "1": 2, "2": 2, "3": 2}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_worker_kindly(server: RedisServer, queue: DelayQueue, number: signal.Signals) -> None:
    """What is begun is finished, the rest given back, and the program goes on behind its worker."""
    queue.put_many([(f"{number}", b"0.5", None) for number in range(4)])
    with program(server) as process:
        assert process.stdout
        process.stdout.readline()
        process.stdout.readline()
        process.send_signal(number)
        rest = process.stdout.read().splitlines()

    warning, *rest = rest
    assert "a second signal ends it at once" in warning
    assert sorted(rest) == ["done 0", "done 1", "ended"]
    assert process.returncode == 0
    assert (queue.stats().waiting, queue.stats().reserved) == (2, 0)


def test_a_second_signal_insists(server: RedisServer, queue: DelayQueue) -> None:
    """Whatever is being worked on; it comes back when its lease is over."""
    queue.put("long", b"600")
    with program(server) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert "a second signal ends it at once" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM

    [job] = queue.reserve(wait=60)
    assert job.attempts == 2


def test_a_worker_that_never_began_has_nothing_to_finish(queue: DelayQueue) -> None:
    """To stop it returns at once; and it does not begin after that."""
    worker = Worker(queue, print)
    queue.put("a", b"")

    assert worker.stop()
    worker.run()
    assert queue.stats().waiting == 1


def test_a_job_whose_own_work_was_cancelled_has_failed(server: RedisServer, queue: DelayQueue) -> None:
    """Not its worker: so that was an attempt, and the next comes after a pause."""

    async def work_on() -> None:
        async def work(job: Job) -> None:
            raise asyncio.CancelledError

        async with twin.DelayQueue(server.url(), "work", max_attempts=1) as own:
            worker = twin.Worker(own, work)
            task = asyncio.create_task(worker.run())
            while not (await own.stats()).dead:
                await asyncio.sleep(0.01)
            worker.stop()
            await task

    queue.put("a", b"")
    asyncio.run(work_on())
    [dead] = queue.dead()
    assert (dead.id, dead.attempts, dead.reason) == (b"a", 1, "CancelledError()")


def test_what_is_begun_is_finished_when_redis_has_gone(redis_server: RedisServer) -> None:
    """Whoever stops a worker that cannot reach Redis cuts off nothing. (It comes again: nobody could ack it.)"""
    finished: list[str] = []

    async def work_on() -> None:
        begun = asyncio.Event()

        async def work(job: Job) -> None:
            begun.set()
            await asyncio.sleep(15)
            finished.append(job.id)

        with RedisServer(redis_server._program) as own_server:
            async with twin.DelayQueue(own_server.url(), "work") as own:
                await own.put("a", b"")
                worker = twin.Worker(own, work)
                task = asyncio.create_task(worker.run())
                await begun.wait()
                own_server.stop()
                worker.stop()
                await task

    asyncio.run(work_on())
    assert finished == ["a"]


def test_a_cancelled_task_gives_back_what_it_holds(server: RedisServer, queue: DelayQueue) -> None:
    """Cancelled from without, as by a server that ends: what was being worked on is for others, at once."""

    async def cancel() -> list[str]:
        begun: list[str] = []

        async def work(job: Job) -> None:
            begun.append(job.id)
            await asyncio.sleep(600)

        async with twin.DelayQueue(server.url(), "work") as own:
            task = asyncio.create_task(twin.Worker(own, work, concurrency=2, prefetch=2).run())
            while len(begun) < 2:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return begun

    queue.put_many([(f"{number}", b"", None) for number in range(4)])
    assert asyncio.run(cancel()) == ["0", "1"]
    assert (queue.stats().waiting, queue.stats().reserved) == (4, 0)


def test_a_cancellation_is_heard_at_any_moment(server: RedisServer) -> None:
    """Also at the very moment at which the worker is woken for another reason."""

    async def cancel(loops: int) -> bool:
        async def work(job: Job) -> None:
            """Nothing: that wakes the worker."""

        async with twin.DelayQueue(server.url(), "work") as own:
            await own.put("a", b"", on_conflict="keep")
            task = asyncio.create_task(twin.Worker(own, work).run())
            for _ in range(loops):
                await asyncio.sleep(0)
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=20)
            return bool(done)

    assert [loops for loops in range(120) if not asyncio.run(cancel(loops))] == []
