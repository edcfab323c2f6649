"""A worker of a queue for asyncio: what :mod:`celery_delayq.worker` does, with tasks in place of threads."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic

import redis

from celery_delayq.job import Job
from celery_delayq.queue import CONFIRMATION, DEAF_POLL
from celery_delayq.queue_protocol import LEASE
from celery_delayq.work import Outages, Work, checked_worker

from .queue import DelayQueue

#: Who has not heard of his cancellation within this time (s) is told again.
SWALLOWED = 0.1


class Worker:
    """Runs *fn* for each due job of *queue*, in tasks, as :class:`celery_delayq.Worker` does in threads.

    Args:
        fn: is awaited with a :class:`~celery_delayq.job.Job`.
        concurrency: so many at once.
        queue, lease, prefetch: as there.
    """

    def __init__(
        self,
        queue: DelayQueue,
        fn: Callable[[Job], Awaitable[object]],
        concurrency: int = 1,
        lease: float = LEASE,
        prefetch: int | None = None,
    ) -> None:
        prefetch = checked_worker("concurrency", concurrency, lease, prefetch)
        self._queue = queue
        self._fn = fn
        self._work = Work(queue.protocol, lease, concurrency, prefetch)
        self._concurrency = concurrency
        self._waiting: deque[Job] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        self._stopping = False
        self._cancelled = False

    def stop(self) -> None:
        """Take no more jobs, finish those that are worked on, and give back the others; :meth:`run` returns then."""
        self._stopping = True
        self._news.set()

    async def run(self) -> None:
        """Work until :meth:`stop` is called. When it is cancelled, so are the jobs that are worked on, and given back.

        Raises:
            DelayQError: the queue cannot be used.
        """
        keeper, listener = asyncio.create_task(self._keep()), asyncio.create_task(self._listen())
        try:
            await asyncio.wait([keeper])
            self._stopping = True  # he may have given up, or the queue be unusable: only what is begun is finished
            self._take_back()
            while self._tasks:
                await asyncio.wait(self._tasks)
        except asyncio.CancelledError:
            await _end(keeper)
            await self._abandon()
            raise
        finally:
            await _end(keeper, listener)
        keeper.result()

    async def _keep(self) -> None:
        """Make turn after turn, until all is finished."""
        outages = Outages(f"delayq worker of {self._queue.topic}")
        while True:
            self._news.clear()  # before the turn: what happens meanwhile is not slept over
            takes = not self._stopping
            if not takes:
                self._take_back()
            try:
                turn = await self._queue.run(self._work.turn(monotonic(), takes=takes))
            except redis.RedisError as error:
                wait = outages.failed(error)
                if not takes and outages.lasts():
                    return
            else:
                outages.over()
                self._waiting += turn.taken
                self._begin()
                if not takes and not self._work.held:
                    return
                wait = turn.wait
            await self._rest(wait)

    async def _rest(self, seconds: float) -> None:
        """Until there is news, or so long. Not ``asyncio.wait_for``: before Python 3.12 it takes no notice of a
        cancellation that comes together with the news.
        """
        alarm = None
        if seconds != float("inf"):
            alarm = asyncio.get_running_loop().call_later(seconds, self._news.set)
        try:
            await self._news.wait()
        finally:
            if alarm is not None:
                alarm.cancel()

    async def _abandon(self) -> None:
        """Who was cancelled gives back what he holds, if Redis answers; else it comes back by itself."""
        self._stopping = self._cancelled = True
        await _end(*self._tasks)
        self._take_back()
        with suppress(redis.RedisError):
            await self._queue.run(self._work.turn(monotonic(), takes=False))

    def _begin(self) -> None:
        while self._waiting and len(self._tasks) < self._concurrency:
            job = self._waiting.popleft()
            if not self._work.is_ours(job, monotonic()):
                self._work.untouched(job)
                continue
            task = asyncio.create_task(self._do(job))
            self._tasks.add(task)
            task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._stopping:
            self._begin()
        self._news.set()

    def _take_back(self) -> None:
        """Jobs that nobody has begun are for other workers."""
        while self._waiting:
            self._work.untouched(self._waiting.popleft())

    async def _do(self, job: Job) -> None:
        try:
            await self._fn(job)
        except asyncio.CancelledError as error:
            if self._cancelled:
                self._work.untouched(job)
                raise
            self._work.failed(job, error)  # what it waited for was cancelled, and not the worker
        except Exception as error:  # noqa: BLE001  # whatever it is, it is logged, and the job comes back
            self._work.failed(job, error)
        else:
            self._work.done(job)

    async def _listen(self) -> None:
        """Tell the keeper when a job became the earliest."""
        while True:
            try:
                async with self._queue.listening() as ear:
                    self._news.set()  # what was said before was not heard
                    while True:
                        if await ear.listen(CONFIRMATION):
                            self._news.set()
                        await ear.attend(self._queue.protocol.channels)  # of shards that were added
            except redis.RedisError:  # the keeper will see for himself
                self._news.set()
                await asyncio.sleep(DEAF_POLL)


async def _end(*tasks: asyncio.Task[None]) -> None:
    """Cancel *tasks*, until they have heard it: what they wait for, as a connect of redis-py's, may swallow that."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=SWALLOWED)
